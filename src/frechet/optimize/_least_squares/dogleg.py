"""Powell's dogleg: steps on the path from the steepest descent point to the undamped one, within norm(D p) <= radius.

**Source.** M. J. D. Powell (1970), A hybrid method for nonlinear equations, in Numerical methods for nonlinear
algebraic equations (P. Rabinowitz, ed.); J. Nocedal and S. J. Wright (2006), Numerical optimization, section 4.1 and
chapter 10.

**Differs from the source.** The undamped step is the shortest one where J lacks rank; the scaling, the gain ratio and
the last digits are those of `levenberg_marquardt`.

**Cost.** One residual per trial, one Jacobian per step; one SVD per Jacobian, and nothing more for a change of the
radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._geometric import Geometric
from frechet.optimize._least_squares.damped_step import boxed, factored
from frechet.optimize._least_squares.last_digits import at_limit, polished
from frechet.optimize._least_squares.levenberg_marquardt import ACCEPT, FADE, GOOD, POOR, cut, region
from frechet.optimize._least_squares.optimality import IDLE, Rules, free_to_move, judged, too_short
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._least_squares.run import LeastSquaresState, Run


def dogleg(  # noqa: C901 - one branch for each way to go on or to end
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    first: float = 1.0,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`; `first` is the first radius, of norm(D x0)."""
    seen, radius, iterations, history, status = linear.columns, -1.0, 0, [linear.cost], None
    idle, pace = 0, Geometric(torch.dot)
    while True:
        verdict = judged(residual, linear, rules)
        if verdict.solved:
            linear = polished(residual, linear, rules) if rules.tight else linear
            break
        if observe is not None and observe(
            LeastSquaresState(iterations, linear.x, linear.cost, verdict.optimality, radius, residual.ledger.residuals)
        ):
            status = Status.STOPPED
            break
        if idle >= IDLE:
            status = Status.STAGNATED
            break
        seen = torch.maximum(linear.columns, FADE * seen)
        D, free = region(linear.columns, seen, linear.x, rules.x0), free_to_move(residual, linear)
        radius = first * max(length(D * linear.x), 1e-3 * linear.size) if radius < 0 else radius
        factor = factored(linear, D, free)
        newton, cauchy = factor.step(0.0), _cauchy(linear, D, free)
        accepted, slack = None, linear.noise * linear.size
        while accepted is None and residual.ledger.residuals < rules.max_evaluations:
            p = on_path(cauchy, newton, D, radius)
            p = boxed(linear, factor, p, 0.0, residual.lower, residual.upper)
            predicted = factor.predicted(linear, p)
            if not predicted > 0:  # the box has bent the path upwards: projected descent
                shrunk = radius / max(length(D * cauchy), 1e-300)
                p = residual.rounded(linear.x + min(1.0, shrunk) * cauchy) - linear.x
                predicted = factor.predicted(linear, p)
            if too_short(residual, linear, rules, p):
                break
            point = residual.at(linear.x + p)
            gain = -math.inf
            if point is not None:
                gain = (linear.cost - point.cost + slack) / (max(predicted, 0.0) + slack)
            if gain > ACCEPT and predicted > 0 and point is not None:
                accepted = residual.linearized(point)
            size = length(D * p)
            if accepted is None or gain <= POOR:
                shrink = 0.25 if point is None or gain > ACCEPT else cut(linear, point.cost, p)
                radius = shrink * min(radius, 10 * size)
            elif gain >= GOOD:
                radius = max(radius, 2 * size)
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * slack else 0
        linear, iterations = at_limit(residual, accepted, accepted.x - linear.x, pace), iterations + 1
        history.append(linear.cost)
    return Run(linear, status, iterations, tuple(history))


def _cauchy(linear: Linearization, D: Tensor, free: Tensor) -> Tensor:
    """The minimizer of the linear model along the scaled steepest descent."""
    down = torch.where(free, -linear.gradient / D.square(), 0.0)
    Jd = linear.J @ down.to(linear.J.device)
    curvature = float(Jd.square().sum())
    return down * (-float(linear.gradient @ down) / curvature) if curvature > 0 else down


def on_path(cauchy: Tensor, newton: Tensor, D: Tensor, radius: float) -> Tensor:
    """Where the path 0 -> cauchy -> newton leaves norm(D p) <= radius, or its end."""
    if length(D * newton) <= radius:
        return newton
    if (size := length(D * cauchy)) >= radius:
        return cauchy * (radius / size)
    u, v = D * cauchy, D * (newton - cauchy)
    a, b, c = float(v @ v), float(u @ v), float(u @ u) - radius * radius
    root = math.sqrt(max(b * b - a * c, 0.0))
    t = -c / (b + root) if b >= 0 else (root - b) / a
    return cauchy + t * (newton - cauchy)
