"""Levenberg-Marquardt: min r(x)'r(x) / 2 between bounds, damped by a radius, and the radius by the gain ratio.

Each step minimizes norm(r + J p)^2 within norm(D p) <= radius, D the largest
column norms met, slowly forgotten: parameters may have any
units. It is followed by a second-order correction along the curve that the step begins (geodesic acceleration), from
one more residual: in curved narrow valleys it allows steps that are several times longer. Entries that would leave the
box stop at its side, and the others are solved for again; a side that the gradient pushes against holds its entry.

**Source.** J. J. More (1978), The Levenberg-Marquardt algorithm: implementation and theory, doi 10.1007/BFb0067700;
M. K. Transtrum and J. P. Sethna (2012), Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares
minimization, section 3, arXiv 1201.5885.

**Differs from the source.**
1. The first radius is 3 norm(D x0), not a hundred times that: the first step stays where the user says things happen.
   D forgets at a tenth per step what it has met: a parameter that mattered once is not held for ever.
2. Residuals that are not finite refuse the step and shrink the radius.
3. Steps are accepted by a gain ratio in which the rounding error of the cost is added to both sides, and the run ends
   with the steps of `polish`, so that the result has the digits that an evaluation of r allows.
4. Bounds, by projection with an inner active set.

**Cost.** One Jacobian and one residual per step, one more residual where the radius is active; one SVD per Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.linalg.result import Status
from frechet.solve.damped_step import Factor, boxed, column_scale, factored, model_reduction
from frechet.solve.optimality import Rules, free_to_move, judged
from frechet.solve.polish import polished
from frechet.solve.residual import Linearization, Residual, length
from frechet.solve.run import LeastSquaresState, Run

ACCEPT, POOR, GOOD = 1e-4, 0.25, 0.75
PROBE, BEND = 0.1, 0.75  # of the step for the second derivative; how long the correction may be, of half the step
FADE = 0.9  # of the earlier column norms in D, per step
IDLE = 10  # steps in a row that changed the cost by rounding only


def levenberg_marquardt(
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    first: float = 3.0,
    acceleration: bool = True,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`; `first` is the first radius, of norm(D x0)."""
    seen = linear.columns
    scale = column_scale(seen)
    radius = first * max(length(scale * linear.x), 1e-3 * linear.size)
    damping, iterations, idle, history, status = 0.0, 0, 0, [linear.cost], None
    while True:
        seen = torch.maximum(linear.columns, FADE * seen)
        scale = column_scale(seen)
        factor = factored(linear, scale, free_to_move(residual, linear))
        verdict = judged(residual, linear, rules)
        if verdict.solved:
            if rules.tight:
                linear = polished(residual, linear, rules, damping)
            break
        if observe is not None and observe(
            LeastSquaresState(iterations, linear.x, linear.cost, verdict.optimality, radius, residual.ledger.residuals)
        ):
            status = Status.STOPPED
            break
        if idle >= IDLE:
            status = Status.STAGNATED
            break
        accepted = None
        while accepted is None and residual.ledger.residuals < rules.max_evaluations:
            p, damping = factor.within(radius, damping)
            if not iterations:
                radius = min(radius, length(scale * p))
            p = boxed(linear, factor, p, damping, residual.lower, residual.upper)
            if bool((p.abs() <= residual.eps * torch.maximum(linear.x.abs(), rules.x0)).all()):
                break  # refused down to the rounding of x
            predicted, Jp = model_reduction(linear, p)
            moved = p
            if acceleration and damping > 0:
                moved = accelerated(residual, linear, factor, p, Jp, damping)
            point = residual.at(linear.x + moved)
            gain = -math.inf
            if point is not None:
                slack = linear.noise * linear.size
                gain = (linear.cost - point.cost + slack) / (max(predicted, 0.0) + slack)
            if gain > ACCEPT and predicted > 0 and point is not None:
                accepted = residual.linearized(point)
            size = length(scale * p)
            if accepted is None or gain <= POOR:
                shrink = (
                    0.25 if point is None or (accepted is None and gain > ACCEPT) else cut(linear, point.cost, p, Jp)
                )
                radius = shrink * min(radius, 10 * size)
                damping /= shrink
            elif damping == 0 or gain >= GOOD:
                radius, damping = 2 * size, damping / 2
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            if status is Status.STAGNATED:
                linear = polished(residual, linear, rules)
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * linear.noise * linear.size else 0
        linear, iterations = accepted, iterations + 1
        history.append(linear.cost)
    return Run(linear, status, iterations, tuple(history))


def accelerated(
    residual: Residual, linear: Linearization, factor: Factor, p: Tensor, Jp: Tensor, damping: float
) -> Tensor:
    """p and the correction for the second derivative of r along p, where that is short enough to be trusted."""
    probe = residual.at(linear.x + PROBE * p)
    if probe is None:
        return p
    Jp_plain = Jp if linear.rows is None else Jp / linear.rows
    second = (2 / PROBE) * ((probe.r - linear.point.r) / PROBE - Jp_plain)
    correction = 0.5 * factor.correction(second if linear.rows is None else linear.rows * second, damping)
    bent = torch.minimum(torch.maximum(p + correction, residual.lower - linear.x), residual.upper - linear.x)
    if not 2 * length(factor.scale * correction) <= BEND * length(factor.scale * p):
        return p
    return bent


def cut(linear: Linearization, cost: float, p: Tensor, Jp: Tensor) -> float:
    """The factor for the radius: where a parabola through the slope and both costs has its minimum, in [0.1, 0.5]."""
    slope = float(linear.gradient @ p)
    rise = cost - linear.cost - slope
    if not rise > 0:
        return 0.5
    return min(max(-slope / (2 * rise), 0.1), 0.5)
