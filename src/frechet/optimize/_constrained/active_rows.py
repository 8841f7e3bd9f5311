"""The last digits of a dense problem: Newton steps on the sides that are active, as an equality problem.

As in `active_set.py`, with matrices: a side is active where its multiplier exceeds the distance to it, active bounds
are held, active rows become equalities, and a step stays only where the conditions of the whole problem hold better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from frechet.optimize._constrained.dense import Array, Indices, ProgramAsDense, Trial

STEPS = 6
ENOUGH = 1e-2  # of the tolerances: then it ends
BENT = 1e-8  # of the Hessian: curvature below is none


@dataclass(frozen=True, eq=False)
class Measured:
    """A trial with its derivatives, multipliers ``(m,)`` of the right signs, and what the conditions lack."""

    trial: Trial
    g: Array
    J: Array
    y: Array
    z: Array  # of the bounds ``(n,)``
    residual: float  # over the measure of f
    violated: float
    complementarity: float  # over the measure of f
    size: float  # of the gradient, over the measure of f

    @property
    def worst(self) -> float:
        return max(self.residual / max(1.0, self.size), self.violated, self.complementarity)

    def hold(self, gtol: float, ctol: float) -> bool:
        return self.residual <= gtol and self.complementarity <= gtol and self.violated <= ctol


def measured(dense: ProgramAsDense, trial: Trial, g: Array, J: Array, y: Array) -> Measured:
    """The measures of `kkt.conditions`, with these multipliers of the rows."""
    x, c, low, high = trial.x, trial.c, dense.low, dense.high
    if dense.one_sided:
        y = np.where(dense.needs_low, np.minimum(y, 0.0), np.where(dense.needs_high, np.maximum(y, 0.0), y))
    r = g + J.T @ y
    z, outside, slack = np.zeros_like(r), 0.0, 0.0
    if dense.bounded:
        distance = np.maximum(np.where(r > 0, x - dense.lower, dense.upper - x), 0.0)
        z = -r / (1 + distance)
        slack = _largest(z * np.where(z == 0, 0.0, distance))
        outside = float(np.maximum(dense.lower - x, x - dense.upper).max(initial=0.0))
    if dense.sided:
        away = np.where(y == 0, 0.0, np.where(y > 0, high - c, c - low))
        slack = max(slack, _largest(np.where(low == high, 0.0, y * away)))
    past = float((np.maximum(np.maximum(c - high, low - c), 0.0) * dense.past).max(initial=0.0))
    unit = dense.of_f
    return Measured(*(trial, g, J, y, z), _largest(r + z) * unit, max(past, outside), slack * unit, _largest(g) * unit)


def _largest(v: Array) -> float:
    return float(np.abs(v).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class ActiveSet:
    """The sides that are taken as active: of x, low and high, and of the rows."""

    at_low: NDArray[np.bool_]
    at_high: NDArray[np.bool_]
    low: NDArray[np.bool_]
    high: NDArray[np.bool_]

    def same(self, other: ActiveSet | None) -> bool:
        return other is not None and all(
            bool((mine == theirs).all())
            for mine, theirs in zip(
                (self.at_low, self.at_high, self.low, self.high),
                (other.at_low, other.at_high, other.low, other.high),
                strict=True,
            )
        )


def active_set(dense: ProgramAsDense, at: Trial, y: Array, z: Array) -> ActiveSet:
    """Return the sides whose multipliers exceed the distances to them."""
    x, c = at.x, at.c
    return ActiveSet(
        (z < 0) & (x - dense.lower <= -z),
        (z > 0) & (dense.upper - x <= z),
        (y < 0) & (c - dense.low <= -y),
        (y > 0) & (dense.high - c <= y),
    )


def sharpened(
    dense: ProgramAsDense, best: Measured, y: Array, active: ActiveSet, gtol: float, ctol: float, steps: int = STEPS
) -> Measured:
    """The best of the points met; `y` ``(m,)`` are the multipliers of the barrier."""
    x = best.trial.x
    at_low, at_high, low, high = active.at_low, active.at_high, active.low, active.high
    held = at_low | at_high | (dense.lower == dense.upper)
    rows, free = np.flatnonzero(low | high | (dense.low == dense.high)), np.flatnonzero(~held)
    target = np.where(high, dense.high, dense.low)[rows]
    face = np.where(at_low, dense.lower, np.where(at_high, dense.upper, x))
    point = best if bool((face == x).all()) else _at(dense, face, y)
    for turn in range(steps):
        if point is None:
            break
        whole = _least_squares(point, y, rows, free)
        point = measured(dense, point.trial, point.g, point.J, whole)
        if point.worst < best.worst:
            better, best = point.worst <= 0.1 * best.worst, point
        else:
            better = point is best
        if turn and (not better or best.hold(ENOUGH * gtol, ENOUGH * ctol)):
            break
        point = _stepped(dense, point, whole, rows, free, target)
    return best


def convex_on(dense: ProgramAsDense, at: Measured, active: ActiveSet) -> bool:
    """Whether the Lagrangian is convex where the active sides hold: a minimum, and no saddle."""
    held = active.at_low | active.at_high | (dense.lower == dense.upper)
    rows = np.flatnonzero(active.low | active.high | (dense.low == dense.high))
    free = np.flatnonzero(~held)
    H, A = at.trial.second(at.y)[np.ix_(free, free)], at.J[np.ix_(rows, free)]
    if not len(free):
        return True
    Z = scipy.linalg.null_space(A, rcond=1e-10) if len(rows) else np.eye(len(free))
    if not Z.shape[1]:
        return True
    bent = Z.T @ H @ Z
    return bool(np.linalg.eigvalsh(bent)[0] >= -BENT * max(1.0, float(np.abs(H).max(initial=0.0))))


def _least_squares(point: Measured, y: Array, rows: Indices, free: Indices) -> Array:
    """The multipliers of the active rows nearest to `y` that minimize the residual."""
    whole = np.zeros_like(y)
    if len(rows):
        A = point.J[np.ix_(rows, free)]
        r = point.g[free] + A.T @ y[rows]
        whole[rows] = y[rows] - np.linalg.lstsq(A.T, r, rcond=1e-12)[0]
    return whole


def _stepped(
    dense: ProgramAsDense, point: Measured, y: Array, rows: Indices, free: Indices, target: Array
) -> Measured | None:
    """Newton's step to the rows and in their null space, inside the bounds."""
    n, m = len(free), len(rows)
    H, A = point.trial.second(y)[np.ix_(free, free)], point.J[np.ix_(rows, free)]
    K = np.block([[H, A.T], [A, np.zeros((m, m))]])
    right = np.concatenate([-(point.g + point.J.T @ y)[free], target - point.trial.c[rows]])
    if not np.isfinite(K).all():
        return None
    step = np.linalg.lstsq(K, right, rcond=1e-13)[0][:n]
    x = point.trial.x.copy()
    x[free] += step
    return _at(dense, np.minimum(np.maximum(x, dense.lower), dense.upper), y)


def _at(dense: ProgramAsDense, x: Array, y: Array) -> Measured | None:
    trial = dense.trial(x)
    first = None if trial is None else trial.first()
    return None if trial is None or first is None else measured(dense, trial, *first, y)
