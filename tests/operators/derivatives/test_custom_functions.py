"""Functions with a backward of their own: right, or refused in one sentence; never silently incomplete."""

import numpy as np
import pytest
import torch
from torch import nn

from frechet import NotDifferentiable, Objective, gauss_newton, hessian, hessian_product, jacobian, squared_error

F64 = torch.float64


def function(forward, backward):
    """A torch.autograd.Function of one tensor."""
    return type(
        "Made", (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )


def keep(ctx, v):
    ctx.save_for_backward(v)
    return torch.exp(-v * v)


def keep_result(ctx, v):
    ctx.save_for_backward(v)
    ctx.result = torch.exp(-v * v)  # an intermediate result that autograd knows nothing of
    return ctx.result.clone()


def keep_numbers(ctx, v):
    ctx.numbers = v.detach().numpy().copy()
    return torch.exp(-v * v)


def right(ctx, g):
    (v,) = ctx.saved_tensors
    return -2 * v * torch.exp(-v * v) * g


def without_graph(ctx, g):
    (v,) = ctx.saved_tensors
    with torch.no_grad():
        return -2 * v * torch.exp(-v * v) * g


def by_numpy(ctx, g):
    (v,) = ctx.saved_tensors
    v = v.detach().numpy()
    return torch.from_numpy(-2 * v * np.exp(-v * v) * g.detach().numpy())


def by_a_factor(ctx, g):
    (v,) = ctx.saved_tensors
    with torch.no_grad():
        factor = -2 * v * torch.exp(-v * v)
    return g * factor


def by_detached(ctx, g):
    v = ctx.saved_tensors[0].detach()
    return g * (-2 * v * torch.exp(-v * v))


def half(ctx, g):
    (v,) = ctx.saved_tensors
    return -2 * v * ctx.result * g


def by_kept_numbers(ctx, g):
    v = ctx.numbers
    return g * torch.from_numpy(-2 * v * np.exp(-v * v))


CUT = {"no_grad": (keep, without_graph), "numpy": (keep, by_numpy)}
FORGOTTEN = {
    "a factor": (keep, by_a_factor),
    "detached": (keep, by_detached),
    "an intermediate result": (keep_result, half),
    "numbers": (keep_numbers, by_kept_numbers),
}


class Waves(nn.Module):
    def __init__(self, made, first):
        super().__init__()
        self.v, self.made, self.first = nn.Parameter(torch.tensor([0.3, 0.7, 1.1], dtype=F64)), made, first

    def forward(self, s):
        return s * self.made.apply(self.v if self.first else self.v.sin())


def objective(made, first=True):
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(5, 3, generator=g, dtype=F64), torch.randn(5, 3, generator=g, dtype=F64))]
    return Objective(Waves(made, first), squared_error(), data)


def differences(o, h=1e-5):
    x = o.point
    ends = [(o.gradient(x + h * e) - o.gradient(x - h * e)) / (2 * h) for e in torch.eye(len(x), dtype=x.dtype)]
    return torch.stack(ends, 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_differentiable_backward_is_taken(first):
    o = objective(function(keep, right), first)
    torch.testing.assert_close(hessian(o).dense(), differences(o), rtol=1e-7, atol=1e-8)
    J = gauss_newton(o)
    assert J.route == "forward"
    torch.testing.assert_close(J.dense(), gauss_newton(o, route="reverse").dense())
    assert J.route == "reverse"  # the function has no forward mode
    assert "forward mode cannot go through" in J.way.reason
    o.check()


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("first", [True, False])
def test_a_backward_that_leaves_no_graph_is_refused(kind, first):
    made = function(*CUT[kind])
    o = objective(made, first)
    o.gradient()
    for ask in (
        lambda: hessian(o).dense(),
        lambda: gauss_newton(o, route="reverse").dense(),
        lambda: jacobian(o, route="reverse") @ torch.ones(3, dtype=F64),
        lambda: hessian(lambda v: made.apply(v).sum(), o.point).dense(),
        lambda: hessian_product(lambda v: made.apply(v).sum(), o.point, torch.ones(3, dtype=F64)),
        o.check,
    ):
        with pytest.raises(NotDifferentiable, match="the backward of Made leaves no graph"):
            ask()
    J = jacobian(o)
    assert (J.T @ torch.ones(15, dtype=F64)).isfinite().all()  # a first derivative


@pytest.mark.parametrize("kind", FORGOTTEN)
@pytest.mark.parametrize("first", [True, False])
def test_a_backward_that_forgets_an_input_is_refused_where_it_matters(kind, first):
    made = function(*FORGOTTEN[kind])
    o, full = objective(made, first), objective(function(keep, right), first)
    for ask in (
        lambda: hessian(o).dense(),
        lambda: hessian(lambda v: made.apply(v).sum(), o.point).dense(),
        o.check,
    ):
        with pytest.raises(NotDifferentiable, match="depends on its inputs by a way that autograd cannot follow"):
            ask()
    # linear in its cotangent, it has the right Jacobian
    torch.testing.assert_close(gauss_newton(o).dense(), gauss_newton(full).dense())


def test_float32_tells_the_same():
    for kind in FORGOTTEN:
        made = function(*FORGOTTEN[kind])
        x = torch.tensor([0.3, 0.7, 1.1])
        with pytest.raises(NotDifferentiable, match="autograd cannot follow"):
            hessian(lambda v, made=made: made.apply(v).sum(), x).dense()
    made = function(keep, right)
    assert hessian(lambda v: made.apply(v).sum(), torch.tensor([0.3, 0.7, 1.1])).dense().isfinite().all()


def straight(ctx, v):
    return v.round()


def clipped(ctx, v):
    ctx.save_for_backward(v)
    return torch.sign(v)


def test_straight_through_estimators_go_on_working():
    through = function(straight, lambda ctx, g: g)
    window = function(clipped, lambda ctx, g: g * (ctx.saved_tensors[0].abs() < 1))
    reversal = function(lambda ctx, v: v.view_as(v), lambda ctx, g: -0.5 * g)
    x = torch.linspace(-1.5, 1.5, 40, dtype=F64)
    for made in (through, window, reversal):
        H = hessian(lambda v, made=made: (made.apply(v) ** 2).sum(), x)
        assert H.dense().isfinite().all()
    close = hessian(lambda v: (through.apply(v) ** 2).sum(), x).dense()
    torch.testing.assert_close(close, 2 * torch.eye(40, dtype=F64))


def test_a_function_of_zeros_is_no_cut():
    zero = function(lambda ctx, v: torch.zeros_like(v), lambda ctx, g: torch.zeros_like(g))
    x = torch.ones(2, dtype=F64)
    H = hessian(lambda v: (zero.apply(v) + v**3).sum(), x).dense()
    torch.testing.assert_close(H, 6 * torch.eye(2, dtype=F64))
