import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize._smooth.newton_loop import Models
from frechet.optimize.studies._cubic_newton import SLACK, _Estimate, _least, _weight, cubic_steps
from smooth_problems import begun, far_logistic, rosenbrock


def test_convex_and_other_functions_are_solved_to_rounding():
    f, x0 = far_logistic()
    for full in (0, 64):
        run = cubic_steps(*begun(f, x0, full=full))
        assert run.status is None
        assert run.point.largest < 1e-13
    run = cubic_steps(*begun(rosenbrock, torch.full((4,), -1.2, dtype=torch.float64)))
    assert run.point.value < 1e-20
    double = cubic_steps(*begun(lambda x: (0.25 * x**4 - x**2).sum(), torch.tensor([0.1, -0.2]).double()))
    torch.testing.assert_close(double.point.x.abs(), torch.full((2,), 2**0.5, dtype=torch.float64))


def test_values_never_rise_by_more_than_rounding_and_the_result_says_how_many_steps_were_accelerated():
    f, x0 = far_logistic()
    run = cubic_steps(*begun(f, 3 * x0, full=0))
    assert all(b <= a + 1e-15 * abs(a) for a, b in zip(run.history[:-1], run.history[1:], strict=True))
    accelerated = int(run.notes[0].split()[0])
    assert 0 < accelerated < run.iterations


def test_acceleration_ends_where_convexity_is_contradicted():
    run = cubic_steps(
        *begun(lambda x: (x - 3 * torch.sin(2 * x)).sum() + 0.05 * (x * x).sum(), 40 * torch.ones(3).double())
    )
    assert run.status is None
    assert run.point.largest < 1e-6


def test_the_weight_is_the_largest_that_the_estimate_sequence_allows():
    for A, N, M in ((0.0, 2.0, 5.0), (3.0, 1.0, 1.0), (1e6, 1e-3, 10.0)):
        e = _Estimate(torch.zeros(2), N, A, torch.zeros(2), 0.0)
        a = _weight(e, M)
        left = (A + a) / (SLACK * M) ** 0.5
        assert left == pytest.approx(4 * a**1.5 / (3 * N**0.5), rel=1e-10)


def test_the_least_value_of_the_estimate_is_that_of_its_minimizer():
    function, _, rules = begun(lambda x: (x * x).sum(), torch.tensor([1.0, 2.0]).double(), full=0)
    e = _Estimate(torch.zeros(2).double(), 3.0, 1.0, torch.tensor([3.0, 4.0]).double(), 0.5)
    models = Models(function, rules)
    y = torch.linspace(-4, 4, 401).double()
    grid = torch.cartesian_prod(y, y)
    psi = 0.5 * (grid * grid).sum(1) ** 1.5 + 0.5 + grid @ e.slope
    assert _least(models, e) == pytest.approx(float(psi.min()), abs=1e-2)
    assert _least(models, e) <= float(psi.min())


def test_unbounded_and_discontinuous_functions_end_as_such():
    assert cubic_steps(*begun(lambda x: x.sum(), torch.zeros(2).double())).status is Status.UNBOUNDED
    run = cubic_steps(*begun(lambda x: torch.where(x < 0.3, 2 - x, x - 0.1).sum(), torch.ones(1).double()))
    assert run.status is Status.STAGNATED
