"""What every iterative solver has beside its mathematics: how it begins, who watches it, and why it ends.

A run is a sequence of frozen states. A solver writes three functions, and `iterate` alternates the last two:

    begin    the first state: at a start, or the one that a run resumes
    judge    the state with what was recomputed, and the `Ending` where the run is over
    step     the next state, in the letters of the source, and an `Ending` where there is none

Success is claimed by a recurrence and confirmed by the residual recomputed from its definition. Where that misses the
tolerance, the run begins again from there, as long as each such miss is less than half of the one before (`verdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import Fingerprint, fingerprint, vector
from frechet.operators._metric import Metric, check_metric
from frechet.operators._operator import LinearOperator
from frechet.space import Space


class Moment(Protocol):
    """A frozen dataclass that holds all that a run needs to go on."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def iteration(self) -> int: ...
    @property
    def history(self) -> tuple[float, ...]: ...


S = TypeVar("S")
M = TypeVar("M", bound=Moment)


@dataclass(frozen=True, eq=False)
class Ending:
    """Why a run is over."""

    status: Status
    detail: str = ""
    direction: Tensor | None = None  # of non-positive curvature

    def message(self, method: str) -> str:
        return f"{method}: {self.detail}" if self.detail else method


def iterate(
    state: S,
    judge: Callable[[S], tuple[S, Ending | None]],
    step: Callable[[S], tuple[S, Ending | None]],
) -> tuple[S, Ending]:
    """Return the last state and why it is the last."""
    while True:
        state, ending = judge(state)
        if ending is None:
            state, ending = step(state)
        if ending is not None:
            return state, ending


@dataclass(eq=False)
class Course(Generic[M]):
    """The course of one call: its history, its limit and its observer, who is not shown where a resumed run begins."""

    history: list[float]
    first: int
    limit: int
    observe: Callable[[M], bool] | None
    stopped: bool = False

    @classmethod
    def of(cls, state: M, limit: int, observe: Callable[[M], bool] | None) -> Course[M]:
        return cls(list(state.history), state.iteration, limit, observe)

    def record(self, state: M, residual: float) -> None:
        """Show the state with the history before it, then add its residual to the history."""
        if self.observe is not None:  # the history is copied for an observer only
            self.watch(replace(state, history=tuple(self.history)))
        self.history.append(residual)

    def watch(self, state: M) -> None:
        if self.observe is not None and state.iteration > self.first:
            self.stopped = self.observe(state)

    def ended(self, state: M) -> Ending | None:
        """The ending that has nothing to do with the numbers."""
        if state.iteration >= self.limit:
            return Ending(Status.MAX_ITERATIONS)
        return Ending(Status.STOPPED) if self.stopped else None


def verdict(met: bool, excess: float, confirmed: float, told: str) -> Ending | None:
    """Whether a recomputed residual, `excess` times the tolerance, ends the run; `confirmed` was the last one's."""
    if met:
        return Ending(Status.CONVERGED)
    return None if excess < confirmed / 2 else Ending(Status.STAGNATED, told)


@dataclass(frozen=True, eq=False)
class System:
    """A x = b, and when it counts as solved; M is near the inverse of A."""

    A: LinearOperator
    space: Space  # of x and b; asked for once, since an operator may make it anew
    b: Tensor  # (n,), or (n, k) for k systems
    M: LinearOperator | None
    rtol: float
    norm_b: Tensor  # (k,)
    target: Tensor  # (k,), of the residuals
    goals: list[float]  # the targets on the host
    fingerprint: Fingerprint
    metric: Metric | None = None

    def size(self, r: Tensor) -> Tensor:
        """The sizes (k,) of residuals ``(n, k)``: their norms, or dual norms in a metric."""
        return self.space.norm(r) if self.metric is None else self.metric.dual_norm(r)

    def residual(self, x: Tensor) -> Tensor:
        return self.b - self.A @ x

    def preconditioned(self, r: Tensor) -> Tensor:
        return r if self.M is None else self.M @ r


def system(
    method: str,
    A: LinearOperator,
    b: Tensor,
    M: LinearOperator | None,
    rtol: float,
    atol: float,
    *more: str,
    metric: Metric | None = None,
) -> System:
    """The system with the targets ``max(rtol * norm(b), atol)``; in a metric norms are dual, and M is its inverse."""
    space = A.domain
    if metric is not None:
        M, more = check_metric(method, metric, space).inverse if M is None else M, (*more, "in a metric")
    norm_b = (space.norm(b) if metric is None else metric.dual_norm(b)).reshape(-1)
    target = torch.clamp(rtol * norm_b, min=atol)
    label = fingerprint(method, A, norm_b.tolist(), M, *more)
    return System(A, space, b, M, rtol, norm_b, target, target.tolist(), label, metric)


def origin(
    method: str, A: LinearOperator, b: Tensor, norm_b: float, x0: Tensor | Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor, int]:
    """x, b - A x and the products spent. A zero right-hand side has the solution zero, whatever the start."""
    x = None if x0 is None else vector(method, "x0", A.domain, x0)
    return (A.domain.zeros(), b, 0) if x is None or norm_b == 0 else (x, b - A @ x, 1)
