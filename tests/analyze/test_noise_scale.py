import importlib
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from counting import counting
from frechet.analyze._examples import ExampleGradients, example_gradients
from frechet.analyze._noise_scale import curvature_noise_scale, noise_scale
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._hessian import hessian


def regression(n=60, d=4, seed=0, penalty=None, dtype=torch.float64, cut=25):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = torch.randn(n, 1, generator=g, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 0.5)
    X, y = X.to(dtype), y.to(dtype)
    objective = Objective(model, squared_error(), [(X[:cut], y[:cut]), (X[cut:], y[cut:])], penalty=penalty)
    return objective, X, 2 * (X @ model.weight.detach().T - y) * X


def fixed(G):
    """The `ExampleGradients` of given gradients (n, d)."""
    g = G.mean(0)
    return ExampleGradients(
        G.square().sum(1), G @ g, torch.zeros(len(G)), 0.0, g, float(g @ g), len(G), float(len(G)), 2, "loop"
    )


def test_the_parts_are_the_unbiased_closed_forms():
    objective, _, G = regression()
    found = noise_scale(objective)
    n = len(G)
    variance = float(G.var(0).sum())
    pairs = (G @ G.T).sum() - G.square().sum()
    assert math.isclose(float(found.gradient_variance), variance, rel_tol=1e-10)
    assert math.isclose(float(found.gradient_squared), float(pairs) / (n * (n - 1)), rel_tol=1e-10)
    assert math.isclose(found.value, variance / float(found.gradient_squared), rel_tol=1e-10)
    here = variance * (n - 1) / n / float(G.mean(0).square().sum())
    assert math.isclose(found.on_these_data, here, rel_tol=1e-10)
    assert (found.examples, found.passes, found.products) == (n, 2, 0)
    assert found.lower < found.value < found.upper


def test_standard_errors_are_those_of_leaving_out_one_example_at_a_time():
    objective, _, G = regression()
    found = noise_scale(objective)
    n = len(G)
    left_out = [noise_scale(fixed(torch.cat([G[:i], G[i + 1 :]]))) for i in range(n)]
    for name in ("gradient_variance", "gradient_squared"):
        values = np.array([float(getattr(part, name)) for part in left_out])
        error = math.sqrt((n - 1) ** 2 / n * values.var(ddof=1))
        measured = float(getattr(found, name).standard_error)
        assert measured >= error * (1 - 1e-9)
        assert name == "gradient_squared" or math.isclose(measured, error, rel_tol=1e-8)


def test_the_unit_is_examples_and_no_scale_matters():
    objective, _, _ = regression()
    a, b = noise_scale(objective), noise_scale(3.0 * objective)
    for name in ("value", "lower", "upper", "on_these_data"):
        assert math.isclose(getattr(a, name), getattr(b, name), rel_tol=1e-6)


def test_a_penalty_is_part_of_the_gradient_and_not_of_the_noise():
    objective, _, G = regression(penalty=l2(0.7))
    found = noise_scale(objective)
    total = G.mean(0) + 0.7 * objective.point
    assert math.isclose(float(found.gradient_variance), float(G.var(0).sum()), rel_tol=1e-9)
    expected = float(total.square().sum()) - float(G.var(0).sum()) / len(G)
    assert math.isclose(float(found.gradient_squared), expected, rel_tol=1e-9)


def test_float32_and_another_point_agree_with_float64():
    exact, _, _ = regression()
    single, _, _ = regression(dtype=torch.float32)
    x = exact.point + 1
    a, b = noise_scale(exact, x=x), noise_scale(single, x=x.float())
    for name in ("value", "lower", "upper"):
        assert math.isclose(getattr(a, name), getattr(b, name), rel_tol=1e-4)


def test_equal_gradients_have_no_noise():
    for dtype in (torch.float32, torch.float64):
        model = nn.Linear(3, 2).to(dtype)
        x, y = torch.randn(1, 3, dtype=dtype), torch.randn(1, 2, dtype=dtype)
        found = noise_scale(Objective(model, squared_error(), [(x.expand(5, 3), y.expand(5, 2))]))
        assert (found.value, found.lower, found.upper) == (0.0, 0.0, 0.0)


def test_at_a_minimum_the_interval_has_no_upper_end():
    objective, X, _ = regression()
    y = torch.cat([batch[1] for batch in objective.parts[0].data])
    best = torch.linalg.lstsq(X, y).solution[:, 0]
    found = noise_scale(objective, x=best)
    assert found.value == math.inf
    assert found.upper == math.inf
    assert not found.bounded
    assert 10 < found.lower < math.inf
    assert float(found.gradient_squared) < 0
    nothing = noise_scale(fixed(torch.zeros(4, 2, dtype=torch.float64)))
    assert (nothing.lower, nothing.upper) == (0.0, math.inf)


def trained(n, d, seed, steps):
    """Gradients of n Gaussian examples in d dimensions whose mean training has halved `steps` times."""
    G = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return G - (1 - 0.5**steps) * G.mean(0)


def test_examples_that_were_trained_on_resolve_nothing_and_say_so():
    for n, d in ((240, 400), (60, 1000), (1797, 50)):
        fresh, fitted = noise_scale(fixed(trained(n, d, 0, 0))), noise_scale(fixed(trained(n, d, 0, 40)))
        assert not fresh.below_chance
        assert fitted.below_chance
        assert (fitted.value, fitted.lower, fitted.upper) == (math.inf, 0.0, math.inf)
        assert float(fitted.gradient_squared.interval()[1]) < 0
        # |G|^2 = S / r is told from zero where it exceeds t sqrt(2 S^2 / d) / n
        t = 1.96
        assert fresh.resolvable == pytest.approx(n * math.sqrt(d / 2) / t, rel=0.5)
        assert 0 < fresh.lower <= fresh.resolvable < 1e6


def test_no_lower_end_is_above_what_the_examples_resolve():
    for seed in range(20):
        for steps in range(4):
            found = noise_scale(fixed(trained(200, 30, seed, steps)))
            assert found.lower <= found.resolvable <= 200 * 30
    alone = noise_scale(fixed(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)))
    assert alone.lower <= alone.resolvable < 4


def test_the_interval_narrows_with_the_level_and_with_more_examples():
    objective, _, G = regression()
    wide, narrow = noise_scale(objective, level=0.99), noise_scale(objective, level=0.5)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper
    more = noise_scale(fixed(G.repeat(30, 1)))
    middle = noise_scale(objective)
    assert more.upper / more.lower < middle.upper / middle.lower


def lower_bound(seeds, share=0.93):
    """A count that an interval covering with probability `share` reaches with probability 0.999."""
    return int(stats.binom.ppf(0.001, seeds, share))


@pytest.mark.parametrize("truth", [1.0, 10.0, 100.0, 10000.0])
@pytest.mark.parametrize("d", [1, 3, 50])
def test_the_interval_covers_for_gaussian_gradients(d, truth):
    n, seeds, covered = 100, 300, 0
    shift = math.sqrt(d / truth / d)
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        found = noise_scale(fixed(torch.randn(n, d, generator=g, dtype=torch.float64) + shift))
        covered += found.lower <= truth <= found.upper
    assert covered >= lower_bound(seeds)


@pytest.mark.parametrize(("d", "n", "delta"), [(1, 100, 0.3), (5, 200, 1.0), (5, 300, 0.3)])
def test_the_interval_covers_for_regression_with_skewed_residuals(d, n, delta):
    truth = ((d + 2) * delta**2 + d - delta**2) / delta**2
    seeds, covered = 200, 0
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(n, d, generator=g, dtype=torch.float64)
        residual = -torch.log(torch.rand(n, generator=g, dtype=torch.float64)) - 1
        model = nn.Linear(d, 1, bias=False).double()
        nn.init.constant_(model.weight, delta / math.sqrt(d))
        found = noise_scale(Objective(model, squared_error(), [(X, residual[:, None])]))
        covered += found.lower <= truth <= found.upper
    assert covered >= lower_bound(seeds)


def test_curvature_noise_scale_is_the_trace_of_the_hessian_times_the_covariance():
    objective, X, G = regression(penalty=l2(0.2))
    n, H = len(G), 2 * X.T @ X / len(X) + 0.2 * torch.eye(4, dtype=torch.float64)
    found = curvature_noise_scale(objective, seed=0, probes=400)
    weighted = float((H * torch.cov(G.T)).sum())
    assert abs(float(found.weighted_variance) - weighted) < 4 * float(found.weighted_variance.standard_error)
    g = objective.gradient()
    assert math.isclose(found.gradient_curvature, float(g @ H @ g), rel_tol=1e-9)
    assert math.isclose(found.learning_rate, float(g @ g) / float(g @ H @ g), rel_tol=1e-9)
    trace = float(found.weighted_variance)
    assert math.isclose(found.value, trace / (float(g @ H @ g) - trace / n), rel_tol=1e-9)
    assert found.lower < found.value < found.upper
    assert (found.products, found.passes, found.seed) == (401, 2, 0)


def test_curvature_noise_scale_takes_probes_of_the_parameters():
    objective, X, G = regression()
    n, H, C = len(G), 2 * X.T @ X / len(X), torch.cov(G.T)
    Z = objective.space.random(range(3), 7, "sphere")
    found = curvature_noise_scale(objective, seed=7, probes=3)
    assert math.isclose(float(found.weighted_variance), float((Z * (H @ C @ Z)).sum(0).mean()), rel_tol=1e-10)
    assert found.examples == n


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("probes", [8, 16])
def test_the_interval_of_a_weighted_variance_covers(rank, probes):
    # H = 2 X'X/n of few directions: one of them is all of H Sigma where rank is 1
    g = torch.Generator().manual_seed(rank)
    X = torch.randn(40, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, 30, generator=g, dtype=torch.float64
    )
    y = torch.randn(40, 1, generator=g, dtype=torch.float64)
    model = nn.Linear(30, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    objective = Objective(model, squared_error(), [(X, y)])
    truth = float((2 * X.T @ X / 40 * torch.cov((-2 * y * X).T)).sum())
    inside = 0
    for seed in range(100):
        low, high = curvature_noise_scale(objective, seed=seed, probes=probes).weighted_variance.interval()
        inside += bool(low <= truth <= high)
    assert inside >= stats.binom.ppf(0.001, 100, 0.94)


@pytest.mark.parametrize("n", [20, 100, 400])
@pytest.mark.parametrize("common", [0.0, 0.01])
def test_no_interval_where_few_examples_carry_the_gradients(n, common):
    g = torch.Generator().manual_seed(n)
    for count in (1, 2):
        G = 1 + common * torch.randn(n, 1, generator=g, dtype=torch.float64) if common else torch.zeros(n, 1).double()
        G[:count] = 100.0 * (1 + torch.rand(count, 1, generator=g, dtype=torch.float64))
        found = noise_scale(fixed(G))
        assert (found.lower, found.upper, found.bounded) == (0.0, math.inf, False)
        assert "no interval, because" in found.message
        assert math.isfinite(found.value) or common == 0.0


@pytest.mark.parametrize("n", [20, 100, 400])
def test_gradients_of_one_kind_keep_their_interval(n):
    refused = 0
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        refused += bool(noise_scale(fixed(torch.randn(n, 5, generator=g, dtype=torch.float64) + 2)).message)
    assert refused <= 2


def test_curvature_noise_scale_does_not_depend_on_the_batches_and_counts_its_products(monkeypatch):
    a, b = (curvature_noise_scale(regression(cut=cut)[0], seed=3, probes=5) for cut in (25, 7))
    assert math.isclose(a.value, b.value, rel_tol=1e-9)
    counts = []

    def counted(*arguments):
        operator, count = counting(hessian(*arguments))
        counts.append(count)
        return operator

    monkeypatch.setattr(importlib.import_module("frechet.analyze._noise_scale"), "hessian", counted)
    found = curvature_noise_scale(regression()[0], seed=3, probes=5)
    assert found.products == counts[0].total == 6
    longer = curvature_noise_scale(regression()[0], seed=3, probes=6)
    assert longer.value != found.value


def test_curvature_noise_scale_at_a_minimum_has_no_end():
    objective, X, _ = regression()
    y = torch.cat([batch[1] for batch in objective.parts[0].data])
    found = curvature_noise_scale(objective, seed=0, x=torch.linalg.lstsq(X, y).solution[:, 0])
    assert found.value == found.upper == math.inf
    low = float(found.weighted_variance.interval()[0])
    assert math.isclose(found.lower, low / found.gradient_curvature, rel_tol=1e-9)


def test_bad_arguments_are_named():
    objective, _, _ = regression()
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        noise_scale(objective, level=95)
    with pytest.raises(TypeError, match="needs an Objective or ExampleGradients, got Linear"):
        noise_scale(objective.model)
    with pytest.raises(ValueError, match="x and route must be left out"):
        noise_scale(example_gradients(objective), route="loop")
    two = Objective(nn.Linear(1, 2), cross_entropy(), [(torch.ones(2, 1), torch.tensor([0, 1]))])
    with pytest.raises(ValueError, match="at least 3 examples to estimate a variance of gradients, got 2"):
        noise_scale(two)
    with pytest.raises(ValueError, match="probes must be at least 2, got 1"):
        curvature_noise_scale(objective, seed=0, probes=1)
    one = Objective(nn.Linear(1, 2), cross_entropy(), [(torch.ones(1, 1), torch.tensor([0]))])
    with pytest.raises(ValueError, match="needs at least 2 examples, got 1"):
        curvature_noise_scale(one, seed=0)
