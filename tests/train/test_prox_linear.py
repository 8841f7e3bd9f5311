import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, hessian, l2, squared_error
from frechet.objective.criteria import gaussian, poisson
from frechet.train import prox_linear_step

F64 = torch.float64
CRITERIA = {"cross_entropy": (cross_entropy(), 3), "squared_error": (squared_error(), 2), "poisson": (poisson(), 2)}


def problem(name, linear=False):
    criterion, C = CRITERIA[name]
    torch.manual_seed(0)
    model = nn.Linear(4, C) if linear else nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C))
    X = torch.randn(15, 4, dtype=F64)
    y = torch.randint(0, C, (15,)) if name == "cross_entropy" else torch.rand(15, C, dtype=F64)
    first, second = ([(X[:6], y[:6]), (X[6:10], y[6:10])], [(X[10:], y[10:])])
    model = model.double()
    return Objective(model, criterion, first) + 0.5 * Objective(model, criterion, second)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_on_a_linear_model_a_step_is_the_proximal_point(name):
    objective = problem(name, linear=True)
    x = objective.point
    moved, info = prox_linear_step(objective, x, t=7.0, rtol=1e-11)
    assert info.converged
    assert float((objective.gradient(moved) + (moved - x) / 7.0).norm()) < 1e-9
    assert info.model == pytest.approx(float(objective.value(moved)))
    assert info.loss == pytest.approx(float(objective.value(x)))
    # the gradient of the Moreau envelope
    assert info.stationarity == pytest.approx(float(objective.gradient(moved).norm()))


def test_with_squares_a_step_is_that_of_gauss_newton():
    objective = problem("squared_error")
    x, g = objective.point, objective.gradient()
    moved, _ = prox_linear_step(objective, x, t=3.0, rtol=1e-12, max_products=500)
    d = -torch.linalg.solve(gauss_newton(objective).dense() + torch.eye(len(g), dtype=F64) / 3, g)
    torch.testing.assert_close(moved - x, d, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["cross_entropy", "poisson"])
def test_a_step_minimizes_the_linearized_loss(name):
    objective = problem(name)
    x = objective.point
    moved, info = prox_linear_step(objective, x, t=5.0, rtol=1e-10)
    J = torch.autograd.functional.jacobian(
        lambda v: torch.cat([
            torch.func.functional_call(objective.model, objective.space.unflatten(v), (b.inputs,)).reshape(-1)
            for b in objective.batches()
        ]), x)  # fmt: skip
    outputs = torch.cat([objective.model(b.inputs).detach().reshape(-1) for b in objective.batches()])
    scales = [
        1 / float(objective.parts[0].criterion.count(torch.cat([b.targets for b in list(objective.batches())[:2]])))
    ]
    scales = [
        scales[0],
        scales[0],
        0.5 / float(objective.parts[1].criterion.count(list(objective.batches())[2].targets)),
    ]

    def linearized(v):
        z, total, row = outputs + J @ v, v @ v / 10, 0
        for b, scale in zip(objective.batches(), scales, strict=True):
            shape = objective.model(b.inputs).shape
            part = z[row : row + shape.numel()].view(shape)
            total, row = total + scale * objective.parts[0].criterion.terms(part, b.targets).sum(), row + shape.numel()
        return total

    d = (moved - x).requires_grad_()
    (g,) = torch.autograd.grad(linearized(d), d)
    assert float(g.norm()) < 1e-8
    assert info.converged
    assert bool((torch.linalg.eigvalsh(hessian(linearized, (moved - x).detach()).dense()) > 0).all())


def test_wrong_arguments_are_named():
    objective = problem("squared_error")
    x = objective.point
    with pytest.raises(ValueError, match=r"prox_linear_step: t must be a number > 0, got 0.0"):
        prox_linear_step(objective, x, t=0.0)
    model, data = nn.Linear(2, 2).double(), [(torch.ones(3, 2, dtype=F64), torch.ones(3, 1, dtype=F64))]
    bent = Objective(model, gaussian(), data)
    with pytest.raises(ValueError, match="prox_linear_step: the criterion must be convex"):
        prox_linear_step(bent, bent.point, t=1.0)
    with pytest.raises(ValueError, match="without penalty"):
        prox_linear_step(Objective(model, gaussian(), data, penalty=l2(1.0)), bent.point, t=1.0)
