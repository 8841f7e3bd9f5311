"""Functions that do not map each point alone are refused by all that sums derivatives over points."""

import pytest
import torch
from torch import nn

from frechet.calculus.taylor import bilaplacian, differential_operator, laplacian, stde
from frechet.errors import NotDifferentiable

F64 = torch.float64
APPLIED = {
    "laplacian": lambda f: laplacian(f),
    "laplacian in chunks": lambda f: laplacian(f, chunk=1),
    "bilaplacian": lambda f: bilaplacian(f),
    "operator": lambda f: differential_operator(f, "u_x + u_yy", variables="xyz"),
    "stde": lambda f: lambda x: stde(f, x, "u_ii", probes=4, seed=0),
    "stde, Gaussian": lambda f: lambda x: stde(f, x, "u_ii", probes=4, seed=0, law="gaussian"),
    "stde by lines": lambda f: lambda x: stde(f, x, "u_iij", probes=4, seed=0, way="lines"),
    "stde by tangents": lambda f: lambda x: stde(f, x, "u_iij", probes=4, seed=0, way="tangents"),
}


def attended(p):
    return (torch.softmax(p @ p.T, -1) @ p).sum(-1)


COUPLED = {
    "mean": lambda p: (p - p.mean(0)).square().sum(-1),
    "softmax over points": lambda p: torch.softmax(p, 0).sum(-1),
    "attention between points": attended,
    "cumulated": lambda p: p.square().flip(0).cumsum(0).sum(-1),
    "scaled by the largest": lambda p: p.square().sum(-1) / p.square().sum(-1).max(),
    "batch statistics": nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()
    ).double(),
    "dropout": nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Dropout(0.5)).double(),
}


@pytest.fixture
def points():
    return torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("applied", APPLIED)
@pytest.mark.parametrize("name", COUPLED)
def test_a_function_that_mixes_points_is_refused(applied, name, points):
    torch.manual_seed(0)
    with pytest.raises(NotDifferentiable, match="f must map each point alone"):
        APPLIED[applied](COUPLED[name])(points)


@pytest.mark.parametrize("applied", [a for a in APPLIED if "stde" not in a])
def test_a_sum_over_points_is_refused(applied, points):
    with pytest.raises(
        ValueError, match=r"f must return one value for each point, of shape \(5,\) or \(5, 'm'\), got \(\)"
    ):
        APPLIED[applied](lambda p: p.square().sum())(points)


def test_the_scale_of_values_and_points_does_not_matter(points):
    for size in (1e-12, 1.0, 1e12):
        alone = laplacian(lambda p, size=size: size * p.sin().sum(-1))(points)
        assert torch.allclose(alone, -size * points.sin().sum(-1))
        with pytest.raises(NotDifferentiable, match="alone"):
            laplacian(lambda p, size=size: size * COUPLED["mean"](p))(points)


def test_one_point_and_evaluation_mode_and_transforms_go_on(points):
    mixed = COUPLED["mean"]
    assert float(laplacian(mixed)(points[:1])) == 0.0  # of one point, which is its own mean
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).double().eval()
    assert laplacian(normed)(points).shape == (5, 4)
    square = laplacian(lambda p: p.square().sum(-1))
    assert torch.allclose(torch.func.vmap(square)(points[None]), torch.full((1, 5), 6.0, dtype=F64))


def test_a_function_of_a_fixed_number_of_points_goes_on(points):
    weights = torch.arange(1.0, 6.0, dtype=F64)
    found = laplacian(lambda p: weights * p.square().sum(-1))  # one point would be broadcast against five weights
    assert torch.allclose(
        laplacian(lambda p: p.reshape(5, 3).square().sum(-1))(points), torch.full((5,), 6.0, dtype=F64)
    )
    assert torch.allclose(found(points), 6 * weights)


def test_a_function_is_evaluated_twice_more_and_without_a_graph(points):
    graphs = []

    def f(p):
        graphs.append(torch.is_grad_enabled())
        return p.square().sum(-1)

    laplacian(f)(points)
    assert graphs[-2:] == [False, False]
