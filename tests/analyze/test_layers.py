import math

import pytest
import torch
from scipy import stats
from torch import nn

from counting import counting
from frechet.analyze._layers import ROOT, _products, _variances, layer_tops, layer_traces
from frechet.objective import Objective
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators._constructors import from_diagonal, from_matrix
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.space import Space

NAMES = ("a.weight", "a.bias", "b.weight", "scale")
SPACE = Space(NAMES, ((3, 2), (3,), (4,), ()), torch.float64)


def matrix(seed=0, shift=0.5):
    M = torch.randn(14, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return M @ M.T / 14 + shift * torch.eye(14, dtype=torch.float64)


def operator(M, space=SPACE):
    return from_matrix(M.to(space.dtype), domain=space, facts="symmetric")


def small(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    batches = [(torch.randn(b, 3, dtype=dtype), torch.randint(0, 3, (b,))) for b in (5, 2)]
    return Objective(model, cross_entropy(), batches)


def test_a_diagonal_is_exact_by_block_and_by_module():
    d = torch.arange(1.0, 15, dtype=torch.float64)
    found = layer_traces(from_diagonal(d, domain=SPACE), seed=0, probes=3)
    assert [b.name for b in found.blocks] == list(NAMES)
    assert [float(b.trace) for b in found.blocks] == [21.0, 24.0, 46.0, 14.0]
    assert [(m.name, m.size, float(m.trace)) for m in found.modules] == [
        ("a", 9, 45.0),
        ("b", 4, 46.0),
        (ROOT, 1, 14.0),
    ]
    assert found.modules[0].blocks == ("a.weight", "a.bias")
    for m in found.modules:
        assert math.isclose(m.share, float(m.trace) / 105)
        assert m.lower <= m.share <= m.upper < m.lower + 1e-10
        assert 0 < float(m.trace.standard_error) < 1e-12


def test_blocks_and_modules_add_up_to_the_total():
    found = layer_traces(operator(matrix()), seed=1, probes=7)
    for parts in (found.blocks, found.modules):
        assert math.isclose(sum(float(p.trace) for p in parts), float(found.total), rel_tol=1e-12)
        assert math.isclose(sum(p.share for p in parts), 1.0, rel_tol=1e-12)


def test_products_are_counted_and_more_probes_extend_the_first_ones():
    A, count = counting(operator(matrix()))
    found = layer_traces(A, seed=1, probes=7, block=3)
    assert found.products == count.total == 7
    whole = layer_traces(operator(matrix()), seed=1, probes=7)
    for a, b in zip(found.blocks, whole.blocks, strict=True):
        assert math.isclose(float(a.trace), float(b.trace), rel_tol=1e-12)


def test_intervals_of_traces_and_shares_cover():
    M = matrix()
    truths = [float(M.diagonal()[SPACE.block(name)].sum()) for name in NAMES]
    seeds = 200
    hits = torch.zeros(2, len(NAMES))
    for seed in range(seeds):
        for j, b in enumerate(layer_traces(operator(M), seed=seed, probes=10).blocks[:3]):
            low, high = b.trace.interval()
            hits[0, j] += bool(low <= truths[j] <= high)
            hits[1, j] += b.lower <= truths[j] / float(M.trace()) <= b.upper
    assert bool((hits[:, :3] >= stats.binom.ppf(0.001, seeds, 0.93)).all())


def test_the_ends_of_a_share_are_where_the_difference_becomes_significant():
    M = matrix()
    found = layer_traces(operator(M), seed=3, probes=40, level=0.9)
    seen = _products(operator(M), 3, 40, 16)
    for i, layer in enumerate(found.blocks[:3]):
        own, across, rest = _variances(seen, [i])
        a, b = float(layer.trace), float(found.total)
        assert layer.lower < layer.share < layer.upper
        for r in (layer.lower, layer.upper):
            variance = 2 * (1 - r) ** 2 * own + (1 - 2 * r) ** 2 * across + 2 * r**2 * rest
            spread = float((seen.draws[:, i] - r * seen.draws.sum(1)).var())
            bounds = stats.t.ppf(0.95, 19.5) * math.sqrt(variance), stats.t.ppf(0.95, 39) * math.sqrt(spread)
            off = abs(a - r * b) / seen.unit * math.sqrt(40)
            assert math.isclose(off, max(bounds), rel_tol=1e-6)


def test_the_three_parts_of_a_variance_are_those_of_the_matrix():
    M = matrix()
    seen = _products(operator(M), 0, 4000, 50)
    for i, name in enumerate(NAMES[:3]):
        b = SPACE.block(name)
        c = torch.ones(14, dtype=torch.bool)
        c[b] = False

        def off(part):
            return float((part - part.diag().diag()).square().sum())

        truth = off(M[b, b]), float(M[b][:, c].square().sum()), off(M[c][:, c])
        found = [seen.unit**2 * v for v in _variances(seen, [i])]
        assert found == pytest.approx(truth, abs=0.06 * sum(truth))


def test_a_share_of_nothing_has_no_interval():
    M = matrix(shift=0.0)
    centered = M - torch.eye(14, dtype=torch.float64) * M.trace() / 14
    shares = layer_traces(operator(centered), seed=0, probes=4).blocks
    assert all((b.lower, b.upper) == (-math.inf, math.inf) for b in shares)
    zero = layer_traces(operator(0 * M), seed=0, probes=4)
    assert all(math.isnan(b.share) for b in zero.blocks)


def test_float32_agrees_with_float64_and_empty_blocks_have_no_trace():
    space = Space(("a.weight", "a.none", "b.weight"), ((9,), (0,), (5,)), torch.float32)
    single = layer_traces(operator(matrix(), space), seed=0, probes=5)
    double = layer_traces(operator(matrix(), space.with_dtype(torch.float64)), seed=0, probes=5)
    assert [b.size for b in single.blocks] == [9, 0, 5]
    assert float(single.blocks[1].trace) == 0.0
    for a, b in zip(single.modules, double.modules, strict=True):
        assert math.isclose(float(a.trace), float(b.trace), rel_tol=1e-5)


@pytest.mark.parametrize(("kind", "made"), [("hessian", hessian), ("gauss_newton", gauss_newton)])
@pytest.mark.parametrize("groups", ["module", "block"])
def test_tops_are_those_of_the_dense_diagonal_blocks(kind, made, groups):
    objective = small(torch.float64)
    H, space = made(objective).dense(), objective.space
    found = layer_tops(objective, kind, groups=groups, seed=0, rtol=1e-6)
    names = [["0.weight", "0.bias"], ["2.weight", "2.bias"]] if groups == "module" else [[n] for n in space.names]
    assert [list(top.blocks) for top in found.layers] == names
    assert [top.name for top in found.layers] == (["0", "2"] if groups == "module" else list(space.names))
    for top in found.layers:
        rows = torch.cat([torch.arange(space.block(n).start, space.block(n).stop) for n in top.blocks])
        truth = float(torch.linalg.eigvalsh(H[rows][:, rows]).max())
        assert top.converged
        assert abs(top.value - truth) <= top.residual + 1e-12
        assert top.size == len(rows) == len(top.vector)
    assert found.products == sum(top.products for top in found.layers) > 0
    assert (found.operator, found.seed) == (kind, 0)


def test_a_bound_on_the_products_is_kept_and_said():
    found = layer_tops(small(), seed=0, rtol=1e-12, max_products=2)
    assert all(top.products <= 2 for top in found.layers)
    assert not all(top.converged for top in found.layers)


def test_names_with_special_characters_are_taken_literally():
    model = nn.ParameterDict({"w[0]": torch.ones(2), "w0": torch.ones(2)})

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = model

        def forward(self, x):
            return x * (self.p["w[0]"] + 2 * self.p["w0"])

    objective = Objective(Plain(), squared_error(), [(torch.ones(1, 2), torch.zeros(1, 2))])
    found = layer_tops(objective, groups="block", seed=0)
    assert {t.name: round(t.value, 4) for t in found.layers} == {"p.w[0]": 1.0, "p.w0": 4.0}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="layer_traces: A must be symmetric"):
        layer_traces(from_matrix(torch.ones(2, 2)), seed=0)
    with pytest.raises(ValueError, match="probes must be at least 2 and block at least 1, got 1 and 16"):
        layer_traces(operator(matrix()), seed=0, probes=1)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 2"):
        layer_traces(operator(matrix()), seed=0, level=2)
    with pytest.raises(ValueError, match="kind must be 'hessian' or 'gauss_newton', got 'fisher'"):
        layer_tops(small(), "fisher", seed=0)
    with pytest.raises(ValueError, match="groups must be 'module' or 'block', got 'layer'"):
        layer_tops(small(), groups="layer", seed=0)
