import math

import pytest
import torch
from scipy.optimize import least_squares as scipy_least_squares

from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.robust import LOSSES, robust_cost, robust_loss, row_scales
from spectra import F64, gaussian

T = torch.linspace(0, 3, 30, dtype=F64)
Y = 2 * torch.exp(-0.7 * T) + 0.02 * gaussian(30)
Y[[3, 11, 20]] += torch.tensor([3.0, -2.0, 4.0], dtype=F64)  # outliers


def residual(x):
    return x[0] * torch.exp(-x[1] * T) - Y


@pytest.mark.parametrize("name", LOSSES)
def test_losses_begin_like_the_square(name):
    rho = LOSSES[name]
    z = torch.tensor([1e-9], dtype=F64)
    assert float(rho(0 * z)) == 0
    assert float(rho(z) / z) == pytest.approx(1, abs=1e-6)
    assert bool((rho(torch.tensor([0.5, 1.0, 4.0, 100.0], dtype=F64)).diff() >= 0).all())


@pytest.mark.parametrize("name", ["huber", "soft_l1", "cauchy", "arctan"])
def test_minimum_is_scipys(name):
    x0 = torch.tensor([1.5, 0.5], dtype=F64)
    s = least_squares(residual, x0, loss=name, loss_scale=0.1)
    theirs = scipy_least_squares(
        lambda x: residual(torch.from_numpy(x)).numpy(), x0.numpy(), "3-point", loss=name, f_scale=0.1, gtol=1e-10
    )
    assert s.converged, s.message
    assert s.cost == pytest.approx(theirs.cost, rel=1e-8)
    assert s.x.tolist() == pytest.approx(theirs.x.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_robust_cost_and_outliers_lose(name):
    s = least_squares(residual, torch.tensor([1.9, 0.6], dtype=F64), loss=name, loss_scale=0.1)
    assert s.converged, s.message
    x = s.x.clone().requires_grad_()
    cost = 0.005 * LOSSES[name]((residual(x) / 0.1) ** 2).sum()
    (gradient,) = torch.autograd.grad(cost, x)
    assert s.cost == pytest.approx(float(cost.detach()))
    assert float(gradient.abs().max()) < 1e-8
    assert s.x.tolist() == pytest.approx([2, 0.7], rel=0.05)


def test_a_function_is_a_loss():
    s = least_squares(residual, torch.tensor([1.5, 0.5], dtype=F64), loss=torch.log1p, loss_scale=0.1)
    named = least_squares(residual, torch.tensor([1.5, 0.5], dtype=F64), loss="cauchy", loss_scale=0.1)
    assert torch.equal(s.x, named.x)


def test_row_scales_give_the_gradient_and_stay_positive():
    r = torch.tensor([0.1, 1.0, 5.0, -20.0], dtype=F64)
    factors, rows = row_scales(LOSSES["cauchy"], r, 2.0)
    weights = 1 / (1 + (r / 2) ** 2)
    assert torch.allclose(factors * rows, weights)
    z = (r / 2) ** 2
    second = weights - 2 * z * weights**2  # rho' + 2 z rho''
    assert torch.allclose(rows**2, torch.maximum(second, 0.1 * weights))
    assert 0 < int((second > 0.1 * weights).sum()) < 4
    assert robust_cost(LOSSES["cauchy"], r, 2.0) == pytest.approx(sum(2 * math.log1p((v / 2) ** 2) for v in r.tolist()))


def test_bad_losses():
    with pytest.raises(
        ValueError, match=r"least_squares: loss must be one of 'squared', .* or a function of z, got 'l2'"
    ):
        robust_loss("l2")
    with pytest.raises(ValueError, match="least_squares: loss_scale must be a positive number, got 0"):
        least_squares(residual, torch.ones(2, dtype=F64), loss="huber", loss_scale=0)
