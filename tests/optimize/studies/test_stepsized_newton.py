import pytest
import torch

from frechet.linalg._result import Status
from frechet.optimize.studies._stepsized_newton import stepsized_steps
from smooth_problems import begun, far_logistic, rosenbrock


def test_full_newton_steps_do_not_solve_the_far_logistic_problem():
    f, x = far_logistic()
    slope, bend = torch.func.grad(f), torch.func.jacrev(torch.func.grad(f))
    smallest = []
    for _ in range(100):
        smallest.append(float(slope(x).norm()))
        x = x - torch.linalg.solve(bend(x), slope(x))
    assert min(smallest) > 1e-3


@pytest.mark.parametrize("full", [0, 64])
def test_stepsizes_solve_it_in_few_iterations_and_evaluations(full):
    f, x0 = far_logistic()
    function, point, rules = begun(f, x0, full=full, gtol=1e-11)
    run = stepsized_steps(function, point, rules)
    assert float(function.space.norm(run.point.gradient)) <= 1e-10
    assert run.iterations <= 24
    assert function.counts.evaluations <= 50


def test_the_greedy_rule_takes_fewer_iterations():
    f, x0 = far_logistic()
    function, point, rules = begun(f, x0, gtol=1e-11)
    universal = stepsized_steps(*begun(f, x0, gtol=1e-11))
    run = stepsized_steps(function, point, rules, rule="greedy")
    assert float(function.space.norm(run.point.gradient)) <= 1e-10
    assert run.iterations <= universal.iterations


@pytest.mark.parametrize("rule", ["universal", "greedy"])
def test_iterates_do_not_change_with_linear_changes_of_coordinates(rule):
    def f(x):
        return torch.cosh(x).sum() + (x[0] - 2 * x[1]) ** 2

    S = torch.tensor([[2.0, 1.0], [0.0, 0.01]], dtype=torch.float64)
    x0 = torch.tensor([3.0, -2.0], dtype=torch.float64)
    plain = stepsized_steps(*begun(f, x0), rule=rule)
    changed = stepsized_steps(*begun(lambda y: f(S @ y), torch.linalg.solve(S, x0)), rule=rule)
    shared = min(len(plain.history), len(changed.history)) - 2
    assert shared >= 3
    assert plain.history[:shared] == pytest.approx(changed.history[:shared], rel=1e-9)


@pytest.mark.parametrize("rule", ["universal", "greedy"])
def test_negative_curvature_is_descended(rule):
    run = stepsized_steps(*begun(lambda x: (0.25 * x**4 - x**2).sum(), torch.tensor([0.1, -0.2]).double()), rule=rule)
    torch.testing.assert_close(run.point.x.abs(), torch.full((2,), 2**0.5, dtype=torch.float64))
    run = stepsized_steps(*begun(rosenbrock, torch.tensor([-1.2, 1.0]).double()), rule=rule)
    torch.testing.assert_close(run.point.x, torch.ones(2).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["universal", "greedy"])
def test_a_discontinuous_function_stagnates(rule):
    run = stepsized_steps(
        *begun(lambda x: torch.where(x < 0.3, 2 - x, x - 0.1).sum(), torch.ones(1).double()), rule=rule
    )
    assert run.status in (Status.STAGNATED, Status.UNBOUNDED)
