"""Cubic regularization, accelerated where f is convex: x+ minimizes g's + s'Hs/2 + M norm(s)^3 / 6 at a point v.

A plain step takes v = x. An accelerated one takes v between x and the minimizer y of an estimate sequence

    psi_k(y) = N norm(y - x_0)^3 / 6 + sum_i a_i (f(x_i) + g(x_i)'(y - x_i)),   v = (A_k x_k + a y_k) / (A_k + a),

which has a closed form. A step is accepted with the M for which, in the metric B,

    g(x+)'(v - x+) >= norm(g(x+))^(3/2) / sqrt(SLACK M),

and a is the largest for which this implies A_k f(x_k) <= min psi_k, so that f(x_k) - f* = O(1 / A_k) = O(k^-3). The
subproblem is solved in a Krylov space to a residual of ACCURACY M norm(s)^2, which is checked by one more product.

Acceleration needs convexity and slows the end. So the run begins with plain steps and goes on with them as long as each
halves the gradient; otherwise it accelerates, until one of: a step that halves the gradient; a step that reduces
f by less than the last plain one did; f(x+) > f(x); or psi, f or gradients that contradict convexity, which is noted
in the reason. Then a plain step follows. f never increases.

**Source.** Yu. Nesterov (2008), Accelerating the cubic regularization of Newton's method on convex functions, section
4, doi 10.1007/s10107-006-0089-x; inexact: A. Agafonov, D. Kamzolov, A. Gasnikov, A. Kavis, K. Antonakopoulos,
V. Cevher, M. Takac (2024), Advancing the lower bounds, algorithm 1 without noise, ICLR; M by C. Cartis, N. Gould,
Ph. Toint (2011), Adaptive cubic regularisation methods I, doi 10.1007/s10107-009-0286-5.

**Differs from the source.** (1) M is searched for, and a follows from it, in place of a schedule for both from a known
Lipschitz constant. (2) The switch between plain and accelerated steps. (3) A plain step is accepted where f falls by a
share of what its model promises. (4) The norm is that of the metric that the first
model chose.

**Cost.** A value and a gradient per trial; an accelerated step needs a gradient at v too; the products of one Krylov
space per step and one to check it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from frechet.linalg._result import Status
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.optimize._geometric import Geometric
from frechet.optimize._smooth.gradient_regularized import first_length
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.newton_loop import (
    Models,
    Observe,
    Rules,
    Run,
    at_limit,
    forcing,
    gain,
    limits,
    noise,
    polished,
    shown,
    solved,
    spent,
    too_small,
)
from frechet.optimize._smooth.quadratic_model import Diagonal, Model, Step
from frechet.optimize._smooth.smooth_function import Curvature, Parameters, Point, SmoothFunction
from frechet.optimize._smooth.smooth_minimum import MOST, smooth_minimum

SLACK = 3.0
ACCEPT, GOOD = 1e-4, 0.75
ACCURACY = 0.25
UP, DOWN = 4.0, 0.25
TRIALS = 60
HALF = 0.5


def cubic_newton(
    f: Callable[..., Tensor] | Objective,
    x0: Parameters | None = None,
    *,
    hessian: Curvature | None = None,
    preconditioner: LinearOperator | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    max_iterations: int = 1000,
    max_basis: int = MOST,
    escape: bool = True,
    seed: int = 0,
    observe: Callable[..., bool] | None = None,
) -> MinimizeSolution:
    """Find a minimum of f near x0 by accelerated cubic regularization.

    The method is here to be studied: no class of problems was found on which it needs fewer evaluations than
    `minimize`. See `claims/accelerated_cubic.py`.

    Args:
        f: as in `minimize`.
        x0: as in `minimize`.
        hessian: as in `minimize`.
        preconditioner: as in `minimize`.
        gtol: as in `minimize`.
        ftol: as in `minimize`.
        max_iterations: as in `minimize`.
        max_basis: as in `minimize`.
        escape: as in `minimize`.
        seed: as in `minimize`.
        observe: as in `minimize`.

    Returns:
        A `MinimizeSolution` with the statuses of `minimize`. Its message says how many steps were accelerated.

    Raises:
        NonFinite: f is not finite at x0.

    Example:
        >>> import torch
        >>> from frechet.optimize import studies
        >>> s = studies.cubic_newton(lambda x: (x**4).sum() - x.sum(), torch.ones(2, dtype=torch.float64))
        >>> s.x
        tensor([0.6300, 0.6300], dtype=torch.float64)
    """
    return smooth_minimum(
        f,
        x0,
        cubic_steps,
        "cubic",
        caller="cubic_newton",
        hessian=hessian,
        preconditioner=preconditioner,
        gtol=gtol,
        ftol=ftol,
        max_iterations=max_iterations,
        max_basis=max_basis,
        escape=escape,
        seed=seed,
        observe=observe,
    )


@dataclass(eq=False)
class _Estimate:
    """The estimate sequence since its last start `x0`: psi(y) = N norm(y - x0)^3 / 6 + constant + slope'(y - x0)."""

    x0: Tensor
    N: float
    A: float
    slope: Tensor
    constant: float


def cubic_steps(f: SmoothFunction, point: Point, rules: Rules, *, observe: Observe | None = None) -> Run:  # noqa: C901 - a branch for each way to go on
    """Run from `point`."""
    models, M, iterations, history = Models(f, rules, fixed=True), 0.0, 0, [point.value]
    pace = Geometric(f.space.inner)
    status, message, estimate, accelerated, convex, rival = None, "", None, 0, True, 0.0
    while True:
        if point.largest <= max(rules.gtol, rules.least):
            break
        if observe is not None and observe(shown(f, point, iterations, M)):
            status = Status.STOPPED
            break
        status, message = limits(f, point, rules, iterations)
        if status is not None:
            break
        after, model, size = None, None, float(f.space.norm(point.gradient))
        if estimate is not None and convex:
            after, M, convex = _accelerated(f, point, models, rules, estimate, M)
            if after is not None:
                accelerated += 1
                estimate = estimate if point.value - after.value >= rival else None
        if after is None:
            estimate, model = None, models.at(point)
            if message := solved(point, model, rules):
                if rules.tight:
                    point, more = polished(f, point, models)
                    iterations, history = iterations + len(more), history + more
                break
            after, M = _plain(f, point, model, rules, M or 2 * model.size / first_length(model) ** 2)
        if after is None:
            after, more = polished(f, point, models)
            iterations, history = iterations + len(more[:-1]), history + more[:-1]
            if after is point:
                message = "" if model is None else spent(f, point, model, rules)
                status = None if message else Status.STAGNATED
                break
        slow = float(f.space.norm(after.gradient)) > HALF * size
        if model is not None and slow and convex:
            estimate, rival = _Estimate(after.x, M, 0.0, f.space.zeros(), 0.0), point.value - after.value
        elif not slow:
            estimate = None
        point, iterations = at_limit(f, after, after.x - point.x, pace, rules), iterations + 1
        history.append(point.value)
    note = f"{accelerated} of {iterations} steps accelerated" + ("" if convex else "; f is not convex")
    small = too_small(point, status, rules)
    return Run(point, status, iterations, tuple(history), message, (note,), small)


def _minimizer(f: SmoothFunction, model: Model, point: Point, rules: Rules, M: float) -> tuple[Step, Tensor]:
    """The step of the cubic model, its residual checked by a product."""
    accuracy = forcing(f, model, point, rules)

    def tolerance(step: Step) -> float:
        return min(accuracy, ACCURACY * M * step.length**2)

    while True:
        step = model.solved(partial(Diagonal.cubic, M=M), tolerance)
        s = model.vector(step)
        if model.exhausted or model.left_over(step, point.gradient) <= 2 * ACCURACY * M * step.length**2:
            return step, s
        model.grow()


def _plain(f: SmoothFunction, point: Point, model: Model, rules: Rules, M: float) -> tuple[Point | None, float]:
    """The next point, None where no M gives one, and the next M."""
    while math.isfinite(M):
        step, s = _minimizer(f, model, point, rules, M)
        moved = point.x + s
        if step.decrease <= 0 or bool((moved == point.x).all()):
            break
        trial = f.at(moved)
        if trial.value <= rules.lowest:
            return Point(moved, trial.value, point.gradient, [], []), M
        gained, after = gain(f, point, trial, s)
        promised = step.decrease - M * step.length**3 / 6
        if gained >= ACCEPT * promised:
            after = f.differentiated(trial) if after is None else after
            if after is not None:
                return after, M * DOWN if gained >= GOOD * promised else M
        M *= UP
    return None, M


def _accelerated(
    f: SmoothFunction, point: Point, models: Models, rules: Rules, e: _Estimate, M: float
) -> tuple[Point | None, float, bool]:
    """The next point by an accelerated step, None where it would not be below; the next M; whether f may be convex."""
    space = f.space
    for _ in range(TRIALS):
        a = _weight(e, M)
        v = f.differentiated(f.at((e.A * point.x + a * _bottom(models, e)) / (e.A + a)))
        if v is None:
            return None, M, True
        if v.largest <= rules.gtol:
            return (v if v.value <= point.value else None), M, True
        model = models.at(v)
        if model.diagonal.values[0] < -1e-6 * abs(model.diagonal.values[-1]):
            return None, M, False
        _, s = _minimizer(f, model, v, rules, M)
        after = f.differentiated(f.at(v.x + s))
        if after is not None:
            size = model.dual_norm(after.gradient)
            if -float(space.inner(after.gradient, s)) >= size**1.5 / math.sqrt(SLACK * M):
                slack = noise(f, point)
                if after.value > point.value + slack:
                    return None, M, True
                below = after.value + float(space.inner(after.gradient, point.x - after.x))
                e.constant += a * (after.value + float(space.inner(after.gradient, e.x0 - after.x)))
                e.slope, e.A = e.slope + a * after.gradient, e.A + a
                convex = point.value >= below - 10 * slack and _least(models, e) >= e.A * (after.value - 10 * slack)
                return after, M * HALF, convex
        M *= UP
    return None, M, True


def _weight(e: _Estimate, M: float) -> float:
    """The largest a with (A + a) / sqrt(SLACK M) >= 4 a^(3/2) / (3 sqrt(N)): t = sqrt(a), t^3 = k (A + t^2)."""
    k = 0.75 * math.sqrt(e.N / (SLACK * M))
    t = k + (k * e.A) ** (1 / 3)  # above the root, where the cubic is convex: Newton's method falls to it
    for _ in range(TRIALS):
        less = t - (t**3 - k * (e.A + t * t)) / (3 * t * t - 2 * k * t)
        if not less < t:
            break
        t = less
    return t * t


def _bottom(models: Models, e: _Estimate) -> Tensor:
    """The minimizer of psi."""
    downhill, size = models.raised(e.slope)
    return e.x0 - math.sqrt(2 / (e.N * size)) * downhill if size > 0 else e.x0


def _least(models: Models, e: _Estimate) -> float:
    """The minimum of psi: with N r^2 / 2 = norm(slope), -N r^3 / 3 below the constant."""
    _, size = models.raised(e.slope)
    return e.constant - (2 * size) ** 1.5 / math.sqrt(e.N) / 3
