import math

import pytest
import torch

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.least_squares_batch import least_squares_batch
from more_garbow_hillstrom import PROBLEMS, numbers
from nist import load
from spectra import F64, gaussian

T = torch.linspace(0, 4, 20, dtype=F64)
TRUE = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64) + numbers(1, 0.5, 0)
Y = TRUE[:, :1] * torch.exp(-TRUE[:, 1:2] * T) + TRUE[:, 2:] + 0.01 * gaussian(1000).view(50, 20)
START = numbers(1, 1, 0)


def decay(x, y):
    return x[0] * torch.exp(-x[1] * T) + x[2] - y


def test_each_problem_gets_what_it_gets_alone():
    s = least_squares_batch(decay, START, Y).checked()
    for i in range(0, 50, 7):
        alone = least_squares(lambda x, y=Y[i]: decay(x, y), START)
        assert torch.allclose(s.x[i], alone.x, rtol=1e-10)
        assert float(s.cost[i]) == pytest.approx(alone.cost, rel=1e-12)
        assert torch.allclose(s.standard_errors[i], alone.standard_errors, rtol=1e-6)
        assert torch.allclose(s.residuals[i], alone.residuals, atol=1e-12)
    assert float(s.optimality.max()) < 1e-10
    assert int(s.evaluations.min()) < int(s.evaluations.max())  # each stops on its own


def test_a_problem_does_not_depend_on_its_company():
    s = least_squares_batch(decay, START, Y)
    some = least_squares_batch(decay, START, Y[[3, 30]])
    assert torch.allclose(some.x, s.x[[3, 30]], rtol=1e-13)
    assert torch.equal(some.evaluations, s.evaluations[[3, 30]])


@pytest.mark.parametrize("name", ["Misra1a", "Chwirut1", "Gauss1", "Hahn1", "Lanczos3", "MGH17", "Thurber", "BoxBOD"])
def test_certified_digits_from_both_starts_at_once(name):
    regression = load(name)
    s = least_squares_batch(regression.residual, torch.stack(regression.starts)).checked()
    assert regression.digits(s.x[0]) > 9
    assert regression.digits(s.x[1]) > 9


@pytest.mark.parametrize("name", ["wood", "biggs", "box", "gaussian"])
def test_bounds(name):
    problem = next(p for p in PROBLEMS if p.name == name)

    s = least_squares_batch(problem.residual, problem.start[None], bounds=(problem.lower, problem.upper)).checked()
    assert 2 * float(s.cost) == pytest.approx(problem.bounded_minimum, rel=1e-4)
    alone = least_squares(problem.residual, problem.start, bounds=(problem.lower, problem.upper))
    assert torch.allclose(s.x[0], alone.x, rtol=1e-8, atol=1e-10)
    assert torch.equal(s.standard_errors[0] == 0, alone.active != 0)


def test_nan_on_the_way_refuses_the_step_of_that_problem_alone():
    s = least_squares_batch(lambda x, c: torch.sqrt(4 - x) - c, numbers(-60), numbers(1, 2)[:, None]).checked()
    assert s.x[:, 0].tolist() == pytest.approx([3, 0], abs=1e-12)


def test_failures_are_named_and_leave_the_others_alone():
    def step(x, at):
        return torch.where(x < at, x + 2, x - 0.1)

    s = least_squares_batch(step, numbers(1.0), numbers(0.3, -5)[:, None])
    assert s.status == (Status.STAGNATED, Status.CONVERGED)
    assert s.converged.tolist() == [False, True]
    assert float(s.x[1]) == pytest.approx(0.1)
    with pytest.raises(NotConverged, match="1 of 2 problems converged; problem 0 stopped with status 'stagnated'"):
        s.checked()
    s = least_squares_batch(decay, START, Y, max_evaluations=3)
    assert set(s.status) == {Status.MAX_ITERATIONS}


def test_rank_and_freedom_show_in_the_errors():
    s = least_squares_batch(lambda x, y: x[0] * x[1] * T - y, numbers(1, 1), (2 * T + 0.01 * torch.cos(T))[None])
    assert s.standard_errors[0].tolist() == [math.inf, math.inf]
    s = least_squares_batch(lambda x, y: x - y, numbers(1, 1), numbers(3, 4)[None])
    assert s.standard_errors[0].tolist() == [math.inf, math.inf]


def test_more_parameters_than_residuals_and_float32():
    s = least_squares_batch(lambda x, y: (x.sum() - y)[None], torch.zeros(2), torch.tensor([1.0, 2.0])).checked()
    assert torch.allclose(s.x.sum(1), torch.tensor([1.0, 2.0]))
    assert s.x.dtype == torch.float32


def test_wrong_arguments_have_a_sentence():
    with pytest.raises(TypeError, match=r"x0 must be a real tensor \(b, n\) or \(n,\), got list"):
        least_squares_batch(decay, [1.0], Y)
    with pytest.raises(
        TypeError, match=r"x0 must be a real tensor \(b, n\) or \(n,\), got torch.int64 of shape \(3,\)"
    ):
        least_squares_batch(decay, torch.ones(3, dtype=torch.long), Y)
    with pytest.raises(ValueError, match="x0 and data must have one length along the first dimension, got 4, 50"):
        least_squares_batch(decay, START.expand(4, 3), Y)
    with pytest.raises(ValueError, match="x0 and data must have one length along the first dimension, got none"):
        least_squares_batch(lambda x: x, START)
    with pytest.raises(ValueError, match="x0 must have at least one parameter, got none"):
        least_squares_batch(decay, START[:0], Y)
    with pytest.raises(ValueError, match="bounds must leave a point between them, got lower 1 > upper 0 in entry 2 of"):
        least_squares_batch(decay, START, Y, bounds=(numbers(0, 0, 1), numbers(1, 1, 0)))
    with pytest.raises(NonFinite, match="must be finite at the starts, got NaN or infinity in problem 1"):
        least_squares_batch(lambda x: x.log(), numbers(1, -1)[:, None])
    with pytest.raises(ValueError, match="residual must return a vector, got shape"):
        least_squares_batch(lambda x: x.sum(), numbers(1, 2)[:, None])
