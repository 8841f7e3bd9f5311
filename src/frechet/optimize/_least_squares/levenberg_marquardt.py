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
3. Steps are accepted by a gain ratio in which the rounding error of the cost is added to both sides. The run ends with
   the steps of `last_digits.py`, so that the result has the digits that an evaluation of r allows.
4. A solution at which J lacks rank is left along a direction of negative curvature, if second derivatives find one.
5. Where a step shows that second derivatives matter as much as J'J (the residual is large, or the step overshoots), the
   next ones take the model of `curved_model`, until they do not.
6. Bounds, by projection with an inner active set.
7. A step keeps the signs of the parameters, until one has asked twice for the other; see `move_limits`.
8. Where the columns of J grow a thousandfold in a step, the radius grows with the length of that step: it was in units
   of a start at which r hardly depended on x.
9. In a long curved valley steps may raise the cost; see `reference_cost`. They have no second-order correction there:
   the residual that it takes is worth more as a step. The run returns the best point.

**Cost.** One Jacobian and one residual per step, one more residual where the radius is active; one SVD per Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._geometric import Geometric
from frechet.optimize._least_squares.curved_model import Curved, curved
from frechet.optimize._least_squares.damped_step import Factor, boxed, column_scale, factored
from frechet.optimize._least_squares.last_digits import at_limit, polished
from frechet.optimize._least_squares.move_limits import MoveLimits
from frechet.optimize._least_squares.optimality import IDLE, Rules, Verdict, free_to_move, judged, too_short
from frechet.optimize._least_squares.reference_cost import ReferenceCost, in_valley
from frechet.optimize._least_squares.residual import LARGE, Linearization, Point, Residual, length
from frechet.optimize._least_squares.run import LeastSquaresState, Run
from frechet.optimize._least_squares.wrong_jacobian import LAST, disagreement

ACCEPT, POOR, GOOD = 1e-4, 0.25, 0.75
PROBE, BEND = 0.1, 0.75  # of the step for the second derivative; how long the correction may be, of half the step
FADE = 0.9  # of the earlier column norms in D, per step
CURVED = 0.3  # p'Sp of p'J'Jp from which on the second derivatives are worth their price
LEAST = 0.1  # of norm(D x): what each D_j x_j counts for at least
WIDER = 4.0  # growth of the radius after a good step in a valley
LEAP = 1e3  # growth of norm(D p) from one point to the next: beyond, the radius belongs to another place
MOST = 1e6  # times the norm of a column that D may be: scaled, it must not drown in rounding


def levenberg_marquardt(
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    first: float = 3.0,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`; `first` is the first radius, of norm(D x0)."""
    search, best = _Search(residual, rules, linear, first), linear
    iterations, history, status = 0, [linear.cost], None
    while True:
        model, verdict = search.modelled(linear)
        if verdict.solved:
            best = polished(residual, linear, rules, isinstance(model, Curved)) if rules.tight else linear
            break
        if observe is not None and observe(
            LeastSquaresState(
                iterations, linear.x, linear.cost, verdict.optimality, search.radius, residual.ledger.residuals
            )
        ):
            status = Status.STOPPED
            break
        idle = search.idle >= IDLE
        accepted = None if idle else search.stepped(linear, model, not iterations)
        if accepted is None and not idle and residual.ledger.residuals >= rules.max_evaluations:
            status = Status.MAX_ITERATIONS
            break
        if accepted is None and search.limits.once:
            status = Status.STAGNATED
            break
        if accepted is None:
            search.begin_anew(linear)
            continue
        linear, iterations = accepted, iterations + 1
        best = linear if linear.cost <= best.cost else best
        history.append(linear.cost)
    return Run(best, status, iterations, tuple(history), doubt=min(search.doubts, default=math.inf))


@dataclass(frozen=True, eq=False)
class _Trial:
    """A step p, its length in the norm of the radius, and what came of it."""

    p: Tensor
    Jp: Tensor
    size: float
    predicted: float
    point: Point | None
    gain: float
    bend: float  # p'Sp, where the correction along p told it

    @property
    def good(self) -> bool:
        return self.gain > ACCEPT and self.predicted > 0


class _Search:
    """What goes from one point to the next: the radius, the column norms met, and what the steps were like."""

    def __init__(self, residual: Residual, rules: Rules, linear: Linearization, first: float) -> None:
        self.residual, self.rules, self.first = residual, rules, first
        self.seen, self.radius = linear.columns, fresh(linear, first)
        self.scale = column_scale(linear.columns)
        self.damping, self.idle, self.bends = 0.0, 0, 0
        self.doubts: tuple[float, ...] = ()  # of the last steps
        self.reference, self.valley = ReferenceCost(linear.cost, linear.cost), False
        self.pace, self.limits = Geometric(torch.dot), MoveLimits.of(residual.lower, residual.upper)
        self.moved = torch.zeros_like(linear.x)
        self.low, self.high = residual.lower, residual.upper

    def begin_anew(self, linear: Linearization) -> None:
        """Forget all but the point, and go on without move limits."""
        self.seen, self.radius, self.damping, self.idle = linear.columns, fresh(linear, self.first), 0.0, 0
        self.limits, self.reference = self.limits.released(), ReferenceCost(linear.cost, linear.cost)

    def modelled(self, linear: Linearization) -> tuple[Factor | Curved, Verdict]:
        """The model of the cost at a new point, and whether the point is a solution."""
        residual, rules, before = self.residual, self.rules, self.scale
        self.seen = torch.maximum(linear.columns, FADE * self.seen)
        free = free_to_move(residual, linear)
        # the units of parameters of which most do not matter would drown those that do
        D = column_scale(self.seen) if self.valley else region(linear.columns, self.seen, linear.x, rules.x0)
        self.scale = D
        if (long := length(self.scale * self.moved)) > LEAP * (short := length(before * self.moved)) > 0:
            self.radius *= long / short
        self.low, self.high = self.limits.around(linear.x)
        model = factored(linear, self.scale, free)
        self.valley = in_valley(model, linear.cost)
        known, movable = model if linear.J.numel() >= LARGE else None, int(free.sum())
        verdict = judged(residual, linear, rules, known=known)
        # where J lacks rank, a point that solves it to first order may still be a saddle or a maximum
        flat = movable > model.rank and linear.size > linear.noise
        if not movable or not (flat if verdict.solved else self.bends >= 2 or (flat and not model.rank)):
            return model, verdict
        S = residual.curvature(linear)
        if S is None:
            return model, verdict
        second = curved(linear, S, self.scale, free)
        if not verdict.solved:
            return second, judged(residual, linear, rules, second.reduction)
        return (second, replace(verdict, solved=False)) if second.descends else (model, verdict)

    def stepped(self, linear: Linearization, model: Factor | Curved, start: bool) -> Linearization | None:
        """The next point; None where no step is accepted."""
        residual, accepted, trial = self.residual, None, None
        while accepted is None and residual.ledger.residuals < self.rules.max_evaluations:
            trial = self._tried(linear, model, start)
            if trial is None:
                return None  # refused down to the rounding of x
            accepted = residual.linearized(trial.point) if trial.good and trial.point is not None else None
            self._resize(linear, trial, accepted is not None)
        if accepted is None or trial is None:
            return None
        self._learn(linear, accepted, model, trial)
        return at_limit(residual, accepted, self.moved, self.pace)

    def _tried(self, linear: Linearization, model: Factor | Curved, start: bool) -> _Trial | None:
        residual = self.residual
        p, self.damping = model.within(self.radius, self.damping)
        if start:
            self.radius = min(self.radius, length(self.scale * p))
        p = boxed(linear, model, p, self.damping, self.low, self.high)
        if too_short(residual, linear, self.rules, p):
            return None
        predicted, Jp = model.predicted(linear, p), linear.J @ p.to(linear.J.device)
        bent, bend = p, math.nan
        if isinstance(model, Factor) and self.damping > 0 and not self.valley:
            bent, bend = accelerated(residual, linear, model, p, Jp, self.damping)
            bent = torch.minimum(torch.maximum(bent, self.low - linear.x), self.high - linear.x)
        point, gain, slack = residual.at(linear.x + bent), -math.inf, linear.noise * linear.size
        if point is not None:
            gain = ((self.reference.value if self.valley else linear.cost) - point.cost + slack) / (
                max(predicted, 0.0) + slack
            )
        return _Trial(p, Jp, length(self.scale * p), predicted, point, gain, bend)

    def _resize(self, linear: Linearization, trial: _Trial, accepted: bool) -> None:
        """The radius for the next trial."""
        if not accepted or trial.gain <= POOR:
            refused = trial.point is None or (not accepted and trial.gain > ACCEPT) or self.valley
            shrink = 0.25 if refused or trial.point is None else cut(linear, trial.point.cost, trial.p)
            self.radius = shrink * min(self.radius, 10 * trial.size)
            self.damping /= shrink
        elif self.damping == 0 or trial.gain >= GOOD:
            growth = WIDER if self.valley else 2.0
            self.radius, self.damping = growth * trial.size, self.damping / growth

    def _learn(self, linear: Linearization, after: Linearization, model: Factor | Curved, trial: _Trial) -> None:
        """What an accepted step tells of second derivatives, of rounding, of the limits and of a valley."""
        slack, fell, full = linear.noise * linear.size, linear.cost - after.cost, self.damping == 0
        # p'Sp: known, or from the second derivative along p, or from what a full step did not gain
        bend, flat = trial.bend, float(trial.Jp.square().sum())
        if isinstance(model, Curved):
            bend = float(trial.p @ model.hessian @ trial.p) - flat
        elif full and trial.predicted > 100 * slack:
            bend = 2 * (trial.predicted - fell)
        if math.isfinite(bend):
            missed = trial.gain >= POOR if isinstance(model, Curved) else trial.gain < GOOD or full
            self.bends = self.bends + 1 if abs(bend) > CURVED * flat and missed else 0
        self.idle = self.idle + 1 if abs(fell) <= 0.1 * slack else 0
        if math.isfinite(doubt := disagreement(linear, after)):
            self.doubts = (*self.doubts[1 - LAST :], doubt)
        self.moved, self.limits = after.x - linear.x, self.limits.after(linear.x, after.x)
        self.reference = self.reference.after(after.cost)


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
