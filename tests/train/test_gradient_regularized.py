import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian, l2
from frechet.train import GradientRegularizedState, gradient_regularized_step

F64 = torch.float64


def logistic():
    torch.manual_seed(0)
    X, y = torch.randn(40, 5, dtype=F64), torch.randint(0, 3, (40,))
    model = nn.Linear(5, 3).double()
    nn.init.normal_(model.weight, std=3.0)  # far from the solution, where plain Newton steps overshoot
    return Objective(model, cross_entropy(), [(X, y)], penalty=l2(1e-2))


def network():
    torch.manual_seed(0)
    X, y = torch.randn(40, 5, dtype=F64), torch.randint(0, 3, (40,))
    return Objective(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), cross_entropy(), [(X, y)])


def run(objective, steps, **options):
    x, state, told = objective.point, GradientRegularizedState(), []
    for _ in range(steps):
        x, state, info = gradient_regularized_step(objective, x, state, **options)
        told.append(info)
        if info.gradient_norm < 1e-10:
            break
    return x, told


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_a_convex_problem_is_solved_from_far_away_and_the_end_is_superlinear(curvature):
    x, told = run(logistic(), 18, curvature=curvature)
    norms = [i.gradient_norm for i in told]
    assert min(norms) < 1e-10
    end = next(k for k, n in enumerate(norms) if n < 1e-8)
    assert norms[end] < 0.01 * norms[end - 1]
    assert all(i.after <= i.loss + 1e-12 for i in told)
    assert float(logistic().gradient(x).abs().max()) < 1e-10


@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher", "hessian"])
def test_accepted_steps_meet_their_condition_on_a_network(curvature):
    objective = network()
    x, state = objective.point, GradientRegularizedState()
    for _ in range(12):
        moved, state, info = gradient_regularized_step(objective, x, state, curvature=curvature)
        if info.accepted:
            after = float(objective.gradient(moved).norm())
            assert info.loss - info.after >= after**2 / (8 * info.regularization) - 1e-12
        else:
            assert torch.equal(moved, x)
        x = moved
    assert info.after < 0.6 * float(objective.value())


def test_a_step_is_the_dense_regularized_one():
    objective = logistic()
    x = objective.point
    moved, _, info = gradient_regularized_step(objective, x, GradientRegularizedState(), curvature="hessian")
    g = objective.gradient()
    H = hessian(objective).dense()
    d = -torch.linalg.solve(H + info.regularization * torch.eye(len(g), dtype=F64), g)
    off = float(((H + info.regularization * torch.eye(len(g), dtype=F64)) @ (moved - x) + g).norm())
    assert off <= 0.25 * info.regularization * float((moved - x).norm())
    assert float((moved - x - d).norm()) <= 0.3 * float(d.norm())


def test_a_stationary_point_stays_and_wrong_arguments_are_named():
    objective = Objective(nn.Linear(2, 2).double(), cross_entropy(), [(torch.zeros(4, 2, dtype=F64),
                                                                       torch.tensor([0, 1, 0, 1]))])  # fmt: skip
    x = torch.zeros_like(objective.point)
    moved, _, info = gradient_regularized_step(objective, x, GradientRegularizedState())
    assert torch.equal(moved, x)
    assert not info.accepted
    with pytest.raises(ValueError, match="curvature must be 'gauss_newton', 'fisher' or 'hessian', got 'kfac'"):
        gradient_regularized_step(objective, x, GradientRegularizedState(), curvature="kfac")
