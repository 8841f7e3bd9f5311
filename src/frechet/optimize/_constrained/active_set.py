"""The last digits: Newton steps on the sides that are active, as an equality problem without a barrier.

A side is taken as active where its multiplier exceeds the distance to it: on the central path their product is mu, so
one of the two is large. Active bounds are held, active rows become equalities, the others are left out; each step is
the least-norm step to the rows plus the Newton step in their null space by projected CG. A step stays only where the
conditions of the whole problem, with the signs of all multipliers, hold better than before.

**Source.** the identification of active constraints by primal-dual ratios: Facchinei, Fischer and Kanzow (1998), On the
accurate identification of active constraints, doi 10.1137/S1052623496305882.
**Cost** per step: one gradient, the kept rows, one Hessian product per CG iteration.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.kkt import Conditions, conditions
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.projected_cg import projected_cg
from frechet.optimize._constrained.projection import rows_of
from frechet.optimize._constrained.raw import DenseRows
from frechet.space import euclidean

STEPS = 8
WORSE = 2  # steps without progress that end it


def on_active_set(
    program: Program, point: Point, y: Tensor, z: Tensor, gtol: float, ctol: float, steps: int = STEPS
) -> tuple[Point, Tensor, Conditions]:
    """The best point found, its multipliers and conditions; `y` ``(m,)`` and `z` ``(n,)`` in the units of `program`."""
    best, best_y, found = point, y, conditions(program, point, y)
    x, c = point.x, point.c
    at_low = (z < 0) & (x - program.lower <= -z)
    at_high = (z > 0) & (program.upper - x <= z)
    held = at_low | at_high | (program.lower == program.upper)
    row_low = (y < 0) & (c - program.low <= -y)
    row_high = (y > 0) & (program.high - c <= y)
    equal = program.low == program.high
    rows = (row_low | row_high | equal).nonzero()[:, 0]
    target = torch.where(row_high, program.high, program.low)[rows]
    face = program.rounded(torch.where(at_low, program.lower, torch.where(at_high, program.upper, x)))
    moved = point if bool((face == x).all()) else program.point(face)
    free, worse = (~held).to(torch.float64), 0
    for _ in range(steps):
        if moved is None:
            break
        A = _masked(moved.J, free, rows)
        kept = rows_of(A)
        # from the multipliers of the barrier: at a vertex with as many sides as variables, the free part fixes none
        yA = y[rows] + kept.multipliers(free * (moved.g + moved.J.T @ _only(y, rows)))
        whole = torch.zeros_like(y)
        whole[rows] = yA
        measured = conditions(program, moved, whole)
        if measured.worst < found.worst:
            worse = 0 if measured.worst < 0.5 * found.worst else worse + 1
            best, best_y, found = moved, whole, measured
        else:
            worse += 1
        if worse > WORSE or found.hold(1e-2 * gtol, 1e-2 * ctol):
            break
        v = kept.least_norm(target - moved.c[rows])
        H = moved.hessian(whole)
        B = from_callable(lambda V, H=H: ((H @ (V.T * free).T).T * free).T, program.domain, facts="symmetric")
        p = projected_cg(B, free * moved.g + B @ v, kept, radius=math.inf, rtol=1e-10).p
        step = v + p
        if not program.domain.finite(step):
            break
        moved = program.point(program.rounded(moved.x + step))
    return best, best_y, found


def _only(y: Tensor, rows: Tensor) -> Tensor:
    """`y` on these rows, zero on the others."""
    out = torch.zeros_like(y)
    out[rows] = y[rows]
    return out


def _masked(J: LinearOperator | DenseRows, free: Tensor, rows: Tensor) -> LinearOperator:
    """These rows of J, with the columns that are held set to zero."""

    def pull(W: Tensor) -> Tensor:
        whole = J.codomain.zeros(W.shape[1])
        whole[rows] = W
        return ((J.T @ whole).T * free).T

    image = euclidean(len(rows), torch.float64, J.domain.device)
    return from_callable(lambda V: (J @ (V.T * free).T)[rows], J.domain, image, rmatmat=pull)
