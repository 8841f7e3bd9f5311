"""The part of a composite step that goes towards the constraints, in a ball and a box.

**Source.** Byrd, Gilbert and Nocedal (2000), doi 10.1007/PL00011391, section 3.1 (dogleg). What the box stops is then
held, and the rest goes on by `lsmr`: one variable near its side does not stop the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.projected_cg import to_ball
from frechet.optimize._constrained.projection import Rows
from frechet.optimize._constrained.slack_rows import SlackRows
from frechet.space import Space

TURNS = 4  # of the normal step along the box
SLOPE = 1e-10  # of norm(C), relative to the first: rounding errors
FEW = 0.1  # of norm(C) that a normal step may leave


def normal_step(
    A: LinearOperator, rows: Rows | SlackRows, C: Tensor, radius: float, low: Tensor, high: Tensor
) -> tuple[Tensor, float]:
    """A step towards A v = -C in the ball and the box, and norm(A v + C): the best of three."""
    space, image = A.domain, A.codomain
    newton = rows.least_norm(-C)
    downhill = -(A.T @ C)
    steep = float(space.norm(downhill)) / float(image.norm(C))
    pushed = A @ downhill
    bend = float(image.inner(pushed, pushed))
    if bend <= 0:
        return space.zeros(), float(image.norm(C))
    cauchy = (float(space.inner(downhill, downhill)) / bend) * downhill
    best, left = space.zeros(), float(image.norm(C))
    for v in _candidates(space, newton, cauchy, radius):
        v = share(v, low, high) * v
        rest = float(image.norm(A @ v + C))
        if rest < left:
            best, left = v, rest
    for _ in range(TURNS):  # what the box stopped is held, the rest goes on
        free = ((best > 0.99 * low) & (best < 0.99 * high)).to(best.dtype)
        if bool(free.all()) or left <= FEW * float(image.norm(C)):
            break
        masked = from_callable(
            lambda V, free=free: A @ (V.T * free).T, space, image, rmatmat=lambda W, free=free: ((A.T @ W).T * free).T
        )
        r = A @ best + C
        if float(space.norm(masked.T @ r)) <= SLOPE * steep * float(image.norm(r)):
            break
        more = lsmr(masked, -r, rtol=1e-2, max_iterations=2 * len(C)).x
        length = float(space.norm(more))
        if not 0 < length < math.inf:
            break
        more = more * min(1.0, to_ball(float(space.inner(best, more)), length, float(space.norm(best)), radius))
        v = best + share(more, low - best, high - best) * more
        rest = float(image.norm(A @ v + C))
        if rest >= left:
            break
        best, left = v, rest
    return best, left


def _candidates(space: Space, newton: Tensor, cauchy: Tensor, radius: float) -> list[Tensor]:
    """The dogleg step in the ball, and both of its ends cut to it."""
    candidates = []
    if float(space.norm(newton)) <= radius:
        candidates.append(newton)
    elif float(space.norm(cauchy)) < radius:
        way = newton - cauchy
        a, b = float(space.inner(way, way)), float(space.inner(cauchy, way))
        c = radius**2 - float(space.inner(cauchy, cauchy))
        root = math.sqrt(b * b + a * c)
        candidates.append(cauchy + (c / (b + root) if b > 0 else (root - b) / a) * way)
    size = float(space.norm(newton))
    candidates += [newton * min(1.0, radius / size)] if size > 0 else []
    candidates += [cauchy * min(1.0, radius / length)] if (length := float(space.norm(cauchy))) > 0 else []
    return candidates


def share(v: Tensor, low: Tensor, high: Tensor) -> float:
    """The largest t <= 1 with t v in the box."""
    ratios = torch.where(v < 0, low / v, torch.where(v > 0, high / v, math.inf))
    return max(0.0, min(1.0, float(ratios.min()))) if len(v) else 1.0
