"""The last digits: steps that are accepted by what they predict, where the cost can no longer tell points apart.

Near a minimum the cost is flat to second order: once a full step would gain less than the rounding error of the cost, x
is known to half of the digits only, and tests on the cost would stop there. The gradient is still accurate. So the step
is repeated as long as the reduction that the next one predicts keeps falling; when it stops falling, it is noise.

**Cost.** One residual and one Jacobian per step, one of each to see that nothing is left; usually two or three steps.
"""

from __future__ import annotations

import torch

from frechet.solve.damped_step import boxed, column_scale, factored
from frechet.solve.optimality import Rules, free_to_move
from frechet.solve.residual import Linearization, Residual

FALLS = 0.9
MOST = 40


def polished(residual: Residual, linear: Linearization, rules: Rules, damping: float = 0.0) -> Linearization:
    """A point from which a step predicts no smaller reduction, the given one where nothing helps."""
    scale = column_scale(linear.columns)
    for _ in range(MOST):
        if residual.ledger.residuals >= rules.max_evaluations or linear.size <= linear.noise:
            break
        factor = factored(linear, scale, free_to_move(residual, linear))
        p = factor.step(damping)
        p = boxed(linear, factor, p, damping, residual.lower, residual.upper)
        if bool((residual.rounded(linear.x + p) == linear.x).all()):
            break
        point = residual.at(linear.x + p)
        if point is None or point.cost > linear.cost * (1 + 1e-10) + 10 * linear.noise * linear.size:
            break
        after = residual.linearized(point)
        if after is None:
            break
        left = factored(after, scale, free_to_move(residual, after))
        freed = bool(torch.equal(left.free, factor.free))
        if freed and left.reduction > FALLS * factor.reduction:
            break
        linear = after
    return linear
