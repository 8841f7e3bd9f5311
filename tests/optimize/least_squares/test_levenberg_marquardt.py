import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.levenberg_marquardt import region
from more_garbow_hillstrom import F64, PROBLEMS, numbers
from nist import MODELS, load

BY_NAME = {p.name: p for p in PROBLEMS}
BOUNDED = [p.name for p in PROBLEMS if p.lower is not None]


def near(value, wanted):
    return abs(value - wanted) <= 1e-4 * (wanted if wanted > 0 else 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_certified_values_from_both_starts(name):
    regression = load(name)
    for start in regression.starts:
        s = least_squares(regression.residual, start)
        assert s.converged, s.message
        assert regression.digits(s.x) > 10
        if name != "Lanczos1":  # the certified sum of squares is below the rounding of float64
            assert 2 * s.cost == pytest.approx(regression.sum_of_squares, rel=1e-9)
            assert s.standard_errors is not None
            assert s.standard_errors.tolist() == pytest.approx(regression.deviations.tolist(), rel=1e-6)


def test_all_certified_values_cost_fewer_evaluations_than_scipy_needs():
    spent = 0
    for name in MODELS:
        regression = load(name)
        for start in regression.starts:
            s = least_squares(regression.residual, start)
            spent += s.residual_evaluations + s.jacobian_evaluations
    assert spent < 6272


@pytest.mark.parametrize("name", BY_NAME)
def test_known_minima_from_the_standard_starts(name):
    problem = BY_NAME[name]
    s = least_squares(problem.residual, problem.start)
    assert s.converged, s.message
    assert any(near(2 * s.cost, minimum) for minimum in problem.minima)


@pytest.mark.parametrize("factor", [1, 10, 100])
@pytest.mark.parametrize("name", BOUNDED)
def test_known_minima_between_bounds_and_no_evaluation_outside(name, factor):
    problem = BY_NAME[name]
    low, high = problem.lower, problem.upper

    def residual(x):
        assert bool((x >= low).all())
        assert bool((x <= high).all())
        return problem.residual(x)

    s = least_squares(residual, factor * problem.start, bounds=(low, high))
    assert s.converged, s.message
    assert near(2 * s.cost, problem.bounded_minimum)
    assert torch.equal(s.x[s.active == 1], high[s.active == 1])
    assert torch.equal(s.x[s.active == -1], low[s.active == -1])


def test_large_residuals_are_left_by_second_derivatives():
    s = least_squares(BY_NAME["brown_dennis"].residual, BY_NAME["brown_dennis"].start)
    assert 2 * s.cost == pytest.approx(85822.20163, rel=1e-9)
    assert s.residual_evaluations < 60


def test_a_narrow_curved_valley_is_followed_in_long_steps():
    s = least_squares(lambda x: torch.stack([1e3 * (x[1] - x[0] ** 2), 1 - x[0]]), numbers(-1.2, 1))
    assert torch.allclose(s.x, torch.ones(2, dtype=F64), rtol=1e-12)
    assert s.residual_evaluations + s.jacobian_evaluations < 300  # 445 by scipy's trf


@pytest.mark.parametrize("power", [-12, 12])
def test_units_of_a_parameter_do_not_matter(power):
    regression = load("Misra1a")
    unit = numbers(10.0**power, 1)
    s = least_squares(lambda b: regression.residual(b * unit), regression.starts[0] / unit)
    assert s.converged
    assert regression.digits(s.x * unit) > 10


def test_nan_at_trial_points_refuses_the_step():
    # sqrt is not defined beyond x = 4, where the first full steps would land
    s = least_squares(lambda x: torch.stack([torch.sqrt(4 - x[0]) - 1, 10 * torch.sqrt(4 - x[0]) - 10]), numbers(-60))
    assert s.converged
    assert float(s.x) == pytest.approx(3, rel=1e-12)


def test_a_discontinuous_residual_is_not_called_solved():
    s = least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0))
    assert s.status is Status.STAGNATED
    assert "no step reduces the cost" in s.message
    assert s.optimality > 0.1


def test_a_parameter_that_does_not_matter_stays_in_reach():
    D = region(numbers(1.0, 1.0), numbers(1.0, 1e-12), numbers(2.0, 3.0), numbers(1.0, 1.0))
    assert D[0] == 1
    assert float(D[1] * 3) == pytest.approx(0.2, rel=1e-3)


def test_a_saddle_with_a_singular_jacobian_is_left():
    s = least_squares(lambda x: torch.stack([x[0] ** 2 - 1, x[1]]), numbers(0, 1))
    assert s.converged
    assert float(s.x[0]) ** 2 == pytest.approx(1)
    s = least_squares(lambda x: x**2 - 1, numbers(0))  # a maximum, with a gradient of zero
    assert s.converged
    assert float(s.x) ** 2 == pytest.approx(1)


def test_piecewise_constant_residuals_are_not_called_solved():
    s = least_squares(lambda x: torch.floor(10 * x) / 10 - 0.35, numbers(1.0, 2.0))
    assert s.status is Status.STAGNATED
    assert "the Jacobian is zero" in s.message
