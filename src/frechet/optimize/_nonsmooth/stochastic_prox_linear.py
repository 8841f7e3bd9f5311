"""The prox-linear method on mini-batches: min (1/m) sum_i h(c_i(x)), from a few rows of c at a time.

    d_k = argmin_d (1/b) sum_{i in B_k} h(c_i(x_k) + J_i(x_k) d) + norm(d)^2 / (2 t_k),    x_{k+1} = x_k + d_k

Each epoch visits all rows once in a random order, and t shrinks by a factor from epoch to epoch: where the minimum is
sharp, the distance to it then shrinks as fast. A step on one batch never moves past what the batch itself asks for, so
that t need not be tuned as finely as the step of a stochastic subgradient method.

**Source.** J. Duchi and F. Ruan (2018), Stochastic methods for composite and weakly convex optimization problems, doi
10.1137/17M1135086 (the step); D. Davis, D. Drusvyatskiy and V. Charisopoulos (2019), Stochastic algorithms with
geometric step decay converge linearly on sharp functions, arXiv 1907.09547 (the decay).

**Differs from the source.** Batches are drawn without replacement within an epoch, and t decays from the first epoch.

**Cost.** One evaluation of c and of J on all rows per epoch, in pieces; at the end one of each on all rows at once, for
the prox-gradient mapping of the whole problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._protocol import Ending
from frechet.optimize._nonsmooth.convex import Convex, Named, convex_function
from frechet.optimize._nonsmooth.prox_linear import (
    ACCURACY,
    Parameters,
    ProxLinearSolution,
    ProxLinearState,
    flat,
    linearized,
    start_of,
    subgradient,
)
from frechet.optimize._nonsmooth.prox_step import Step, prox_step
from frechet.space import Variables, euclidean, generator


def stochastic_prox_linear(
    h: Named | Convex,
    c: Callable[..., Tensor],
    x0: Parameters,
    *,
    rows: int,
    batch_size: int,
    seed: int,
    epochs: int = 20,
    t0: float | None = None,
    decay: float = 0.5,
    gtol: float | None = None,
    observe: Callable[[ProxLinearState], bool] | None = None,
) -> ProxLinearSolution:
    """Find a point near a minimum of the mean of h over the rows of c, by steps on a few rows at a time.

    The `value`, `stationarity` and `multipliers` of the result are those of the mean over all rows at the last x, for
    the first t. Its `evaluations` and `jacobians` count passes over all rows.

    Args:
        h: a sum over rows: ``"l1"``, ``"huber"``, or a `Convex` that is one.
        c: ``c(x, i)`` returns the rows with the numbers i ``(b,)``, a tensor of integers, as ``(b,)``.
        x0: where the iteration starts, a tensor of any shape or a dict of tensors.
        rows: how many rows there are.
        batch_size: how many rows a step sees.
        seed: the seed of the order of rows.
        epochs: how many times each row is seen.
        t0: the first t. Default: that of a Polyak step.
        decay: t is multiplied by it after every epoch.
        gtol: converged means ``stationarity <= gtol * norm(J) * norm(y)``. Default: sqrt(eps) of the dtype.
        observe: is called after each epoch with the mean of the values that the batches had, and stops the run by
            returning True.

    Returns:
        A `ProxLinearSolution`. Its status is `converged`, `max_iterations` (the epochs are over), `stopped` or
            `nonfinite`, and `message` has the number.

    Example:
        >>> import torch
        >>> from frechet.optimize import stochastic_prox_linear
        >>> y = torch.full((90,), 2.0, dtype=torch.float64)
        >>> y[::10] = -50.0  # gross errors
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> s = stochastic_prox_linear("l1", lambda x, i: x**2 - y[i], start, rows=90, batch_size=9, seed=0, epochs=30)
        >>> s.x.round(decimals=6)
        tensor([1.4142], dtype=torch.float64)
    """
    outside = convex_function(h)
    _check(h, rows, batch_size, epochs, decay)
    variables, x = start_of(x0)
    problem = _Problem(outside, c, variables)
    goal = math.sqrt(variables.space.eps) if gtol is None else gtol
    everything = torch.arange(rows, device=variables.space.device)
    start = problem.model(x, everything, t0)
    if start.step is None:
        raise NonFinite(f"stochastic_prox_linear: c and h(c) must be finite at x0, got a mean of {start.value}")
    t = start.t
    iterations, products, done, history = 0, start.products, 0, [start.value]
    ending = None
    while done < epochs and ending is None:
        order = torch.randperm(rows, generator=generator(seed, done)).to(variables.space.device)
        epoch = _epoch(problem, x, order.split(batch_size), t)
        x, iterations, products = epoch.x, iterations + epoch.steps, products + epoch.products
        if not epoch.finite:
            ending = Ending(Status.NONFINITE, f"c is not finite in epoch {done + 1}; a smaller t0 may help")
            break
        done += 1
        history.append(epoch.value)
        if observe is not None and observe(ProxLinearState(iterations, x.clone(), epoch.value, epoch.moved, t)):
            ending = Ending(Status.STOPPED, f"observe returned True after epoch {done}")
        t *= decay
    end = problem.model(x, everything, start.t)
    ending = _ended(ending or Ending(Status.MAX_ITERATIONS, f"{epochs} epochs are over"), end, goal)
    return ProxLinearSolution(
        x=variables.unflatten(x.clone()),
        status=ending.status,
        message=ending.detail,
        value=end.value,
        stationarity=end.stationarity,
        t=start.t,
        gap=math.nan if end.step is None else end.step.gap,
        multipliers=torch.full((rows,), math.nan) if end.step is None else end.step.y,
        iterations=iterations,
        evaluations=done + 2,
        jacobians=done + 2,
        products=products + end.products,
        history=tuple(history),
    )


def _check(h: Named | Convex, rows: int, batch_size: int, epochs: int, decay: float) -> None:
    if h == "max":
        raise ValueError("stochastic_prox_linear: h must be a sum over rows, got 'max'; use prox_linear")
    for name, value, least in (("rows", rows, 1), ("batch_size", batch_size, 1), ("epochs", epochs, 0)):
        if value < least:
            raise ValueError(f"stochastic_prox_linear: {name} must be >= {least}, got {value}")
    if not 0 < decay <= 1:
        raise ValueError(f"stochastic_prox_linear: decay must lie in (0, 1], got {decay}")


@dataclass(frozen=True, eq=False)
class _Problem:
    """The rows of c, and h of a sum over them."""

    h: Convex
    c: Callable[..., Tensor]
    variables: Variables

    def model(self, x: Tensor, i: Tensor, t: float | None) -> _Model:
        """The mean over the rows i at x, and its step for t, one of Polyak's if there is none."""
        space = self.variables.space

        def values(x: Tensor) -> Tensor:
            z = flat(space, self.c(self.variables.unflatten(x), i))
            if len(z) != len(i):
                raise ValueError(
                    f"stochastic_prox_linear: c must return one number per row, got {len(z)} for {len(i)} rows"
                )
            return z

        with torch.no_grad():
            z = values(x)
        h = Convex(lambda u: self.h.value(u) / len(i), lambda u, s: self.h.prox(u, s / len(i)))
        value = float(h.value(z))
        if not math.isfinite(value):
            return _Model(value, None, math.nan, math.nan, 0)
        J, norm_J, spent = linearized(values, x, space, euclidean(len(i), space.dtype, space.device))
        y = subgradient(h, z)
        slope = float(J.domain.norm(J.T @ y))
        if t is None:
            t = max(abs(value), 1e-12) / slope**2 if slope > 0 else 1.0
        noise = space.eps * max(abs(value), 1e-300)
        step = prox_step(h, z, J, t, y, norm_J, ACCURACY, noise)
        size = norm_J * float(J.codomain.norm(step.y))
        return _Model(value, step, t, size, spent + step.products + 1)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Steps on all rows once: where they led, and the mean of the values that the batches had."""

    x: Tensor
    value: float
    moved: float  # length of the last step, over t
    steps: int
    products: int
    finite: bool


def _epoch(problem: _Problem, x: Tensor, batches: Sequence[Tensor], t: float) -> _Epoch:
    rows, value, moved, steps, products = sum(map(len, batches)), 0.0, 0.0, 0, 0
    for i in batches:
        found = problem.model(x, i, t)
        if found.step is None:
            return _Epoch(x, value, moved, steps, products, finite=False)
        x, value = x + found.step.d, value + found.value * len(i) / rows
        moved = found.stationarity
        steps, products = steps + 1, products + found.products
    return _Epoch(x, value, moved, steps, products, finite=True)


def _ended(ending: Ending, end: _Model, goal: float) -> Ending:
    """Why the run ended, with the prox-gradient mapping of all rows."""
    if end.step is None:
        return ending
    status = Status.CONVERGED if end.stationarity <= goal * end.size else ending.status
    return Ending(status, f"{ending.detail}, prox-gradient mapping {end.stationarity:.3g}")


@dataclass(frozen=True, eq=False)
class _Model:
    """The mean of h over some rows at a point, and the step; no step where c is not finite."""

    value: float
    step: Step | None
    t: float
    size: float  # norm(J) norm(y)
    products: int

    @property
    def stationarity(self) -> float:
        """The prox-gradient mapping."""
        return math.nan if self.step is None else math.sqrt(2 * self.step.quadratic / self.t)
