"""Signs of derivatives: proven, refuted by points, undecided."""

import pytest
import torch
from torch import nn

from frechet.calculus.bounds import Direction, jacobian_bounds, monotonicity

F64 = torch.float64


def positive(act, seed=0):
    """A network that increases with every input, by its signs."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 6), act, nn.Linear(6, 4), act, nn.Linear(4, 1))
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            layer.weight.abs_()
    return net


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh(), nn.Softplus(), nn.LeakyReLU(), nn.Sigmoid(), nn.ELU()])
def test_positive_weights_increase_and_their_negative_decreases(act):
    net = positive(act)
    box = -2 * torch.ones(3), 2 * torch.ones(3)
    found = monotonicity(net, *box, input=1, seed=0)
    assert found.direction is Direction.INCREASING
    assert found.low >= 0
    with torch.no_grad():
        net[4].weight.neg_()
    assert monotonicity(net, *box, input=1, seed=0).direction is Direction.DECREASING
    assert bool((jacobian_bounds(net, torch.zeros(1, 3), 2.0).signs() == -1).all())


class Bump(nn.Module):
    """x^3 - like: increasing on the box, but by a hair, so that intervals alone do not show it."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.sin(3 * x[:, :1]) + torch.tanh(x[:, 1:]) + self.slope * x[:, :1]


@pytest.mark.parametrize(
    ("slope", "direction"), [(3.05, Direction.INCREASING), (2.9, Direction.NEITHER), (-3.05, Direction.DECREASING)]
)
def test_branch_and_bound_decides_what_is_close(slope, direction):
    found = monotonicity(Bump(slope), torch.tensor([-1.5, -1.0]), torch.tensor([1.5, 1.0]), input=0, seed=0)
    assert found.direction is direction
    assert found.low <= found.least <= found.most <= found.high
    for point, value in zip(found.points, (found.least, found.most), strict=True):
        assert value == pytest.approx(float(3 * torch.cos(3 * point[0]) + slope), rel=1e-9)
    assert str(direction) in repr(found)


def test_a_small_budget_leaves_it_undecided_and_a_constant_is_one():
    box = torch.tensor([-1.5, -1.0]), torch.tensor([1.5, 1.0])
    assert monotonicity(Bump(3.0001), *box, input=0, seed=0, max_domains=1).direction is Direction.UNDECIDED
    flat = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        flat[0].weight.fill_(1.0), flat[0].bias.fill_(-10.0)
    assert monotonicity(flat, *box, input=0, seed=0).direction is Direction.CONSTANT


def test_wrong_arguments():
    net = positive(nn.ReLU())
    with pytest.raises(ValueError, match="low must be below high"):
        monotonicity(net, torch.ones(3), torch.zeros(3), input=0, seed=0)
    with pytest.raises(ValueError, match=r"input must lie in 0\.\.2"):
        monotonicity(net, torch.zeros(3), torch.ones(3), input=3, seed=0)
    with pytest.raises(ValueError, match="radius must be positive"):
        jacobian_bounds(net, torch.zeros(1, 3), -1.0)
