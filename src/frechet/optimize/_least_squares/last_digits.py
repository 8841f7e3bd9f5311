"""The last digits: steps that are accepted by what they predict, where the cost can no longer tell points apart.

Near a minimum the cost is flat to second order: once a full step would gain less than the rounding error of the cost, x
is known to half of the digits only, and tests on the cost would stop there. The gradient is still accurate. So the step
is repeated as long as the reduction that the next one predicts keeps falling; when it stops falling, it is noise.

**Cost.** One residual and one Jacobian per step, one of each to see that nothing is left; usually two or three steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from frechet.optimize._geometric import BETTER, Geometric
from frechet.optimize._least_squares.curved_model import Curved, curved
from frechet.optimize._least_squares.damped_step import Factor, boxed, column_scale, factored
from frechet.optimize._least_squares.optimality import Rules, free_to_move
from frechet.optimize._least_squares.residual import Linearization, Point, Residual

FALLS = 0.9
MOST = 40


def polished(residual: Residual, linear: Linearization, rules: Rules, newton: bool = False) -> Linearization:
    """A point from which a step predicts no smaller reduction, the given one where nothing helps."""
    scale = column_scale(linear.columns)
    model = _model(residual, linear, scale, newton)
    for _ in range(MOST):
        if residual.ledger.residuals >= rules.max_evaluations or 2 * model.reduction <= linear.noise**2:
            break  # the part of r that a step could remove is all rounding
        p = boxed(linear, model, model.step(0.0), 0.0, residual.lower, residual.upper)
        if bool((residual.rounded(linear.x + p) == linear.x).all()):
            break
        point = residual.at(linear.x + p)
        if point is None or point.cost > linear.cost * (1 + 1e-10) + 10 * linear.noise * linear.size:
            break
        after = residual.linearized(point)
        if after is None:
            break
        left = _model(residual, after, scale, newton)
        if bool(torch.equal(left.free, model.free)) and left.reduction > FALLS * model.reduction:
            break
        linear, model = after, left
    return linear


def in_range(residual: Residual, point: Point, least: float = 1e-100) -> tuple[Residual, Point]:
    """r in a unit, a power of two, in which its squares are numbers; as given where its largest entry >= `least`."""
    largest = float(point.r.abs().max())
    if residual.rho is not None or not largest > 0 or least < largest < 1e100 or residual.unit < 1e-280 / largest:
        return residual, point
    exponent = math.frexp(largest)[1] - 1
    other, r = replace(residual, unit=residual.unit * 2.0**exponent), point.r / 2.0**exponent
    return other, Point(point.x, r, other.cost(r))


def at_limit(residual: Residual, linear: Linearization, s: Tensor, pace: Geometric) -> Linearization:
    """The limit of steps that shrink by a constant factor, the last one `s`, if the cost there is much less."""
    t = pace.multiple(s)
    if not t:
        return linear
    point = residual.at(linear.x + t * s)
    after = residual.linearized(point) if point is not None and point.cost <= BETTER**2 * linear.cost else None
    pace.tried(after is not None)
    return linear if after is None else after


def _model(residual: Residual, linear: Linearization, scale: Tensor, newton: bool) -> Factor | Curved:
    free = free_to_move(residual, linear)
    S = residual.curvature(linear) if newton and bool(free.any()) else None
    return factored(linear, scale, free) if S is None else curved(linear, S, scale, free)
