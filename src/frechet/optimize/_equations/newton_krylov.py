"""Newton's method with inexact steps: roots of F where the Jacobian is used by its products alone.

Each step solves J d = -F by GMRES until norm(F + J d) <= eta norm(F), with a forcing term eta that gets smaller as fast
as the residual does: no step is solved more exactly than the linear model is true. It is shortened until the residual
falls,

    norm(F(x + t d)) <= (1 - 1e-4 t (1 - eta)) norm(F(x)).

**Source.** S. C. Eisenstat and H. F. Walker (1996), Choosing the forcing terms in an inexact Newton method, choice 2
and section 3, doi 10.1137/0917003; C. T. Kelley (2003), Solving nonlinear equations with Newton's method, chapter 3,
doi 10.1137/1.9780898718898.

**Differs from the source.** The forcing term is not made smaller than the tolerance needs; residuals that are not
finite refuse the step; a step that GMRES could not make a descent direction ends the run as `stagnated`.

**Cost.** One evaluation of F per trial, one product per GMRES iteration and one more per step; the basis of GMRES in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._gmres import gmres
from frechet.operators._operator import LinearOperator
from frechet.optimize._equations.root_state import RootState, size_of
from frechet.optimize._geometric import BETTER, Geometric
from frechet.optimize._stopping import is_rounding
from frechet.space import Space

GAMMA, POWER = 0.9, (1 + math.sqrt(5)) / 2
FIRST, MOST = 0.1, 0.9  # of the forcing term
DESCENT, CUTS = 1e-4, 30
IDLE, SLOW = 10, 1e-6  # as many steps that gain so little are a minimum of norm(F) that is no root
HUGE = 1e150  # times norm(F): the square of more is no number
NAME = "root by newton-gmres"


@dataclass(frozen=True, eq=False)
class Limits:
    """What ends a search for a root."""

    rtol: float
    atol: float
    max_iterations: int
    observe: Callable[[RootState], bool] | None


def newton_krylov(
    value: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], LinearOperator],
    space: Space,
    x: Tensor,
    r: Tensor,
    limits: Limits,
    restart: int,
) -> Solution:
    """Return where the steps from x end; `value` and `jacobian` are F and J at vectors ``(n,)``, r is F(x)."""
    norm = size_of(space, r)
    eta, iterations, products, history, status, words = FIRST, 0, 0, [norm], None, ""
    pace = Geometric(space.inner)
    while True:
        J = jacobian(x)
        # the size of the terms J_ij x_j: signs drawn at random do not let them cancel
        scale = size_of(space, J @ (space.random(0, 0) * x)) if norm > 0 else 0.0
        target, products = max(limits.rtol * scale, limits.atol), products + (norm > 0)
        status, words = _ended(limits, RootState(iterations, x, norm, products), target, history)
        if status is not None:
            break
        unit = 2.0 ** math.frexp(norm)[1]  # whose squares are numbers
        wanted = max(eta, min(0.5, 0.5 * target / norm))
        inner = gmres(J * (1 / unit), -r / unit, rtol=wanted, restart=restart, max_iterations=10 * restart)
        d, products = inner.x, products + inner.products
        reached = inner.residual * unit / norm  # what was solved for, not what was asked
        accepted = _shortened(value, space, x, d, norm, reached) if reached < 1 else None
        if accepted is None:
            status, words = Status.STAGNATED, _refused(reached, inner)
            if reached < 1 and is_rounding(value, lambda v: size_of(space, v), x, d, r, J @ d):
                status, words = Status.CONVERGED, ": no step reduces norm(F), which is the rounding of F"
            break
        (x, r), last = _at_limit(value, space, accepted, x, pace), norm
        norm, iterations = size_of(space, r), iterations + 1
        history.append(norm)
        quick, slow = GAMMA * (norm / last) ** POWER, GAMMA * eta**POWER
        eta = min(MOST, max(quick, slow) if slow > 0.1 else quick)
    return Solution(x, status, norm, iterations, products, tuple(history), NAME + words)


def _ended(limits: Limits, now: RootState, target: float, history: list[float]) -> tuple[Status | None, str]:
    if now.residual <= target:
        return Status.CONVERGED, f": norm(F) = {now.residual:.3g} is zero to the tolerance"
    if limits.observe is not None and limits.observe(now):
        return Status.STOPPED, f": observe returned True in iteration {now.iteration}"
    if now.iteration >= limits.max_iterations:
        return Status.MAX_ITERATIONS, f": the limit of {limits.max_iterations} iterations was reached"
    if now.iteration >= IDLE and now.residual > (1 - SLOW) * history[-1 - IDLE]:
        return Status.STAGNATED, f": norm(F) = {now.residual:.3g} does not fall any more; start elsewhere"
    return None, ""


def _refused(reached: float, inner: Solution) -> str:
    if reached >= 1:
        return f": the Jacobian is singular, gmres left all of F ({inner.status}); start elsewhere"
    return f": no step reduces norm(F), of which gmres left {reached:.2g} ({inner.status}); start elsewhere"


def _shortened(
    value: Callable[[Tensor], Tensor], space: Space, x: Tensor, d: Tensor, norm: float, reached: float
) -> tuple[Tensor, Tensor] | None:
    """The point x + t d, and F there, at which norm(F) has fallen enough; None where there is none."""
    t = 1.0
    for _ in range(CUTS):
        moved = x + t * d
        if bool((moved == x).all()):
            return None
        trial = value(moved)
        tried = size_of(space, trial)
        if tried <= (1 - DESCENT * t * (1 - reached)) * norm:
            return moved, trial
        # the parabola through norm^2 at 0 and t and the slope -2 norm^2 (1 - reached), in units of norm^2
        t *= _shrink(1.0, (tried / norm) ** 2 if tried < HUGE * norm else math.inf, -2 * t * (1 - reached))
    return None


def _shrink(before: float, after: float, slope: float) -> float:
    if not math.isfinite(after):
        return 0.25
    rise = after - before - slope
    return min(max(-slope / (2 * rise), 0.1), 0.5) if rise > 0 else 0.5


def _at_limit(
    value: Callable[[Tensor], Tensor], space: Space, accepted: tuple[Tensor, Tensor], x: Tensor, pace: Geometric
) -> tuple[Tensor, Tensor]:
    """The limit of steps that shrink by a constant factor where norm(F) is much less there, else the accepted point."""
    moved, r = accepted
    multiple = pace.multiple(moved - x)
    if not multiple:
        return accepted
    limit = moved + multiple * (moved - x)
    there = value(limit)
    better = size_of(space, there) <= BETTER * size_of(space, r)
    pace.tried(better)
    return (limit, there) if better else accepted
