"""A wrong Jacobian is named, with the parameter; a right one is not suspected aloud."""

from __future__ import annotations

import pytest
import torch

from frechet import least_squares
from frechet.errors import NonFinite

F64 = torch.float64
T = torch.linspace(0, 5, 30, dtype=F64)
Y = 3 * torch.exp(-0.7 * T) + 0.5 + 0.05 * torch.sin(9 * T)
X0 = torch.tensor([1.0, 1.0, 0.1], dtype=F64)


def residual(b):
    return b[0] * torch.exp(-b[1] * T) + b[2] - Y


def right(b):
    e = torch.exp(-b[1] * T)
    return torch.stack([e, -b[0] * T * e, torch.ones_like(T)], 1)


def changed(j, factor):
    def jacobian(b):
        J = right(b)
        J[:, j] *= factor
        return J

    return jacobian


@pytest.mark.parametrize("loss", ["squared", "soft_l1"])
@pytest.mark.parametrize("j", [0, 1, 2])
@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.5, 0.0])
def test_a_column_with_a_wrong_factor_is_named(j, factor, loss):
    s = least_squares(residual, X0, jacobian=changed(j, factor), loss=loss, max_evaluations=4000)
    if s.converged:  # a factor does not move the solution where the whole gradient is zero
        assert torch.allclose(s.x, least_squares(residual, X0, loss=loss).x, rtol=1e-5)
    else:
        assert f"x[{j}]" in s.message
        assert "the Jacobian is not that of the residual" in s.message


@pytest.mark.parametrize("factor", [-1.0, 2.0])
def test_the_whole_matrix_with_a_wrong_factor_is_told(factor):
    s = least_squares(residual, X0, jacobian=lambda b: factor * right(b))
    assert not s.converged
    assert f"it is {factor:.3g} times what the residual changes by" in s.message


def test_a_transposed_block_is_named():
    A = torch.tensor([[2.0, 1.0, 0.3], [0.5, 3.0, 0.1], [0.2, 0.7, 1.5]], dtype=F64)

    def f(p):
        return {"r": A @ p["W"] - torch.eye(3, dtype=F64) + 0.1 * p["W"] ** 2}

    def transposed(p):
        J = torch.func.jacrev(lambda W: f({"W": W})["r"].reshape(-1))(p["W"])  # (9, 3, 3)
        return {"W": J.transpose(1, 2)}

    s = least_squares(f, {"W": torch.full((3, 3), 0.2, dtype=F64)}, jacobian=transposed, max_evaluations=4000)
    assert not s.converged
    assert "W[" in s.message


@pytest.mark.parametrize("cut", [lambda b: torch.exp(-b[1].detach() * T), lambda b: torch.exp(-b.detach()[1] * T)])
def test_a_detached_term_is_named(cut):
    s = least_squares(lambda b: b[0] * cut(b) + b[2] * (1 + 0.1 * b[1]) - Y, X0)
    assert not s.converged
    assert "x[1]" in s.message


@pytest.mark.parametrize("x0", [[1.0, 1.0, 0.1], [8.0, 0.1, -2.0], [3.0, 0.7, 0.5]])
@pytest.mark.parametrize("jacobian", ["auto", right])
def test_a_right_jacobian_is_not_accused(x0, jacobian):
    s = least_squares(residual, torch.tensor(x0, dtype=F64), jacobian=jacobian)
    assert s.converged


@pytest.mark.parametrize(
    "r",
    [
        lambda b: torch.cat([b.abs() - 0.3, (b - 1).relu()]),  # kinks, at the solution too
        lambda b: torch.stack([b[0].floor() + b[1], b[0] * b[1] - 1.0, b[2]]),  # a jump
        lambda b: torch.stack([b[0] ** 2 - 1e-20, b[1].exp() - 2, b[2] ** 3]),  # zeros of second order
    ],
)
def test_kinks_jumps_and_double_zeros_are_no_wrong_jacobian(r):
    s = least_squares(r, X0)
    assert "not that of the residual" not in s.message


NEAR_ZERO = {
    "powers": lambda x, p: x**p,
    "exponential less one": lambda x, p: torch.exp(x**p) - 1,
    "products": lambda x, p: torch.stack([x[0] ** p * x[1], (x[1] - x[0]) ** p, x[0] ** 2]),
    "a power times a tanh": lambda x, p: x**p * torch.tanh(x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", [3, 5])
@pytest.mark.parametrize("name", NEAR_ZERO)
def test_differences_that_rounding_or_underflow_flattens_say_nothing(name, power, dtype):
    """Near a degenerate root the residual is zero on a whole interval while the right Jacobian is not."""
    for start in ([2.0, -1.0], [1e-3, 5.0]):
        for method in ("auto", "dogleg", "target-ratio"):
            try:
                s = least_squares(lambda x: NEAR_ZERO[name](x, power), torch.tensor(start, dtype=dtype), method=method)
            except NonFinite:  # exp(5^5)
                continue
            assert "Jacobian is not" not in s.message


def test_a_pole_that_is_narrower_than_differences_is_not_called_wrong():
    """The run ends in float32 beside the pole at -b[1] = t[1], where the column is 5e4 times the differences."""
    draws = torch.Generator().manual_seed(0)
    t = torch.linspace(0.1, 5, 25, dtype=F64)
    for noise in (0.0, 0.05):  # the second problem of this stream
        truth, x0 = (torch.randn(4, generator=draws, dtype=F64) for _ in range(2))
        x0 = x0 * 3 * 10 ** (torch.rand(1, generator=draws).item() * 2 - 1)
        y = 2 * truth[0] * t / (2 * truth[1] + t) + noise * torch.randn(25, generator=draws, dtype=F64)
    s = least_squares(lambda b: (b[0] * t / (b[1] + t) - y.to(b.dtype)).to(b.dtype), x0.float(), loss="soft_l1")
    assert "Jacobian is not" not in s.message
