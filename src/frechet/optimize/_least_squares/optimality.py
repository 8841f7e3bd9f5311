"""When a least-squares problem is solved: the tests, recomputed from r and J at one point.

With J the columns that are free to move, p the undamped step -J^+ r, D the norms of the columns, and `noise` the
rounding error of an evaluation of r, a point is a solution where one of these holds

    zero        norm(r) <= noise
    gradient    max_j |J_j'r| / (norm(J_j) norm(r)) <= gtol              the angle between r and each column
    reduction   norm(J p)^2 / 2 <= max(ftol cost, noise norm(r))         what a step could still gain
    step        norm(D p) <= xtol norm(D x)

The rule is that of `stopping`: no test refers to the start. All four are unchanged when a parameter or the residual is
given in other units. The noise is estimated as eps norm(|J| |x|), the rounding of a sum of terms J_ij x_j: where r is
the small difference of large numbers, no step can be seen to gain less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.optimize._least_squares.damped_step import Factor, blocked, column_scale, factored
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._stopping import is_rounding

LEAST = 1e-120  # norm(r) in its unit: the cost would soon be out of the range of numbers
VANISHED = "the residual has vanished"
AT_ZERO = 3  # power of eps: at a root x = 0 of order two norm(r) falls below LEAST before steps are too short
IDLE = 10  # steps in a row that changed the cost by rounding only
WORN = 16.0  # times the rounding of x that a full step may move where no step reduces the cost


@dataclass(frozen=True, eq=False)
class Rules:
    """The tolerances, and the sizes of the parameters at the start, by which the first steps are measured."""

    gtol: float
    xtol: float
    ftol: float
    max_evaluations: int
    x0: Tensor  # sizes: where an entry is zero, the largest of all
    tight: bool = True  # whether to go on to the last digits


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether a point is a solution, and why. `optimality` is the largest cosine, `reduction` relative to the cost."""

    solved: bool
    message: str
    optimality: float
    reduction: float


def free_to_move(residual: Residual, linear: Linearization) -> Tensor:
    """The parameters ``(n,)`` that no bound holds."""
    if residual.open:
        return torch.ones(len(linear.x), dtype=torch.bool)
    return ~blocked(linear.x, linear.gradient, residual.lower, residual.upper)


def too_short(residual: Residual, linear: Linearization, rules: Rules, p: Tensor) -> bool:
    """Whether a step moves no parameter by more than its rounding; one at zero may move by very little."""
    least = torch.maximum(linear.x.abs(), residual.eps**AT_ZERO * rules.x0)
    return bool((p.abs() <= residual.eps * least).all())


def judged(
    residual: Residual, linear: Linearization, rules: Rules, newton: float = math.inf, known: Factor | None = None
) -> Verdict:
    """The tests at one point; `newton` is the reduction that a model with second derivatives predicts, where known.

    `known` are the factors of the free columns in another scaling, where they cost too much to be made twice.
    """
    free, size = free_to_move(residual, linear), linear.size
    factor = known or factored(linear, column_scale(linear.columns), free)
    D = linear.columns
    cosines = torch.where(free & (D > 0), linear.gradient.abs() / (D * size) if size > 0 else 0.0, 0.0)
    optimality = float(cosines.max()) if cosines.numel() else 0.0
    model = 0.5 * size * size
    reduction = min(factor.reduction, newton) / model if model > 0 else 0.0
    if size < LEAST and residual.rho is None:
        return Verdict(True, VANISHED, optimality, reduction)
    if size <= linear.noise:
        return Verdict(True, f"the residual is zero to rounding: norm(r) = {size:.3g}", optimality, reduction)
    if not bool(free.any()):
        return Verdict(True, "every parameter lies on a bound that holds it", optimality, reduction)
    if float(D.max()) == 0 and newton < math.inf:
        bends = newton <= rules.ftol * model or newton <= linear.noise * size
        return Verdict(bends, "the gradient is zero, and the cost bends upwards" if bends else "", 0.0, reduction)
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
    return Verdict(False, "", optimality, reduction)


def left_is_rounding(residual: Residual, linear: Linearization) -> str:
    """Why a point that no step improves is a solution, or nothing: r is as small as its evaluation is exact."""
    if linear.size <= WORN * linear.noise:
        return f"no step reduces the cost, and the residual is little more than rounding: norm(r) = {linear.size:.3g}"
    free = free_to_move(residual, linear)
    factor = factored(linear, column_scale(linear.columns), free)
    p = factor.step(0.0)
    D, Jp = linear.columns, linear.J @ p.to(linear.J.device)
    if 0 < length(D * p) <= WORN * residual.eps * length(D * linear.x):
        return "no step reduces the cost, and a full step would change x by little more than rounding"

    def evaluate(x: Tensor) -> Tensor | None:
        point = residual.at(x) if torch.equal(residual.rounded(x), x) or residual.space.dtype != x.dtype else None
        return None if point is None or linear.rows is not None else point.r

    if linear.rows is None and is_rounding(evaluate, length, linear.x, p, linear.r, Jp):
        return f"no step reduces the cost, and what is left of r is its rounding: norm(r) = {linear.size:.3g}"
    return ""
