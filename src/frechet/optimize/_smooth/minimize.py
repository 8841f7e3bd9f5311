"""Minimization: min f(x), between bounds or under constraints, from gradients and products with the Hessian.

    method="auto"                   "trust-region"; between bounds "projected-newton"
    "trust-region"                  see trust_region.py
    "gradient-regularized"          damping by the norm of the gradient: gradient_regularized.py
    "projected-newton"              trust region on the faces of the bounds: projected_newton.py
    "interior", "composite", "augmented"    under constraints: _constrained/constrained.py

The choice is made before the run and is named in the result; nothing switches on failure. At a point where a run ends
as converged, the curvature is probed; a direction along which f bends downwards leads on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.operators._metric import Metric
from frechet.operators._operator import LinearOperator
from frechet.optimize._box import Bound
from frechet.optimize._constrained.constrained import constrained
from frechet.optimize._constrained.constraint import Constraints
from frechet.optimize._smooth.gradient_regularized import gradient_regularized
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.newton_loop import Run
from frechet.optimize._smooth.projected_newton import projected_newton
from frechet.optimize._smooth.smooth_function import Curvature, Parameters
from frechet.optimize._smooth.smooth_minimum import MOST, check_options, flat_function, smooth_minimum
from frechet.optimize._smooth.trust_region import trust_region

Method = Literal[
    "auto", "trust-region", "gradient-regularized", "projected-newton", "interior", "composite", "augmented"
]
CONSTRAINED = ("interior", "composite", "augmented")
ALGORITHMS: dict[str, Callable[..., Run]] = {
    "trust-region": trust_region,
    "gradient-regularized": gradient_regularized,
    "projected-newton": projected_newton,
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
    metric: Metric | None = None,
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
        metric: the inner product of x. Steps are measured in it, gradients by their dual norm (which `gtol` bounds),
            and Krylov spaces are those of the Riesz map: the run is that in the variables in which the metric is the
            Euclidean one. Default: the Euclidean one, or for small n the scales of the Hessian.
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
    _check_method(method, bounds)
    if constraints is not None:
        check_options("minimize", f, gtol, ftol, max_iterations, max_basis, seed)
        _check_constrained(method, hessian, preconditioner, metric, ftol)
        function, x = flat_function("minimize", f, x0, None)
        return constrained(
            f,
            function.structured(x),
            constraints,
            bounds=bounds,
            method=method,
            gtol=gtol,
            ctol=ctol,
            max_iterations=max_iterations,
            observe=observe,
        )
    if ctol is not None or method in CONSTRAINED:
        what = "ctol" if ctol is not None else f"method {method!r}"
        raise ValueError(f"minimize: {what} belongs to constraints, got none; give constraints=")
    chosen = ("trust-region" if bounds is None else "projected-newton") if method == "auto" else method
    return smooth_minimum(
        f,
        x0,
        ALGORITHMS[chosen],
        chosen,
        bounds=bounds,
        hessian=hessian,
        preconditioner=preconditioner,
        metric=metric,
        gtol=gtol,
        ftol=ftol,
        max_iterations=max_iterations,
        max_basis=max_basis,
        escape=escape,
        seed=seed,
        observe=observe,
    )


# --- arguments --------------------------------------------------------------------------------------------------------


def _check_method(method: str, bounds: object) -> None:
    names = Method.__args__  # type: ignore[attr-defined]
    if method not in names:
        raise ValueError(f"minimize: method must be one of {', '.join(map(repr, names))}, got {method!r}")
    if bounds is not None and method not in ("auto", "projected-newton", *CONSTRAINED):
        raise ValueError(f"minimize: method must be 'projected-newton' between bounds, got {method!r}")
    if bounds is None and method == "projected-newton":
        raise ValueError("minimize: bounds must be given for method='projected-newton', got None")


def _check_constrained(method: str, hessian: object, preconditioner: object, metric: object, ftol: object) -> None:
    """What has no meaning under constraints."""
    if method not in ("auto", *CONSTRAINED):
        names = ", ".join(map(repr, ("auto", *CONSTRAINED)))
        raise ValueError(f"minimize: method must be one of {names} under constraints, got {method!r}")
    refused = {"hessian": hessian, "preconditioner": preconditioner, "metric": metric, "ftol": ftol}
    for name, value in refused.items():
        if value is not None:
            raise ValueError(f"minimize: {name} must be left out under constraints; the Lagrangian has its own Hessian")
