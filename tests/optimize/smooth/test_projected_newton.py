import math

import pytest
import torch

from frechet import from_diagonal, minimize
from frechet.linalg._result import Status
from frechet.optimize._box import box
from frechet.optimize._smooth.projected_newton import Masked, projected_newton
from smooth_problems import begun, rosenbrock


def run_between(f, x0, lower, upper, **options):
    function, _, _ = begun(f, x0)
    sides = box("minimize", function.space, (lower, upper))
    function, point, rules = begun(f, sides.project(x0), **options)
    return projected_newton(function, point, rules, sides), sides, function


@pytest.mark.parametrize("full", [0, 64])
def test_a_quadratic_between_bounds_meets_its_kkt_conditions(full):
    g = torch.Generator().manual_seed(0)
    M = torch.randn(30, 30, generator=g, dtype=torch.float64)
    A, b = M @ M.T + 0.1 * torch.eye(30, dtype=torch.float64), torch.randn(30, generator=g, dtype=torch.float64)
    run, sides, function = run_between(
        lambda x: 0.5 * x @ (A @ x) - b @ x, torch.zeros(30).double(), -0.2, 0.3, full=full
    )
    x, gradient = run.point.x, A @ run.point.x - b
    held = sides.held(x, gradient) != 0
    assert run.status is None
    assert 0 < int(held.sum()) < 30
    assert float(gradient[~held].abs().max()) <= 1e-11
    assert bool(((x >= -0.2) & (x <= 0.3)).all())
    assert run.iterations <= 25
    assert function.counts.evaluations <= 35


def test_no_point_outside_is_evaluated():
    def f(x):
        assert bool(((x >= -2) & (x <= 0.5)).all())
        return rosenbrock(x)

    run, _, _ = run_between(f, torch.full((10,), -1.0, dtype=torch.float64), -2.0, 0.5)
    assert run.status is None


def test_without_sides_in_the_way_it_is_newtons_method():
    run, _, _ = run_between(rosenbrock, torch.full((6,), -1.2, dtype=torch.float64), -math.inf, math.inf)
    torch.testing.assert_close(run.point.x, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_fixed_variable_stays_and_a_corner_needs_no_step():
    lower, upper = torch.tensor([-1.5, -3.0]).double(), torch.tensor([-1.5, 3.0]).double()
    run, _, _ = run_between(rosenbrock, torch.zeros(2).double(), lower, upper)
    torch.testing.assert_close(run.point.x, torch.tensor([-1.5, 2.25]).double())
    corner, _, function = run_between(lambda x: x.sum(), torch.zeros(3).double(), 0.0, 1.0)
    assert (corner.status, corner.iterations, function.counts.evaluations) == (None, 0, 1)


def test_negative_curvature_leads_to_a_bound():
    run, _, _ = run_between(lambda x: -(x * x).sum() + 0.1 * x.sum(), torch.zeros(4).double(), -1.0, 2.0, full=0)
    assert run.status is None
    assert bool(((run.point.x == -1) | (run.point.x == 2)).all())


def test_unbounded_and_discontinuous_functions_end_as_such():
    run, _, _ = run_between(lambda x: -(x * x).sum(), torch.ones(2).double(), 0.0, math.inf)
    assert run.status is Status.UNBOUNDED
    run, _, _ = run_between(lambda x: torch.where(x < 0.3, 2 - x, x - 0.1).sum(), torch.ones(1).double(), 0.0, 5.0)
    assert run.status is Status.STAGNATED
    run, _, _ = run_between(lambda x: (x.abs() ** 1.5).sum() + x.sum(), torch.zeros(2).double(), -1.0, 1.0)
    assert run.status is Status.NONFINITE


def test_a_masked_operator_is_the_submatrix():
    A = from_diagonal(torch.tensor([1.0, 2.0, 3.0]))
    masked = Masked(A, torch.tensor([1.0, 0.0, 1.0]))
    assert masked.dense().diagonal().tolist() == [1, 0, 3]
    assert masked.facts < A.facts
    assert masked.T is masked


@pytest.mark.parametrize("n", [2, 4, 6, 10, 20])
@pytest.mark.parametrize("upper", [0.5, 0.8])
def test_the_gradient_at_a_bound_that_holds_does_not_hinder_the_last_digits(n, upper):
    def f(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    s = minimize(f, torch.full((n,), -1.2, dtype=torch.float64), bounds=(-2.0, upper)).checked()
    assert float(s.x[0]) == upper  # a bound that holds, with a gradient that does not vanish there
    assert s.residual <= 1e-11
    assert s.iterations <= 40
