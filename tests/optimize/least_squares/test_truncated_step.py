import math

import pytest
import torch

from frechet import least_squares
from frechet.calculus.taylor import laplacian
from frechet.optimize._least_squares import truncated_step as module
from frechet.optimize._least_squares.damped_step import factored
from frechet.optimize._least_squares.least_squares import problem_of
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.physics import collocation
from pinns import F64, network, parameters_of, value


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
@pytest.mark.parametrize("cut", [1e-1, 1e-4, 1e-8])
def test_it_is_the_pseudo_inverse_with_a_cut(shape, cut):
    draw = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(k, 5, dtype=F64, generator=draw)).Q for k in shape)
    A, y = (U * torch.logspace(0, -6, 5, dtype=F64)) @ V.T, torch.randn(shape[0], dtype=F64, generator=draw)
    problem, x = problem_of(lambda x: A @ x - y, torch.zeros(shape[1], dtype=F64), None, None, 1.0, "auto")
    linear = first_linearization(*begin(problem, x))[1]
    ones = torch.ones_like(x)
    p = factored(linear, ones, ones > 0).truncated(cut)
    wanted = torch.linalg.pinv(A, rtol=cut) @ y
    assert float((p - wanted).norm()) <= 1e-8 * float(wanted.norm())


def test_a_jacobian_of_zeros():
    problem, x = problem_of(lambda x: 0 * x + 1, torch.zeros(3, dtype=F64), None, None, 1.0, "auto")
    linear = first_linearization(*begin(problem, x))[1]
    assert not factored(linear, torch.ones_like(x), x == 0).truncated(1e-10).any()


def equation_in_one_dimension(seed):
    net = network(1, 32, 1, seed=seed)
    with torch.no_grad():
        for p in net[0].parameters():
            p.uniform_(-3, 3)
    u = value(net)
    x = torch.linspace(0, 1, 60, dtype=F64)[:, None]
    residual = collocation(
        {
            "equation": lambda p, x: laplacian(u(p))(x) + math.pi**2 * torch.sin(math.pi * x[0]),
            "ends": lambda p, x: u(p)(x),
        },
        {"equation": x, "ends": x[[0, -1]]},
    )
    return residual, parameters_of(net)


def steps_to_the_last_digits(seed):
    residual, p = equation_in_one_dimension(seed)
    s = least_squares(residual, p, observe=lambda state: state.cost < 1e-20 or state.iteration >= 80)
    return s.iterations


@pytest.mark.slow
def test_the_last_digits_come_in_a_few_steps(monkeypatch):
    """Damped steps take a constant factor off; half as many steps reach 1e-10 where the truncated one is tried."""
    tried = [steps_to_the_last_digits(seed) for seed in range(3)]
    monkeypatch.setattr(module, "BETTER", 0.0)
    damped = [steps_to_the_last_digits(seed) for seed in range(3)]
    assert sum(tried) < 0.7 * sum(damped)


def test_bounds_leave_it_out(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "too_short", lambda *a: asked.append(a) or True)
    residual = lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # noqa: E731
    start = torch.tensor([-1.2, 1.0], dtype=F64)
    least_squares(residual, start, bounds=(-2.0, 0.8), method="target-ratio")
    assert not asked
    least_squares(residual, start, method="target-ratio")
    assert asked
