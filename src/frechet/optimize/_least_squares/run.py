"""What a least-squares algorithm hands back and shows while it runs, and how it is run on residuals of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.last_digits import in_range
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Linearization, Residual

ENDED = (Status.STOPPED, Status.MAX_ITERATIONS)


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
    doubt: float = math.inf  # the least `disagreement` of J with the last steps, where measured


def in_units(
    algorithm: Callable[..., Run],
    problem: Residual,
    linear: Linearization,
    rules: Rules,
    observe: Callable[[LeastSquaresState], bool] | None,
) -> tuple[Residual, Rules, Run]:
    """Run `algorithm` from `linear`, again and again, each time in a unit in which the squares of r are numbers.

    Returns the residual in its last unit, the rules with the last sizes, and the whole run, whose history is in units
    of the caller.
    """
    total, history = 0, ()
    while True:
        done, square = total, problem.square

        def watch(state: LeastSquaresState, done: int = done, square: float = square) -> bool:
            assert observe is not None
            return observe(replace(state, iteration=done + state.iteration, cost=square * state.cost))

        run = algorithm(problem, linear, rules, observe=None if observe is None else watch)
        total, history = total + run.iterations, (*history, *(c * problem.square for c in run.history[bool(history) :]))
        other, point = in_range(problem, run.linear.point)
        moved = None if other is problem or run.status in ENDED else other.linearized(point)
        if moved is None:
            return problem, rules, replace(run, iterations=total, history=history)
        problem, linear, rules = other, moved, replace(rules, x0=sizes(point.x))


def sizes(x: Tensor) -> Tensor:
    """The sizes of the parameters; where one is zero, the largest of all."""
    return torch.where(x != 0, x.abs(), x.abs().max() if len(x) else 0.0)
