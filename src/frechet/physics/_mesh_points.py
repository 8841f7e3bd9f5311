"""Random points in the cells and on the boundary of a mesh of scikit-fem, uniform in volume and area.

A cell is drawn with a probability in proportion to its size, and a point in it from exponential variables: barycentric
coordinates e_i / sum e of independent e_i are uniform in a simplex.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from frechet.space import generator


def mesh_points(mesh: Any, inside: int, sides: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return random points ``(inside, d)`` in a mesh of simplices and ``(sides, d)`` on its boundary, in float64.

    Args:
        mesh: of scikit-fem (``pip install scikit-fem``): `MeshLine`, `MeshTri` or `MeshTet`.
        inside: the number of points in the cells, >= 1.
        sides: the number of points on the boundary facets, >= 1.
        seed: of the draws.
    """
    try:
        from skfem import Mesh
    except ImportError as error:
        raise ImportError("mesh_points: needs scikit-fem, which is not installed; pip install scikit-fem") from error
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh_points: mesh must be a mesh of scikit-fem, got {type(mesh).__name__}")
    p, t = (torch.as_tensor(a).clone() for a in (mesh.p, mesh.t))
    if t.shape[0] != p.shape[0] + 1:
        raise TypeError(
            f"mesh_points: mesh must consist of simplices (lines, triangles, tetrahedra), got {type(mesh).__name__}; "
            "convert it, as with MeshQuad.to_meshtri()"
        )
    if min(inside, sides) < 1:
        raise ValueError(f"mesh_points: inside and sides must be at least 1, got {inside} and {sides}")
    draw = generator(seed)
    assert mesh.facets is not None  # made on demand
    facets = torch.as_tensor(mesh.facets[:, mesh.boundary_facets()]).clone()
    return _drawn(p, t, inside, draw), _drawn(p, facets, sides, draw)


def _drawn(p: Tensor, t: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Points in the simplices with the vertices ``p[:, t]``, t ``(k, simplices)``."""
    corners = p.double()[:, t.long()].permute(2, 1, 0)  # (simplices, k, d)
    edges = corners[:, 1:] - corners[:, :1]
    k = edges.shape[1]
    sizes = (edges @ edges.mT).det().clamp(0).sqrt() / math.factorial(k) if k else torch.ones(len(corners)).double()
    which = torch.multinomial(sizes, count, replacement=True, generator=draw)
    weights = torch.empty(count, k + 1, dtype=torch.float64).exponential_(generator=draw)
    weights = weights[:, 1:] / weights.sum(1, keepdim=True)
    # along edges from a corner, so that a coordinate that a side has constant stays exactly so
    return corners[which, 0] + (weights[:, :, None] * edges[which]).sum(1)
