"""Roots: F(x) = 0 for F from a space to itself, by Newton's method with inexact steps from products with the Jacobian.

Each step solves J d = -F by GMRES until norm(F + J d) <= eta norm(F), with a forcing term eta that gets smaller as fast
as the residual does: no step is solved more exactly than the linear model is true. It is shortened until the residual
falls,

    norm(F(x + t d)) <= (1 - 1e-4 t (1 - eta)) norm(F(x)).

With bounds the problem is min norm(F)^2 / 2 between them, by the interior trust region of `least_squares`.

**Source.** S. C. Eisenstat and H. F. Walker (1996), Choosing the forcing terms in an inexact Newton method, choice 2
and section 3, doi 10.1137/0917003; C. T. Kelley (2003), Solving nonlinear equations with Newton's method, chapter 3,
doi 10.1137/1.9780898718898.

**Differs from the source.** The forcing term is not made smaller than the tolerance needs; residuals that are not
finite refuse the step; a step that GMRES could not make a descent direction ends the run as `stagnated`.

**Cost.** One evaluation of F per trial, one product per GMRES iteration; the basis of GMRES in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers, check_start
from frechet.linalg.systems._gmres import gmres
from frechet.operators.derivatives._function import FunctionJacobian, frozen_point
from frechet.optimize._box import check_pair
from frechet.optimize._geometric import BETTER, Geometric
from frechet.optimize._least_squares.least_squares import Bound, least_squares
from frechet.optimize._stopping import is_rounding
from frechet.space import Space, Variables, like, named

GAMMA, POWER = 0.9, (1 + math.sqrt(5)) / 2
FIRST, MOST = 0.1, 0.9  # of the forcing term
DESCENT, CUTS = 1e-4, 30
IDLE, SLOW = 10, 1e-6  # as many steps that gain so little are a minimum of norm(F) that is no root


@dataclass(frozen=True, eq=False)
class RootState:
    """One moment of `root` or `fixed_point`. `x` is flat ``(n,)``; `residual` is norm(F(x))."""

    iteration: int
    x: Tensor
    residual: float
    products: int


@torch.no_grad()
def root(
    F: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    *,
    bounds: tuple[Bound, Bound] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    restart: int = 50,
    observe: Callable[[RootState], bool] | None = None,
) -> Solution:
    """An x with F(x) = 0, F from tensors shaped like `x0` to as many numbers, near the start in the sense of Newton.

    ``x`` has the shape of x0, flat for a dict. Converged means ``norm(F(x)) <= max(rtol * norm(J x), atol)`` for F and
    its Jacobian J at x, whatever the start was: a Newton step would change x by about rtol of it; or that no step
    reduces norm(F), which is as small as its evaluation is exact. rtol is eps^(3/4) of the dtype if left out.
    `products` counts products with the Jacobian, `history` has norm(F), one per iteration. `restart` is that of GMRES.

    Other statuses: `stagnated` (no shorter step reduces norm(F): a local minimum of it, a singular Jacobian, or a
    tolerance below the rounding of F), `max_iterations`, `stopped`. A start where F is not finite raises `NonFinite`.

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
    if bounds is not None:
        return _bounded(F, x0, space, bounds, tolerance, atol, max_iterations, observe)

    def value(x: Tensor) -> Tensor:
        return image(F, variables, x)

    x = space.join(blocks)
    r = value(x)
    norm = _length(space, r)
    if not math.isfinite(norm):
        raise NonFinite(f"root: F must be finite at x0, got norm(F) = {norm}; start where F is defined")
    eta, iterations, products, history, status, message = FIRST, 0, 0, [norm], None, "root by newton-gmres"
    pace = Geometric(space.inner)
    while True:  # one branch for each way to end, and for the trials of the line search
        J = FunctionJacobian(F, variables, space.split(x), "reverse", space)
        scale = _length(space, J @ x) if norm > 0 else 0.0
        target, products = max(tolerance * scale, atol), products + (norm > 0)
        if norm <= target:
            status = Status.CONVERGED
        elif observe is not None and observe(RootState(iterations, x, norm, products)):
            status = Status.STOPPED
        elif iterations >= max_iterations:
            status = Status.MAX_ITERATIONS
        elif iterations >= IDLE and norm > (1 - SLOW) * history[-1 - IDLE]:
            status, message = Status.STAGNATED, f"{message}: norm(F) does not fall any more"
        if status is not None:
            break
        unit = 2.0 ** math.frexp(norm)[1]  # whose squares are numbers
        inner = gmres(
            J * (1 / unit),
            -r / unit,
            rtol=max(eta, min(0.5, 0.5 * target / norm)),
            restart=restart,
            max_iterations=10 * restart,
        )
        d, products = inner.x, products + inner.products
        reached = inner.residual * unit / norm  # what was solved for, not what was asked
        t, accepted, tried = 1.0, None, norm
        for _ in range(CUTS if reached < 1 else 0):
            moved = x + t * d
            if bool((moved == x).all()):
                break
            trial = value(moved)
            tried = _length(space, trial)
            if tried <= (1 - DESCENT * t * (1 - reached)) * norm:
                accepted = (moved, trial)
                break
            # the parabola through norm^2 at 0 and t and the slope -2 norm^2 (1 - reached), in units of norm^2
            t *= _shrink(1.0, (tried / norm) ** 2 if tried < 1e150 * norm else math.inf, -2 * t * (1 - reached))
        if accepted is None:
            if reached < 1 and is_rounding(value, lambda v: _length(space, v), x, d, r, J @ d):
                status = Status.CONVERGED
                message += ": no step reduces norm(F), which is the rounding of F"
                break
            status = Status.STAGNATED
            message += f": no step reduces norm(F); gmres left {reached:.2g} of it ({inner.status})"
            break
        multiple = pace.multiple(accepted[0] - x)
        if multiple:  # the limit of steps that shrink by a constant factor
            limit = accepted[0] + multiple * (accepted[0] - x)
            there = value(limit)
            better = _length(space, there) <= BETTER * tried
            pace.tried(better)
            if better:
                accepted, tried = (limit, there), _length(space, there)
        (x, r), last, norm = accepted, norm, tried
        iterations += 1
        history.append(norm)
        quick = GAMMA * (norm / last) ** POWER
        slow = GAMMA * eta**POWER
        eta = min(MOST, max(quick, slow) if slow > 0.1 else quick)
    found = x.view(space.shapes[0]) if variables.single else x
    return Solution(found, status, norm, iterations, products, tuple(history), message)


def image(F: Callable[..., object], variables: Variables, x: Tensor) -> Tensor:
    """F(x) as a vector of the space."""
    y = F(variables.unflatten(x))
    if not isinstance(y, Tensor | Mapping):
        raise TypeError(f"root: F must return a tensor or a dict of tensors, got {type(y).__name__}")
    v = y.reshape(-1) if isinstance(y, Tensor) else torch.cat([b.reshape(-1) for b in y.values()])
    if len(v) != variables.space.dim:
        raise ValueError(
            f"root: F must return as many numbers as x0 has, got {len(v)} for {variables.space.dim}; for other counts "
            "use least_squares(F, x0)"
        )
    return v.detach()


def _length(space: Space, v: Tensor) -> float:
    """norm(v), also where its squares are no numbers."""
    largest = float(v.abs().max()) if v.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    unit = 2.0 ** math.frexp(largest)[1]
    return unit * float(space.norm(v / unit))


def _shrink(before: float, after: float, slope: float) -> float:
    if not math.isfinite(after):
        return 0.25
    rise = after - before - slope
    return min(max(-slope / (2 * rise), 0.1), 0.5) if rise > 0 else 0.5


def _bounded(
    F: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    space: Space,
    bounds: tuple[Bound, Bound],
    rtol: float,
    atol: float,
    max_iterations: int,
    observe: Callable[[RootState], bool] | None,
) -> Solution:
    """By least squares between the bounds; a minimum that is no root is `stagnated`."""
    check_pair("root", bounds)
    s = least_squares(
        F,
        x0,
        bounds=bounds,
        method="interior",
        max_evaluations=10 * max_iterations,
        observe=None
        if observe is None
        else lambda now: observe(RootState(now.iteration, now.x, math.sqrt(2 * now.cost), 0)),
    )
    if len(s.residuals) != space.dim:
        raise ValueError(
            f"root: F must return as many numbers as x0 has, got {len(s.residuals)} for {space.dim}; for other counts "
            "use least_squares(F, x0)"
        )
    found = s.x if isinstance(s.x, Tensor) else space.flatten(s.x)
    x = found.reshape(-1)
    J = FunctionJacobian(F, Variables(space, isinstance(x0, Tensor)), space.split(x), "reverse", space)
    solved = s.residual <= max(rtol * _length(space, J @ x), atol)
    status = Status.CONVERGED if solved else Status.STAGNATED if s.converged else s.status
    end = f"norm(F) = {s.residual:.3g} is zero to the tolerance" if solved else s.reason
    if s.converged and not solved:
        end = f"norm(F) has a minimum of {s.residual:.3g} there, which is no root"
    message = f"root between bounds by the interior trust region: {end}"
    return Solution(found, status, s.residual, s.iterations, 0, tuple(math.sqrt(2 * c) for c in s.history), message)
