"""Newton's method in a trust region: roots of F with the Jacobian as a matrix, also between bounds.

A root is a minimum of norm(F)^2 / 2 at which norm(F) is zero, and the steps are those of least squares. The first
search is Powell's dogleg with a wide first radius, which takes Newton's own steps where they pay. Where it ends at a
minimum of norm(F) that is no root, or creeps, a second search starts from x0 on another path: Levenberg-Marquardt,
whose first steps stay near. Between bounds the first search is projected Levenberg-Marquardt, the second the interior
trust region. The message names the searches.

A point is a root where one of these holds, with the terms J_ij x_j of the linear model as the measure of F

    size       norm(F) <= max(rtol norm(J diag(x)), atol)
    rounding   Newton's step removes F in the linear model, and F at x is its rounding error; see `stopping`

**Source.** M. J. D. Powell (1970), A hybrid method for nonlinear equations; J. J. More (1978), The Levenberg-Marquardt
algorithm: implementation and theory, doi 10.1007/BFb0067700. **Differs from the source:** exact Jacobians at every
step in place of Broyden's updates, and what the modules of these methods say.

**Cost.** One evaluation of F per trial and one Jacobian per step; one SVD of J per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.optimize._equations.newton_krylov import Limits
from frechet.optimize._equations.root_state import RootState
from frechet.optimize._least_squares.curved_model import curved
from frechet.optimize._least_squares.damped_step import column_scale, factored
from frechet.optimize._least_squares.dogleg import dogleg
from frechet.optimize._least_squares.flat_model import INWARDS, falls_on, ran_away
from frechet.optimize._least_squares.interior import interior
from frechet.optimize._least_squares.last_digits import in_range
from frechet.optimize._least_squares.levenberg_marquardt import levenberg_marquardt
from frechet.optimize._least_squares.optimality import WORN, Rules, free_to_move, judged
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._least_squares.residual import Point as Start
from frechet.optimize._least_squares.run import LeastSquaresState, Run, in_units, sizes
from frechet.optimize._least_squares.start import first_linearization
from frechet.optimize._stopping import is_rounding

WIDE = 100.0  # the first radius, of norm(D x0), as in MINPACK's hybrj
SINGULAR = 1e-8  # of the largest singular value, in units in which the columns have one length
SAME = 1e-6  # relative difference of norms at one minimum
VANISHES = 1e-6  # of an entry: what a step leaves of it where zero is its value
REMOVES = 0.5  # of norm(F): a Newton step that leaves more in the linear model leads to no root
SMALL = 1e-30  # of F, the square of which times J may underflow
HALVINGS, VANISHING = 100, 1e-290  # values between zero and this are the last before underflow
# name, algorithm, and evaluations per (n + 10) after which the next search begins. On square CUTEst systems wide steps
# that pay take 1 to 4 of them, and others creep for thousands; projected steps between bounds are alike
Search = tuple[str, Callable[..., Run], float]
FREE: tuple[Search, ...] = (
    ("dogleg", partial(dogleg, first=WIDE), 4),
    ("levenberg-marquardt", levenberg_marquardt, math.inf),
)
BOUNDED: tuple[Search, ...] = (
    ("projected levenberg-marquardt", levenberg_marquardt, 10),
    ("the interior trust region", interior, math.inf),
)


@dataclass(frozen=True, eq=False)
class End:
    """Where a search ended."""

    x: Tensor
    norm: float
    status: Status
    words: str
    iterations: int
    history: tuple[float, ...]


def newton_dense(problem: Residual, start: Start, limits: Limits) -> Solution:
    """Return the root that the searches from the start find, or the end with the smallest norm(F)."""
    bounded = bool((problem.lower > -math.inf).any() or (problem.upper < math.inf).any())
    searches = BOUNDED if bounded else FREE
    problem, linear = first_linearization(problem, start)
    ends: list[End] = []
    for search in searches:
        ends.append(_searched(problem, linear, search, limits, sum(e.iterations for e in ends)))
        over = sum(e.iterations for e in ends) >= limits.max_iterations
        if over or ends[-1].status in (Status.CONVERGED, Status.STOPPED):
            break
    best = _best(ends)
    names = ", then by ".join(search[0] for search in searches[: len(ends)])
    ledger = problem.ledger
    spent = f"{ledger.residuals} evaluations and {ledger.jacobians} Jacobians"
    found = problem.structured(best.x)
    return Solution(
        found if isinstance(found, Tensor) else problem.space.flatten(found),
        best.status,
        best.norm,
        sum(e.iterations for e in ends),
        0,
        tuple(norm for e in ends for norm in e.history[e is not ends[0] :]),
        f"root by newton in a trust region ({names}; {spent}): {best.words}",
        evaluations=ledger.residuals,
    )


def _best(ends: list[End]) -> End:
    """The root, or the end with the smallest norm(F); of equal ends one that says more than that a limit was met."""
    least = min(e.norm for e in ends)
    near = [e for e in ends if e.norm <= (1 + SAME) * least]
    order = (Status.CONVERGED, Status.STOPPED, Status.STAGNATED, Status.MAX_ITERATIONS)
    found = [e for e in ends if e.status is Status.CONVERGED] or near
    return min(found, key=lambda e: order.index(e.status))


def _searched(problem: Residual, linear: Linearization, search: Search, limits: Limits, done: int) -> End:
    stopped = False

    def watch(state: LeastSquaresState) -> bool:
        nonlocal stopped
        x = state.x.to(problem.space.device, problem.space.dtype)
        now = RootState(done + state.iteration, x, math.sqrt(2 * state.cost), 0)
        stopped = limits.observe is not None and limits.observe(now)
        return stopped or now.iteration >= limits.max_iterations

    most = problem.ledger.residuals + int(min(search[2] * (len(linear.x) + 10), 10 * limits.max_iterations))
    rules = Rules(problem.eps, problem.eps, 0.0, most, sizes(linear.x))
    problem, rules, run = in_units(search[1], problem, linear, rules, watch)
    limit = f"the limit of {rules.max_evaluations} evaluations was reached"
    if run.status is Status.STOPPED and not stopped:
        limit = f"the limit of {limits.max_iterations} iterations was reached"
        run = replace(run, status=Status.MAX_ITERATIONS)
    run = replace(run, linear=_at_zero(problem, run.linear))
    status, words = _judged(problem, rules, run, limits, limit)
    norm = length(run.linear.point.r) * problem.unit
    history = tuple(math.sqrt(2 * c) for c in run.history)
    return End(run.linear.x, norm, status, words, run.iterations, history)


def _at_zero(problem: Residual, linear: Linearization) -> Linearization:
    """The point with zeros for the entries that Newton's step sends there, where F is less with them.

    At a root x = 0 of a linear F each step leaves the rounding of the last, and no step ends that.
    """
    if linear.size == 0:
        return linear
    p = factored(linear, column_scale(linear.columns), free_to_move(problem, linear)).step(0.0)
    vanish = (linear.x != 0) & ((linear.x + p).abs() <= VANISHES * linear.x.abs())
    point = problem.at(torch.where(vanish, 0.0, linear.x)) if bool(vanish.any()) else None
    after = problem.linearized(point) if point is not None and length(point.r) < linear.size else None
    return linear if after is None else after


def _judged(problem: Residual, rules: Rules, run: Run, limits: Limits, limit: str) -> tuple[Status, str]:
    """Whether the run ended at a root, and the sentence on it."""
    linear, size = run.linear, run.linear.size
    norm = size * problem.unit
    free = free_to_move(problem, linear)
    if size <= max(limits.rtol * length(linear.columns * linear.x), limits.atol / problem.unit):
        away = ran_away(problem, linear, free) if size == 0 and float(linear.columns.min()) == 0 else []
        if away and _underflows(problem, linear):
            return Status.STAGNATED, f"norm(F) falls for ever, less and less: {_farthest(linear)} runs to infinity"
        return Status.CONVERGED, f"norm(F) = {norm:.3g} is zero to the tolerance"
    if run.status is Status.STOPPED:
        return run.status, f"observe returned True in iteration {run.iterations}"
    problem, linear = _in_unit(problem, linear)
    S = problem.curvature(linear) if bool(free.any()) else None
    if S is not None and falls_on(problem, linear, S, free):
        return Status.STAGNATED, f"norm(F) falls for ever, less and less: {_farthest(linear)} runs to infinity"
    if float(linear.columns.max()) == 0 and _fades(problem, linear):
        return Status.STAGNATED, f"norm(F) falls for ever, less and less: {_farthest(linear)} runs to infinity"
    if run.status is Status.MAX_ITERATIONS:
        return run.status, limit
    if _is_rounding(problem, linear, free):
        return Status.CONVERGED, f"norm(F) = {norm:.3g} is as small as F is exact"
    if ran_away(problem, linear, free):
        return Status.STAGNATED, f"F does not change any more with x: {_farthest(linear)} ran to where F is flat"
    newton = math.inf if S is None else curved(linear, S, _bends(linear, S), free).reduction
    if judged(problem, linear, rules, newton).solved or not float(linear.columns.max()):
        where = "" if bool(free.all()) else ", on a bound"
        return Status.STAGNATED, f"norm(F) has a minimum of {norm:.3g} there{where}, which is no root; start elsewhere"
    values = factored(linear, column_scale(linear.columns), free).s
    singular = float(values[-1]) <= SINGULAR * float(values[0])
    return Status.STAGNATED, f"no step reduces norm(F) = {norm:.3g}: " + (
        "the Jacobian is nearly singular there; start elsewhere"
        if singular
        else "F has a jump or noise there, another derivative than the one given, or no finite values nearby"
    )


def _in_unit(problem: Residual, linear: Linearization) -> tuple[Residual, Linearization]:
    """The same where F is about one: gradients of a tiny F underflow."""
    other, point = in_range(problem, linear.point, SMALL)
    moved = None if other is problem else other.linearized(point)
    return (problem, linear) if moved is None else (other, moved)


def _farthest(linear: Linearization) -> str:
    j = int(linear.x.abs().argmax())
    return f"entry {j} of x, at {float(linear.x[j]):.3g},"


def _bends(linear: Linearization, S: Tensor) -> Tensor:
    """Units in which each entry of x bends norm(F)^2 alike."""
    return (column_scale(linear.columns).square() + S.diagonal().abs()).sqrt()


def _is_rounding(problem: Residual, linear: Linearization, free: Tensor) -> bool:
    """Whether a Newton step would remove F, and what it would remove is the rounding error of F."""
    factor = factored(linear, column_scale(linear.columns), free)
    p = factor.step(0.0)
    change = linear.J @ p.to(linear.J.device)
    if not length(linear.r + change) <= REMOVES * linear.size:
        return False
    if 0 < length(linear.columns * p) <= WORN * problem.eps * length(linear.columns * linear.x):
        return True

    def evaluate(x: Tensor) -> Tensor | None:
        inside = bool(((x >= problem.lower) & (x <= problem.upper)).all())
        point = problem.at(x) if inside else None
        return None if point is None else point.r

    return is_rounding(evaluate, length, linear.x, p, linear.r, change)


def _fades(problem: Residual, linear: Linearization) -> bool:
    """Whether norm(F) is less farther out and more nearer to zero, where J has left the range of the numbers."""
    farther, nearer = problem.at(2.0 * linear.x), problem.at(0.5 * linear.x)
    return farther is not None and nearer is not None and length(farther.r) < linear.size < length(nearer.r)


def _underflows(problem: Residual, linear: Linearization) -> bool:
    """Whether F is zero at x only since its values on the way there have left the range of the numbers."""

    def size(part: float) -> float:
        point = problem.at((1 - part) * linear.x)
        return math.inf if point is None else length(point.r)

    outer, inner = 0.0, next((part for part in INWARDS if size(part) > 0), 0.0)
    for _ in range(HALVINGS):
        middle = 0.5 * (outer + inner)
        if middle in (outer, inner):
            break
        outer, inner = (middle, inner) if size(middle) == 0 else (outer, middle)
    return 0 < size(inner) * problem.unit < VANISHING
