"""Roots: F(x) = 0 for F from a space to itself, by Newton's method.

    jacobian="auto"      a matrix where that and its factors take seconds at most, else products
    "dense"              see newton_dense.py: a trust region on the Jacobian as a matrix
    "products"           see newton_krylov.py: GMRES on products with the Jacobian

With bounds the problem is min norm(F)^2 / 2 between them.

**Cost.** One evaluation of F per trial; a Jacobian, or the products of GMRES, per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers, check_start
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._function import FunctionJacobian, frozen_point
from frechet.optimize._box import Bound
from frechet.optimize._equations.newton_dense import newton_dense
from frechet.optimize._equations.newton_krylov import Limits, newton_krylov
from frechet.optimize._equations.root_state import RootState, image, size_of
from frechet.optimize._least_squares.jacobian_route import by_products
from frechet.optimize._least_squares.least_squares import least_squares, problem_of
from frechet.optimize._least_squares.start import begin
from frechet.space import Space, Variables, like, named

Jacobian = Literal["auto", "dense", "products", "2-point", "3-point"] | Callable[..., object]


@torch.no_grad()
def root(
    F: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    *,
    bounds: tuple[Bound, Bound] | None = None,
    jacobian: Jacobian = "auto",
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    restart: int = 50,
    observe: Callable[[RootState], bool] | None = None,
) -> Solution:
    """Return an x with F(x) = 0, F from tensors shaped like `x0` to as many numbers.

    ``x`` has the shape of x0, flat for a dict. Converged means that norm(F(x)) is small relative to the data at x,
    whatever the start was: ``norm(F(x)) <= max(rtol * norm(J diag(x)), atol)`` for F and its Jacobian J at x, so that a
    Newton step would change x by about rtol of it; or that a Newton step leads to a root, and norm(F) is as small as
    its evaluation is exact. A local minimum of norm(F) that is no root is `stagnated`, and the message says so.

    Args:
        F: the equations, a function of what x0 is; it returns a tensor or a dict of tensors.
        x0: the start, a tensor of any shape or a dict of tensors. F must be finite there, else `NonFinite` is raised.
        bounds: lower and upper, as in `least_squares`; no point outside is evaluated.
        jacobian: "auto" forms J where that and its factors take seconds at most, "dense" always, "products" never.
            "2-point" and "3-point" take differences of F, for functions without derivatives. A function of x returns
            the matrix ``(n, n)``, or a LinearOperator.
        rtol: tolerance, norm(F) <= rtol norm(J diag(x)). Default eps^(3/4) of the dtype.
        atol: tolerance, norm(F) <= atol, in the units of F. Default 0.
        max_iterations: steps. Default 1000.
        restart: that of GMRES, where products are used. Default 50.
        observe: called once per step with a `RootState`; True stops the run.

    `history` has norm(F), one per iteration. `products` counts products with the Jacobian, `evaluations` those of F; a
    run on matrices tells its Jacobians in `message`. Statuses: `converged`, `stagnated` (a local minimum of norm(F), a
    singular Jacobian, or a tolerance below the rounding of F), `max_iterations`, `stopped`.

    Example:
        >>> import torch
        >>> from frechet import root
        >>> s = root(lambda x: x**2 - torch.tensor([2.0, 9.0]).double(), torch.ones(2, dtype=torch.float64)).checked()
        >>> s.x.round(decimals=9)
        tensor([1.4142, 3.0000], dtype=torch.float64)
    """
    check_start("root", x0)
    variables, blocks = frozen_point("root", like(x0, [b.detach() for b in named(x0).values()]))
    space = variables.space
    tolerance = space.eps**0.75 if rtol is None else rtol
    check_numbers("root", rtol=tolerance, atol=atol, max_iterations=max_iterations)
    limits = Limits(tolerance, atol, max_iterations, observe)
    if not space.dim:
        return Solution(x0.clone() if isinstance(x0, Tensor) else space.zeros(), Status.CONVERGED, 0.0, 0, 0)
    with _in_words_of_root():
        if not by_products(jacobian, space.dim, space.dim):
            return _dense(F, x0, space, bounds, jacobian, limits)
        if bounds is not None:
            return _by_least_squares(F, x0, space, bounds, limits)
    return _by_products(F, variables, space.join(blocks), jacobian, limits, restart)


def _dense(
    F: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    space: Space,
    bounds: tuple[Bound, Bound] | None,
    jacobian: Jacobian,
    limits: Limits,
) -> Solution:
    problem, x = problem_of(F, x0, bounds, None, 1.0, jacobian)
    problem, start = begin(problem, x)
    _check_count(len(start.r), space.dim)
    if bool(start.r.any()):
        return newton_dense(problem, start, limits)
    found = problem.structured(start.x)
    found = found.clone() if isinstance(found, Tensor) else space.flatten(found)
    return Solution(found, Status.CONVERGED, 0.0, 0, 0, (0.0,), "root: F is zero at x0", evaluations=1)


def _by_products(
    F: Callable[..., object],
    variables: Variables,
    x: Tensor,
    jacobian: Jacobian,
    limits: Limits,
    restart: int,
) -> Solution:
    evaluations, space = 0, variables.space

    def value(x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return image("root", "F", F, variables, x)

    def in_dtype(p: Tensor | Mapping[str, Tensor]) -> object:
        y = F(p)
        blocks = y.items() if isinstance(y, Mapping) else {"": y}.items()
        cast = {name: b.to(space.dtype) for name, b in blocks if isinstance(b, Tensor)}
        return cast[""] if isinstance(y, Tensor) else cast

    def at(x: Tensor) -> LinearOperator:
        if not callable(jacobian):
            return FunctionJacobian(in_dtype, variables, space.split(x), "reverse", space)
        J = jacobian(variables.unflatten(x))
        if not isinstance(J, LinearOperator):
            raise TypeError(
                f"root: jacobian must return a LinearOperator where n = {space.dim}, got {type(J).__name__}; wrap a "
                "matrix with from_matrix"
            )
        return J

    r = value(x)
    if not math.isfinite(norm := size_of(space, r)):
        raise NonFinite(f"root: F must be finite at x0, got norm(F) = {norm}; start where F is defined")
    s = newton_krylov(value, at, space, x, r, limits, restart)
    return replace(s, x=s.x.view(space.shapes[0]) if variables.single else s.x, evaluations=evaluations)


def _check_count(count: int, wanted: int) -> None:
    if count != wanted:
        raise ValueError(
            f"root: F must return as many numbers as x0 has, got {count} for {wanted}; for other counts use "
            "least_squares(F, x0)"
        )


@contextmanager
def _in_words_of_root() -> Iterator[None]:
    """Say what least squares says of its residual in the words of `root`."""
    try:
        yield
    except (NonFinite, NotDifferentiable, TypeError, ValueError) as error:
        said = str(error)
        if not said.startswith("least_squares: "):
            raise
        said = said.replace("least_squares: residual", "root: F").replace("least_squares: ", "root: ")
        said = said.replace("start where the model is defined", "start where F is defined")
        raise type(error)(said) from error


def _by_least_squares(
    F: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    space: Space,
    bounds: tuple[Bound, Bound],
    limits: Limits,
) -> Solution:
    """Between bounds by products: the least-squares problem."""
    observe = limits.observe
    s = least_squares(
        F,
        x0,
        bounds=bounds,
        jacobian="products",
        max_evaluations=10 * limits.max_iterations,
        observe=None
        if observe is None
        else lambda now: observe(RootState(now.iteration, now.x, math.sqrt(2 * now.cost), 0)),
    )
    _check_count(len(s.residuals), space.dim)
    found = s.x if isinstance(s.x, Tensor) else space.flatten(s.x)
    x = found.reshape(-1)
    J = FunctionJacobian(F, Variables.of(x0), space.split(x), "reverse", space)
    terms = size_of(space, J @ (space.random(0, 0) * x))
    solved = s.residual <= max(limits.rtol * terms, limits.atol)
    status = Status.CONVERGED if solved else Status.STAGNATED if s.converged else s.status
    end = f"norm(F) = {s.residual:.3g} is zero to the tolerance" if solved else s.message
    if s.converged and not solved:
        end = f"norm(F) has a minimum of {s.residual:.3g} there, which is no root; start elsewhere"
    history = tuple(math.sqrt(2 * c) for c in s.history)
    message = f"root between bounds by products: {end}"
    spent = s.residual_evaluations
    return Solution(found, status, s.residual, s.iterations, s.products, history, message, evaluations=spent)
