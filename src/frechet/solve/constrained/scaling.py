"""Units in which the algorithms see a problem: f divided by its gradient at the start, each row by its own.

A row in units of its gradient is, to first order, a distance in x: slacks and variables then move alike. Row norms are
exact from products with unit vectors on the smaller side up to `EXACT`, else estimated by E (J z)_i^2 = norm(J_i)^2
with `EXACT` random sign vectors z of a fixed stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.operators.operator import LinearOperator
from frechet.solve.constrained.program import Point

EXACT = 32
STREAM = 0  # scales come within 25 %, whatever is drawn
STEEPEST, FLAT = 100.0, 1e-3  # gradients of f between these are left as they are
LEAST, MOST = 1e-3, 1e150


def row_norms(J: LinearOperator) -> Tensor:
    """The norms of the rows ``(m,)``."""
    m, n = J.shape
    if m <= min(n, EXACT):
        return J.domain.norm(J.T @ J.codomain.units(range(m)))
    V = J.domain.units(range(n)) if n <= EXACT else J.domain.random(range(EXACT), STREAM)
    squares = (J @ V).square().sum(1)
    return (squares if n <= EXACT else squares / EXACT).sqrt()


def scales(point: Point) -> tuple[float, Tensor]:
    """The unit of f and the units of the rows ``(m,)``, at the start."""
    steep = float(point.g.abs().max()) if len(point.g) else 0.0
    unit = steep / STEEPEST if steep > STEEPEST else steep if 0 < steep < FLAT else 1.0
    if not len(point.c):
        return unit, point.c
    norms = row_norms(point.J)
    norms = torch.where((norms > 0) & torch.isfinite(norms), norms, 1.0)
    # a row that is small as a whole is in other units; one with a small gradient alone is not
    return unit, torch.where(norms < LEAST, torch.maximum(norms, point.c.abs().clamp_max(LEAST)), norms.clamp_max(MOST))


def measures(point: Point, unit: float, units: float | Tensor) -> tuple[float, Tensor]:
    """The sizes of f and of the rows ``(m,)`` at a point, by their gradients: 1 where these are of ordinary size.

    `unit` and `units` are those in which the point is given.
    """
    slopes = row_norms(point.J) * units if len(point.c) else point.c
    values = torch.maximum(slopes, (point.c * units).abs())
    steep = float(point.g.abs().max()) * unit if len(point.g) else 0.0
    return _measure(steep), torch.tensor(
        [_measure(v if s < 1 else s) for s, v in zip(slopes.tolist(), values.tolist(), strict=True)],
        dtype=point.c.dtype,
        device=point.c.device,
    )


def _measure(size: float) -> float:
    if not 0 < size < math.inf or FLAT <= size <= 1 / FLAT:
        return 1.0
    return size
