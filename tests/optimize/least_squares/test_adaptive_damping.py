import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from more_garbow_hillstrom import PROBLEMS, numbers
from nist import load


def run(residual, x0, **options):
    return least_squares(residual, x0, method="adaptive-damping", **options)


@pytest.mark.parametrize("name", ["rosenbrock", "powell_singular", "beale", "wood", "bard", "osborne_1", "watson_6"])
def test_known_minima(name):
    problem = next(p for p in PROBLEMS if p.name == name)
    s = run(problem.residual, problem.start)
    assert s.converged, s.message
    wanted = problem.minima[0]
    assert 2 * s.cost == pytest.approx(wanted, rel=1e-4, abs=1e-15)


def test_fast_where_solutions_are_not_isolated():
    # every point of the unit circle solves it, twice over: J has rank one everywhere
    s = run(lambda x: torch.stack([(x**2).sum() - 1, 2 * ((x**2).sum() - 1)]), numbers(3, 2))
    assert s.converged
    assert s.residual < 1e-14
    assert s.iterations < 15
    assert s.rank == 1


def test_superlinear_to_a_solution_with_a_singular_jacobian_and_a_side():
    # distance to the line x_0 = 0 of solutions; the Jacobian is singular along it
    s = run(lambda x: torch.stack([x[0], x[0] * x[1]]), numbers(1, 1))
    falls = [b / a for a, b in zip(s.history[:-1], s.history[1:], strict=True) if a > 0]
    assert s.residual < 1e-14
    assert falls[-1] < 1e-3 * falls[0]


def test_units_of_residual_and_parameters_do_not_matter():
    regression = load("Misra1a")
    plain = run(regression.residual, regression.starts[1])
    unit = numbers(1e3, 1e-5)
    scaled = run(lambda b: 1e6 * regression.residual(b * unit), regression.starts[1] / unit)
    assert torch.allclose(scaled.x * unit, plain.x, rtol=1e-9)
    assert scaled.residual_evaluations == plain.residual_evaluations


def test_bounds_nan_and_stops():
    s = run(lambda x: torch.stack([x[0] + 1, x[1] - 2]), numbers(1, 1), bounds=(0.0, 3.0))
    assert s.x.tolist() == pytest.approx([0, 2], abs=1e-12)
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60))
    assert float(s.x) == pytest.approx(3)
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60), observe=lambda s: s.iteration == 1)
    assert s.status is Status.STOPPED
    s = run(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0))
    assert s.status is Status.STAGNATED
