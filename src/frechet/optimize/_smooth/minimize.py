"""Minimization: min f(x), between bounds or under constraints, from gradients and products with the Hessian.

    method="auto"                   "trust-region"; between bounds "projected-newton"
    "trust-region"                  see trust_region.py
    "gradient-regularized"          damping by the norm of the gradient: gradient_regularized.py
    "stepsized", "stepsized-greedy" Newton's direction with stepsizes that need no constant: stepsized_newton.py
    "cubic"                         cubic regularization, accelerated where f is convex: cubic_newton.py
    "projected-newton"              trust region on the faces of the bounds: projected_newton.py
    "composite", "augmented", "sketched"    under constraints: _constrained/constrained.py

The choice is made before the run and is named in the result; nothing switches on failure. At a point where a run ends
as converged, the curvature is probed; a direction along which f bends downwards leads on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_start
from frechet.objective import Objective
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators.derivatives._function import frozen_point
from frechet.optimize._box import Bound, Box, box
from frechet.optimize._constrained.constrained import constrained
from frechet.optimize._constrained.constraint import Constraints
from frechet.optimize._smooth.cubic_newton import cubic_newton
from frechet.optimize._smooth.gradient_regularized import gradient_regularized
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.minimize_run import Algorithm, followed, largest_free, largest_number
from frechet.optimize._smooth.newton_loop import Rules, Run
from frechet.optimize._smooth.projected_newton import projected_newton
from frechet.optimize._smooth.smooth_function import Counts, Curvature, Parameters, SmoothFunction
from frechet.optimize._smooth.stepsized_newton import stepsized_newton
from frechet.optimize._smooth.trust_region import trust_region
from frechet.space import Space, like, named

Method = Literal[
    "auto",
    "trust-region",
    "gradient-regularized",
    "stepsized",
    "stepsized-greedy",
    "cubic",
    "projected-newton",
    "interior",
    "composite",
    "augmented",
    "sketched",
]
CONSTRAINED = ("interior", "composite", "augmented", "sketched")
SMALL = 64  # the largest n whose Hessian is a matrix, from n products
MOST = 200  # vectors of a Krylov space that are kept
BEYOND = 4000  # dimensions that may follow, of which no vector is kept; at most 2 n, the limit of SciPy's trlib
LOWEST, FARTHEST = 1e20, 1e15  # multiples of |f(x0)| and norm(x0) that stand for infinity

ALGORITHMS: dict[str, Callable[..., Run]] = {
    "trust-region": trust_region,
    "gradient-regularized": gradient_regularized,
    "stepsized": stepsized_newton,
    "stepsized-greedy": partial(stepsized_newton, rule="greedy"),
    "cubic": cubic_newton,
}


@torch.no_grad()
def minimize(
    f: Callable[..., Tensor] | Objective,
    x0: Parameters | None = None,
    *,
    method: Method = "auto",
    bounds: tuple[Bound, Bound] | None = None,
    constraints: Constraints | None = None,
    hessian: Curvature | None = None,
    preconditioner: LinearOperator | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    ctol: float | None = None,
    max_iterations: int = 1000,
    max_basis: int = MOST,
    escape: bool = True,
    seed: int = 0,
    observe: Callable[..., bool] | None = None,
) -> MinimizeSolution:
    """Find a minimum of f near x0, between bounds and where constraints hold; see `MinimizeSolution`.

    f is seen through values, gradients and products with the Hessian. For n <= 64 without a preconditioner the Hessian
    is formed from n products, and scales the variables. Krylov spaces keep at most `max_basis` vectors. They go on
    without keeping any for at most min(2 n, 4 000) dimensions more where a step inside the radius is not yet accurate.

    The plain call goes on until rounding leaves nothing to gain. `converged` is a property of the result and of f,
    never of the start: one of these holds at x, over the entries that no bound holds, with the Newton step p = -H^-1 g.

    - ``max |g_i| <= gtol``.
    - ``g'H^-1 g / 2 <= ftol |f|``, where H has no negative curvature on the Krylov space of g.
    - ``p'H p <= (4 eps)^2 x'H x``: p moves x by its rounding.
    - No step reduces f or its gradient, and g is as small as its evaluation is exact.

    All but the first are unchanged by units of f and x. With the plain `ftol`, Newton steps then go on as long as they
    halve the gradient. Larger tolerances end the run at the first point that meets one. Then up to 30 products with a
    random vector look for negative curvature, unless `hessian` or bounds are given. Where f bends downwards the run
    goes on below; where no point below is found the status is `stagnated`, with the direction in `curvature`.

    With constraints the rules are others: converged means that the gradient of the Lagrangian, the violation and the
    complementarity are small. x0 need not meet constraints, but is moved strictly inside of bounds, `observe` sees a
    `ConstrainedState`, and `hessian`, `preconditioner` and `ftol` are refused.

    Args:
        f: a function of what x0 is, to a scalar; or an `Objective`, whose x is flat ``(n,)`` or a dict by parameter. A
            model is not changed.
        x0: where the iteration starts, a tensor of any shape or a dict of tensors. The result has x in the same form.
            Default for an `Objective`: where the model is.
        method: ``"auto"``, or one of the methods that the table in the manual compares.
        bounds: a pair of lower and upper, each a number, a tensor like x0, or a dict by block. A start outside is moved
            to the nearest point between. No point outside is evaluated.
        constraints: a `Constraint`, a function c for c(x) = 0, or a sequence of these.
        hessian: a function of x that returns a symmetric operator in place of the Hessian, such as ``lambda x:
            gauss_newton(objective, x=x)``.
        preconditioner: a positive definite operator like the inverse of the Hessian.
        gtol: see above. Default: 0, and 1e-8 with constraints.
        ftol: see above. Default: eps of the dtype.
        ctol: the violation of constraints that counts as none. Default: 1e-8.
        max_iterations: the most iterations.
        max_basis: the most vectors that a Krylov space keeps.
        escape: with False, negative curvature at a stationary point is reported and not followed.
        seed: the seed of the vector that looks for negative curvature.
        observe: is called with a `MinimizeState` at each iteration, and stops the run by returning True.

    Returns:
        A `MinimizeSolution`. Its status is `converged` or one of these, each with a sentence in `message`: `stagnated`
            (no step reduces f or its gradient, and the point is no solution: a discontinuous f or a wrong gradient),
            `unbounded` (values fall below -1e20 max(1, |f(x0)|), x leaves for infinity, or f falls for ever towards a
            value that it has nowhere, as with separable classes), `nonfinite` (of products), `max_iterations`,
            `stopped`. An f that is not finite at a trial point refuses the step.

    Raises:
        NonFinite: f is not finite at x0.

    Example:
        >>> import torch
        >>> from frechet import minimize
        >>> x0 = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> s = minimize(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, x0)
        >>> s.status.value, s.x.round(decimals=12)
        ('converged', tensor([1., 1.], dtype=torch.float64))
        >>> s = minimize(lambda x: (x - 2).square().sum(), x0, bounds=(0.0, 1.0))
        >>> s.x, s.bound_multipliers
        (tensor([1., 1.], dtype=torch.float64), tensor([2., 2.], dtype=torch.float64))
    """
    _check(f, method, bounds, gtol, ftol, max_iterations, max_basis, seed)
    if constraints is not None:
        _check_constrained(method, hessian, preconditioner, ftol)
        function, x = _function(f, x0, None)
        return constrained(
            f,
            function.structured(x),
            constraints,
            bounds=bounds,
            method=method,
            gtol=gtol,
            ctol=ctol,
            max_iterations=max_iterations,
            seed=seed,
            observe=observe,
        )
    if ctol is not None or method in CONSTRAINED:
        what = "ctol" if ctol is not None else f"method {method!r}"
        raise ValueError(f"minimize: {what} belongs to constraints, got none; give constraints=")
    function, x = _function(f, x0, hessian)
    space = function.space
    _check_preconditioner(space, preconditioner)
    sides = None if bounds is None else box("minimize", space, bounds)
    if sides is not None:
        x = sides.project(x)
    trial = function.at(x)
    if trial.output is not None and not trial.output.requires_grad:
        raise NotDifferentiable(
            "minimize: f must depend on x through torch operations, got a value without a graph; write it without "
            ".detach(), .item() and NumPy"
        )
    point = function.differentiated(trial)
    if point is None:
        what = "f" if not math.isfinite(trial.value) else "the gradient of f"
        raise NonFinite(f"minimize: {what} must be finite at x0, got f = {trial.value}; start where it is defined")
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
    chosen = ("trust-region" if sides is None else "projected-newton") if method == "auto" else method
    go: Algorithm = (
        partial(ALGORITHMS[chosen], observe=observe)
        if sides is None
        else (lambda f, point, rules: projected_newton(f, point, rules, sides, observe=observe))
    )
    function, run, curvature = followed(function, go, point, rules, sides, escape, seed)
    how = "Hessian" if hessian is None else "given curvature"
    small = preconditioner is None and space.dim <= SMALL
    described = f"{chosen}, {how} by " + (
        "its products with all unit vectors" if small else "products in Krylov spaces"
    )
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
    message = run.message or f"the largest entry of the gradient is {residual * f.unit:.3g}"
    if rules.gtol > 0 and not run.message:
        message += f", at most gtol = {rules.gtol:.3g}"
    if run.status is Status.STOPPED:
        message = f"observe returned True in iteration {run.iterations}"
    elif run.status is Status.STAGNATED and not run.message:
        message = (
            f"no step reduces f or its gradient, whose largest entry is {residual * f.unit:.3g}: f may be "
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


def _function(
    f: Callable[..., Tensor] | Objective, x0: Parameters | None, hessian: Curvature | None
) -> tuple[SmoothFunction, Tensor]:
    """f on flat vectors, and the start as one."""
    if hessian is not None and not callable(hessian):
        raise TypeError(f"minimize: hessian must be a function of x, got {type(hessian).__name__}; write lambda x: ...")
    if isinstance(f, Objective):
        space, single = f.space, not isinstance(x0, Mapping)
        if space.shard is not None:
            raise ValueError("minimize: f must have whole parameters on every rank, got sharded ones (fully_shard)")
        x = f.point if x0 is None else space.flatten(x0) if isinstance(x0, Mapping) else x0
        if not isinstance(x, Tensor) or x.shape != (space.dim,) or x.dtype != space.dtype:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"minimize: x0 must be {space.dtype} of shape ({space.dim},) or a dict, got {got}")
        x = x.detach().clone()
    else:
        if x0 is None:
            raise TypeError("minimize: x0 must be given for a function, got None; write minimize(f, x0)")
        check_start("minimize", x0)
        variables, blocks = frozen_point("minimize", like(x0, [b.detach() for b in named(x0).values()]))
        space, single = variables.space, variables.single
        x = space.join(blocks)
    if not space.dim:
        raise ValueError("minimize: x0 must have at least one entry, got none")
    if not space.finite(x):
        raise ValueError(f"minimize: x0 must be finite, got {float(x[~x.isfinite()][0])} in an entry")
    return SmoothFunction(f, space, single, hessian, Counts()), x


def _check(
    f: object,
    method: str,
    bounds: object,
    gtol: float | None,
    ftol: float | None,
    max_iterations: int,
    max_basis: int,
    seed: int,
) -> None:
    if not isinstance(f, Objective) and not callable(f):
        raise TypeError(f"minimize: f must be a function of x or an Objective, got {type(f).__name__}")
    names = Method.__args__  # type: ignore[attr-defined]
    if method not in names:
        raise ValueError(f"minimize: method must be one of {', '.join(map(repr, names))}, got {method!r}")
    if bounds is not None and method not in ("auto", "projected-newton", *CONSTRAINED):
        raise ValueError(f"minimize: method must be 'projected-newton' between bounds, got {method!r}")
    if bounds is None and method == "projected-newton":
        raise ValueError("minimize: bounds must be given for method='projected-newton', got None")
    for name, value in (("gtol", gtol), ("ftol", ftol)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"minimize: {name} must be a number >= 0, got {value}")
    for name, value, least in (("max_iterations", max_iterations, 0), ("max_basis", max_basis, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"minimize: {name} must be an int >= {least}, got {value!r}")


def _check_constrained(method: str, hessian: object, preconditioner: object, ftol: object) -> None:
    """What has no meaning under constraints."""
    if method not in ("auto", *CONSTRAINED):
        names = ", ".join(map(repr, ("auto", *CONSTRAINED)))
        raise ValueError(f"minimize: method must be one of {names} under constraints, got {method!r}")
    for name, value in (("hessian", hessian), ("preconditioner", preconditioner), ("ftol", ftol)):
        if value is not None:
            raise ValueError(f"minimize: {name} must be left out under constraints; the Lagrangian has its own Hessian")


def _check_preconditioner(space: Space, P: LinearOperator | None) -> None:
    if P is None:
        return
    if not isinstance(P, LinearOperator):
        raise TypeError(f"minimize: preconditioner must be a LinearOperator, got {type(P).__name__}")
    if P.domain.dim != space.dim or P.domain.dtype != space.dtype or Fact.POSITIVE_DEFINITE not in P.facts:
        raise ValueError(
            f"minimize: preconditioner must be positive definite on {space!r}, got {P!r}; declare "
            "facts='positive_definite' where it is made"
        )
