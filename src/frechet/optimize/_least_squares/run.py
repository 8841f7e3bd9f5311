"""What a least-squares algorithm hands back, and what it shows while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.residual import Linearization


@dataclass(frozen=True, eq=False)
class LeastSquaresState:
    """One moment of `least_squares`. `x` is flat ``(n,)``; `control` is the radius or the damping of the method."""

    iteration: int
    x: Tensor
    cost: float
    optimality: float
    control: float
    evaluations: int


@dataclass(frozen=True, eq=False)
class Run:
    """Where an algorithm ended. `status` is None where its tests said that it is done."""

    linear: Linearization
    status: Status | None
    iterations: int
    history: tuple[float, ...]  # the cost, per iteration
