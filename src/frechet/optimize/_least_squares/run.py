"""What a least-squares algorithm hands back and shows while it runs, and how it is run on residuals of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.last_digits import in_range
from frechet.optimize._least_squares.optimality import Rules, Verdict
from frechet.optimize._least_squares.residual import Linearization, Residual

ENDED = (Status.STOPPED, Status.MAX_ITERATIONS)
RESUMED = ("target-ratio", "adaptive-damping")  # the methods whose states have a memory


@dataclass(frozen=True, eq=False)
class LeastSquaresState:
    """One moment of `least_squares`. `x` is flat ``(n,)``; `control` is the radius or the damping of the method.

    `memory` holds what else "adaptive-damping" and "target-ratio" go on with, as numbers and tensors, for ``resume=``.
    """

    iteration: int
    x: Tensor
    cost: float
    optimality: float
    control: float
    evaluations: int
    memory: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Run:
    """Where an algorithm ended. `status` is None where its tests said that it is done."""

    linear: Linearization
    status: Status | None
    iterations: int
    history: tuple[float, ...]  # the cost, per iteration
    verdict: Verdict | None = None  # of the tests at `linear`, where the run was stopped after they were made
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


def resumed(algorithm: Callable[..., Run], method: str, state: LeastSquaresState | None) -> Callable[..., Run]:
    """The algorithm from a state on."""
    if state is None:
        return algorithm
    if method not in RESUMED:
        raise ValueError(
            f"least_squares: resume must come with method {' or '.join(map(repr, RESUMED))}, got {method!r}; start "
            "anew at x0=state.x"
        )
    if state.memory.get("method") != RESUMED.index(method):
        raise ValueError(f"least_squares: resume must be a state of method {method!r}; start anew at x0=state.x")
    return partial(algorithm, resume=state)


def sizes(x: Tensor) -> Tensor:
    """The sizes of the parameters; where one is zero, the largest of all."""
    return torch.where(x != 0, x.abs(), x.abs().max() if len(x) else 0.0)
