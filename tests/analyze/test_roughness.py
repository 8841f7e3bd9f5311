import pytest
import torch
from torch import nn

from frechet import Objective, squared_error
from frechet.analyze import roughness
from frechet.analyze._roughness import intervals, variation
from frechet.errors import NonFinite

X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Wave(nn.Module):
    """The parameters' sum of squares with ripples of a given frequency."""

    def __init__(self, frequency=0.0, height=0.0, at=0.0, factor=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((4,), at, dtype=torch.float64))
        self.frequency, self.height, self.factor = frequency, height, factor

    def forward(self, x):
        r = self.w.square().sum() + self.height * torch.sin(self.frequency * self.w).sum() + 1
        return self.factor * r.expand(len(x), 1)


def objective(model):
    return Objective(model, squared_error(), [(X, torch.zeros(2, 1, dtype=torch.float64))])


def test_variations_of_known_functions():
    t = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    rows = torch.stack([t, t**2, torch.exp(t), torch.sin(4 * torch.pi * t)])
    assert variation(rows).tolist() == pytest.approx([1, 2, 1, 8], rel=1e-5)


def test_a_bowl_a_slope_and_ripples():
    bowl, slope = roughness(objective(Wave()), seed=0), roughness(objective(Wave(at=3.0)), seed=0, radius=1e-3)
    rough = roughness(objective(Wave(20.0, 0.3)), seed=0, radius=1.0, points=101)
    assert bowl.mean.value == pytest.approx(2, rel=1e-6)
    assert slope.mean.value == pytest.approx(1, rel=1e-3)
    assert rough.mean.lower > 2.2
    assert rough.index.lower > 0
    assert bowl.index.value < 1e-6


def test_units_do_not_count_and_a_coarse_grid_shows():
    first = roughness(objective(Wave(20.0, 0.3)), seed=1, radius=1.0, points=101)
    assert first.resolution < 0.1 * first.mean.value
    assert roughness(objective(Wave(20.0, 0.3)), seed=1, radius=1.0, points=9).resolution > 0.5
    again = roughness(objective(Wave(20.0, 0.3, factor=1e3)), seed=1, radius=1.0, points=101)
    assert torch.allclose(first.variations, again.variations)


def test_intervals_cover():
    draw = torch.Generator().manual_seed(0)
    laws = {
        "normal": (lambda n: 3 + 0.3 * torch.randn(n, 20, generator=draw, dtype=torch.float64), 3.0, 0.1),
        "uniform": (lambda n: 2 + torch.rand(n, 20, generator=draw, dtype=torch.float64), 2.5, 12**-0.5 / 2.5),
        "skewed": (
            lambda n: 1 - torch.rand(4, n, 20, generator=draw, dtype=torch.float64).log().sum(0),
            5.0,
            0.4,
        ),
    }
    for rows, mean, index in laws.values():
        inside = torch.zeros(2)
        for T in rows(300):
            found = intervals(T)
            inside += torch.tensor([r.lower <= t <= r.upper for r, t in zip(found, (mean, index), strict=True)])
        assert bool((inside / 300 > 0.91).all())


def test_bad_requests():
    with pytest.raises(ValueError, match="roughness: directions must be at least 5 and points odd"):
        roughness(objective(Wave()), seed=0, points=10)
    with pytest.raises(NonFinite, match=r"the loss is not finite on \d+ of 20 lines; pass a smaller change"):
        roughness(objective(Wave(at=1.0)), seed=0, radius=1e200)
