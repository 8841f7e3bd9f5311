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
   D forgets a tenth per step of what it has met: a parameter that mattered once is not held for ever; and it has a
   lower limit relative to the size of the parameter.
2. Residuals that are not finite refuse the step and shrink the radius.
3. Steps are accepted by a gain ratio in which the rounding error of the cost is added to both sides, and the run ends
   with the steps of `polish`, so that the result has the digits that an evaluation of r allows.
4. A solution at which J lacks rank is left along a direction of negative curvature, if second derivatives find one.
5. Where a step shows that second derivatives matter as much as J'J (the residual is large, or the step overshoots), the
   next ones take the model of `curved_model`, until they do not.
6. Bounds, by projection with an inner active set.
7. A step keeps the signs of the parameters, until one has asked twice for the other; see `move_limits`.
8. Where the columns of J grow a thousandfold in a step, the radius grows with the length of that step: it was in units
   of a start at which r hardly depended on x.

**Cost.** One Jacobian and one residual per step, one more residual where the radius is active; one SVD per Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._geometric import Geometric
from frechet.optimize._least_squares.curved_model import Curved, curved
from frechet.optimize._least_squares.damped_step import Factor, boxed, column_scale, factored
from frechet.optimize._least_squares.last_digits import at_limit, polished
from frechet.optimize._least_squares.move_limits import MoveLimits
from frechet.optimize._least_squares.optimality import IDLE, Rules, free_to_move, judged, too_short
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._least_squares.run import LeastSquaresState, Run

ACCEPT, POOR, GOOD = 1e-4, 0.25, 0.75
PROBE, BEND = 0.1, 0.75  # of the step for the second derivative; how long the correction may be, of half the step
FADE = 0.9  # of the earlier column norms in D, per step
CURVED = 0.3  # p'Sp of p'J'Jp from which on the second derivatives are worth their price
LEAST = 0.1  # of norm(D x): what each D_j x_j counts for at least
LEAP = 1e3  # growth of norm(D p) from one point to the next: beyond, the radius belongs to another place
MOST = 1e6  # times the norm of a column that D may be: scaled, it must not drown in rounding


def levenberg_marquardt(  # noqa: C901 - one branch for each way to go on or to end
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    first: float = 3.0,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`; `first` is the first radius, of norm(D x0)."""
    seen = linear.columns
    before, radius = column_scale(seen), fresh(linear, first)
    damping, iterations, idle, bends, history, status = 0.0, 0, 0, 0, [linear.cost], None
    pace, limits = Geometric(torch.dot), MoveLimits.of(residual.lower, residual.upper)
    moved = torch.zeros_like(linear.x)
    while True:
        seen = torch.maximum(linear.columns, FADE * seen)
        scale, free = region(linear.columns, seen, linear.x, rules.x0), free_to_move(residual, linear)
        if (long := length(scale * moved)) > LEAP * (short := length(before * moved)) > 0:
            radius *= long / short
        before, (low, high) = scale, limits.around(linear.x)
        model: Factor | Curved = factored(linear, scale, free)
        verdict, movable = judged(residual, linear, rules), int(free.sum())
        # where J lacks rank, a point that solves it to first order may still be a saddle or a maximum
        flat = movable > model.rank and linear.size > linear.noise
        if movable and (flat if verdict.solved else bends >= 2 or (flat and not model.rank)):
            S = residual.curvature(linear)
            if S is not None:
                second = curved(linear, S, scale, free)
                if not verdict.solved:
                    model, verdict = second, judged(residual, linear, rules, second.reduction)
                elif second.descends:
                    model, verdict = second, replace(verdict, solved=False)
        if verdict.solved:
            if rules.tight:
                linear = polished(residual, linear, rules, isinstance(model, Curved))
            break
        if observe is not None and observe(
            LeastSquaresState(iterations, linear.x, linear.cost, verdict.optimality, radius, residual.ledger.residuals)
        ):
            status = Status.STOPPED
            break
        if idle >= IDLE and limits.once:
            status = Status.STAGNATED
            break
        if idle >= IDLE:
            seen, radius, damping, idle, limits = linear.columns, fresh(linear, first), 0.0, 0, limits.released()
            continue
        accepted, slack = None, linear.noise * linear.size
        Jp, gain, bend = linear.r, -math.inf, math.nan
        while accepted is None and residual.ledger.residuals < rules.max_evaluations:
            p, damping = model.within(radius, damping)
            if not iterations:
                radius = min(radius, length(scale * p))
            p = boxed(linear, model, p, damping, low, high)
            if too_short(residual, linear, rules, p):
                break  # refused down to the rounding of x
            predicted, Jp = model.predicted(linear, p), linear.J @ p.to(linear.J.device)
            bent, bend = p, math.nan
            if isinstance(model, Factor) and damping > 0:
                bent, bend = accelerated(residual, linear, model, p, Jp, damping)
                bent = torch.minimum(torch.maximum(bent, low - linear.x), high - linear.x)
            point = residual.at(linear.x + bent)
            gain = -math.inf
            if point is not None:
                gain = (linear.cost - point.cost + slack) / (max(predicted, 0.0) + slack)
            if gain > ACCEPT and predicted > 0 and point is not None:
                accepted = residual.linearized(point)
            size = length(scale * p)
            if accepted is None or gain <= POOR:
                shrink = 0.25 if point is None or (accepted is None and gain > ACCEPT) else cut(linear, point.cost, p)
                radius = shrink * min(radius, 10 * size)
                damping /= shrink
            elif damping == 0 or gain >= GOOD:
                radius, damping = 2 * size, damping / 2
            # p'Sp: known, or from the second derivative along p, or from what a full step did not gain
            if isinstance(model, Curved):
                bend = float(p @ model.hessian @ p) - float(Jp.square().sum())
            elif damping == 0 and point is not None and predicted > 100 * slack:
                bend = 2 * (predicted - (linear.cost - point.cost))
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            if not spent and not limits.once:
                seen, radius, damping, idle, limits = linear.columns, fresh(linear, first), 0.0, 0, limits.released()
                continue
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            break
        if math.isfinite(bend):
            much = abs(bend) > CURVED * float(Jp.square().sum())
            missed = gain >= POOR if isinstance(model, Curved) else gain < GOOD or damping == 0
            bends = bends + 1 if much and missed else 0
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * slack else 0
        moved, limits = accepted.x - linear.x, limits.after(linear.x, accepted.x)
        linear, iterations = at_limit(residual, accepted, moved, pace), iterations + 1
        history.append(linear.cost)
    return Run(linear, status, iterations, tuple(history))


def fresh(linear: Linearization, first: float) -> float:
    """The radius of a run that begins here: of norm(D x)."""
    reach = length(column_scale(linear.columns) * linear.x)
    return first * (reach if reach > 1e-3 * linear.size else linear.size)


def region(columns: Tensor, seen: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """D: a parameter that r hardly depends on may still not change by orders of magnitude in one step."""
    D, sizes = column_scale(seen), torch.maximum(x.abs(), x0)
    least = LEAST * length(D * x) / sizes
    D = torch.where(x0 > 0, torch.maximum(D, least), D)
    return torch.where(columns > 0, torch.minimum(D, MOST * columns), D)


def accelerated(
    residual: Residual, linear: Linearization, factor: Factor, p: Tensor, Jp: Tensor, damping: float
) -> tuple[Tensor, float]:
    """p with the correction for the second derivative of r along p, where that is short enough; and p'Sp."""
    probe = residual.at(linear.x + PROBE * p)
    if probe is None:
        return p, math.nan
    along, rows = (Jp, 1.0) if linear.rows is None else (Jp / linear.rows, linear.rows)
    second = rows * (2 / PROBE) * ((probe.r - linear.point.r) / PROBE - along)
    correction = 0.5 * factor.correction(second, damping)
    bend = float((linear.r * second).sum())
    if not 2 * length(factor.scale * correction) <= BEND * length(factor.scale * p):
        return p, bend
    return p + correction, bend


def cut(linear: Linearization, cost: float, p: Tensor) -> float:
    """The factor for the radius: where a parabola through the slope and both costs has its minimum, in [0.1, 0.5]."""
    slope = float(linear.gradient @ p)
    rise = cost - linear.cost - slope
    if not rise > 0:
        return 0.5
    return min(max(-slope / (2 * rise), 0.1), 0.5)
