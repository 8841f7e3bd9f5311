"""Points of a region at which the Jacobian is large: lower bounds of a Lipschitz constant.

Random points, corners among them, then ascent of the norm along its gradient, in which kinks are rounded, since the
Jacobian of a piecewise linear network is constant around almost every point. The result is a point; the norm there is
bounded from below by intervals of width zero, as everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.calculus.bounds._graph import Graph
from frechet.calculus.bounds._point import jacobian_at, values_at
from frechet.calculus.bounds._propagate import Clips, Region
from frechet.space import euclidean

STARTS = 8  # points that ascend
STEPS = 30


def drawn(region: Region, count: int, seed: int) -> Tensor:
    """Points (count, n) of the region: its centre, corners, and points inside."""
    low, high = region.low[0], region.high[0]
    space = euclidean(len(low), torch.float64)
    signs = space.random(range(count), seed, "rademacher").T
    inside = 2 * torch.special.ndtr(space.random(range(count), seed, "gaussian").T) - 1
    t = torch.cat([torch.zeros_like(signs[:1]), signs[1 : count // 2], inside[: count - count // 2]])
    return moved_inside((low + high) / 2 + t * (high - low) / 2, region)


def moved_inside(X: Tensor, region: Region) -> Tensor:
    """The points X, those outside moved to the region."""
    low, high = region.low[0], region.high[0]
    X = torch.minimum(torch.maximum(X, low), high)
    if region.centre is None:
        return X
    off = X - region.centre
    length = off.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-300)
    return region.centre + off * (region.radius / length).clamp(max=1.0) * (1 - 1e-12)


def best_point(
    network: Graph, region: Region, rows: Tensor, value: Callable[[Tensor], Tensor], points: int, seed: int
) -> Tensor:
    """A point of the region with a large value(rows J)."""
    X = drawn(region, points, seed)
    found = torch.cat([value(jacobian_at(network, part, rows)) for part in X.split(64)])
    best = X[found.topk(min(STARTS, points)).indices]
    top, at = found.max(), X[found.argmax()]
    half = (region.high[0] - region.low[0]) / 2
    width = _typical(network, best)
    for step in range(STEPS):
        with torch.enable_grad():
            best = best.detach().requires_grad_()
            rounded = value(jacobian_at(network, best, rows, width))
            if not rounded.requires_grad:
                break
            (g,) = torch.autograd.grad(rounded.sum(), best, allow_unused=True, materialize_grads=True)
        # signs are the steepest direction in a box; steps fall from half the box to a hundredth of it
        best = moved_inside(best.detach() + 0.5 * 0.87**step * half * g.sign(), region)
        found = value(jacobian_at(network, best, rows))
        if found.max() > top:
            top, at = found.max(), best[found.argmax()]
    return at


def point_of(network: Graph, region: Region, clips: Clips, starts: Tensor) -> Tensor | None:
    """A point of the region at which the arguments of activations lie in their intervals, or None if none is found."""
    X = moved_inside(starts, region)
    if not clips:
        return X[0]
    half = (region.high[0] - region.low[0]) / 2
    for step in range(STEPS):
        with torch.enable_grad():
            X = X.detach().requires_grad_()
            off = _outside(network, clips, X)
            if bool((off == 0).any()):
                return X.detach()[off.argmin()]
            (g,) = torch.autograd.grad(off.sum(), X, allow_unused=True, materialize_grads=True)
        X = moved_inside(X.detach() - 0.5 * 0.87**step * half * g.sign(), region)
    return None


def _outside(network: Graph, clips: Clips, X: Tensor) -> Tensor:
    """By how much the arguments of activations leave their intervals, (points,)."""
    values, off = values_at(network, X), torch.zeros(len(X), dtype=X.dtype)
    for i, (low, high) in clips.items():
        z = values[network.nodes[i].parents[0]]
        off = off + ((low - z).clamp(min=0.0) + (z - high).clamp(min=0.0)).sum(1)
    return off


def _typical(network: Graph, X: Tensor) -> float:
    """A tenth of the size of arguments of elementwise functions: over which kinks are rounded."""
    values = values_at(network, X)
    sizes = [float(values[network.nodes[i].parents[0]].abs().mean()) for i in network.functions()]
    return max(0.1 * sum(sizes) / len(sizes), math.ulp(1.0)) if sizes else 1.0
