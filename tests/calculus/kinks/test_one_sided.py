"""Derivatives at kinks, in two spellings of one function, and where autograd is wrong."""

import math

import pytest
import torch
from torch import nn

from frechet.calculus.kinks import clarke_check, one_sided_derivative

F64 = torch.float64
ZERO = torch.zeros((), dtype=F64)
KINKS = {
    # function, point, left, right
    "relu": (torch.relu, 0.0, 0.0, 1.0),
    "abs": (torch.abs, 0.0, -1.0, 1.0),
    "maximum": (lambda x: torch.maximum(2 * x, -3 * x), 0.0, -3.0, 2.0),
    "clamp": (lambda x: x.clamp(0, 1), 1.0, 1.0, 0.0),
    "hardtanh": (lambda x: nn.functional.hardtanh(x, 0.0, 1.0), 0.0, 0.0, 1.0),
    "curved": (lambda x: x.exp() * torch.relu(x - 0.5) + x.sin(), 0.5, math.cos(0.5), math.cos(0.5) + math.exp(0.5)),
    "smooth": (torch.sin, 0.3, math.cos(0.3), math.cos(0.3)),
    "two relus": (lambda x: torch.relu(x) - torch.relu(-x), 0.0, 1.0, 1.0),
    "steep": (lambda x: 1e6 * torch.relu(x), 0.0, 0.0, 1e6),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", KINKS)
def test_sides_are_found(name, dtype):
    f, x, left, right = KINKS[name]
    found = one_sided_derivative(f, torch.tensor(x, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    # sums in float32 around a point off zero keep half of the digits
    rel = 1e-8 if dtype is F64 else 2e-3
    assert float(found.left) == pytest.approx(left, rel=rel, abs=rel)
    assert float(found.right) == pytest.approx(right, rel=rel, abs=rel)
    assert bool(found.kink) == (left != right)
    assert bool(found.agrees) == (name != "two relus")


def test_a_negative_direction_swaps_the_sides_and_outputs_are_taken_alone():
    found = one_sided_derivative(lambda x: torch.stack([x.abs(), x.sin()]), ZERO, -torch.ones((), dtype=F64))
    assert found.right.tolist() == pytest.approx([1.0, -1.0])
    assert found.left.tolist() == pytest.approx([-1.0, -1.0])
    assert found.kink.tolist() == [True, False]


RIGHT = {
    "abs": lambda x: x.abs().sum(),
    "largest": lambda x: x.amax(),
    "relus": lambda x: torch.relu(x).sum() + torch.relu(-x[0]),
    "smooth": lambda x: (x.exp() * x.sin()).sum(),
    "network": lambda x: torch.relu(torch.relu(x) @ torch.tensor([1.0, -1.0, 2.0], dtype=F64)),
}
WRONG = {
    "relu minus relu": (lambda x: (torch.relu(x) - torch.relu(-x)).sum(), math.sqrt(3)),
    "a constant factor": (lambda x: torch.where(x == 0, 0 * x, 2 * x).sum(), 2 * math.sqrt(3)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_autograd_is_clarkes_where_it_should_be(name):
    found = clarke_check(RIGHT[name], torch.zeros(3, dtype=F64), seed=0)
    assert found.passed
    assert found.kink == (name != "smooth")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_derivative_at_a_smooth_point_is_found(name):
    f, distance = WRONG[name]
    found = clarke_check(f, torch.zeros(3, dtype=F64), seed=0)
    assert not found.passed
    assert not found.kink
    assert found.distance == pytest.approx(distance)
    assert "is not" in repr(found)


def test_networks_with_biases_are_right_at_their_kinks():
    """Every unit at its kink: autograd returns an element of Clarke's derivative, as the theorem says."""
    for seed in range(10):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        x = torch.randn(3, dtype=F64)
        bias = -(net[0].weight.detach() @ x)

        def f(b, net=net, x=x):
            return net[2](torch.relu(net[0].weight.detach() @ x + b)).sum()

        found = clarke_check(f, bias, seed=0, samples=200)
        assert found.kink
        assert found.passed


def test_wrong_arguments():
    with pytest.raises(ValueError, match="v must have the shape"):
        one_sided_derivative(torch.abs, ZERO, torch.zeros(2, dtype=F64))
    with pytest.raises(ValueError, match="samples must be"):
        clarke_check(lambda x: x.sum(), torch.zeros(2), seed=0, samples=1)
