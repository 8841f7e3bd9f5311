"""Gauss-Newton with a line search: x + t p, p the undamped step -J^+ r, t from 1 downwards until the cost falls enough.

    cost(x + t p) <= cost(x) + 1e-4 t g'p                 (Armijo)

t is cut to the minimizer of the parabola through the two costs and the slope, in [0.1, 0.5] of it. The step is the
shortest of the minimizers of norm(r + J p) in columns of equal norm; singular values below a threshold count as zero.

**Source.** J. E. Dennis and R. B. Schnabel (1983), Numerical methods for unconstrained optimization and nonlinear
equations, sections 6.3 and 10.3, doi 10.1137/1.9781611971200.

**Differs from the source.** The threshold for the singular values starts at rounding and is raised tenfold where 20
cuts find no descent, and lowered again after a full step: near a singular Jacobian the step is longer than the model is
true.

**Cost.** One residual per trial, one Jacobian and one SVD per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from frechet.linalg._result import Status
from frechet.optimize._geometric import Geometric
from frechet.optimize._least_squares.damped_step import boxed, column_scale, factored
from frechet.optimize._least_squares.last_digits import at_limit, polished
from frechet.optimize._least_squares.levenberg_marquardt import cut
from frechet.optimize._least_squares.optimality import IDLE, Rules, free_to_move, judged
from frechet.optimize._least_squares.residual import Linearization, Residual
from frechet.optimize._least_squares.run import LeastSquaresState, Run

ARMIJO, CUTS = 1e-4, 20


def gauss_newton_search(  # noqa: C901 - one branch for each way to go on or to end
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`."""
    iterations, history, status, threshold = 0, [linear.cost], None, 0.0
    idle, pace = 0, Geometric(torch.dot)
    while True:
        verdict = judged(residual, linear, rules)
        if verdict.solved:
            linear = polished(residual, linear, rules) if rules.tight else linear
            break
        if observe is not None and observe(
            LeastSquaresState(
                iterations, linear.x, linear.cost, verdict.optimality, threshold, residual.ledger.residuals
            )
        ):
            status = Status.STOPPED
            break
        if idle >= IDLE:
            status = Status.STAGNATED
            break
        factor = factored(linear, column_scale(linear.columns), free_to_move(residual, linear))
        smallest = residual.eps * max(linear.J.shape)
        accepted, slack = None, linear.noise * linear.size
        while accepted is None and threshold < 1 and residual.ledger.residuals < rules.max_evaluations:
            kept = replace(factor, rank=int((factor.s > threshold * factor.s[:1]).sum()) if threshold else factor.rank)
            p, t = boxed(linear, kept, kept.step(0.0), 0.0, residual.lower, residual.upper), 1.0
            slope = float(linear.gradient @ p)
            for _ in range(CUTS):
                moved = residual.rounded(linear.x + t * p)
                if slope >= 0 or residual.ledger.residuals >= rules.max_evaluations or torch.equal(moved, linear.x):
                    break
                point = residual.at(moved)
                if point is not None and point.cost <= linear.cost + ARMIJO * t * slope + slack:
                    accepted = residual.linearized(point)
                    if accepted is not None:
                        break
                t *= (
                    0.25
                    if point is None or (accepted is None and point.cost < linear.cost)
                    else cut(linear, point.cost, t * p)
                )
            if accepted is None:
                threshold = max(10 * threshold, 100 * smallest)
            elif t == 1:
                threshold = threshold / 10 if threshold > 100 * smallest else 0.0
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * slack else 0
        linear, iterations = at_limit(residual, accepted, accepted.x - linear.x, pace), iterations + 1
        history.append(linear.cost)
    return Run(linear, status, iterations, tuple(history))
