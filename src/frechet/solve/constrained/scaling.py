"""Units in which the algorithms see a problem: f divided by its gradient at the start, each row by its own.

A row in units of its gradient is, to first order, a distance in x: slacks and variables then move alike. Row norms are
exact from products with unit vectors on the smaller side up to `EXACT`, else estimated by E (J z)_i^2 = norm(J_i)^2
with `EXACT` random sign vectors z of a fixed stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.operators.operator import LinearOperator
from frechet.solve.constrained.program import Point

EXACT = 32
STREAM = 0  # scales come within 25 %, whatever is drawn
STEEPEST = 100.0  # gradient of f that is left as it is
LEAST, MOST = 1e-3, 1e8


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
    if not len(point.c):
        return max(1.0, steep / STEEPEST), point.c
    norms = row_norms(point.J)
    norms = torch.where((norms > 0) & torch.isfinite(norms), norms, 1.0)
    return max(1.0, steep / STEEPEST), norms.clamp(LEAST, MOST)
