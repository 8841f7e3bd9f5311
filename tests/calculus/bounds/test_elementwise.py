"""Relaxations enclose: lines, ranges and slopes of every activation on every kind of interval."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.calculus.bounds import _activations as activations
from frechet.calculus.bounds._elementwise import Factor

F64 = torch.float64
KNOWN = {
    "relu": activations.RECTIFIER, "abs": activations.ABSOLUTE, "leaky": activations.leaky(0.01),
    "hardtanh": activations.clipped(-1.0, 1.0), "relu6": activations.clipped(0.0, 6.0),
    "hardsigmoid": activations.HARD_SIGMOID, "tanh": activations.TANH, "sigmoid": activations.SIGMOID,
    "atan": activations.ARCTAN, "gelu": activations.GELU, "gelu tanh": activations.GELU_TANH,
    "silu": activations.SILU, "sin": activations.SINE, "cos": activations.COSINE, "softplus": activations.softplus(2.0),
    "elu": activations.exponential_unit(1.0), "celu": activations.exponential_unit(0.3),
}  # fmt: skip
# torch's own hardsigmoid and CELU have a constant of float32 in their derivatives
TORCH = {
    "relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.01), "hardtanh": nn.Hardtanh(), "relu6": nn.ReLU6(),
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6, "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"), "silu": nn.SiLU(),
    "softplus": nn.Softplus(2.0), "elu": nn.ELU(), "celu": lambda x: F.relu(x) + 0.3 * torch.expm1(-F.relu(-x) / 0.3),
}  # fmt: skip


def intervals():
    """Centres and half widths over many orders, with ends at kinks, and single points."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.cat([torch.randn(200, generator=draw, dtype=F64) * 4, torch.zeros(20, dtype=F64)])
    half = 10 ** (-12 + 13 * torch.rand(220, generator=draw, dtype=F64))
    low, high = centre - half, centre + half
    special = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [-3.0, 3.0], [2.0, 2.0], [-1.0, 1.0], [6.0, 8.0]])
    return torch.cat([low, special[:, 0].double()])[None], torch.cat([high, special[:, 1].double()])[None]


@pytest.mark.parametrize("name", KNOWN)
def test_lines_ranges_and_slopes_enclose(name):
    function, (low, high) = KNOWN[name], intervals()
    lines, (least, most), (slow, steep) = (
        function.lines(low, high),
        function.range(low, high),
        function.slopes(low, high),
    )
    for t in torch.linspace(0, 1, 101, dtype=F64):
        x = torch.minimum(torch.maximum(torch.lerp(low, high, t), low), high)
        y = function.values(x)
        assert bool((y <= lines.upper * x + lines.upper_shift).all())
        assert bool((y >= lines.lower * x + lines.lower_shift).all())
        assert bool(((least <= y) & (y <= most)).all())
        if 0 < t < 1:
            s = function.slope_at(x)
            inside = (low < x) & (x < high)
            assert bool(((slow <= s) & (s <= steep) | ~inside).all())


@pytest.mark.parametrize("name", TORCH)
def test_values_and_slopes_are_those_of_torch(name):
    x = torch.linspace(-8.1, 8.3, 4001, dtype=F64, requires_grad=True)
    y = TORCH[name](x)
    (g,) = torch.autograd.grad(y.sum(), x)
    function = KNOWN[name]
    torch.testing.assert_close(function.values(x), y, rtol=1e-12, atol=3e-9)  # softplus has a threshold in torch
    torch.testing.assert_close(function.slope_at(x.detach()), g, rtol=1e-12, atol=3e-9)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "atan", "gelu", "gelu tanh", "silu", "softplus", "celu"])
def test_bounds_on_second_and_third_derivatives_hold_and_are_sharp(name):
    function = KNOWN[name]
    x = torch.linspace(-12, 12, 240_001, dtype=F64, requires_grad=True)
    (second,) = torch.autograd.grad(function.slope(x).sum(), x, create_graph=True)
    assert 0.99 * function.second <= float(second.detach().abs().max()) <= function.second
    if name != "celu":  # its second derivative jumps, and its slopes are taken at the ends
        (third,) = torch.autograd.grad(second.sum(), x)
        assert 0.99 * function.third <= float(third.abs().max()) <= function.third


def test_lines_touch_the_rectifier_and_have_the_least_area():
    one = torch.ones(1, 1, dtype=F64)
    lines = activations.RECTIFIER.lines(-one, 3 * one)
    assert float(lines.upper) == pytest.approx(0.75)
    assert float(lines.upper_shift) == pytest.approx(0.75)
    assert float(lines.lower) == 1.0
    assert float(activations.RECTIFIER.lines(-3 * one, one).lower) == 0.0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.0), (0.2, 0.7), (-0.1, 1.1)])
def test_a_factor_in_an_interval_is_enclosed(low, high):
    l, u = intervals()
    factor = Factor(torch.full_like(l, low), torch.full_like(l, high))
    lines, (least, most) = factor.lines(l, u), factor.range(l, u)
    for s in (low, (low + high) / 2, high):
        for t in torch.linspace(0, 1, 31, dtype=F64):
            x = torch.minimum(torch.maximum(torch.lerp(l, u, t), l), u)
            assert bool((s * x <= lines.upper * x + lines.upper_shift).all())
            assert bool((s * x >= lines.lower * x + lines.lower_shift).all())
            assert bool(((least <= s * x) & (s * x <= most)).all())


def test_a_piece_that_is_met_at_an_end_alone_does_not_count():
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    assert [float(s) for s in activations.RECTIFIER.slopes(zero, one)] == [1.0, 1.0]
    assert [float(s) for s in activations.RECTIFIER.slopes(-one, zero)] == [0.0, 0.0]
    assert [float(s) for s in activations.RECTIFIER.slopes(zero, zero)] == [0.0, 1.0]
