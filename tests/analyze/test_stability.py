import itertools
import math

import pytest
import torch
from scipy import stats
from torch import nn

from frechet.analyze._examples import example_gradients
from frechet.analyze._stability import (
    _mean_square_norm,
    exact_mean_square_limit,
    interpolation,
    stability,
    stable_learning_rate,
)
from frechet.linalg._eigsh import eigsh
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._result import Estimate, exact_estimate
from frechet.linalg._trace import trace
from frechet.objective import Objective, l2
from frechet.objective.criteria import squared_error
from frechet.operators._constructors import from_diagonal
from frechet.operators.derivatives._hessian import hessian


def interpolating(n=12, d=3, seed=0, dtype=torch.float64):
    """Least squares at weights that fit every example, and the Hessians 2 x x' of the examples."""
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.tensor(
        [2.0, 1.0, 0.5]
    )
    X = X.to(dtype)
    model = nn.Linear(d, 1, bias=False).to(dtype)
    objective = Objective(model, squared_error(), [(X, model(X).detach())])
    return objective, torch.stack([2 * torch.outer(x, x) for x in X])


def network(n=9, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    X = torch.randn(n, 2, dtype=torch.float64)
    return Objective(model, squared_error(), [(X[:4], model(X[:4]).detach()), (X[4:], model(X[4:]).detach())])


def ingredients(objective, k=2):
    H = hessian(objective)
    n = objective.space.dim
    return {"trace": trace(H, products=n), "frobenius": frobenius_norm(H, products=n), "top": eigsh(H, k, seed=0)}


def spectral_radius(hessians, batch, rate):
    """Of the map M -> E (I - rate H_b) M (I - rate H_b) over all batches, by listing them."""
    n = hessians.shape[1]
    total, count = torch.zeros(n * n, n * n, dtype=torch.float64), 0
    for chosen in itertools.combinations(range(len(hessians)), batch):
        step = torch.eye(n, dtype=torch.float64) - rate * hessians[list(chosen)].mean(0)
        total += torch.kron(step, step)
        count += 1
    return float(torch.linalg.eigvals(total / count).abs().max())


@pytest.mark.parametrize("batch", [1, 2, 4, 12])
def test_the_exact_limit_is_where_the_mean_square_of_sgd_begins_to_grow(batch):
    _, hessians = interpolating()
    limit = exact_mean_square_limit(hessians, batch)
    assert spectral_radius(hessians, batch, 0.999 * limit) < 1 < spectral_radius(hessians, batch, 1.001 * limit)


def test_the_whole_data_as_a_batch_is_gradient_descent():
    _, hessians = interpolating()
    largest = float(torch.linalg.eigvalsh(hessians.mean(0)).max())
    assert math.isclose(exact_mean_square_limit(hessians, 12), 2 / largest, rel_tol=1e-10)


def test_the_exact_limit_lives_on_the_range_of_a_singular_mean():
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).expand(3, 2, 2)
    assert math.isclose(exact_mean_square_limit(flat, 1), 2.0)
    assert exact_mean_square_limit(0 * flat, 1) == math.inf


@pytest.mark.parametrize("objective", [interpolating(20)[0], network(20)], ids=["linear", "network"])
def test_both_conditions_bound_the_exact_limit_from_above(objective):
    n = objective.space.dim
    basis = torch.eye(n, dtype=torch.float64)
    x, data = objective.point, objective.parts[0].data
    singles = [
        objective.on((inputs[i : i + 1], targets[i : i + 1])) for inputs, targets in data for i in range(len(inputs))
    ]
    hessians = torch.stack([hessian(one, x) @ basis for one in singles])
    found = stability(objective, batch_sizes=[16, 1, 4, 4], **ingredients(objective), seed=0)
    assert [b.batch_size for b in found.sgd] == [1, 4, 16]
    square = hessians.square().sum((1, 2)).mean()
    H = hessians.mean(0)
    values, vectors = torch.linalg.eigh(H)
    v = vectors[:, -1]
    assert math.isclose(found.top_curvature, float(values[-1]), rel_tol=1e-4)
    for bounds in found.sgd:
        exact = exact_mean_square_limit(hessians, bounds.batch_size)
        p = (len(singles) - bounds.batch_size) / (bounds.batch_size * (len(singles) - 1))
        identity = 2 * H.trace() / ((1 - p) * H.square().sum() + p * square)
        top = 2 * values[-1] / ((1 - p) * values[-1] ** 2 + p * ((hessians @ v) @ v).square().mean())
        assert bounds.identity.lower <= float(identity) <= bounds.identity.upper
        assert math.isclose(bounds.top.value, float(top), rel_tol=1e-3)
        assert exact <= bounds.identity.upper
        assert exact <= bounds.top.value * (1 + 1e-12)
        assert bounds.top.value <= found.gradient_descent.value * (1 + 1e-4)


def test_eigenvectors_that_span_everything_leave_nothing_to_the_probes():
    objective, hessians = interpolating()
    found = stability(objective, batch_sizes=[1], **ingredients(objective, 3), seed=0, deflate=3, probes=2)
    expected = float(hessians.square().sum((1, 2)).mean())
    assert math.isclose(found.mean_square_norm.value, expected, rel_tol=1e-9)
    assert found.mean_square_norm.lower == found.mean_square_norm.upper


def test_exact_vectors_and_probes_that_span_the_rest_add_up_to_the_whole_norm():
    g = torch.Generator().manual_seed(0)
    M = torch.randn(5, 6, 6, generator=g, dtype=torch.float64)
    hessians = M + M.mT
    U = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    U[:, 2:] *= 2  # four orthogonal probes of the right mean square
    found = _mean_square_norm((U.T @ hessians @ U).square().mean(0), 2, 0.95, whole=False)
    assert math.isclose(found.value, float(hessians.square().sum((1, 2)).mean()), rel_tol=1e-12)


@pytest.mark.parametrize("deflate", [0, 1])
def test_the_interval_of_the_mean_square_norm_covers(deflate):
    objective = network()
    n, given = objective.space.dim, ingredients(objective, 1)
    found = stability(objective, batch_sizes=[1], **given, seed=0, deflate=n, probes=2)
    assert found.mean_square_norm.lower < found.mean_square_norm.upper  # one vector was given
    all_of_them = stability(objective, batch_sizes=[1], **ingredients(objective, n), seed=0, deflate=n)
    truth, seeds = all_of_them.mean_square_norm.value, 50
    covered = 0
    for seed in range(seeds):
        norms = stability(objective, batch_sizes=[1], **given, seed=seed, deflate=deflate, probes=6).mean_square_norm
        covered += norms.lower <= truth <= norms.upper
    assert covered >= stats.binom.ppf(0.001, seeds, 0.93)


def test_errors_of_the_given_estimates_widen_the_bound():
    objective, _ = interpolating()
    given = ingredients(objective, 3)
    sharp = stability(objective, batch_sizes=[3], **given, seed=0).sgd[0].identity
    value = given["trace"].value
    given["trace"] = Estimate(value, 0.05 * value, 10, 10, 0, degrees_of_freedom=9)
    wide = stability(objective, batch_sizes=[3], **given, seed=0).sgd[0].identity
    q = stats.t.ppf(0.9875, 9) * 0.05
    assert math.isclose(wide.value, sharp.value)
    assert math.isclose(wide.lower, sharp.lower * (1 - q), rel_tol=1e-9)
    assert math.isclose(wide.upper, sharp.upper * (1 + q), rel_tol=1e-9)


def test_a_penalty_counts_in_every_example():
    objective, hessians = interpolating()
    penalized = Objective(objective.model, squared_error(), objective.parts[0].data, penalty=l2(0.5))
    found = stability(penalized, batch_sizes=[1], **ingredients(penalized, 3), seed=0)
    expected = (hessians + 0.5 * torch.eye(3)).square().sum((1, 2)).mean()
    assert math.isclose(found.mean_square_norm.value, float(expected), rel_tol=1e-9)


def test_float32_agrees_with_float64():
    a, b = (
        stability(o, batch_sizes=[1, 5], **ingredients(o, 3), seed=0)
        for o in (interpolating()[0], interpolating(dtype=torch.float32)[0])
    )
    for one, two in zip(a.sgd, b.sgd, strict=True):
        assert math.isclose(one.identity.value, two.identity.value, rel_tol=1e-3)
        assert math.isclose(one.top.value, two.top.value, rel_tol=1e-3)


def test_gradient_descent_takes_the_residual_into_its_interval():
    assert stable_learning_rate(4.0, 1.0) is not None
    found = stable_learning_rate(4.0, 1.0)
    assert (found.value, found.lower, found.upper) == (0.5, 0.4, 2 / 3)
    assert stable_learning_rate(1.0, 2.0).upper == math.inf
    assert stable_learning_rate(0.0) is None
    assert stable_learning_rate(-1.0, 0.1) is None
    with pytest.raises(ValueError, match="residual must be non-negative, got -1"):
        stable_learning_rate(1.0, -1.0)


def test_a_saddle_has_no_bounds_where_nothing_is_positive():
    objective, _ = interpolating()
    negative = -1.0 * objective
    found = stability(
        negative, batch_sizes=[1], trace=exact_estimate(-3.0), frobenius=exact_estimate(2.0),
        top=eigsh(hessian(negative), 1, seed=0), seed=0,
    )  # fmt: skip
    assert (found.gradient_descent, found.sgd[0].identity, found.sgd[0].top) == (None, None, None)


def test_interpolation_tells_a_fit_from_a_start():
    objective, _ = interpolating()
    there = interpolation(example_gradients(objective))
    assert (there.loss, there.gradient_norm, there.near_zero_share, there.active_share) == (0.0, 0.0, 1.0, 0.0)
    away = objective.point + 1
    gradients = example_gradients(objective, x=away)
    here = interpolation(gradients, near_zero=float(gradients.losses.median()))
    assert math.isclose(here.loss, float(objective.value(away)))
    assert math.isclose(here.gradient_norm, float(objective.gradient(away).square().sum().sqrt()))
    assert math.isclose(here.example_gradient_norm**2, float(gradients.squared_norms.mean()))
    assert here.near_zero_share == 0.5
    assert 0.5 < here.active_share <= 1


def test_bad_arguments_are_named():
    objective, hessians = interpolating()
    given = ingredients(objective)
    with pytest.raises(ValueError, match=r"batch_sizes must lie between 1 and the 12 examples, got \[0, 3\]"):
        stability(objective, batch_sizes=[0, 3], **given, seed=0)
    with pytest.raises(ValueError, match="probes must be at least 2 and deflate at least 0, got 1 and 3"):
        stability(objective, batch_sizes=[1], **given, seed=0, probes=1)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        stability(objective, batch_sizes=[1], **given, seed=0, level=1.0)
    other = eigsh(from_diagonal(torch.arange(4.0)), 1, seed=0)
    with pytest.raises(ValueError, match=r"top must hold eigenpairs of R\^3"):
        stability(objective, batch_sizes=[1], **{**given, "top": other}, seed=0)
    with pytest.raises(ValueError, match=r"hessians must have shape \(N, n, n\), n <= 40"):
        exact_mean_square_limit(torch.eye(3), 1)
    with pytest.raises(ValueError, match="batch_size must lie between 1 and 12, got 13"):
        exact_mean_square_limit(hessians, 13)
    with pytest.raises(ValueError, match="mean Hessian must be positive semidefinite"):
        exact_mean_square_limit(-hessians, 1)
