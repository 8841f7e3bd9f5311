"""One algorithm on a smooth f, from the arguments to the result: what `minimize` and the studies share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_start
from frechet.objective import Objective
from frechet.operators._metric import Metric, check_metric
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators.derivatives._function import frozen_point
from frechet.optimize._box import Bound, Box, box
from frechet.optimize._counts import Counts
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.minimize_run import followed, largest_free, largest_number
from frechet.optimize._smooth.newton_loop import Rules, Run
from frechet.optimize._smooth.projected_newton import projected_newton
from frechet.optimize._smooth.smooth_function import Curvature, Parameters, SmoothFunction
from frechet.space import Space, like, named

SMALL = 64  # the largest n whose Hessian is a matrix, from n products
MOST = 200  # vectors of a Krylov space that are kept
BEYOND = 4000  # dimensions that may follow, of which no vector is kept; at most 2 n, the limit of SciPy's trlib
LOWEST, FARTHEST = 1e20, 1e15  # multiples of |f(x0)| and norm(x0) that stand for infinity


@torch.no_grad()
def smooth_minimum(
    f: Callable[..., Tensor] | Objective,
    x0: Parameters | None,
    algorithm: Callable[..., Run],
    name: str,
    *,
    caller: str = "minimize",
    bounds: tuple[Bound, Bound] | None = None,
    hessian: Curvature | None = None,
    preconditioner: LinearOperator | None = None,
    metric: Metric | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    max_iterations: int = 1000,
    max_basis: int = MOST,
    escape: bool = True,
    seed: int = 0,
    observe: Callable[..., bool] | None = None,
) -> MinimizeSolution:
    """The result of `algorithm`, which is called `name`; between bounds that of projected Newton. See `minimize`."""
    check_options(caller, f, gtol, ftol, max_iterations, max_basis, seed)
    function, x = flat_function(caller, f, x0, hessian)
    space = function.space
    _check_preconditioner(caller, space, preconditioner)
    if metric is not None:
        if preconditioner is not None:
            raise ValueError(
                f"{caller}: preconditioner must be left out with a metric, whose Riesz map it is; give one"
            )
        function, preconditioner = replace(function, metric=check_metric(caller, metric, space)), metric.inverse
    sides = None if bounds is None else box(caller, space, bounds)
    if sides is not None:
        x = sides.project(x)
    trial = function.at(x)
    if trial.output is not None and not trial.output.requires_grad:
        raise NotDifferentiable(
            f"{caller}: f must depend on x through torch operations, got a value without a graph; write it without "
            ".detach(), .item() and NumPy"
        )
    point = function.differentiated(trial)
    if point is None:
        what = "f" if not math.isfinite(trial.value) else "the gradient of f"
        raise NonFinite(f"{caller}: {what} must be finite at x0, got f = {trial.value}; start where it is defined")
    rules = Rules(
        gtol=0.0 if gtol is None else gtol,
        ftol=space.eps if ftol is None else ftol,
        max_iterations=max_iterations,
        start=0.0,
        full=SMALL,
        most=max_basis,
        beyond=min(2 * space.dim, BEYOND),
        preconditioner=preconditioner,
        tight=ftol is None or ftol <= 10 * space.eps,
        least=largest_number(space) ** -0.25,
        smallest=space.eps**10 * min(1.0, abs(point.value)),
        lowest=-LOWEST * max(1.0, abs(point.value)),
        farthest=FARTHEST * max(1.0, float(space.norm(x))),
    )
    go = (
        partial(algorithm, observe=observe)
        if sides is None
        else (lambda f, point, rules: projected_newton(f, point, rules, sides, observe=observe))
    )
    function, run, curvature = followed(function, go, point, rules, sides, escape, seed)
    how = "Hessian" if hessian is None else "given curvature"
    small = preconditioner is None and space.dim <= SMALL
    described = f"{name}, {how} by " + ("its products with all unit vectors" if small else "products in Krylov spaces")
    return _solution(function, run, rules, sides, described, curvature)


def _solution(
    f: SmoothFunction, run: Run, rules: Rules, sides: Box | None, method: str, curvature: Tensor | None
) -> MinimizeSolution:
    """The result; what it says of x is computed anew there."""
    point = run.point
    if run.status is not Status.UNBOUNDED:
        point = f.differentiated(f.at(point.x)) or point
    residual = largest_free(point, sides)
    status = Status.CONVERGED if run.status is None else run.status
    message = run.message or f"the {point.measure} is {residual * f.unit:.3g}"
    if rules.gtol > 0 and not run.message:
        message += f", at most gtol = {rules.gtol:.3g}"
    if run.status is Status.STOPPED:
        message = f"observe returned True in iteration {run.iterations}"
    elif run.status is Status.STAGNATED and not run.message:
        message = (
            f"no step reduces f or its gradient, whose size is {residual * f.unit:.3g}: f may be "
            "discontinuous, noisy, or not have this gradient"
        )
    held = None if sides is None else sides.held(point.x, point.gradient)
    gradient = point.gradient * f.unit
    found = f.structured(point.x)
    return MinimizeSolution(
        x=found.clone() if isinstance(found, Tensor) else {name: b.clone() for name, b in found.items()},
        status=status,
        message="; ".join((message, *run.notes)),
        value=point.value * f.unit,
        gradient=gradient,
        residual=residual * f.unit,
        iterations=run.iterations,
        evaluations=f.counts.evaluations,
        gradients=f.counts.gradients,
        products=f.counts.products,
        method=method,
        bound_multipliers=None if held is None else torch.where(held != 0, -gradient, 0.0),
        history=run.history,
        curvature=curvature,
    )


# --- arguments --------------------------------------------------------------------------------------------------------


def flat_function(
    caller: str, f: Callable[..., Tensor] | Objective, x0: Parameters | None, hessian: Curvature | None
) -> tuple[SmoothFunction, Tensor]:
    """f on flat vectors, and the start as one."""
    if hessian is not None and not callable(hessian):
        raise TypeError(f"{caller}: hessian must be a function of x, got {type(hessian).__name__}; write lambda x: ...")
    if isinstance(f, Objective):
        space, single = f.space, not isinstance(x0, Mapping)
        if space.shard is not None:
            raise ValueError(f"{caller}: f must have whole parameters on every rank, got sharded ones (fully_shard)")
        x = f.point if x0 is None else space.flatten(x0) if isinstance(x0, Mapping) else x0
        if not isinstance(x, Tensor) or x.shape != (space.dim,) or x.dtype != space.dtype:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{caller}: x0 must be {space.dtype} of shape ({space.dim},) or a dict, got {got}")
        x = x.detach().clone()
    else:
        if x0 is None:
            raise TypeError(f"{caller}: x0 must be given for a function, got None; write {caller}(f, x0)")
        check_start(caller, x0)
        variables, blocks = frozen_point(caller, like(x0, [b.detach() for b in named(x0).values()]))
        space, single = variables.space, variables.single
        x = space.join(blocks)
    if not space.dim:
        raise ValueError(f"{caller}: x0 must have at least one entry, got none")
    if not space.finite(x):
        raise ValueError(f"{caller}: x0 must be finite, got {float(x[~x.isfinite()][0])} in an entry")
    return SmoothFunction(f, space, single, hessian, Counts()), x


def check_options(
    caller: str,
    f: object,
    gtol: float | None,
    ftol: float | None,
    max_iterations: int,
    max_basis: int,
    seed: int,
) -> None:
    """What every method of `minimize` asks of its options."""
    if not isinstance(f, Objective) and not callable(f):
        raise TypeError(f"{caller}: f must be a function of x or an Objective, got {type(f).__name__}")
    for name, value in (("gtol", gtol), ("ftol", ftol)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{caller}: {name} must be a number >= 0, got {value}")
    for name, value, least in (("max_iterations", max_iterations, 0), ("max_basis", max_basis, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{caller}: {name} must be an int >= {least}, got {value!r}")


def _check_preconditioner(caller: str, space: Space, P: LinearOperator | None) -> None:
    if P is None:
        return
    if not isinstance(P, LinearOperator):
        raise TypeError(f"{caller}: preconditioner must be a LinearOperator, got {type(P).__name__}")
    if P.domain.dim != space.dim or P.domain.dtype != space.dtype or Fact.POSITIVE_DEFINITE not in P.facts:
        raise ValueError(
            f"{caller}: preconditioner must be positive definite on {space!r}, got {P!r}; declare "
            "facts='positive_definite' where it is made"
        )
