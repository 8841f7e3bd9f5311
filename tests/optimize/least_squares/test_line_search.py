import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from more_garbow_hillstrom import PROBLEMS, numbers
from nist import load


def run(residual, x0, **options):
    return least_squares(residual, x0, method="gauss-newton", **options)


@pytest.mark.parametrize("name", ["rosenbrock", "helical_valley", "beale", "bard", "kowalik_osborne", "osborne_1"])
def test_known_minima(name):
    problem = next(p for p in PROBLEMS if p.name == name)
    s = run(problem.residual, problem.start)
    assert s.converged, s.message
    assert any(2 * s.cost == pytest.approx(minimum, rel=1e-4, abs=1e-15) for minimum in problem.minima)


def test_the_cost_never_rises_and_linear_problems_take_one_step():
    regression = load("Kirby2")
    s = run(regression.residual, regression.starts[0])
    costs = torch.tensor(s.history, dtype=torch.float64)
    assert bool((costs.diff() <= 1e-12 * costs[:-1]).all())
    A = torch.linspace(0, 1, 12, dtype=torch.float64).view(6, 2) ** 2
    s = run(lambda x: A @ x - 1, torch.zeros(2, dtype=torch.float64))
    assert s.iterations <= 1
    assert torch.allclose(s.x, torch.linalg.lstsq(A, torch.ones(6, dtype=torch.float64)).solution)


def test_rank_deficient_problems_give_a_null_direction():
    s = run(lambda x: torch.stack([x[0] + x[1] - 1, (x[0] + x[1]) ** 2 - 1]), numbers(0.2, 0.3))
    assert s.converged
    assert s.rank == 1
    assert float(s.null_directions.sum()) == pytest.approx(0, abs=1e-12)
    assert s.x.tolist() == pytest.approx([0.45, 0.55])  # the shortest way there


def test_nan_limits_and_discontinuity():
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60))
    assert float(s.x) == pytest.approx(3)
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60), max_evaluations=2)
    assert s.status is Status.MAX_ITERATIONS
    s = run(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), numbers(1.0))
    assert s.status is Status.STAGNATED
    s = run(lambda x: torch.sqrt(4 - x) - 1, numbers(-60), observe=lambda s: s.iteration == 1)
    assert s.status is Status.STOPPED
