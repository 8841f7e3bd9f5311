import math

import numpy as np
import pytest
import torch
from scipy import stats

from frechet.linalg import _xtrace as xtrace
from frechet.linalg._diagonal import diagonal
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._hutchinson import xtrace_then_probes
from frechet.linalg._sequential import run
from frechet.linalg._trace import trace
from frechet.operators._constructors import from_callable
from frechet.space import euclidean

# The share of fixed seeds whose 95 % interval holds the true value, against the bound that an interval which covers
# with probability 0.95 passes with probability 0.999. The study with 2 000 seeds, more budgets and two bases is
# benchmarks/coverage.py.
SEEDS, N = 200, 150
LEAST = int(stats.binom.ppf(0.001, SEEDS, 0.95))
QUANTILES = stats.t.ppf(0.975, np.arange(-1, 60).clip(1))  # of k probes


def spectrum(name):
    rng = np.random.default_rng(0)
    return {
        "GGN": np.concatenate([np.linspace(100, 5, 20), 0.05 * rng.chisquare(1, N - 20)]),
        "Hessian": np.concatenate([np.geomspace(100, 5, 20), -np.linspace(1, 3, 5), 0.3 * rng.standard_normal(N - 25)]),
        "power": 1 / np.arange(1, N + 1),
        "rank 20": np.concatenate([np.arange(1.0, 21), np.zeros(N - 20)]),
    }[name]


def problem(name, dtype=torch.float64):
    """The operator without structure, and its matrix in float64."""
    U = np.linalg.qr(np.random.default_rng(1).standard_normal((N, N)))[0]
    M = torch.from_numpy((U * spectrum(name)) @ U.T).to(dtype)
    M = (M + M.T) / 2
    facts = "symmetric" if name == "Hessian" else "positive_semidefinite"
    return from_callable(lambda V: (V.T @ M).T, euclidean(N, dtype), facts=facts), M.double()


def covered(estimate, true):
    low, high = estimate.interval()
    return float(((low <= true) & (true <= high)).double().mean())


def share(estimates, true):
    return sum(covered(e, true) for e in estimates)


@pytest.mark.parametrize("name", ["GGN", "Hessian", "power"])
@pytest.mark.parametrize(
    ("method", "products"), [("hutchinson", 10), ("hutch++", 10), ("hutch++", 60), ("xtrace", 30), ("xtrace", 60)]
)
def test_trace_intervals_cover(name, method, products):
    A, M = problem(name)
    found = [trace(A, seed=s, products=products, method=method, block=64) for s in range(SEEDS)]
    assert share(found, M.trace()) >= LEAST
    oracle = 1.96 * float(torch.stack([e.value - M.trace() for e in found]).square().mean().sqrt())
    widths = [float(high - low) / 2 for low, high in (e.interval() for e in found)]
    assert products == 10 or np.median(widths) <= 2.5 * oracle


@pytest.mark.parametrize("name", ["GGN", "power", "rank 20"])
def test_trace_intervals_of_the_nystrom_form_cover(name):
    A, M = problem(name)
    found = [trace(A, seed=s, products=18 if name == "rank 20" else 30, method="nystrom") for s in range(SEEDS)]
    assert share(found, M.trace()) >= LEAST


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "products"), [("hutch++", 75), ("xtrace", 60), ("nystrom", 40)])
def test_trace_intervals_cover_where_only_rounding_is_left(method, products, dtype):
    A, M = problem("rank 20", dtype)
    found = [trace(A, seed=s, products=products, method=method, block=64) for s in range(50)]
    assert share(found, M.trace()) >= stats.binom.ppf(0.001, 50, 0.95)
    assert max(float(e.standard_error) for e in found) <= 1e4 * torch.finfo(dtype).eps * float(M.trace())


@pytest.mark.parametrize(("method", "rtol"), [("hutchinson", 0.3), ("hutch++", 0.05), ("xtrace", 0.05)])
def test_the_value_at_which_a_tolerance_stopped_the_run_is_covered(method, rtol):
    A, M = problem("GGN")
    found = [trace(A, seed=s, products=140, rtol=rtol, method=method, block=64) for s in range(SEEDS)]
    assert share(found, M.trace()) >= LEAST
    assert sum(bool(e.converged) for e in found) > SEEDS / 2
    for e in found:
        low, high = e.interval()
        assert not e.converged or float(high - low) / 2 <= rtol * abs(float(e)) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["Hessian", "power"])
def test_a_run_that_went_from_xtrace_to_probes_is_covered(name):
    A, M = problem(name)
    settings = {"rtol": 0.02, "block": 64, "observe": None, "resume": None}
    found = [
        run("trace", xtrace_then_probes(A, s, 20), A.domain, seed=s, products=120, **settings) for s in range(SEEDS)
    ]
    assert share(found, M.trace()) >= LEAST
    assert sum(e.products > 40 for e in found) > SEEDS / 2


@pytest.mark.parametrize("name", ["GGN", "power"])
@pytest.mark.parametrize(("method", "products"), [("hutchinson", 10), ("xdiag", 40)])
def test_diagonal_intervals_cover_on_average_over_the_entries(name, method, products):
    A, M = problem(name)
    found = [diagonal(A, seed=s, products=products, method=method, block=64) for s in range(SEEDS)]
    # entries of one seed are dependent; the bound is that of fully dependent ones
    assert share(found, M.diagonal()) >= LEAST


@pytest.mark.parametrize(("method", "products"), [("hutchinson", 10), ("hutch++", 60)])
def test_norm_intervals_cover(method, products):
    A, M = problem("power")
    found = [frobenius_norm(A, seed=s, products=products, method=method, block=64) for s in range(SEEDS)]
    assert share(found, M.square().sum().sqrt()) >= LEAST


def test_the_sample_variance_alone_would_not_cover(monkeypatch):
    monkeypatch.setattr(xtrace, "variance_of_mean", lambda estimates, paired: estimates.var() / estimates.numel())
    A, M = problem("GGN")
    assert share([trace(A, seed=s, products=30, method="xtrace") for s in range(SEEDS)], M.trace()) < LEAST


def test_looking_after_every_probe_would_not_cover():
    A, M = problem("power")
    inside = 0
    for seed in range(SEEDS):
        Z = A.domain.random(range(60), seed)
        x = (Z * (A @ Z)).sum(0).numpy()
        for k in range(2, 61):
            half = QUANTILES[k] * x[:k].std(ddof=1) / math.sqrt(k)
            if half <= 0.2 * x[:k].mean():
                break
        inside += abs(x[:k].mean() - float(M.trace())) <= half
    assert inside < LEAST
