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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.linalg.systems._protocol import Ending
from frechet.operators._constructors import from_matrix
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._jacobian import jacobian
from frechet.optimize._nonsmooth.convex import Convex, Named, convex_function
from frechet.optimize._nonsmooth.prox_step import Step, prox_step
from frechet.space import Space, Variables, euclidean

Parameters = Tensor | Mapping[str, Tensor]
LARGEST = 1 << 22  # entries of a Jacobian that is formed
ACCEPT, GROW, SHRINK = 1e-3, 4.0, 4.0
ACCURACY = 0.3  # of a step, as a share of its length
MOST_REFUSED, LONGER = 60, 1e3
AT_EDGE = "x is at the edge of where c is finite, no step on reduces h(c(x)) as its model says"
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
    message: str
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
        raise NotConverged(f"prox_linear: {self.message} (status '{self.status}', value {self.value:.6g})", self)


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
    """Find a stationary point of h(c(x)), where h is convex and c smooth. A minimum that is found is a local one.

    Args:
        h: ``"l1"`` (the sum of abs(z_i)), ``"huber"`` (of z_i^2 / 2 inside of [-1, 1] and abs(z_i) - 1/2 outside:
            divide c by the size that separates them), ``"max"`` (the largest z_i: minimax), or a `Convex`.
        c: a function of what x0 is to a tensor, which is flattened.
        x0: where the iteration starts, a tensor of any shape or a dict of tensors. The solution has the same form.
        gtol: converged means ``norm(d) / t <= gtol * norm(J) * norm(y)`` for the exact step d = -t J'y of the last
            model, with the largest norm(J) and norm(y) met so far (estimated from products), or that the model predicts
            no decrease above 100 eps abs(h(c(x))), which is what rounding errors leave to see. Where t had to shrink,
            both hold for the first t too. Default: eps^(2/3) of the dtype.
        t0: the first t, of the size of norm(x - x*) / norm(J'y). It adapts. Default: from the first model.
        max_iterations: the most steps that are accepted.
        observe: is called with a `ProxLinearState` before each step, and stops the run by returning True.

    Returns:
        A `ProxLinearSolution`. Its status is `converged` or one of these, with a sentence in `message`: `stagnated`
            (no step, however short, reduces h(c(x)): c is discontinuous there, or its rounding errors are larger than
            they should be; x is at the edge of where c is finite; or J is zero), `unbounded`, `max_iterations`,
            `stopped`. A trial point at which c is not finite refuses the step.

    Raises:
        NonFinite: c or J is not finite at x0.

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
    variables, x = start_of(x0)
    _check(gtol, t0, max_iterations)
    problem, s = _begin(convex_function(h), c, variables, x, gtol, t0, max_iterations)
    history = [s.value]
    while True:
        s, model = _modelled(problem, s)
        model, s, ending = _proved(problem, model, s, _judged(problem, s, model))
        if ending is None and observe is not None:
            ending = _observed(observe, s, model)
        if ending is not None and ending.status is not Status.CONVERGED:
            break
        s, accepted = _tried(problem, s, model, last=ending is not None)
        if ending is not None:
            break
        if accepted:
            history.append(s.value)
    return ProxLinearSolution(
        x=variables.unflatten(s.x.clone()),
        status=ending.status,
        message=ending.detail,
        value=s.value,
        stationarity=model.stationarity,
        t=s.t,
        gap=model.step.gap,
        multipliers=s.y,
        iterations=s.iterations,
        evaluations=s.evaluations,
        jacobians=s.jacobians,
        products=s.products,
        history=tuple(history),
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """h(c(x)), and when a run on it ends."""

    h: Convex
    values: Callable[[Tensor], Tensor]  # c at a flat x
    space: Space
    image: Space
    goal: float  # gtol
    limit: int  # of iterations
    first: float  # h(c(x0))
    t: float  # the first one


@dataclass(frozen=True, eq=False)
class _Iterate:
    """A point, the model of c there, and what the run knows so far."""

    x: Tensor  # (n,)
    z: Tensor  # (m,), c(x)
    value: float
    J: LinearOperator
    norm_J: float  # the largest so far
    y: Tensor  # (m,), the last multipliers
    largest_y: float
    t: float
    products: int
    refused: int = 0  # steps in a row
    edge: int = 0  # 2 where a trial was refused since c is not finite there, 1 where the step before met one
    iterations: int = 0
    evaluations: int = 1
    jacobians: int = 1


@dataclass(frozen=True, eq=False)
class _Model:
    """The step of an iterate, and what it says."""

    step: Step
    length: float
    stationarity: float
    predicted: float  # decrease
    noise: float  # rounding error of the value


def _begin(
    h: Convex,
    c: Callable[..., Tensor],
    variables: Variables,
    x: Tensor,
    gtol: float | None,
    t0: float | None,
    limit: int,
) -> tuple[_Problem, _Iterate]:
    space = variables.space

    def values(x: Tensor) -> Tensor:
        return flat(space, c(variables.unflatten(x)))

    with torch.no_grad():
        z = values(x)
    image = euclidean(z.numel(), space.dtype, space.device)
    if not z.numel():
        raise ValueError("prox_linear: c must have at least one entry, got an empty tensor")
    value = float(h.value(z))
    if not bool(z.isfinite().all()) or not math.isfinite(value):
        raise NonFinite(f"prox_linear: c and h(c) must be finite at x0, got h(c(x0)) = {value}")
    J, norm_J, products = linearized(values, x, space, image)
    if not math.isfinite(norm_J):
        raise NonFinite("prox_linear: the Jacobian of c must be finite at x0, got NaN or infinity; start off its kinks")
    y = subgradient(h, z)
    slope = float(space.norm(J.T @ y))
    t = t0 if t0 is not None else max(abs(value), 1e-8 * norm_J) / slope**2 if slope > 0 else 1.0
    goal = space.eps ** (2 / 3) if gtol is None else gtol
    s = _Iterate(x, z, value, J, norm_J, y, float(image.norm(y)), t, products + 1)
    return _Problem(h, values, space, image, goal, limit, value, t), s


def _modelled(problem: _Problem, s: _Iterate) -> tuple[_Iterate, _Model]:
    """The step of the model at the iterate."""
    noise = problem.space.eps * max(
        abs(s.value), s.norm_J * float(problem.space.norm(s.x)) * 1e-2 * s.largest_y, 1e-300
    )
    step = prox_step(problem.h, s.z, s.J, s.t, s.y, s.norm_J, ACCURACY, noise)
    length = math.sqrt(2 * s.t * step.quadratic)
    model = _Model(step, length, length / s.t, s.value - step.model - step.quadratic, noise)
    largest = max(s.largest_y, float(s.J.codomain.norm(step.y)))
    return replace(s, y=step.y, largest_y=largest, products=s.products + step.products), model


def _judged(problem: _Problem, s: _Iterate, m: _Model) -> Ending | None:
    """Why the run ends at the iterate, if it does."""
    unsure = math.sqrt(2 * m.step.gap / s.t)  # of the mapping
    mapping = f"prox-gradient mapping {m.stationarity:.3g}"
    if s.norm_J == 0:
        return Ending(Status.STAGNATED, "the Jacobian is zero: c does not change with any parameter")
    if m.stationarity + unsure <= problem.goal * s.norm_J * s.largest_y:
        return Ending(Status.CONVERGED, f"the prox-gradient mapping is {m.stationarity:.3g}")
    if max(m.predicted, 0.0) + m.step.gap <= 100 * m.noise:
        return Ending(Status.CONVERGED, f"a step would gain no more than rounding errors, {mapping}")
    if s.value < -1e15 * (1 + abs(problem.first)):
        return Ending(Status.UNBOUNDED, f"h(c(x)) falls without end, to {s.value:.3g}")
    if s.iterations >= problem.limit:
        return Ending(Status.MAX_ITERATIONS, f"the limit of {problem.limit} iterations was reached, {mapping}")
    if s.refused >= MOST_REFUSED or m.length <= problem.space.eps * 1e-3 * float(problem.space.norm(s.x)):
        return Ending(Status.STAGNATED, f"{NO_STEP}, but the prox-gradient mapping is {m.stationarity:.3g}")
    return None


def _proved(problem: _Problem, m: _Model, s: _Iterate, ending: Ending | None) -> tuple[_Model, _Iterate, Ending | None]:
    """The mapping is zero for every t or for none: a t that had to shrink proves nothing, so the first t is tried."""
    if ending is None or ending.status is not Status.CONVERGED or s.t >= problem.t:
        return m, s, ending
    if s.edge and _leads_out(problem, m, s):
        return m, s, Ending(Status.STAGNATED, f"{AT_EDGE}, and the prox-gradient mapping is {m.stationarity:.3g}")
    check = prox_step(problem.h, s.z, s.J, problem.t, s.y, s.norm_J, ACCURACY, m.noise)
    s = replace(s, products=s.products + check.products)
    gain, mapping = s.value - check.model - check.quadratic, math.sqrt(2 * check.quadratic / problem.t)
    if gain > 1e3 * m.noise and mapping > problem.goal * s.norm_J * s.largest_y:
        m = replace(m, stationarity=mapping)
        ending = Ending(Status.STAGNATED, f"{NO_STEP}, but the prox-gradient mapping is {mapping:.3g}")
    return m, s, ending


def _leads_out(problem: _Problem, m: _Model, s: _Iterate) -> bool:
    """Whether the model gains more and more with t, though c is not finite there: norm(J) may have no limit."""
    t = s.t
    while t < problem.t:
        t = min(LONGER * t, problem.t)
        step = prox_step(problem.h, s.z, s.J, t, s.y, s.norm_J, ACCURACY, m.noise)
        if s.value - step.model - step.quadratic > max(1e3 * m.noise, step.gap):
            return True
    return False


def _observed(observe: Callable[[ProxLinearState], bool], s: _Iterate, m: _Model) -> Ending | None:
    stop = observe(ProxLinearState(s.iterations, s.x.clone(), s.value, m.stationarity, s.t))
    return Ending(Status.STOPPED, f"observe returned True in iteration {s.iterations}") if stop else None


def _tried(problem: _Problem, s: _Iterate, m: _Model, *, last: bool) -> tuple[_Iterate, bool]:
    """The iterate after the step, and whether it was accepted. The `last` step is taken where it does no harm."""
    moved = s.x + m.step.d
    with torch.no_grad():
        trial = problem.values(moved)
    s = replace(s, evaluations=s.evaluations + 1)
    after = float(problem.h.value(trial)) if bool(trial.isfinite().all()) else math.nan
    if last:
        return (replace(s, x=moved, z=trial, value=after) if after <= s.value else s), False
    if math.isfinite(after) and s.value - after >= ACCEPT * m.predicted - m.noise / 10:
        J, norm_J, spent = linearized(problem.values, moved, problem.space, problem.image)
        s = replace(s, jacobians=s.jacobians + 1, products=s.products + spent)
        if math.isfinite(norm_J):
            # the model's error in units of its quadratic part
            error = (after - m.step.model) / m.step.quadratic if m.step.quadratic > 0 else math.nan
            t = s.t * GROW if error <= 0.25 else s.t if error <= 1 else s.t / SHRINK
            s = replace(s, x=moved, z=trial, value=after, J=J, norm_J=max(s.norm_J, norm_J), t=t, refused=0)
            return replace(s, iterations=s.iterations + 1, edge=max(s.edge - 1, 0)), True
    edge = s.edge if math.isfinite(after) else 2
    return replace(s, refused=s.refused + 1, edge=edge, t=s.t / SHRINK), False


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
