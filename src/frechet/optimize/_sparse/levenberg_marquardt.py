"""Levenberg-Marquardt with a sparse Jacobian: normal equations with the block-diagonal part eliminated.

    (J'J + mu D^2) p = -J'r,      D the norms of the columns of J,

factored by `schur`, or, where the factors do not fit into memory, solved by LSMR with the Cholesky factors of the
diagonal blocks of J'J + mu D^2 as preconditioner. mu follows the gain ratio. Where a step gains next to nothing the
undamped step decides whether the point is a solution: conjugate gradients on J'J, preconditioned by the factors with a
small mu, so that a J without full rank (the gauge of bundle adjustment) and the squared condition number do not spoil
it. The run ends with undamped steps as long as what they predict keeps falling.

**Source.** H. B. Nielsen (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05; S. Agarwal, N. Snavely,
S. Seitz and R. Szeliski (2010), Bundle adjustment in the large, doi 10.1007/978-3-642-15552-9_3.

**Differs from the source.** D forgets a tenth per step of the largest norms met; the end as in `last_digits.py`.

**Cost.** As many products as there are colors, and three, for each Jacobian; one factorization per trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.optimize._least_squares.damped_step import column_scale
from frechet.optimize._least_squares.matrix_free import MatrixFreeRun
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Point, Residual, length
from frechet.optimize._least_squares.run import LeastSquaresState
from frechet.optimize._sparse.colored_products import gradient
from frechet.optimize._sparse.found_pattern import found_pattern
from frechet.optimize._sparse.search import Moment, Search, Trial, moment
from frechet.optimize._sparse.steps import Steps
from frechet.optimize._sparse.structure import Declared, Structure, structured

FIRST, MOST = 1e-3, 1e20  # of mu: Nielsen's for a start that is neither near nor far
FADE, FALLS = 0.9, 0.9  # as in levenberg_marquardt and polish
POOR = 0.25  # gain below which mu doubles: where a column of J vanishes, D^2 fades faster than Nielsen's rule raises mu
UNDAMPED = 2e-6  # mu from which on the undamped step is tried first: three good steps after FIRST
IDLE = 10  # steps in a row that changed the cost by rounding only


def sparse_run(
    problem: Residual,
    start: Point,
    declared: Declared,
    rules: Rules,
    method: str,
    factors: bool,
    observe: Callable[[LeastSquaresState], bool] | None,
) -> tuple[MatrixFreeRun, str]:
    """Run with the structure that the caller declared; and how, in words."""
    if method not in ("auto", "levenberg-marquardt"):
        raise ValueError(
            f"least_squares: method must be 'levenberg-marquardt' where structure is given, got {method!r}"
        )
    if isinstance(declared, str):
        if declared != "find":
            raise ValueError(f"least_squares: structure must be 'find', index tensors or a pattern, got {declared!r}")
        declared = found_pattern(problem, start)
    with torch.no_grad():
        returned = problem.function(problem.structured(start.x))
    problem.ledger.residuals += 1
    structure = structured(declared, problem.space, problem.single, returned)
    return sparse_levenberg_marquardt(problem, start, structure, rules, factors=factors, observe=observe)


def sparse_levenberg_marquardt(  # noqa: C901 - one branch for each way to go on or to end
    problem: Residual,
    start: Point,
    structure: Structure,
    rules: Rules,
    *,
    factors: bool = True,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> tuple[MatrixFreeRun, str]:
    """Run from `start`; also how the steps were computed. `factors` False takes LSMR even where factors fit.

    The loop is one piece, because each branch ends or continues the search for one step.
    """
    steps = Steps.of(structure, factors, problem.route)
    now = moment(problem, start, structure, first=True)
    if now is None:
        raise NonFinite(
            "least_squares: the Jacobian must be finite at x0, got NaN or infinity; start off the kinks of sqrt or abs"
        )
    first, seen, damping, growth = now, now.columns, FIRST, 2.0
    iterations, idle, history = 0, 0, [start.cost]
    while True:
        seen = torch.maximum(now.columns, FADE * seen)
        search = Search(problem, rules, steps, now, column_scale(seen))
        status, message = search.settled()
        if status is None and observe is not None and observe(search.state(iterations, damping)):
            status, message = Status.STOPPED, f"observe returned True in iteration {iterations}"
        if status is None and idle >= IDLE:
            status, message = Status.STAGNATED, f"{IDLE} steps in a row changed the cost by rounding errors only"
        accepted, looked = None, False
        while status is None and accepted is None:
            if problem.ledger.residuals >= rules.max_evaluations:
                status, message = Status.MAX_ITERATIONS, f"the limit of {rules.max_evaluations} residuals was reached"
                break
            trial = None if damping <= UNDAMPED and not looked else search.step(damping)
            if not looked and (trial is None or search.near(trial)):
                looked, full = True, search.undamped()
                if full is not None and (message := search.solved(full)):
                    status, now = Status.CONVERGED, polished(search, full) if rules.tight else now
                    break
                accepted, gain = (None, -math.inf) if full is None else search.tried(full)
                if accepted is not None or trial is None:
                    continue
            if (trial is not None and not search.moves(trial)) or damping >= MOST:
                status, message = Status.STAGNATED, "no step reduces the cost"
                break
            accepted, gain = (None, -math.inf) if trial is None else search.tried(trial)
            if accepted is None:
                damping, growth = damping * growth, 2 * growth
            else:
                damping, growth = damping * (2.0 if gain < POOR else max(0.1, 1 - (2 * min(gain, 1.0) - 1) ** 3)), 2.0
        if accepted is None:
            break
        slack = now.noise * now.size
        idle = idle + 1 if abs(now.point.cost - accepted.point.cost) <= 0.1 * slack else 0
        now, iterations = accepted, iterations + 1
        history.append(now.point.cost)
    assert status is not None  # by the loop
    status, message = verdict(problem, rules, now, first, status, message)
    optimality = Search(problem, rules, steps, now, column_scale(now.columns)).optimality
    run = MatrixFreeRun(now.point, now.gradient, optimality, status, message, iterations, tuple(history))
    return run, f"levenberg-marquardt by {steps.name}; {how_often(problem, now.J.structure)} for each Jacobian"


def how_often(problem: Residual, structure: Structure) -> str:
    """What one Jacobian costs, in words."""
    count = structure.count
    if problem.route in ("2-point", "3-point"):
        count, unit = count * (1 if problem.route == "2-point" else 2), "residuals"
    elif problem.jacobian is None and structure.by_rows:
        count, unit = structure.groups[0].rows.shape[1], "backward passes"
    else:
        unit = "products"
    return f"{count} {unit}" if count != 1 else "1 " + {"backward passes": "backward pass"}.get(unit, unit[:-1])


def polished(search: Search, trial: Trial) -> Moment:
    """The point from which an undamped step predicts no smaller gain.

    So near J hardly changes, and one factorization of it serves all steps; the gradient is that of each point. Where
    bounds take part, or nothing else leads to the gradient, each point has a new J.
    """
    problem, now, last, point = search.problem, search.now, trial, search.now.point
    while worthwhile(search, last):
        after = followed(search, point, last.p)
        if after is None:
            break
        slope = None if trial.chord is None else gradient(problem, after)
        if slope is None or trial.chord is None:
            return polished_by_jacobians(search, trial)
        p, slope = trial.chord(slope, False), slope.cpu()
        x = after.x + p
        if bool(((x < problem.lower) | (x > problem.upper)).any()) or not torch.equal(
            search.free, search.released(after.x, slope)
        ):
            return polished_by_jacobians(search, trial)
        further = Trial(p, now.predicted(slope, p))
        if further.predicted > FALLS * last.predicted:
            break
        point, last = after, further
    found = None if point is now.point else moment(problem, point, now.J.structure)
    return now if found is None else found


def polished_by_jacobians(search: Search, trial: Trial) -> Moment:
    """The same with a new J at each point."""
    now, last = search.now, trial
    while worthwhile(search, last):
        point = followed(search, now.point, last.p)
        after = None if point is None else moment(search.problem, point, now.J.structure)
        further = None if after is None else search.at(after).undamped()
        if after is None or further is None or further.predicted > FALLS * last.predicted:
            break
        now, last = after, further
    return now


def worthwhile(search: Search, last: Trial) -> bool:
    """Whether the part of r that a step could remove is more than rounding."""
    spent = search.problem.ledger.residuals >= search.rules.max_evaluations
    return not spent and 2 * last.predicted > search.now.noise**2


def followed(search: Search, point: Point, p: Tensor) -> Point | None:
    """Where a step of the end leads; None where it moves nothing, or raises the cost by more than rounding."""
    target = search.problem.rounded(point.x + p)
    after = None if bool((target == point.x).all()) else search.problem.at(target)
    noise = search.now.noise * search.now.size
    return None if after is None or after.cost > point.cost * (1 + 1e-10) + 10 * noise else after


def verdict(
    problem: Residual, rules: Rules, now: Moment, first: Moment, status: Status, message: str
) -> tuple[Status, str]:
    """The status, after a look at parameters that r depended on at the start and no longer does."""
    x = now.point.x
    lost = (now.columns <= problem.eps * first.columns) & (first.columns > 0) & (x != 0)
    if status is not Status.CONVERGED or now.size <= now.noise or not bool(lost.any()):
        if status is Status.STAGNATED:
            message += "; the residual may be discontinuous, noisy, or not have this Jacobian"
        return status, message
    move = torch.where(lost, 0.1 * torch.maximum(x.abs(), rules.x0), 0.0)
    trials = [problem.values(problem.rounded(x + sign * move)) for sign in (1, -1)]
    if any(length(trial - now.point.r) > now.noise for trial in trials):
        return status, message
    named = ", ".join(f"{j} (at {float(x[j]):.3g})" for j in lost.nonzero()[:3, 0].tolist())
    return Status.STAGNATED, f"the residual no longer depends on parameter {named}: it ran to where the model is flat"
