"""A Jacobian that is not that of the residual: suspected by the steps of a run, which is free, shown by differences.

An accepted step p knows r and J at both of its ends. Their disagreement

    norm(r(x + p) - r(x) - (J(x) + J(x + p)) p / 2)  over the larger of the two changes

vanishes with the length of p where J is right, and does not where a column has a wrong sign, a wrong factor or a term
that was cut off. Central differences along each parameter follow a run whose last steps all disagree, one that
stagnates or reaches its limit, and one that ends with a column of zeros. They decide, and only where both sides and
two lengths agree; four longer ones follow where the residual does not change at all.

**Cost.** Two products with J per step. Where a run is suspected, four residuals for each parameter, up to `MOST`, and
two Jacobians for each that differs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._least_squares.run import Run

DOUBT = (
    0.01  # the least disagreement of last steps for which a run is looked at; the right Jacobians of NIST end far below
)
WRONG = 0.05  # of the norm of a column, from which on it is wrong
SURE = 0.2  # of what a column is off: both sides and both lengths agree to it
CLEAR = 100.0  # times the rounding of r that a difference is
LAST = 3  # steps at the end of a run: one alone may agree with a wrong J
LONG = 20  # steps, after which a run at its limit is looked at
MOST = 64  # parameters that are looked at: those with the longest columns
ALIKE = 0.999  # cosine of a column that differs by a factor alone


def disagreement(before: Linearization, after: Linearization) -> float:
    """How far the change of r along a step is from what both Jacobians say; infinite where rounding hides it."""
    moved, change = (after.x - before.x).to(before.J.device), after.point.r - before.point.r
    if before.rows is None:
        told = 0.5 * (before.J @ moved + after.J @ moved)
    else:
        change, told = before.rows * change, before.J @ moved
    size = max(length(change), length(told))
    return length(change - told) / size if size > CLEAR * before.noise else math.inf


def exposed(problem: Residual, linear: Linearization, status: Status, message: str, run: Run) -> tuple[Status, str]:
    """The status and message of a run, or what shows that the Jacobian is wrong."""
    if problem.route not in ("columns", "rows", "function") or not _suspected(linear, status, run):
        return status, message
    if linear.rows is not None:
        linear = _plain(problem, linear) or linear
    if linear.rows is not None:
        return status, message
    longest = linear.columns.topk(min(MOST, len(linear.x))).indices.tolist()
    said = [found for j in longest if (found := _said(problem, linear, j))]
    if not said:
        return status, message
    others = f" and {len(said) - 1} more" if len(said) > 1 else ""
    return Status.STAGNATED, (
        f"the Jacobian is not that of the residual: {said[0]}{others}; a term may be detached, or a derivative wrong"
    )


def _suspected(linear: Linearization, status: Status, run: Run) -> bool:
    if status is Status.STAGNATED:
        return True
    doubted = DOUBT < run.doubt < math.inf
    if status is Status.MAX_ITERATIONS:
        return run.iterations >= LONG
    return status is Status.CONVERGED and (doubted or bool((linear.columns == 0).any()))


def _plain(problem: Residual, linear: Linearization) -> Linearization | None:
    """r and J without the scales of a robust loss."""
    return replace(problem, rho=None).linearized(linear.point)


def _said(problem: Residual, linear: Linearization, j: int) -> str:
    """What is wrong with column j, or nothing."""
    x, column = linear.x, linear.J[:, j]
    h = problem.eps ** (1 / 3) * (abs(float(x[j])) or float(problem.typical[j]))
    sides = [_slope(problem, linear, j, t) for t in (h, -h, 2 * h, -2 * h)]
    if any(side is None for side in sides):
        return ""
    ahead, behind, far, farther = (side for side in sides if side is not None)
    D, wide = (ahead + behind) / 2, (far + farther) / 2
    off, size = length(D - column), max(length(D), length(column))
    sure = length(ahead - behind) <= SURE * off and length(wide - D) <= SURE * off
    underflows = off * h * problem.unit <= CLEAR * torch.finfo(x.dtype).tiny  # as powers do near a root at 0
    if off <= WRONG * size or not sure or off * h <= CLEAR * linear.noise or underflows:
        return ""
    if any(_agrees(problem, x, j, t, D, WRONG * size) for t in (h, -h)):
        return ""
    what = f"along {_named(problem, j)} "
    a, b = length(column), length(D)
    if a == 0:
        return what + f"it is zero, and the residual changes by {b * problem.unit:.3g} per unit"
    if b == 0:
        return what + "it is not zero, and the residual does not change" if _flat(problem, linear, j) else ""
    cosine = float((column / a) @ (D / b))
    if abs(cosine) > ALIKE:
        return what + f"it is {math.copysign(a / b, cosine):.3g} times what the residual changes by"
    return what + f"it has the cosine {cosine:.2g} with what the residual changes by"


def _agrees(problem: Residual, x: Tensor, j: int, t: float, D: Tensor, most: float) -> bool:
    """Whether J is right a little aside: then it is right at x too, and changes faster than differences see."""
    y = x.clone()
    y[j] += t
    point = problem.at(y)
    there = None if point is None else replace(problem, rho=None).linearized(point)
    return there is not None and length(D - there.J[:, j]) <= most


def _flat(problem: Residual, linear: Linearization, j: int) -> bool:
    """Whether x_j changes nothing at any length: near a root at 0 short differences are lost to rounding."""
    reach = max(abs(float(linear.x[j])), float(problem.typical[j]))
    sides = [_slope(problem, linear, j, t * reach) for t in (0.01, -0.01, 0.3, -0.3)]
    known = [side for side in sides if side is not None]
    return bool(known) and not any(bool(side.any()) for side in known)


def _slope(problem: Residual, linear: Linearization, j: int, t: float) -> Tensor | None:
    """(r(x + t e_j) - r(x)) / t, with t as the dtype holds it; None outside of the bounds and where r is no number."""
    x = linear.x.clone()
    x[j] += t
    y = problem.rounded(x)
    moved = float(y[j] - linear.x[j])
    if moved == 0 or abs(moved - t) > 0.5 * abs(t):
        return None
    r = problem.values(y)
    return (r - linear.point.r) / moved if bool(torch.isfinite(r).all()) else None


def _named(problem: Residual, j: int) -> str:
    """Parameter j by its block and its place in the block."""
    for name, shape, size in zip(problem.space.names, problem.space.shapes, problem.space.sizes, strict=True):
        if j < size:
            place = [int(i) for i in torch.unravel_index(torch.tensor(j), shape)] if shape else []
            where = f"[{', '.join(map(str, place))}]" if place else ""
            return f"{name}{where}" if name else f"x{where}"
        j -= size
    raise AssertionError("a parameter of the space")
