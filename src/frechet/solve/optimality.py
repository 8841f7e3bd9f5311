"""When a least-squares problem is solved: the tests, recomputed from r and J at one point.

With J the columns that are free to move, p the undamped step -J^+ r, D the norms of the columns, and `noise` the
rounding error of an evaluation of r, a point is a solution where one of these holds

    zero        norm(r) <= noise
    gradient    max_j |J_j'r| / (norm(J_j) norm(r)) <= gtol              the angle between r and each column
    reduction   norm(J p)^2 / 2 <= max(ftol cost, noise norm(r))         what a step could still gain
    step        norm(D p) <= xtol norm(D x);  or |p_j| <= xtol max(|x_j|, |x0_j|) for all j and norm(r) <= eps norm(r0):
                a solution at x = 0 is approached for ever

All four are unchanged when a parameter or the residual is given in other units. The noise is estimated as eps
norm(|J| |x|), the rounding of a sum of terms J_ij x_j: where r is the small difference of large numbers, no step can be
seen to gain less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.solve.damped_step import blocked, column_scale, factored
from frechet.solve.residual import Linearization, Residual, length


@dataclass(frozen=True, eq=False)
class Rules:
    """The tolerances, and the sizes at the start that they refer to."""

    gtol: float
    xtol: float
    ftol: float
    max_evaluations: int
    x0: Tensor  # sizes: where an entry is zero, the largest of all
    r0: float
    tight: bool = True  # whether to go on to the last digits


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether a point is a solution, and why. `optimality` is the largest cosine, `reduction` relative to the cost."""

    solved: bool
    reason: str
    optimality: float
    reduction: float


def free_to_move(residual: Residual, linear: Linearization) -> Tensor:
    """The parameters ``(n,)`` that no bound holds."""
    return ~blocked(linear.x, linear.gradient, residual.lower, residual.upper)


def judged(residual: Residual, linear: Linearization, rules: Rules, newton: float = math.inf) -> Verdict:
    """The tests at one point; `newton` is the reduction that a model with second derivatives predicts, where known."""
    free, size = free_to_move(residual, linear), linear.size
    factor = factored(linear, column_scale(linear.columns), free)
    D = linear.columns
    cosines = torch.where(free & (D > 0), linear.gradient.abs() / (D * size) if size > 0 else 0.0, 0.0)
    optimality = float(cosines.max()) if cosines.numel() else 0.0
    model = 0.5 * size * size
    reduction = min(factor.reduction, newton) / model if model > 0 else 0.0
    if size <= linear.noise or linear.cost == 0:
        return Verdict(True, f"the residual is zero to rounding: norm(r) = {size:.3g}", optimality, reduction)
    if not bool(free.any()):
        return Verdict(True, "every parameter lies on a bound that holds it", optimality, reduction)
    if float(D.max()) == 0:
        return Verdict(False, "the Jacobian is zero: r does not change with any parameter", optimality, reduction)
    if optimality <= rules.gtol:
        return Verdict(True, f"r is orthogonal to the Jacobian: largest cosine {optimality:.3g}", optimality, reduction)
    if min(factor.reduction, newton) <= rules.ftol * model:
        text = f"a full step would reduce the cost by less than ftol: {reduction:.3g} of it"
        return Verdict(True, text, optimality, reduction)
    if min(factor.reduction, newton) <= linear.noise * size:
        text = f"a full step would reduce the cost by no more than rounding errors: {reduction:.3g} of it"
        return Verdict(True, text, optimality, reduction)
    p = factor.step(0.0)
    share = length(D * p) / reach if (reach := length(D * linear.x)) > 0 else math.inf
    text = f"a full step would change x by no more than xtol: {share:.3g} of its size"
    if share <= rules.xtol:
        return Verdict(True, text, optimality, reduction)
    if size <= residual.eps * rules.r0 and bool(
        (p.abs() <= rules.xtol * torch.maximum(linear.x.abs(), rules.x0)).all()
    ):
        return Verdict(True, "a full step would change x by no more than xtol of its start", optimality, reduction)
    return Verdict(False, "", optimality, reduction)
