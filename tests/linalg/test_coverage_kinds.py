"""Coverage on random matrices of many kinds (`random_spectra.py`); with 2 000 seeds see benchmarks/coverage.py.

The bound on the share of covered seeds is the one that an interval covering 93 % passes with probability 0.9999.
"""

import math

import pytest
import torch
from scipy import stats

from frechet.analyze._layers import layer_traces
from frechet.linalg._diagonal import diagonal
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._quadratic_forms import dominated
from frechet.linalg._trace import trace
from frechet.linalg._xtrace import draw as on_a_sphere
from frechet.operators._constructors import from_callable
from frechet.space import Space, euclidean
from random_spectra import HELD_OUT, KINDS, draw

SEEDS = 120
LEAST = stats.binom.ppf(1e-4, SEEDS, 0.93) / SEEDS
F32, F64 = torch.float32, torch.float64


def opaque(M, facts, space=None):
    space = space or euclidean(len(M), M.dtype)
    return from_callable(lambda V: (V.T @ M.T).T, space, rmatmat=lambda U: (U.T @ M).T, facts=facts)


def measured(made, truth):
    """The share of covered seeds, and the mean width over 1.96 standard deviations."""
    ends = [(float(e), *map(float, e.interval())) for e in map(made, range(SEEDS))]
    value, low, high = torch.tensor(ends, dtype=F64).T
    sd = float((value - truth).square().mean().sqrt())
    width = float((high - low).mean()) / 2 / (1.96 * sd) if sd > 1e-9 * abs(truth) + 1e-12 else 0.0
    return float(((low <= truth) & (truth <= high)).double().mean()), width


@pytest.mark.parametrize("kind", [*KINDS, *HELD_OUT])
@pytest.mark.parametrize(("method", "products"), [("hutchinson", 10), ("hutchinson", 16), ("hutch++", 12)])
def test_traces_of_few_products_cover(kind, method, products):
    drawn = draw(kind, 1, most=100)
    if len(drawn.matrix) <= products:
        drawn = draw(kind, 4, most=100)
    A, truth = opaque(drawn.matrix, drawn.facts), float(drawn.matrix.trace())
    coverage, width = measured(lambda s: trace(A, seed=s, products=products, method=method), truth)
    assert coverage >= LEAST
    assert width <= 3


@pytest.mark.parametrize("kind", ["rank_one", "outlier", "ones_by_blocks", "triangular", "cancelling", "two_scales"])
@pytest.mark.parametrize("products", [10, 24])
def test_norms_cover(kind, products):
    drawn = draw(kind, 2, most=100)
    A, truth = opaque(drawn.matrix, drawn.facts), float(drawn.matrix.square().sum().sqrt())
    if len(drawn.matrix) <= products:
        pytest.skip("so many products are exact")
    coverage, width = measured(lambda s: frobenius_norm(A, seed=s, products=products), truth)
    assert coverage >= LEAST
    assert width <= (2.2 if products >= 20 else 3)  # 0.2 for the error of a width from 120 seeds


@pytest.mark.parametrize("probes", [8, 24])
@pytest.mark.parametrize("kind", ["gauss", "ones", "outlier", "diagonal and ones"])
def test_traces_and_shares_of_layers_cover(kind, probes):
    n = 60
    v = torch.randn(n, dtype=F64, generator=torch.Generator().manual_seed(3))
    M = {
        "gauss": torch.outer(v, v),
        "ones": torch.ones(n, n, dtype=F64),
        "outlier": 50 * torch.outer(v, v) / (v @ v) + torch.diag(torch.linspace(0, 1, n, dtype=F64)),
        "diagonal and ones": 0.1 * torch.ones(n, n, dtype=F64) + torch.diag(torch.linspace(0, 1, n, dtype=F64)),
    }[kind]
    space = Space(("a.weight", "b.weight"), ((20,), (40,)), F64)
    A, truth = opaque(M, "symmetric", space), float(M.diagonal()[:20].sum())
    inside = torch.zeros(2)
    for seed in range(SEEDS):
        layer = layer_traces(A, seed=seed, probes=probes).modules[0]
        low, high = map(float, layer.trace.interval())
        inside[0] += low <= truth <= high
        inside[1] += layer.lower <= truth / float(M.trace()) <= layer.upper
    assert bool((inside / SEEDS >= LEAST).all())


def test_the_sample_variance_would_not_cover_a_matrix_of_rank_one():
    v = torch.randn(100, dtype=F64, generator=torch.Generator().manual_seed(7))
    space, missed = euclidean(100, F64), 0
    for seed in range(400):
        x = (space.random(range(10), seed).T @ v).square()
        half = stats.t.ppf(0.975, 9) * float(x.std()) / math.sqrt(10)
        missed += abs(float(x.mean() - v @ v)) > half
    assert missed > 400 * 0.09


@pytest.mark.parametrize("k", [4, 10, 30])
def test_degrees_of_freedom_of_one_dominating_eigenvalue(k):
    x = torch.randn(20_000, k, dtype=F64, generator=torch.Generator().manual_seed(k)).square()
    half = stats.t.ppf(0.975, dominated(k)) * x.std(1) / math.sqrt(k)
    assert 0.945 <= float(((x.mean(1) - 1).abs() <= half).double().mean()) <= 0.96


@pytest.mark.parametrize(("dtype", "scale"), [(F64, 1e-200), (F64, 1e-165), (F64, 1e150), (F32, 1e-30), (F32, 1e-24)])
@pytest.mark.parametrize(
    "estimate",
    [
        lambda A: trace(A, seed=0, products=12),
        lambda A: trace(A, seed=0, products=30),
        lambda A: trace(A, seed=0, products=30, method="hutch++"),
        lambda A: trace(A, seed=0, products=30, method="nystrom"),
        lambda A: diagonal(A, seed=0, products=20),
        lambda A: diagonal(A, seed=0, products=20, method="xdiag"),
        lambda A: frobenius_norm(A, seed=0, products=30),
        lambda A: layer_traces(A, seed=0, probes=12).modules[0].trace,
    ],
)
def test_estimates_and_bars_do_not_depend_on_the_scale(estimate, dtype, scale):
    M = draw("wishart", 3, most=200).matrix[:60, :60]
    M = (M @ M.T + torch.eye(len(M), dtype=F64)) / len(M)
    plain, tiny = (estimate(opaque((M * s).to(dtype), "positive_semidefinite")) for s in (1.0, scale))
    assert torch.allclose(tiny.value.double() / scale, plain.value.double(), rtol=1e-3)
    assert torch.allclose(tiny.standard_error.double() / scale, plain.standard_error.double(), rtol=1e-2)
    assert bool((tiny.standard_error > 0).all())


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "nystrom"])
@pytest.mark.parametrize("skew", [1.0, 0.2])
def test_an_operator_falsely_declared_symmetric_is_told(method, skew):
    G = torch.randn(80, 80, dtype=F64, generator=torch.Generator().manual_seed(0))
    A = opaque(G @ G.T + 20 * skew * (G - G.T), "positive_semidefinite")
    with pytest.raises(ValueError, match=r"trace: A must be symmetric, as its facts say, got u'A v and v'A u"):
        trace(A, seed=0, products=30, method=method)
    with pytest.raises(ValueError, match=r"layer_traces: A must be symmetric"):
        layer_traces(A, seed=0, probes=8)


def test_noise_of_low_precision_is_no_asymmetry():
    M = draw("wishart", 3, most=200).matrix[:60, :60].float()
    A = from_callable(lambda V: (V.T.bfloat16() @ M.bfloat16()).float().T, euclidean(len(M)), facts="symmetric")
    assert trace(A, seed=0, products=20).products == 20
    assert on_a_sphere(A.domain, range(2), 0).shape == (len(M), 2)
