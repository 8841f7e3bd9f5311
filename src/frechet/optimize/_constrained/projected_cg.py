"""Conjugate gradients on the null space of A inside a ball and a box: min g'p + p'Bp/2, A p = 0, norm(p) <= radius.

Each residual is projected onto the null space, so that all iterates satisfy A p = 0. A direction of non-positive
curvature is followed to the ball. Where the end leaves the box ``low <= p <= high``, the better of two points inside is
taken: the last iterate inside, prolonged to the box, and the end drawn back along its ray.

**Source.** Steihaug (1983), doi 10.1137/0720042; Gould, Hribar and Nocedal (2001), doi 10.1137/S1064827598345667,
algorithm 6.2 (projected CG with residual update).

**Cost.** One product with B per iteration and no product with A where its rows are kept; seven vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.projection import Rows
from frechet.optimize._constrained.slack_rows import SlackRows
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class Tangent:
    """A step in the null space, the value of the model there, and a direction of non-positive curvature if met."""

    p: Tensor
    Bp: Tensor
    model: float
    iterations: int
    on_ball: bool
    drawn_back: bool  # cut by the box
    curvature: Tensor | None


def projected_cg(  # noqa: C901 - one branch for each way to go on or to end
    B: LinearOperator,
    g: Tensor,
    rows: Rows | SlackRows,
    *,
    radius: float,
    low: Tensor | None = None,
    high: Tensor | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int | None = None,
) -> Tangent:
    """The step; ends where norm(projected residual) <= max(rtol norm(projected g), atol), rtol = min(0.1, sqrt(norm))
    if left out."""
    space = B.domain
    p, Bp, inside = space.zeros(), space.zeros(), space.zeros()
    inside_B = inside
    r = rows.project(g)
    size = start = float(space.norm(r))
    goal = max((min(0.1, math.sqrt(start)) if rtol is None else rtol) * start, atol)
    limit = 2 * len(g) + 10 if max_iterations is None else max_iterations
    d, iterations, on_ball, bend, left = -r, 0, False, None, None
    while size > goal and iterations < limit and math.isfinite(size):
        Bd = B @ d
        iterations += 1
        curvature, length = float(space.inner(d, Bd)), float(space.norm(d))
        step = to_ball(float(space.inner(p, d)), length, float(space.norm(p)), radius)
        downwards = curvature <= 1e-14 * length * float(space.norm(Bd))
        if downwards:
            bend = d / length
            if not math.isfinite(step):
                break
        alpha = step if downwards else size * size / curvature
        if alpha >= step:
            alpha, on_ball = step, True
        before, before_B = p, Bp
        p, Bp = p + alpha * d, Bp + alpha * Bd
        if _within(p, low, high):
            inside, inside_B = p, Bp
            left = None
        elif left is None:
            left = (before, before_B, alpha * d, alpha * Bd)
        if on_ball:
            break
        r = rows.project(r + alpha * Bd)
        size_old, size = size, float(space.norm(r))
        d = -r + (size / size_old) ** 2 * d
    found, found_B, back = p, Bp, False
    if not _within(p, low, high):
        back = True
        t = _room(p, low, high)
        found, found_B = t * p, t * Bp
        if left is not None:
            q, q_B, d, Bd = left
            inside, inside_B = q, q_B
            t = _room(d, None if low is None else low - q, None if high is None else high - q)
            inside, inside_B = q + t * d, q_B + t * Bd
        if _model(space, g, inside, inside_B) < _model(space, g, found, found_B):
            found, found_B = inside, inside_B
    return Tangent(found, found_B, _model(space, g, found, found_B), iterations, on_ball, back, bend)


def _model(space: Space, g: Tensor, p: Tensor, Bp: Tensor) -> float:
    return float(space.inner(g, p)) + 0.5 * float(space.inner(p, Bp))


def to_ball(along: float, length: float, start: float, radius: float) -> float:
    """The t >= 0 at which p + t d meets the ball, from p'd, norm(d), norm(p)."""
    if not math.isfinite(radius):
        return math.inf
    if length == 0:
        return 0.0
    a, b, c = length * length, along, max(radius * radius - start * start, 0.0)
    root = math.sqrt(b * b + a * c)
    return c / (b + root) if b > 0 else (root - b) / a


def _within(p: Tensor, low: Tensor | None, high: Tensor | None) -> bool:
    return (low is None or bool((p >= low).all())) and (high is None or bool((p <= high).all()))


def _room(p: Tensor, low: Tensor | None, high: Tensor | None) -> float:
    """The largest t <= 1 with t p in the box, which holds zero."""
    t = 1.0
    if low is not None and bool((down := p < 0).any()):
        t = min(t, float((low[down] / p[down]).min()))
    if high is not None and bool((up := p > 0).any()):
        t = min(t, float((high[up] / p[up]).min()))
    return max(t, 0.0)
