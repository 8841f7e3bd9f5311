"""What a constrained algorithm is asked for, shows while it runs, and hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from frechet.linalg._result import Status


@dataclass(frozen=True, eq=False)
class Rules:
    """What the caller asked for."""

    gtol: float
    ctol: float
    max_iterations: int


@dataclass(frozen=True, eq=False)
class ConstrainedState:
    """One moment of a constrained minimization. `x` is flat ``(n,)``; `barrier` is mu, or the penalty of the augmented
    Lagrangian; `radius` is that of the trust region, 0 where there is none."""

    iteration: int
    x: Tensor
    value: float
    residual: float
    infeasibility: float
    barrier: float
    radius: float


Observe = Callable[[ConstrainedState], bool]


@dataclass(frozen=True, eq=False)
class Run:
    """Where an algorithm ended. `status` is None where its conditions hold."""

    x: Tensor
    y: Tensor  # of the rows ``(m,)``, in the units of the caller
    status: Status | None
    iterations: int
    history: tuple[float, ...]
    curvature: Tensor | None = None
