"""The undamped step in the directions that J tells apart from rounding, tried beside the damped ones.

    p = -D^-1 V_k (b_k / s_k),     s_k > CUT s_1

A damped step shortens all directions whose singular value is below the root of the damping, the more the smaller it is.
Where the residuals of a network can all be made zero, the last digits of r lie in such directions, and damping takes a
constant factor off them at each step. The truncated step takes them off at once. It is accepted only where it is far
better than the damped one, so that a run is never worse for it.

**Source** of truncated steps on such residuals: J. Mueller and M. Zeinhofer (2023), arXiv 2302.13163, here with the cut
for J in place of J'J. **Cost.** One residual.
"""

from __future__ import annotations

import torch

from frechet.optimize._least_squares.damped_step import Factor
from frechet.optimize._least_squares.optimality import Rules, too_short
from frechet.optimize._least_squares.residual import Linearization, Point, Residual

CUT = 1e-10  # of s_1: with 1e-12 and 1e-8 beside it runs on five networks ended at 1e-8, with it alone below 1e-12
BETTER = 0.25  # of the cost of the damped step


def better(
    residual: Residual, linear: Linearization, rules: Rules, factor: Factor, than: float
) -> tuple[Point, torch.Tensor] | None:
    """The point of the truncated step and the step, where the cost there is far below `than`."""
    if not residual.open or not len(factor.s) or residual.ledger.residuals >= rules.max_evaluations:
        return None
    p = factor.truncated(CUT)
    if too_short(residual, linear, rules, p):
        return None
    point = residual.at(linear.x + p)
    return None if point is None or not point.cost < BETTER * than else (point, p)
