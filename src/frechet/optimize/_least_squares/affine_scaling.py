"""Affine scalings for bounds l <= x <= u: a diagonal d(x) > 0 inside the box that vanishes where a bound should hold.

First-order optimality of min f(x) between bounds is d(x) g = 0, g the gradient. With X_i the distance to the side that
-g_i points to (infinite where there is none):

    coleman-li             d = X where that side is finite, 1 elsewhere
    heinkenschloss-ulbrich the same where |g| < Y^2 or Y < |g|^2, Y the distance to the nearest side; 1 elsewhere
    kanzow-klug            d = min(x - l + max(0, -g), u - x + max(0, g), 1)
    hager-mair-zhang       d = X / (X + |g|), 1 for an infinite side
    combined               the mean of the four

Coleman-Li's is discontinuous where g changes sign; the later ones are made to avoid that at degenerate solutions.
Distances and gradients here are relative: x in units of the box or of the parameter, g in units of its column of J and
of r.

**Source.** T. F. Coleman and Y. Li (1996), An interior trust region approach for nonlinear minimization subject to
bounds, doi 10.1137/0806023; M. Heinkenschloss, M. Ulbrich and S. Ulbrich (1999), doi 10.1007/s101070050107; C. Kanzow
and A. Klug (2006), doi 10.1007/s10589-006-6514-5; W. W. Hager, B. A. Mair and H. Zhang (2009), doi
10.1007/s10107-007-0199-0; A. Ayanzadeh, S. Yazdanian and E. Shahamatnia (2019), A new class of scaling matrices for
scaled trust region algorithms, arXiv 1904.09209 (their convex combination).

**Differs from the source.** Equal weights in the combination; the exponent 2 and the constants 1 are fixed;
Kanzow-Klug's is cut at 1 so that the four have one size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scaling = Literal["coleman-li", "heinkenschloss-ulbrich", "kanzow-klug", "hager-mair-zhang", "combined"]
SCALINGS: tuple[Scaling, ...] = (
    "coleman-li",
    "heinkenschloss-ulbrich",
    "kanzow-klug",
    "hager-mair-zhang",
)


def affine_scaling(kind: Scaling, below: Tensor, above: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """d and the nonnegative part of g dd/dx, each ``(n,)``, from the distances to both sides and the gradient."""
    if kind == "combined":
        parts = [affine_scaling(each, below, above, g) for each in SCALINGS]
        return torch.stack([d for d, _ in parts]).mean(0), torch.stack([c for _, c in parts]).mean(0)
    toward = torch.where(g > 0, below, above)  # -g points there
    finite = toward < math.inf
    size = g.abs()
    near = torch.where(finite, toward, 1.0)
    if kind == "coleman-li":
        return near, torch.where(finite, size, 0.0)
    if kind == "heinkenschloss-ulbrich":
        nearest = torch.minimum(below, above)
        pushed = finite & ((size < nearest**2) | (nearest < size**2))
        return torch.where(pushed, toward, 1.0), torch.where(pushed, size, 0.0)
    if kind == "kanzow-klug":
        low, high = below + (-g).clamp(min=0), above + g.clamp(min=0)
        d = torch.minimum(torch.minimum(low, high), torch.ones_like(g))
        slope = torch.where((low <= high) & (low < 1), 1.0, torch.where((high < low) & (high < 1), -1.0, 0.0))
        return d, (g * slope).clamp(min=0)
    d = torch.where(finite, near / (near + size).clamp(min=torch.finfo(g.dtype).tiny), 1.0)
    return d, torch.where(finite, (size / (near + size).clamp(min=torch.finfo(g.dtype).tiny)) ** 2, 0.0)
