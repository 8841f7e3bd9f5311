"""The multipliers z of the sides of w, kept near mu / distance, and what the barrier problem asks of them.

**Source.** Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y, equations 5 (scaled conditions) and 16
(safeguard).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.optimize._constrained.frame import Frame
from frechet.optimize._constrained.kkt import largest

SAFE = 1e10  # z stays within this factor of mu / distance


def duals(has: Tensor, distance: Tensor, mu: float) -> Tensor:
    return torch.where(has, mu / distance, 0.0)


def moved_duals(z: Tensor, has: Tensor, distance: Tensor, towards: Tensor, mu: float, to_side: float) -> Tensor:
    """z after a step that moves w `towards` its side: Newton on z distance = mu, kept positive."""
    dz = torch.where(has, (mu + z * towards) / distance - z, 0.0)
    down = dz < 0
    t = min(1.0, float((-to_side * z[down] / dz[down]).min())) if bool(down.any()) else 1.0
    return z + t * dz


def kept_duals(z: Tensor, has: Tensor, distance: Tensor, mu: float) -> Tensor:
    """z within a factor of mu / distance."""
    centered = torch.where(has, mu / distance, 0.0)
    return torch.where(has, torch.minimum(torch.maximum(z, centered / SAFE), centered * SAFE), 0.0)


def barrier_error(
    dual: Tensor, C: Tensor, zL: Tensor, zU: Tensor, dL: Tensor, dU: Tensor, y: Tensor, mu: float
) -> float:
    """How far the conditions of the barrier problem are from holding, with multipliers beyond 100 scaled down."""
    sizes = [float(t.abs().sum()) for t in (zL, zU, y)]
    count = max(1, 2 * len(zL) + len(y))
    scale = max(100.0, sum(sizes) / count) / 100.0
    products = [torch.where(dL < math.inf, zL * dL - mu, 0.0), torch.where(dU < math.inf, zU * dU - mu, 0.0)]
    return max(largest(dual) / scale, largest(C), *(largest(p) / scale for p in products))


def merit_of(f: float, w: Tensor, C: Tensor, mu: float, nu: float, frame: Frame, has_L: Tensor, has_U: Tensor) -> float:
    total = f + nu * float(frame.codomain.norm(C))
    if mu > 0:
        logs = torch.where(has_L, (w - frame.L).log(), 0.0) + torch.where(has_U, (frame.U - w).log(), 0.0)
        total -= mu * float(logs.sum())
    return total
