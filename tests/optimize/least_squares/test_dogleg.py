import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._least_squares.dogleg import on_path
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.residual import length
from more_garbow_hillstrom import PROBLEMS, numbers
from nist import load

SOLVED = ["rosenbrock", "helical_valley", "bard", "meyer", "kowalik_osborne", "osborne_1", "osborne_2"]


@pytest.mark.parametrize("name", SOLVED)
def test_known_minima(name):
    problem = next(p for p in PROBLEMS if p.name == name)
    s = least_squares(problem.residual, problem.start, method="dogleg")
    assert any(2 * s.cost == pytest.approx(minimum, rel=1e-4, abs=1e-15) for minimum in problem.minima)


def test_certified_digits_from_far():
    regression = load("Nelson")
    s = least_squares(regression.residual, regression.starts[0], method="dogleg")
    assert s.converged
    assert regression.digits(s.x) > 10


@pytest.mark.parametrize("radius", [0.1, 0.9, 1.5, 2.9])
def test_the_path_is_cut_at_the_radius(radius):
    cauchy, newton, D = numbers(0.5, 0), numbers(1, 2), numbers(2, 1)
    p = on_path(cauchy, newton, D, radius)
    if length(D * newton) > radius:
        assert length(D * p) == pytest.approx(radius)
    whole = torch.stack([p - cauchy, newton - cauchy]) if radius > 1 else torch.stack([p, cauchy])
    assert abs(float(torch.linalg.det(whole))) < 1e-12  # on one of the two legs
    assert torch.equal(on_path(cauchy, newton, D, 9.0), newton)


def test_bounds_nan_limits_and_discontinuity():
    s = least_squares(lambda x: torch.stack([x[0] + 1, x[1] - 2]), numbers(1, 1), bounds=(0.0, 3.0), method="dogleg")
    assert s.x.tolist() == [0, 2]
    s = least_squares(lambda x: torch.sqrt(4 - x) - 1, numbers(-60), method="dogleg")
    assert float(s.x) == pytest.approx(3)
    s = least_squares(lambda x: torch.sqrt(4 - x) - 1, numbers(-60), method="dogleg", max_evaluations=3)
    assert s.status is Status.MAX_ITERATIONS
    s = least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0), method="dogleg")
    assert s.status is Status.STAGNATED
