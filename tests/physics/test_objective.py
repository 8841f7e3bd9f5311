"""Residuals at points as an objective: the same cost, gradient and Gauss-Newton matrix."""

import pytest
import torch

import laws
from frechet import eigsh, gauss_newton, hessian
from frechet.physics import as_objective, collocation
from frechet.train import upgrad
from pinns import network, parameters_of, poisson, square, system


def made(make, sizes, mean=True):
    net = network(*sizes)
    inside, edge = square(7, 5)
    weights = {"boundary": torch.arange(1.0, 6.0, dtype=inside.dtype), "equation": 3.0}
    return net, collocation(make(net), {"equation": inside, "boundary": edge}, weights=weights, mean=mean)


@pytest.mark.parametrize(("make", "sizes"), [(poisson, (2, 6, 1)), (system, (2, 6, 2))])
@pytest.mark.parametrize(("mean", "batch"), [(True, None), (False, 3)])
def test_value_gradient_and_gauss_newton(make, sizes, mean, batch):
    net, residual = made(make, sizes, mean)
    p = parameters_of(net)
    J, r = residual.jacobian(p), torch.cat([t.reshape(-1) for t in residual(p).values()])
    objective = as_objective(residual, net, batch=batch)
    assert float(objective.value()) == pytest.approx(float(r @ r) / 2, rel=1e-12)
    laws.close(objective.gradient(), J.T @ r)
    laws.close(gauss_newton(objective).dense(), J.T @ J)


def test_questions_of_an_objective_have_answers():
    net, residual = made(poisson, (2, 6, 1))
    objective = as_objective(residual, net)
    assert all(claim.proved for claim in objective.check().proved)
    J = residual.jacobian(parameters_of(net))
    top = eigsh(gauss_newton(objective), 1, seed=0)
    assert float(top.values[0]) == pytest.approx(float(torch.linalg.matrix_norm(J, 2)) ** 2, rel=1e-6)
    H = hessian(objective).dense()
    laws.close(H, H.T)


def test_a_direction_for_all_conditions():
    """An aggregator of gradients takes those of the conditions: no cost rises against it to first order."""
    net, residual = made(poisson, (2, 6, 1))
    p = parameters_of(net)
    gradients = torch.stack([residual.only(k).jacobian(p).T @ r.reshape(-1) for k, r in residual(p).items()])
    direction = upgrad(gradients @ gradients.T) @ gradients
    assert bool((gradients @ direction >= -1e-10 * gradients.norm() * direction.norm()).all())


@pytest.mark.parametrize("batch", [0, -1, 2.0, True])
def test_a_batch_is_a_positive_integer(batch):
    net, residual = made(poisson, (2, 6, 1))
    with pytest.raises(ValueError, match="batch must be an integer"):
        as_objective(residual, net, batch=batch)
