"""Meshes that equidistribute a monitor, without folds; those that cannot be had are refused."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

from frechet.errors import NonFinite, NotConverged
from frechet.physics import monge_ampere_mesh
from frechet.physics._mesh import _Grid

F64 = torch.float64


def peak(x):
    return 1 + 20 * torch.exp(-100 * ((x - torch.tensor([0.4, 0.6], dtype=F64)) ** 2).sum(-1))


def ring(x):
    return 1 + 5 * torch.exp(-500 * (((x - 0.5) ** 2).sum(-1) - 0.09) ** 2)


def folds(x):
    """How many triangles of neighbouring centres are turned over."""
    a, b, c, d = x[:-1, :-1], x[1:, :-1], x[1:, 1:], x[:-1, 1:]
    turned = 0
    for p, q, r in ((a, b, c), (a, c, d), (a, b, d), (b, c, d)):
        u, v = q - p, r - p
        turned += int((u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0] <= 0).sum())
    return turned


@pytest.mark.parametrize("monitor", [peak, ring])
@pytest.mark.parametrize("shape", [(16, 16), (24, 24), (13, 22)])
def test_each_cell_has_its_share_and_none_is_folded(monitor, shape):
    mesh = monge_ampere_mesh(monitor, shape)
    assert mesh.residual <= 1e-11
    assert mesh.equidistribution <= 1e-10
    assert mesh.iterations <= 10
    assert bool((mesh.jacobian > 0).all())
    assert folds(mesh.x) == 0
    assert bool(((mesh.x > 0) & (mesh.x < 1)).all())
    share = monitor(mesh.x) * mesh.jacobian
    torch.testing.assert_close(share, share.mean().expand(shape), rtol=1e-10, atol=0)


def test_on_an_interval_it_is_the_inverse_of_the_distribution_function():
    m = lambda x: 1 + 20 * math.exp(-100 * (x - 0.4) ** 2)  # noqa: E731
    whole = quad(m, 0, 1, points=[0.4])[0]
    errors = []
    for n in (100, 200):
        mesh = monge_ampere_mesh(lambda x: 1 + 20 * torch.exp(-100 * (x[..., 0] - 0.4) ** 2), n)
        at = range(0, n, n // 20)
        errors.append(max(abs(quad(m, 0, float(mesh.x[i, 0]), points=[0.4])[0] / whole - (i + 0.5) / n) for i in at))
    assert errors[1] <= 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)  # second order


@pytest.mark.parametrize("cells", [(7,), (5, 8), (3, 4)])
def test_the_sparse_jacobian_is_that_of_the_residual(cells):
    grid = _Grid.of(cells, lambda x: 1 + x.square().sum(-1))
    z = 0.01 * torch.randn(math.prod(cells) + 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    right = torch.func.jacrev(grid.residual)(z)
    torch.testing.assert_close(torch.from_numpy(grid.jacobian(z).toarray()), right, rtol=1e-12, atol=1e-12)


def test_a_constant_monitor_leaves_the_mesh_as_it_is():
    mesh = monge_ampere_mesh(lambda x: torch.full(x.shape[:-1], 3.0, dtype=F64), (5, 6))
    assert mesh.iterations == 0
    assert not bool(mesh.potential.any())


def test_the_mesh_of_a_similar_monitor_is_a_start():
    near = monge_ampere_mesh(peak, (16, 16))
    again = monge_ampere_mesh(lambda x: peak(x) + 0.1, (16, 16), start=near.potential)
    assert again.iterations < near.iterations


# --- what cannot be had -----------------------------------------------------------------------------------------------


def test_a_folded_start_is_refused():
    x = (torch.arange(16, dtype=F64) + 0.5) / 16
    with pytest.raises(ValueError, match="start must be the potential of a mesh without folds"):
        monge_ampere_mesh(peak, (16, 16), start=-(x[:, None] ** 2) + 0 * x)


@pytest.mark.parametrize("height", [1e2, 1e4])
def test_a_monitor_too_steep_for_the_grid_is_refused_and_the_last_mesh_is_not_folded(height):
    with pytest.raises(NotConverged, match=r"keeps the cells from folding|Newton steps left a residual") as caught:
        monge_ampere_mesh(lambda x: 1 + height * torch.exp(-400 * ((x - 0.3) ** 2).sum(-1)), (16, 16), max_iterations=8)
    assert bool((caught.value.result.jacobian > 0).all())


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="shape must have one or two axes"):
        monge_ampere_mesh(peak, (4, 4, 4))
    with pytest.raises(ValueError, match="monitor must be positive"):
        monge_ampere_mesh(lambda x: x[..., 0] - 0.5, (4, 4))
    with pytest.raises(NonFinite, match="monitor must be finite"):
        monge_ampere_mesh(lambda x: 1 / (x[..., 0] - 0.125), (4, 4))
    with pytest.raises(ValueError, match=r"monitor must map points \(4, 4, 2\) to \(4, 4\), got \(4, 4, 2\)"):
        monge_ampere_mesh(lambda x: x, (4, 4))
    with pytest.raises(ValueError, match=r"start must have the shape \(4, 4\)"):
        monge_ampere_mesh(peak, (4, 4), start=torch.zeros(5, 4))


def test_it_is_alike_under_the_symmetries_of_the_square():
    mesh = monge_ampere_mesh(ring, (12, 12)).x
    for flips in itertools.product((False, True), repeat=2):
        axes = [i for i, f in enumerate(flips) if f]
        turned = mesh.flip(axes)
        turned = torch.where(torch.tensor(flips), 1 - turned, turned)
        torch.testing.assert_close(turned, mesh, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (("m", (8, 8)), {}, "monitor must be a function of points, got str"),
        ((lambda x: x[..., 0], 8.5), {}, "shape must be one or two counts of cells, got float"),
        ((lambda x: x[..., 0], (8, 8)), {"start": [1.0]}, "start must be a potential, a tensor, got list"),
        ((lambda x: x[..., 0], (8, 8)), {"rtol": 0.0}, "rtol must be > 0"),
        ((lambda x: x[..., 0], (8, 8)), {"rtol": float("nan")}, "rtol must be > 0"),
        ((lambda x: x[..., 0], (8, 8)), {"max_iterations": -1}, "max_iterations >= 0"),
    ],
)
def test_other_kinds_of_arguments_are_told(arguments, options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        monge_ampere_mesh(*arguments, **options)
