"""Mollified activations are the convolution, have all derivatives, and stay within their distance."""

import math

import pytest
import torch
from torch import nn

from frechet.calculus.kinks import mollify
from frechet.calculus.taylor import jet

F64 = torch.float64
KNOWN = {
    "relu": (nn.ReLU(), torch.relu),
    "leaky": (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2)),
    "hardtanh": (nn.Hardtanh(-0.5, 1.0), nn.Hardtanh(-0.5, 1.0)),
    "relu6": (nn.ReLU6(), nn.ReLU6()),
    "hardsigmoid": (nn.Hardsigmoid(), nn.Hardsigmoid()),
    "softshrink": (nn.Softshrink(0.4), nn.Softshrink(0.4)),
    "hardshrink": (nn.Hardshrink(0.4), nn.Hardshrink(0.4)),
    "threshold": (nn.Threshold(0.3, -2.0), nn.Threshold(0.3, -2.0)),
    "abs": ("abs", torch.abs),
    "sign": ("sign", torch.sign),
    "step": ("step", lambda x: (x > 0).double()),
}


@pytest.mark.parametrize("width", [0.05, 0.7])
@pytest.mark.parametrize("name", KNOWN)
def test_it_is_the_convolution(name, width):
    activation, f = KNOWN[name]
    x = torch.linspace(-8, 8, 33, dtype=F64)
    t = torch.linspace(-9, 9, 60_001, dtype=F64)
    density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    expected = torch.trapezoid(f(x[:, None] - width * t) * density, t, dim=1)
    # the rule of trapezoids is off by a step of t at jumps
    torch.testing.assert_close(mollify(activation, width)(x), expected, rtol=0, atol=1e-3 if name in STEPS else 1e-6)


STEPS = ("sign", "step", "hardshrink", "threshold")


@pytest.mark.parametrize("name", KNOWN)
def test_it_stays_within_its_distance_and_comes_nearer(name):
    activation, f = KNOWN[name]
    x = torch.linspace(-8, 8, 4001, dtype=F64)
    for width in (1.0, 0.1):
        smooth = mollify(activation, width)
        assert float((smooth(x) - f(x)).abs().max()) <= smooth.distance * (1 + 1e-6) + 1e-9
    if name not in STEPS:
        assert mollify(activation, 1e-3).distance == pytest.approx(mollify(activation, 1.0).distance / 1000)


@pytest.mark.parametrize("name", KNOWN)
def test_derivatives_of_all_orders_exist(name):
    smooth, x = mollify(KNOWN[name][0], 0.5), torch.linspace(-3, 3, 13, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(smooth, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(smooth, x)
    _, derivatives = jet(smooth, x.detach(), torch.ones_like(x), order=4)
    fourth = lambda f, k: torch.func.grad(lambda z: fourth(f, k - 1)(z).sum()) if k else f  # noqa: E731
    torch.testing.assert_close(derivatives[3], fourth(smooth, 4)(x.detach()))
    assert bool(smooth(torch.tensor([-1e6, 1e6], dtype=F64)).isfinite().all())


def test_what_is_not_known_is_refused():
    with pytest.raises(TypeError, match="got Hardswish"):
        mollify(nn.Hardswish(), 0.1)
    with pytest.raises(ValueError, match="width must be positive"):
        mollify("abs", 0.0)
    assert "width=0.1" in repr(mollify("abs", 0.1))
