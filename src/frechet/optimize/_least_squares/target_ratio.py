"""Levenberg-Marquardt with the largest of many radii at which the linear model still says something of the cost.

At each point the steps p(R) = argmin norm(r + J p)^2 within norm(p) <= R are tried for radii from a sixth to six times
the last one, from the shortest on. The step is the longest before the ratio

    rho(R) = (cost - cost(x + p(R))) / (cost - model(p(R)))

first falls below the target 0.075. One factorization serves all radii. The target is low on purpose: where the
residuals of a network can all be made zero, the valley is long and curved, and a search that wants the model to be
right takes steps that are much too short.

**Source.** R. Webb, H. Jerad and C. Cartis (2026), arXiv 2607.02194, with the constants of its public code.
**Differs from the source.**
1. J is factored as it is, without a sketch.
2. The target is met by the first crossing, and not by interpolation between radii.
3. Where no radius meets it, the last one is divided by six.
4. A large J with many more columns than rows is factored through J J' while the damping hides the rounding of squares.
5. The truncated step without damping is tried, too (`truncated_step.py`): the last digits come in a few steps.

**Cost.** One Jacobian and one SVD per step; up to `RADII` + 1 residuals.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.damped_step import Factor, boxed, factored
from frechet.optimize._least_squares.gram_factor import GramFactor, is_wide
from frechet.optimize._least_squares.last_digits import polished
from frechet.optimize._least_squares.optimality import IDLE, Rules, Verdict, free_to_move, judged, too_short
from frechet.optimize._least_squares.residual import LARGE, Linearization, Point, Residual, length
from frechet.optimize._least_squares.run import RESUMED, LeastSquaresState, Run
from frechet.optimize._least_squares.truncated_step import better

TARGET = 0.075
WIDTH, RADII = 6.0, 16  # of the window of radii around the last one, and how many


def target_ratio(
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    observe: Callable[[LeastSquaresState], bool] | None = None,
    resume: LeastSquaresState | None = None,
) -> Run:
    """Run from `linear`, the first radii around one, or around that of the state that goes on."""
    D = torch.ones_like(linear.x)
    iterations, history, status = 0, [linear.cost], None
    radius, idle = (1.0, 0) if resume is None else (resume.control, int(resume.memory["idle"]))
    while True:
        factor, verdict = _modelled(residual, linear, rules, D)
        if verdict.solved:
            linear = polished(residual, linear, rules) if rules.tight else linear
            break
        spent, memory = residual.ledger.residuals, {"method": RESUMED.index("target-ratio"), "idle": idle}
        if observe is not None and observe(
            LeastSquaresState(iterations, linear.x, linear.cost, verdict.optimality, radius, spent, memory)
        ):
            return Run(linear, Status.STOPPED, iterations, tuple(history), verdict)
        accepted = None
        while accepted is None and idle < IDLE and residual.ledger.residuals < rules.max_evaluations:
            point, found, short = _longest(residual, linear, rules, factor, radius)
            plain = factor.in_hand if isinstance(factor, GramFactor) else factor
            if plain is not None and (best := better(residual, linear, rules, plain, (point or linear.point).cost)):
                point, found = best[0], max(length(best[1]), radius / WIDTH)
            accepted = None if point is None else residual.linearized(point)
            radius = found if accepted is not None else radius / WIDTH
            if short and accepted is None:
                break
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * linear.noise * linear.size else 0
        linear, iterations = accepted, iterations + 1
        history.append(linear.cost)
    return Run(linear, status, iterations, tuple(history))


def _modelled(
    residual: Residual, linear: Linearization, rules: Rules, scale: Tensor
) -> tuple[Factor | GramFactor, Verdict]:
    """The linear model and the tests at a point: squares show that it is not solved, singular values that it is."""
    free = free_to_move(residual, linear)
    if not is_wide(linear.J):
        factor = factored(linear, scale, free)
        return factor, judged(residual, linear, rules, known=factor if linear.J.numel() >= LARGE else None)
    model = GramFactor(linear, scale, free)
    verdict = judged(residual, linear, rules, known=model.squared)
    return model, judged(residual, linear, rules, known=model.exact) if verdict.solved else verdict


def _longest(
    residual: Residual, linear: Linearization, rules: Rules, factor: Factor | GramFactor, radius: float
) -> tuple[Point | None, float, bool]:
    """The point of the longest step that meets the target, its radius, and whether even the longest is rounding."""
    best, chosen, damping, short = None, radius, 0.0, False
    slack = linear.noise * linear.size
    for k in range(RADII):
        R = radius * WIDTH ** (2 * k / (RADII - 1) - 1)
        p, damping = factor.within(R, damping)
        p = boxed(linear, factor, p, damping, residual.lower, residual.upper)
        short = too_short(residual, linear, rules, p)
        if short:
            continue
        predicted = factor.predicted(linear, p)
        point = residual.at(linear.x + p)
        gain = -math.inf if point is None else (linear.cost - point.cost + slack) / (max(predicted, 0.0) + slack)
        if gain < TARGET or point is None:
            break
        best, chosen = point, R
        if damping == 0:  # the undamped step, whatever the radius
            chosen = max(length(p), R / WIDTH)
            break
    return best, chosen, short
