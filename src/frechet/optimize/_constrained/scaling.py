"""Units in which the algorithms see a problem: f divided by its gradient at the start, each row by its own.

A row in units of its gradient is, to first order, a distance in x: slacks and variables then move alike. Row norms are
exact from products with unit vectors on the smaller side up to `EXACT`, else estimated by E (J z)_i^2 = norm(J_i)^2
with `EXACT` random sign vectors z of a fixed stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.program import Point
from frechet.optimize._constrained.raw import DenseRows

EXACT = 32
STREAM = 0  # scales come within 25 %, whatever is drawn
STEEPEST, FLAT = 100.0, 1e-3  # gradients of f between these are left as they are
USUAL = 0.05  # a parameter between this and its inverse is left as it is
LEAST, MOST = 1e-3, 1e150


def row_norms(J: LinearOperator | DenseRows) -> Tensor:
    """The norms of the rows ``(m,)``."""
    m, n = J.shape
    if m <= min(n, EXACT):
        return J.domain.norm(J.T @ J.codomain.units(range(m)))
    V = J.domain.units(range(n)) if n <= EXACT else J.domain.random(range(EXACT), STREAM)
    squares = (J @ V).square().sum(1)
    return (squares if n <= EXACT else squares / EXACT).sqrt()


def scales(point: Point, *, mild: bool = False) -> tuple[float, Tensor]:
    """The unit of f and the units of the rows ``(m,)``, at the start.

    With `mild`, rows as f: those with a gradient of ordinary size are left as they are. A row that is divided by a
    small gradient has a large curvature, which stops a line search.
    """
    steep = float(point.g.abs().max()) if len(point.g) else 0.0
    unit = steep / STEEPEST if steep > STEEPEST else steep if 0 < steep < FLAT else 1.0
    if not len(point.c):
        return unit, point.c
    norms = row_norms(point.J)
    norms = torch.where((norms > 0) & torch.isfinite(norms), norms, 1.0)
    if mild:
        usual = (norms >= FLAT) & (norms <= STEEPEST)
        norms = torch.where(usual, 1.0, torch.where(norms > STEEPEST, norms / STEEPEST, norms))
    # a row that is small as a whole is in other units; one with a small gradient alone is not
    whole = torch.maximum(norms, point.c.abs().clamp_max(1.0 if mild else LEAST))
    return unit, torch.where(norms < LEAST, whole, norms.clamp_max(MOST))


def bending(point: Point) -> float:
    """The size of f by its Hessian and the parameters: the largest change of its gradient as x changes by its size."""
    space = point.J.domain
    V = torch.stack([point.x, space.random(0, STREAM) * point.x.abs().clamp_min(1.0)], 1)
    found = (point.hessian(torch.zeros_like(point.c)) @ V).abs()
    return float(found.max()) if found.numel() and space.finite(found) else 0.0


def measures(point: Point, unit: float, units: float | Tensor, bent: float = 0.0) -> tuple[float, Tensor]:
    """The sizes of f and of the rows ``(m,)`` at a point, by their gradients: 1 where these are of ordinary size.

    `unit` and `units` are those in which the point is given; `bent` is the size of f by its Hessian, for a solution at
    which its gradient vanishes.
    """
    slopes = row_norms(point.J) * units if len(point.c) else point.c
    values = torch.maximum(slopes, (point.c * units).abs())
    steep = float(point.g.abs().max()) * unit if len(point.g) else 0.0
    return _measure(max(steep, bent)), torch.tensor(
        [_measure(v if s < 1 else s) for s, v in zip(slopes.tolist(), values.tolist(), strict=True)],
        dtype=point.c.dtype,
        device=point.c.device,
    )


def _measure(size: float) -> float:
    if not 0 < size < math.inf or FLAT <= size <= 1 / FLAT:
        return 1.0
    return size


def lengths(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The sizes ``(n,)`` of the parameters, as powers of two: 1 where they are ordinary.

    By x; by the nearer side where an entry is zero, or by the largest of all.
    """
    sizes = x.abs()
    sides = torch.minimum(*(torch.where((s == 0) | s.isinf(), math.inf, s.abs()) for s in (lower, upper)))
    sizes = torch.where((sizes == 0) & sides.isfinite(), sides, sizes)
    return _powers(torch.where(sizes == 0, sizes.max() if len(x) else 0.0, sizes))


def mattering(point: Point, sizes: Tensor) -> Tensor:
    """Larger lengths for parameters that are near zero by chance, and matter less than a thousandth of others.

    `point` is in the given lengths. What f and the rows change by where a parameter changes by its size is the same in
    all units, so that a small unit is told from a small number. None becomes longer than the largest.
    """
    slopes = [point.g.unsqueeze(1)]
    if m := len(point.c):
        space = point.J.codomain
        exact = m <= EXACT
        Z = space.units(range(m)) if exact else space.random(range(EXACT), STREAM)
        slopes.append((point.J.T @ Z) / (1.0 if exact else EXACT**0.5))
    if not len(sizes):
        return sizes
    change = torch.cat([s / (float(s.abs().max()) or 1.0) for s in slopes], 1).square().sum(1).sqrt() * (point.x != 0)
    by_change = FLAT * change.max() / torch.where(change > 0, change, math.inf) * sizes
    return _powers(torch.minimum(torch.maximum(sizes, by_change), sizes.max()))


def _powers(sizes: Tensor) -> Tensor:
    ordinary = (sizes == 0) | ((sizes >= USUAL) & (sizes <= 1 / USUAL))
    return torch.where(ordinary, 1.0, torch.exp2(torch.where(ordinary, 1.0, sizes).log2().round()))
