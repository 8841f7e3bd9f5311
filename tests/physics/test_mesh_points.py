import sys

import pytest
import torch

from frechet.physics import mesh_points

skfem = pytest.importorskip("skfem")


@pytest.mark.parametrize("kind", ["MeshLine", "MeshTri", "MeshTet"])
def test_points_are_uniform_in_the_cells_and_on_the_sides(kind):
    mesh = getattr(skfem, kind)().refined(1)
    d = mesh.p.shape[0]
    inside, sides = mesh_points(mesh, 4000, 2000, seed=0)
    assert inside.shape == (4000, d)
    assert sides.shape == (2000, d)
    assert bool(((inside >= 0) & (inside <= 1)).all())
    on_a_side = (sides == 0) | (sides == 1)
    assert bool(on_a_side.any(1).all())
    # mean and variance of a uniform variable, within five standard errors
    assert float((inside.mean(0) - 0.5).abs().max()) < 5 / (12 * 4000) ** 0.5
    assert float((inside.var(0) - 1 / 12).abs().max()) < 5 * (1 / 180 / 4000) ** 0.5
    again = mesh_points(mesh, 4000, 2000, seed=0)
    assert torch.equal(again[0], inside)


def test_large_cells_get_more_points():
    mesh = skfem.MeshLine(torch.tensor([0.0, 0.1, 1.0]).numpy())
    inside, _ = mesh_points(mesh, 4000, 1, seed=1)
    assert abs(float((inside < 0.1).double().mean()) - 0.1) < 5 * (0.09 / 4000) ** 0.5


def test_each_sentence(monkeypatch):
    with pytest.raises(TypeError, match="must be a mesh of scikit-fem, got int"):
        mesh_points(3, 1, 1, seed=0)
    with pytest.raises(TypeError, match=r"simplices.*MeshQuad"):
        mesh_points(skfem.MeshQuad(), 1, 1, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        mesh_points(skfem.MeshTri(), 0, 1, seed=0)
    monkeypatch.setitem(sys.modules, "skfem", None)
    with pytest.raises(ImportError, match="pip install scikit-fem"):
        mesh_points(skfem.MeshTri(), 1, 1, seed=0)
