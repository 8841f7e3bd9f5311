"""Nonlinear least squares: min r(x)'r(x) / 2 over l <= x <= u, by the method that the problem calls for.

    method="auto"                Levenberg-Marquardt; with dense Jacobians unless they would be large
    "levenberg-marquardt"        see levenberg_marquardt.py
    "adaptive-damping"           damping from norm(r) and norm(J'r): fast where J is singular at the solution
    "gauss-newton"               undamped steps with a line search
    "dogleg"                     between steepest descent and the undamped step
    "interior"                   strictly inside the bounds, by an affine scaling
    "target-ratio"               the longest of many steps: residuals of networks, above all where n >= m

The choice is made on sizes and bounds before the run and is named in the result; nothing switches on failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_start
from frechet.operators import Metric
from frechet.optimize._box import Bound, Box, check_pair, side
from frechet.optimize._least_squares.adaptive_damping import adaptive_damping
from frechet.optimize._least_squares.curved_model import curved
from frechet.optimize._least_squares.damped_step import column_scale, factored
from frechet.optimize._least_squares.dogleg import dogleg
from frechet.optimize._least_squares.flat_model import falls_on, ran_away
from frechet.optimize._least_squares.in_metric import InMetric
from frechet.optimize._least_squares.interior import interior
from frechet.optimize._least_squares.jacobian_route import through_products
from frechet.optimize._least_squares.last_digits import in_range
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution, uncertainty
from frechet.optimize._least_squares.levenberg_marquardt import levenberg_marquardt
from frechet.optimize._least_squares.line_search import gauss_newton_search
from frechet.optimize._least_squares.matrix_free import LEAST, MatrixFreeRun, matrix_free
from frechet.optimize._least_squares.optimality import VANISHED, Rules, free_to_move, judged, left_is_rounding
from frechet.optimize._least_squares.own_jacobian import OwnJacobian, method_for, with_products
from frechet.optimize._least_squares.residual import Linearization, Parameters, Point, Residual, Route, length
from frechet.optimize._least_squares.robust import Loss, robust_loss
from frechet.optimize._least_squares.run import ENDED, LeastSquaresState, Run, in_units, resumed, sizes
from frechet.optimize._least_squares.start import begin, first_linearization
from frechet.optimize._least_squares.target_ratio import target_ratio
from frechet.optimize._least_squares.wrong_jacobian import exposed
from frechet.optimize._sparse.levenberg_marquardt import sparse_run
from frechet.optimize._sparse.structure import Declared
from frechet.space import Variables

Method = Literal[
    "auto", "levenberg-marquardt", "adaptive-damping", "gauss-newton", "dogleg", "interior", "target-ratio"
]
ALGORITHMS: dict[str, Callable[..., Run]] = {
    "levenberg-marquardt": levenberg_marquardt,
    "adaptive-damping": adaptive_damping,
    "gauss-newton": gauss_newton_search,
    "dogleg": dogleg,
    "interior": interior,
    "target-ratio": target_ratio,
}
ETA = 1.2  # 1 damps most and 2 converges fastest, where solutions are isolated


def least_squares(
    residual: Callable[..., object],
    x0: Parameters,
    *,
    bounds: tuple[Bound, Bound] | None = None,
    loss: Loss = "squared",
    loss_scale: float = 1.0,
    method: Method = "auto",
    jacobian: Literal["auto", "dense", "products", "2-point", "3-point"] | Callable[..., object] = "auto",
    structure: Declared | None = None,
    metric: Metric | None = None,
    gtol: float | None = None,
    xtol: float | None = None,
    ftol: float = 0.0,
    max_evaluations: int | None = None,
    absolute_sigma: bool = False,
    eta: float = ETA,
    observe: Callable[[LeastSquaresState], bool] | None = None,
    resume: LeastSquaresState | None = None,
) -> LeastSquaresSolution:
    """Minimize norm(residual(x))^2 / 2 between bounds; see `LeastSquaresSolution`.

    The plain call goes on until rounding leaves nothing to gain. It is converged where one of these holds at the
    result, for the columns J_j of the Jacobian that no bound holds, the undamped step p, and D the norms of the
    columns: ``norm(r) <= noise``, ``|J_j'r| <= gtol norm(J_j) norm(r)`` for all j, ``norm(J p)^2 <= max(ftol norm(r)^2,
    2 noise norm(r))``, or ``norm(D p) <= xtol norm(D x)``, where ``noise = eps (norm(|J| |x|) + norm(r))`` estimates
    the rounding error of r. Larger tolerances end the run at the first point that meets one.

    A converged result has the covariance of its parameters and their standard errors, as SciPy's `curve_fit`. Divide
    each residual by its standard deviation, if these differ. A weight of zero marks a residual as missing.

    Args:
        residual: a function of what x0 is, to a tensor or a dict of tensors.
        x0: where the iteration starts, a tensor of any shape or a dict of tensors. The result has x in the same form.
        bounds: a pair of lower and upper, each a number, a tensor like x0, or a dict by block. A start outside is moved
            to the nearest side. No point outside is ever evaluated.
        loss: ``"squared"``, ``"huber"``, ``"soft_l1"``, ``"cauchy"``, ``"arctan"``, ``"tukey"``, or a function rho of z
            = (r_i / loss_scale)^2 with rho(0) = 0 and rho'(0) = 1.
        loss_scale: residuals larger than it count less.
        method: ``"auto"``, or one of the methods that the table in the manual compares.
        jacobian: ``"auto"`` forms J by automatic differentiation where its factors take seconds at most, ``"dense"``
            always, ``"products"`` never. ``"2-point"`` and ``"3-point"`` take differences. A function of x returns the
            matrix ``(m, n)``, a dict of blocks or a LinearOperator.
        structure: which parameters a residual reads, where each reads few of many. A dict from the name of a parameter
            ``(B, ...)`` to a tensor of integers ``(G,)`` or ``(G, k)``, the rows that each of the G groups of equally
            many residuals reads, -1 for none, or ``"all"``; a dict of such dicts where the residual is a dict; the
            tensor of integers itself where x0 is a tensor; the pattern ``(m, n)`` of the Jacobian as a sparse matrix or
            a tensor of booleans; or ``"find"``, which finds the pattern by 2 min(m, n) products. Steps then come from
            sparse normal equations, of which a block-diagonal part is eliminated; ``jacobian="products"`` takes LSMR in
            place of their factors. The structure is compared with the function at every point, and `ValueError` names a
            parameter that is read undeclared.
        metric: the inner product of x, with a factor: the run is that in the variables in which it is Euclidean.
        gtol: see above. Default: eps of the dtype.
        xtol: see above. Default: eps of the dtype.
        ftol: see above.
        max_evaluations: the most residuals. Default: 100 (n + 10). A look at a suspected Jacobian comes on top.
        absolute_sigma: with True, the residuals have the standard deviation one. Default: standard deviations count as
            ratios, and errors are estimated from what is left.
        eta: the power of norm(r) in the damping of "adaptive-damping", in (0, 4).
        observe: is called with a `LeastSquaresState` at each step, and stops the run by returning True.
        resume: a state that `observe` saw, to go on from there as if the run had not been interrupted, with methods
            "target-ratio" and "adaptive-damping". Others start anew at x0.

    Returns:
        A `LeastSquaresSolution`. Its status is `converged` or one of these, each with a sentence in `message`:
            `stagnated` (no step reduces the cost, and the point is no solution: a discontinuous residual or a wrong
            Jacobian), `max_iterations`, `stopped`. A residual that is not finite at a trial point refuses the step.

    Raises:
        NonFinite: the residual is not finite at x0.

    Example:
        >>> import torch
        >>> from frechet import least_squares
        >>> t = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
        >>> y = 2 * torch.exp(-0.5 * t)
        >>> x0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> s = least_squares(lambda b: b[0] * torch.exp(b[1] * t) - y, x0)
        >>> s.status.value, s.x.round(decimals=12)
        ('converged', tensor([ 2.0000, -0.5000], dtype=torch.float64))
    """
    if metric is not None:
        within = InMetric.of(residual, x0, metric, bounds, structure, jacobian)
        in_y = least_squares(
            within,
            within.y0,
            loss=loss,
            loss_scale=loss_scale,
            method=method,
            jacobian=jacobian,
            gtol=gtol,
            xtol=xtol,
            ftol=ftol,
            max_evaluations=max_evaluations,
            absolute_sigma=absolute_sigma,
            eta=eta,
            observe=within.observed(observe),
        )
        return within.in_x(in_y)
    problem, x = problem_of(residual, x0, bounds, robust_loss(loss), loss_scale, jacobian)
    _check(method, gtol, xtol, ftol, max_evaluations)
    _algorithm(method, eta)
    problem, start = begin(problem, x if resume is None else resume.x.cpu().double())
    eps = problem.eps
    most = 100 * (len(x) + 10) if max_evaluations is None else max_evaluations
    tight = max(gtol or 0.0, xtol or 0.0, ftol) <= 10 * eps
    rules = Rules(eps if gtol is None else gtol, eps if xtol is None else xtol, ftol, most, sizes(start.x), tight=tight)
    if structure is not None:
        run, how = sparse_run(problem, start, structure, rules, method, jacobian != "products", observe)
        run = replace(run, history=tuple(c * problem.square for c in run.history))
        return replace(_matrix_free(problem, rules, run, start.cost * problem.square), method=how)
    if through_products(problem, start, jacobian):
        if method not in ("auto", "levenberg-marquardt"):
            raise ValueError(
                f"least_squares: method must be 'levenberg-marquardt' where the Jacobian is not formed, got {method!r}"
            )
        return _by_products(with_products(problem, jacobian), start, rules, observe)
    problem, linear = first_linearization(problem, start)
    chosen = method_for(method, problem, linear.J.shape)
    algorithm = resumed(_algorithm(chosen, eta), chosen, resume)
    return by_factors(problem, linear, rules, algorithm, chosen, observe, absolute_sigma)


def by_factors(
    problem: Residual,
    first: Linearization,
    rules: Rules,
    algorithm: Callable[..., Run],
    name: str,
    observe: Callable[[LeastSquaresState], bool] | None = None,
    absolute_sigma: bool = False,
) -> LeastSquaresSolution:
    """The solution by an algorithm on the dense Jacobian, from a first linearization."""
    start_cost = first.cost * problem.square
    problem, rules, run = in_units(algorithm, problem, first, rules, observe)
    described = f"{name}, dense Jacobian by {problem.route}"
    return _solution(problem, rules, run, first, start_cost, described, absolute_sigma)


def _algorithm(method: str, eta: float) -> Callable[..., Run]:
    """The loop of a method, with what belongs to it alone."""
    if not 0 < eta < 4 or (eta != ETA and method != "adaptive-damping"):
        raise ValueError(
            f"least_squares: eta must lie in (0, 4), and method be 'adaptive-damping', got {eta} and {method!r}"
        )
    if method == "adaptive-damping":
        return partial(adaptive_damping, eta=eta)
    return ALGORITHMS.get(method, levenberg_marquardt)


def _by_products(
    problem: Residual, point: Point, rules: Rules, observe: Callable[[LeastSquaresState], bool] | None
) -> LeastSquaresSolution:
    """Runs without the matrix J, each in a unit in which the squares of r are numbers."""
    start, total, history = point.cost * problem.square, 0, ()
    while True:
        run = matrix_free(problem, point, rules, observe=observe)
        total, history = total + run.iterations, (*history, *(c * problem.square for c in run.history[bool(history) :]))
        other, point = in_range(problem, run.point, LEAST)
        if other is problem or run.status in ENDED:
            break
        problem, rules = other, replace(rules, x0=sizes(point.x))
    if problem.rho is None and length(point.r) < LEAST:
        run = replace(run, status=Status.CONVERGED, message=VANISHED)
    return _matrix_free(problem, rules, replace(run, iterations=total, history=history), start)


def _matrix_free(problem: Residual, rules: Rules, run: MatrixFreeRun, start_cost: float) -> LeastSquaresSolution:
    x, ledger, point, unit, square = run.point.x, problem.ledger, run.point, problem.unit, problem.square
    active = Box(problem.lower, problem.upper).held(x, run.gradient)
    found = problem.structured(x)
    return LeastSquaresSolution(
        x=found.clone() if isinstance(found, Tensor) else {name: b.clone() for name, b in found.items()},
        status=run.status,
        message=run.message,
        cost=point.cost * square,
        residual=length(point.r) * unit,
        optimality=run.optimality,
        residuals=point.r * unit,
        gradient=run.gradient * square,
        active=active,
        iterations=run.iterations,
        residual_evaluations=ledger.residuals,
        jacobian_evaluations=ledger.jacobians,
        products=ledger.products,
        method="levenberg-marquardt by lsmr on products with the Jacobian",
        start_cost=start_cost,
        history=run.history,
        space=problem.space,
    )


def _newton_reduction(linear: Linearization, S: Tensor, free: Tensor) -> float:
    """What a step with second derivatives would still gain, in units in which each entry bends alike."""
    bends = (linear.columns.square() + S.diagonal().abs()).sqrt()  # zero where squares of a column underflow
    return curved(linear, S, column_scale(bends), free).reduction


def _rank(linear: Linearization, free: Tensor) -> int:
    return factored(linear, column_scale(linear.columns), free).rank


def _solution(
    problem: Residual, rules: Rules, run: Run, first: Linearization, start_cost: float, method: str, absolute: bool
) -> LeastSquaresSolution:
    linear, ledger, unit, square = run.linear, problem.ledger, problem.unit, problem.square
    status, message, optimality = _judged(problem, linear, rules, run)
    status, message = exposed(problem, linear, status, message, run)
    x = linear.x
    active = Box(problem.lower, problem.upper).held(x, linear.gradient)
    known = uncertainty(linear, active == 0, 1 / unit if absolute else None, status is Status.CONVERGED)
    lost = status is Status.CONVERGED and linear.size > linear.noise
    if lost and (known.rank or 0) < (had := _rank(first, active == 0)):
        message += f"; the Jacobian has rank {known.rank} there and had {had} at the start: look at null_directions"
    found = problem.structured(x)
    return LeastSquaresSolution(
        x=found.clone() if isinstance(found, Tensor) else {name: b.clone() for name, b in found.items()},
        status=status,
        message=message,
        cost=linear.cost * square,
        residual=length(linear.point.r) * unit,
        optimality=optimality,
        residuals=linear.point.r * unit,
        gradient=linear.gradient * square,
        active=active,
        iterations=run.iterations,
        residual_evaluations=ledger.residuals,
        jacobian_evaluations=ledger.jacobians,
        products=ledger.products,
        method=method,
        start_cost=start_cost,
        rank=known.rank,
        observations=known.observations,
        null_directions=known.null_directions,
        covariance=known.covariance if status is Status.CONVERGED else None,
        standard_errors=known.standard_errors if status is Status.CONVERGED else None,
        history=run.history,
        space=problem.space,
    )


def _judged(problem: Residual, linear: Linearization, rules: Rules, run: Run) -> tuple[Status, str, float]:
    """The status, why, and the optimality, recomputed where the run ended."""
    verdict = run.verdict or judged(problem, linear, rules)
    free = free_to_move(problem, linear)
    if not verdict.solved and bool(free.any()):
        S = problem.curvature(linear)
        verdict = judged(problem, linear, rules, math.inf if S is None else _newton_reduction(linear, S, free))
        if verdict.solved and S is not None and falls_on(problem, linear, S, free):
            return Status.STAGNATED, "the cost falls for ever, less and less: x runs to infinity", verdict.optimality
    status, message, optimality = run.status or Status.STAGNATED, verdict.message, verdict.optimality
    if verdict.solved or status is Status.STAGNATED:
        if linear.size > linear.noise and (away := ran_away(problem, linear, free)):
            named = ", ".join(f"{j} (at {float(linear.x[j]):.3g})" for j in away[:3])
            message = f"the residual no longer depends on parameter {named}: it ran to where the model is flat"
            return Status.STAGNATED, message, optimality
        if verdict.solved:
            return Status.CONVERGED, message, optimality
        if rounding := left_is_rounding(problem, linear):
            return Status.CONVERGED, rounding, optimality
    if status is Status.MAX_ITERATIONS:
        message = f"the limit of {rules.max_evaluations} residuals was reached, optimality {optimality:.3g}"
    elif status is Status.STOPPED:
        message = f"observe returned True in iteration {run.iterations}"
    elif not message:
        message = (
            f"no step reduces the cost, but the optimality is {optimality:.3g}: the residual may be discontinuous or "
            "noisy, not have this Jacobian, or end near where the model is not finite"
        )
    return status, message, optimality


# --- arguments --------------------------------------------------------------------------------------------------------


def problem_of(
    residual: Callable[..., object],
    x0: Parameters,
    bounds: tuple[Bound, Bound] | None,
    rho: Callable[[Tensor], Tensor] | None,
    loss_scale: float,
    jacobian: str | Callable[..., object],
) -> tuple[Residual, Tensor]:
    if not callable(residual):
        raise TypeError(f"least_squares: residual must be a function of x, got {type(residual).__name__}")
    check_start("least_squares", x0)
    variables = Variables.of(x0)
    space, single = variables.space, variables.single
    x = variables.flatten(x0).detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise ValueError(f"least_squares: x0 must be finite, got {float(x[~x.isfinite()][0])} in an entry")
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"least_squares: loss_scale must be a positive number, got {loss_scale}")
    if bounds is not None:
        check_pair("least_squares", bounds)
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds
    low, high = side("least_squares", space, lower, "lower"), side("least_squares", space, upper, "upper")
    empty = (low > high).nonzero()
    if empty.numel():
        i = int(empty[0])
        raise ValueError(
            f"least_squares: bounds must leave a point between them, got lower {float(low[i]):.6g} > upper "
            f"{float(high[i]):.6g} in entry {i}"
        )
    route: Route = "columns"
    if callable(jacobian):
        route = "function"
    elif jacobian in ("2-point", "3-point"):
        route = "2-point" if jacobian == "2-point" else "3-point"
    elif jacobian not in ("auto", "dense", "products"):
        raise ValueError(
            "least_squares: jacobian must be 'auto', 'dense', 'products', '2-point', '3-point' or a function, got "
            f"{jacobian!r}"
        )
    typical = torch.where(x != 0, x.abs(), 1.0)
    given = jacobian if callable(jacobian) else None
    if isinstance(residual, OwnJacobian) and jacobian in ("auto", "dense", "products"):
        route, given = "function", residual.jacobian
    return Residual(residual, space, single, low, high, typical, rho, loss_scale, given, route), x


def _check(method: str, gtol: float | None, xtol: float | None, ftol: float, max_evaluations: int | None) -> None:
    names = Method.__args__  # type: ignore[attr-defined]
    if method not in names:
        raise ValueError(f"least_squares: method must be one of {', '.join(map(repr, names))}, got {method!r}")
    for name, value in (("gtol", gtol), ("xtol", xtol), ("ftol", ftol)):
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"least_squares: {name} must lie in [0, 1), got {value}")
    if max_evaluations is not None and max_evaluations < 1:
        raise ValueError(f"least_squares: max_evaluations must be at least 1, got {max_evaluations}")
