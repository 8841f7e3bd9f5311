"""Convex composite minimization: min h(c(x)), h convex and possibly with kinks, c smooth, from products with J = dc/dx.

The prox-linear method (a regularized Gauss-Newton method: with h = norm^2 / 2 it is Levenberg-Marquardt) minimizes the
model with c made linear,

    d = argmin_d h(c(x) + J(x) d) + norm(d)^2 / (2 t),        x+ = x + d,

by `prox_step`, and t adapts. Where the minimum is sharp, h(c(x)) - h(c(x*)) >= a norm(x - x*), as for an exact fit to
all data but gross errors, it converges quadratically; elsewhere linearly.

**Source.** D. Drusvyatskiy and C. Paquette (2019), Efficiency of minimizing compositions of convex functions and smooth
maps, section 5, doi 10.1007/s10107-018-1311-3; J. Burke and M. Ferris (1995), A Gauss-Newton method for convex
composite optimization, doi 10.1007/BF01585997 (quadratic convergence at sharp minima); J. Duchi and F. Ruan (2019),
Solving (most) of a set of quadratic equalities, doi 10.1093/imaiai/iay015 (robust phase retrieval).

**Differs from the source.**
1. t is tested against the model that was solved: a step is taken where h(c(x + d)) lies below h(c(x)) by a share of
   what the model predicts, and t grows fourfold where the error of the model, h(c(x + d)) - h(c + J d), is below a
   quarter of norm(d)^2 / (2 t), and shrinks where it is above. No constant of c is asked for.
2. The duality gap of a step is at most 0.09 norm(d)^2 / (2 t). More would be idle: the model is no more exact, and what
   remains is quadratic in norm(d).

**Cost.** One evaluation of c and one of J per step, and the products of `prox_step`. J is formed where it has at most
2^22 entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.operators._constructors import from_matrix
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._jacobian import jacobian
from frechet.optimize._nonsmooth.convex import Convex, Named, convex_function
from frechet.optimize._nonsmooth.prox_step import prox_step
from frechet.space import Space, Variables, euclidean

Parameters = Tensor | Mapping[str, Tensor]
LARGEST = 1 << 22  # entries of a Jacobian that is formed
ACCEPT, GROW, SHRINK = 1e-3, 4.0, 4.0
ACCURACY = 0.3  # of a step, as a share of its length
MOST_REFUSED = 60
NO_STEP = "no step reduces h(c(x)) as its model says, c may be discontinuous or noisy"


@dataclass(frozen=True, eq=False)
class ProxLinearState:
    """One moment of `prox_linear`: x flat ``(n,)`` before the step, and the step that is about to be tried."""

    iteration: int
    x: Tensor
    value: float
    stationarity: float
    t: float


@dataclass(frozen=True, eq=False)
class ProxLinearSolution:
    """Where `prox_linear` ended. `value` is h(c(x)), recomputed.

    `stationarity` is norm(x - x+) / t, the prox-gradient mapping, for the last model, and `t` the one it was made with:
    it bounds how far from zero the subgradients of h(c(.)) are near x. `multipliers` y ``(m,)`` is the subgradient of h
    that the model chose: J'y is zero at a stationary point. `gap` is the duality gap of that model.
    """

    x: Tensor | dict[str, Tensor]
    status: Status
    reason: str
    value: float
    stationarity: float
    t: float
    gap: float
    multipliers: Tensor
    iterations: int
    evaluations: int  # of c
    jacobians: int
    products: int
    history: tuple[float, ...] = field(default=(), repr=False)  # h(c(x)), per iteration

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> ProxLinearSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(f"prox_linear: {self.reason} (status '{self.status}', value {self.value:.6g})", self)


def prox_linear(
    h: Named | Convex,
    c: Callable[..., Tensor],
    x0: Parameters,
    *,
    gtol: float | None = None,
    t0: float | None = None,
    max_iterations: int = 200,
    observe: Callable[[ProxLinearState], bool] | None = None,
) -> ProxLinearSolution:
    """A stationary point of h(c(x)) from `x0`, a tensor of any shape or a dict of tensors; x has the same form.

    `h` is "l1" (the sum of |z_i|), "huber" (of z_i^2 / 2 inside of [-1, 1] and |z_i| - 1/2 outside: divide c by the
    size that separates them), "max" (the largest z_i: minimax), or a `Convex`. `c` returns a tensor, which is
    flattened.

    Converged means ``norm(d) / t <= gtol * norm(J) * norm(y)`` for the exact step d = -t J'y of the last model, with
    the largest norm(J) and norm(y) met so far (estimated from products), or that the model predicts no decrease above
    100 eps |h(c(x))|, what rounding errors leave to see; both also for the first t, where it had to shrink. `gtol` is
    eps^(2/3) of the dtype if left out. A minimum is a local one.

    Other statuses, each with a sentence in `reason`: `stagnated` (no step, however short, reduces h(c(x)): c is
    discontinuous there, or rounding errors are larger than they should be; or J is zero), `unbounded`,
    `max_iterations`, `stopped`. A trial point at which c is not finite refuses the step; c or J not finite at x0 raises
    `NonFinite`. `t0` is the first t, of the size of norm(x - x*) / norm(J'y); it adapts.

    Example:
        >>> import torch
        >>> from frechet.optimize import prox_linear
        >>> t = torch.arange(6.0, dtype=torch.float64)
        >>> y = torch.exp(-0.5 * t)
        >>> y[2] = 9.0  # a gross error
        >>> s = prox_linear("l1", lambda x: torch.exp(-x * t) - y, torch.zeros(1, dtype=torch.float64)).checked()
        >>> s.x.round(decimals=12)
        tensor([0.5000], dtype=torch.float64)
    """
    outside = convex_function(h)
    variables, x = start_of(x0)
    space = variables.space
    _check(gtol, t0, max_iterations)
    goal = space.eps ** (2 / 3) if gtol is None else gtol

    def values(x: Tensor) -> Tensor:
        return flat(space, c(variables.unflatten(x)))

    with torch.no_grad():
        now = values(x)
    image = euclidean(now.numel(), space.dtype, space.device)
    if not now.numel():
        raise ValueError("prox_linear: c must have at least one entry, got an empty tensor")
    value = float(outside.value(now))
    if not bool(now.isfinite().all()) or not math.isfinite(value):
        raise NonFinite(f"prox_linear: c and h(c) must be finite at x0, got h(c(x0)) = {value}")
    J, norm_J, products = linearized(values, x, space, image)
    if not math.isfinite(norm_J):
        raise NonFinite("prox_linear: the Jacobian of c must be finite at x0, got NaN or infinity; start off its kinks")
    first = value
    y = subgradient(outside, now)
    products += 1
    slope = float(space.norm(J.T @ y))
    t = t0 if t0 is not None else max(abs(value), 1e-8 * norm_J) / slope**2 if slope > 0 else 1.0
    start_t, largest_y, refused = t, float(image.norm(y)), 0
    iterations, evaluations, jacobians, history = 0, 1, 1, [value]
    while True:
        noise = space.eps * max(abs(value), norm_J * float(space.norm(x)) * 1e-2 * largest_y, 1e-300)
        step = prox_step(outside, now, J, t, y, norm_J, ACCURACY, noise)
        products += step.products
        y, length = step.y, math.sqrt(2 * t * step.quadratic)
        largest_y, stationarity = max(largest_y, float(image.norm(y))), length / t
        predicted = value - step.model - step.quadratic
        status, reason = None, ""
        unsure = math.sqrt(2 * step.gap / t)  # of the mapping
        if norm_J == 0:
            status, reason = Status.STAGNATED, "the Jacobian is zero: c does not change with any parameter"
        elif stationarity + unsure <= goal * norm_J * largest_y:
            status, reason = Status.CONVERGED, f"the prox-gradient mapping is {stationarity:.3g}"
        elif max(predicted, 0.0) + step.gap <= 100 * noise:
            text = f"a step would gain no more than rounding errors, prox-gradient mapping {stationarity:.3g}"
            status, reason = Status.CONVERGED, text
        elif value < -1e15 * (1 + abs(first)):
            status, reason = Status.UNBOUNDED, f"h(c(x)) falls without end, to {value:.3g}"
        elif iterations >= max_iterations:
            status = Status.MAX_ITERATIONS
            reason = f"the limit of {max_iterations} iterations was reached, prox-gradient mapping {stationarity:.3g}"
        elif refused >= MOST_REFUSED or length <= space.eps * 1e-3 * float(space.norm(x)):
            status, reason = Status.STAGNATED, f"{NO_STEP}, but the prox-gradient mapping is {stationarity:.3g}"
        if status is Status.CONVERGED and t < start_t:
            # the mapping is zero for every t or for none: a t that had to shrink proves nothing
            check = prox_step(outside, now, J, start_t, y, norm_J, ACCURACY, noise)
            products += check.products
            gain, mapping = value - check.model - check.quadratic, math.sqrt(2 * check.quadratic / start_t)
            if gain > 1e3 * noise and mapping > goal * norm_J * largest_y:
                status, stationarity = Status.STAGNATED, mapping
                reason = f"{NO_STEP}, but the prox-gradient mapping is {mapping:.3g}"
        state = ProxLinearState(iterations, x.clone(), value, stationarity, t)
        if status is None and observe is not None and observe(state):
            status, reason = Status.STOPPED, f"observe returned True in iteration {iterations}"
        if status is not None and status is not Status.CONVERGED:
            break
        with torch.no_grad():
            trial = values(x + step.d)
        evaluations += 1
        after = float(outside.value(trial)) if bool(trial.isfinite().all()) else math.nan
        if status is Status.CONVERGED:  # the step is there: it is taken where it does no harm
            if after <= value:
                x, now, value = x + step.d, trial, after
            break
        error = (
            (after - step.model) / step.quadratic if step.quadratic > 0 else math.nan
        )  # of the model, in units of it
        if math.isfinite(after) and value - after >= ACCEPT * predicted - noise / 10:
            moved = x + step.d
            linear = linearized(values, moved, space, image)
            jacobians, products = jacobians + 1, products + linear[2]
            if math.isfinite(linear[1]):
                x, now, value, J = moved, trial, after, linear[0]
                norm_J, refused = max(norm_J, linear[1]), 0
                iterations += 1
                history.append(value)
                t = t * GROW if error <= 0.25 else t if error <= 1 else t / SHRINK
                continue
        refused, t = refused + 1, t / SHRINK
    return ProxLinearSolution(
        x=variables.unflatten(x.clone()),
        status=status,
        reason=reason,
        value=value,
        stationarity=stationarity,
        t=t,
        gap=step.gap,
        multipliers=y,
        iterations=iterations,
        evaluations=evaluations,
        jacobians=jacobians,
        products=products,
        history=tuple(history),
    )


def start_of(x0: Parameters) -> tuple[Variables, Tensor]:
    """The variables of which x0 is a point, and x0 flat."""
    if not isinstance(x0, Tensor | Mapping):
        raise TypeError(f"prox_linear: x0 must be a tensor or a dict of tensors, got {type(x0).__name__}")
    variables = Variables.of(x0)
    x = variables.flatten(x0).detach().clone()
    if not bool(x.isfinite().all()):
        raise ValueError(f"prox_linear: x0 must be finite, got {float(x[~x.isfinite()][0])} in an entry")
    return variables, x


def _length(space: Space, v: Tensor) -> float:
    return float(space.norm(v))


def flat(space: Space, y: object) -> Tensor:
    """What c returned as a vector."""
    if not isinstance(y, Tensor) or y.dtype != space.dtype:
        got = f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"prox_linear: c must return a tensor of {space.dtype} like x0, got {got}")
    return y.reshape(-1)


def _check(gtol: float | None, t0: float | None, max_iterations: int) -> None:
    if gtol is not None and not 0 <= gtol < 1:
        raise ValueError(f"prox_linear: gtol must lie in [0, 1), got {gtol}")
    if t0 is not None and not 0 < t0 < math.inf:
        raise ValueError(f"prox_linear: t0 must be a positive number, got {t0}")
    if max_iterations < 0:
        raise ValueError(f"prox_linear: max_iterations must be >= 0, got {max_iterations}")


def linearized(
    values: Callable[[Tensor], Tensor], x: Tensor, space: Space, image: Space
) -> tuple[LinearOperator, float, int]:
    """J at x, a number of the size of norm(J), and the products that it took."""
    columns: Space = euclidean(space.dim, space.dtype, space.device)
    J = jacobian(values, x)
    spent = 0
    if space.dim * image.dim <= LARGEST:
        J, spent = from_matrix(J.dense(), domain=columns, codomain=image), min(J.shape)
    v = columns.random(0, 0, "sphere")
    size = 0.0
    for _ in range(3):  # of power iteration
        u = J.T @ (J @ v)
        size = _length(columns, u)
        v = u / size if size > 0 else u
    return J, math.sqrt(size), spent + 6


def subgradient(h: Convex, z: Tensor) -> Tensor:
    """A subgradient of h, at a point next to z."""
    s = 1e-6 * max(float(z.abs().max()), 1e-6)
    return (z - h.prox(z, s)) / s
