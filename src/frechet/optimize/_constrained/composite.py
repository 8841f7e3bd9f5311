"""Composite steps in a trust region: equalities by projected CG, sides and bounds by a primal-dual barrier.

With slacks s for the rows that are no equalities, w = (x, s) between its sides, and rows
C(w) = (c_E(x) - b; c_I(x) - s), the barrier problem is min f(x) - mu sum log(distances of w to its sides) subject to
C(w) = 0. A step D d has a normal part towards C = 0 (`normal_step.py`) and a tangential part in the null space of the
rows (projected CG on the model of the Lagrangian, to the ball). The metric D^-2 = 1 + z / distance + 10 mu / distance^2
takes the diagonal of the barrier into the projections. Steps are judged by barrier + nu norm(C); a second-order
correction follows a step that fails on its constraints. mu falls superlinearly; each time the active set is tried as an
equality problem (`active_set.py`), which ends most runs. Without sides it is sequential quadratic programming in a
trust region (Byrd and Omojokun).

**Source.** Byrd, Hribar and Nocedal (1999), An interior point algorithm for large-scale nonlinear programming,
doi 10.1137/S1052623497325107; Byrd, Gilbert and Nocedal (2000), doi 10.1007/PL00011391; Lalee, Nocedal and Plantenga
(1998), On the implementation of an algorithm for large-scale equality constrained optimization,
doi 10.1137/S1052623493262993; Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y (the safeguard of z).

**Differs from the source.** 1. Bounds on x enter the barrier directly, not as rows. 2. z has its own steps and is kept
within a factor of mu / distance. 3. The metric is that of the primal-dual matrix instead of the slacks, so that a
variable which comes near a side that does not hold it can leave again. 4. Gains below the rounding error of the merit
function count as gains. 5. norm(C) may grow tenfold within one barrier problem, and no more.

**Cost** per iteration: one gradient, the kept rows of `projection.py`, one Hessian product per CG iteration.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.active_set import on_active_set
from frechet.optimize._constrained.barrier import barrier_error, duals, kept_duals, merit_of, moved_duals
from frechet.optimize._constrained.frame import framed, pulled_back, pushed_inside, row_multipliers, slack_reset, tried
from frechet.optimize._constrained.kkt import STATIONARY, conditions, largest, stationary_violation
from frechet.optimize._constrained.normal_step import normal_step
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.projected_cg import projected_cg
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.optimize._constrained.slack_rows import slack_rows
from frechet.space import Space

TO_SIDE = 0.995  # of the way to a side
NORMAL = 0.8  # of the radius for the normal part
ENOUGH = 0.3  # of the reduction of the constraints that the merit function must predict
SLOW = 10.0  # mu falls when the conditions hold to this many mu
UNBOUNDED = 1e20
LITTLE = 0.99  # of norm(C) left by a normal step: then a minimum of the violation may be near
MOST_NU = 100.0  # penalty that multipliers at the start of a barrier problem may ask for
WIDER = 10.0  # growth of norm(C) within one barrier problem
CROSS = 1e-4  # mu from which on the active set is tried


def composite(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:  # noqa: C901 - a branch for each way to go on
    """Run from `start`, a point of `program` strictly inside the bounds."""
    frame = framed(program)
    space, image, n = frame.space, frame.codomain, program.space.dim
    L, U, fixed = frame.L, frame.U, frame.fixed
    has_L, has_U = torch.isfinite(L) & ~fixed, torch.isfinite(U) & ~fixed
    barred = bool((has_L | has_U).any())
    point = start
    w = torch.cat([point.x, pushed_inside(point.c[frame.slack], L[n:], U[n:])])
    C = frame.C(w, point.c)
    mu = 0.1 if barred else 0.0
    mu_least = min(rules.gtol, rules.ctol) / 10
    zL, zU = duals(has_L, w - L, mu), duals(has_U, U - w, mu)
    nu, widest, radius = 1.0, math.inf, max(1.0, 0.1 * float(space.norm(w)))
    iterations, history, status, bend, still, stuck = 0, [point.f], None, None, 0, False
    while True:
        distance_L, distance_U = torch.where(has_L, w - L, math.inf), torch.where(has_U, U - w, math.inf)
        sigma = zL / distance_L + zU / distance_U
        D = torch.where(fixed, 0.0, (1 + sigma + (min(1.0, 10 * mu)) * (distance_L**-2 + distance_U**-2)).rsqrt())
        A = frame.jacobian(point.J, D)
        rows = slack_rows(A, point.J, D, frame.equal, frame.slack)
        slope = torch.cat([point.g, torch.zeros_like(w[n:])])
        y = rows.multipliers(D * (slope - zL + zU))
        dual = torch.where(fixed, 0.0, slope + pulled_back(frame, point.J, y) - zL + zU)
        found = conditions(program, point, frame.whole(y))
        if observe is not None and observe(
            ConstrainedState(
                iterations, point.x, point.f * program.unit, found.residual, found.infeasibility, mu, radius
            )
        ):
            status = Status.STOPPED
            break
        if found.hold(rules.gtol, rules.ctol, strict=True):
            break
        if stuck and found.infeasibility > rules.ctol and stationary_violation(program, point, STATIONARY):
            status = Status.INFEASIBLE
            break
        if iterations >= rules.max_iterations:
            status = Status.MAX_ITERATIONS
            break
        if point.f < -UNBOUNDED and largest(C) <= max(1e-6, rules.ctol) * max(1.0, largest(w)):
            status = Status.UNBOUNDED
            break
        error = barrier_error(dual, C, zL, zU, distance_L, distance_U, y, mu)
        fell = False
        while barred and mu > mu_least and error <= SLOW * mu:
            mu, fell = max(mu_least, min(0.2 * mu, mu**1.5)), True
            error = barrier_error(dual, C, zL, zU, distance_L, distance_U, y, mu)
        if fell:
            nu = 1.0
        if fell or not iterations:
            nu = max(1.0, min(MOST_NU, 1.1 * float(image.norm(y))))
            widest = WIDER * max(1.0, float(image.norm(C)))
        if fell:
            radius = max(radius, 1.0)
            if mu <= CROSS:
                y_rows = row_multipliers(frame, y, zL, zU)
                best = on_active_set(program, point, y_rows, (zU - zL)[:n], rules.gtol, rules.ctol, 4)
                if best[2].hold(rules.gtol, rules.ctol, strict=True):
                    point, found = best[0], best[2]
                    break

        # --- the step
        to_side = max(TO_SIDE, 1 - mu)
        gradient = torch.where(fixed, 0.0, slope - mu / distance_L + mu / distance_U)
        g = D * gradient
        H = point.hessian(frame.whole(y))
        B = _model(H, sigma, D, n, space)
        low = torch.where(has_L, -to_side * distance_L / D, -math.inf)
        high = torch.where(has_U, to_side * distance_U / D, math.inf)
        norm_C = float(image.norm(C))
        v, left = normal_step(A, rows, C, NORMAL * radius, 0.5 * low, 0.5 * high) if norm_C > 0 else (g * 0, 0.0)
        Bv = B @ v if norm_C > 0 else v
        size_v = float(space.norm(v))
        tangent = projected_cg(
            B,
            g + Bv,
            rows,
            radius=math.sqrt(max(radius**2 - size_v**2, 0.0)),
            low=low - v,
            high=high - v,
            atol=1e-3 * min(rules.gtol, mu or 1.0),
        )
        bend = tangent.curvature if tangent.curvature is not None else bend
        d = v + tangent.p
        model = float(space.inner(g, v)) + 0.5 * float(space.inner(v, Bv)) + tangent.model
        gain_C = norm_C - left
        stuck = left >= LITTLE * norm_C > 0
        if gain_C > 0 and model > 0:
            nu = max(nu, 1.1 * model / ((1 - ENOUGH) * gain_C))
        predicted = nu * gain_C - model
        merit = merit_of(point.f, w, C, mu, nu, frame, has_L, has_U)
        noise = 10 * program.eps * (abs(merit) + abs(point.f) + nu * norm_C)
        length = float(space.norm(d))
        iterations += 1

        # --- the trial
        accepted, ratio = None, -math.inf
        trial = tried(frame, w, D * d)
        if trial is not None:
            ratio = (merit - merit_of(trial[1], trial[0], trial[2], mu, nu, frame, has_L, has_U) + noise) / (
                predicted + noise
            )
            if ratio < 0.1 and float(image.norm(trial[2])) > 1.1 * left:
                more, _ = normal_step(A, rows, trial[2], max(radius, length), low - d, high - d)
                again = tried(frame, w, D * (d + more))
                if again is not None:
                    second = (merit - merit_of(again[1], again[0], again[2], mu, nu, frame, has_L, has_U) + noise) / (
                        predicted + noise
                    )
                    if second > max(ratio, 1e-4):
                        trial, ratio, d = again, second, d + more
            if float(image.norm(trial[2])) > widest:
                ratio = -math.inf
            if ratio >= 1e-4:
                accepted = program.point(trial[0][:n])
        if accepted is None:
            radius = (0.1 if trial is None else 0.25) * min(radius, length)
        else:
            step = D * d
            zL = moved_duals(zL, has_L, distance_L, -step, mu, to_side)
            zU = moved_duals(zU, has_U, distance_U, step, mu, to_side)
            assert trial is not None
            w, point = slack_reset(frame, trial[0], accepted), accepted
            C = frame.C(w, point.c)
            zL, zU = kept_duals(zL, has_L, w - L, mu), kept_duals(zU, has_U, U - w, mu)
            if ratio >= 0.9:
                radius = max(radius, 7 * length)
            elif ratio >= 0.3:
                radius = max(radius, 2 * length)
            elif ratio < 0.1:
                radius = 0.5 * length
        history.append(point.f)
        tiny = float(space.norm(D * d)) <= 4 * program.eps * max(1e-3, float(space.norm(w)))
        still = still + 1 if tiny or predicted <= noise else 0
        if still >= 3 or radius < 1e-20:
            if barred and mu > mu_least and radius >= 1e-20:
                mu, still = max(mu_least, min(0.2 * mu, mu**1.5)), 0
                continue
            status = Status.STAGNATED
            break
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS) or (status is None and barred):
        best = on_active_set(program, point, row_multipliers(frame, y, zL, zU), (zU - zL)[:n], rules.gtol, rules.ctol)
        if best[2].worst < found.worst:
            point, found = best[0], best[2]
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS) and stationary_violation(program, point, STATIONARY):
        status = Status.INFEASIBLE if found.infeasibility > rules.ctol else status
    curvature = None if bend is None else (D * bend)[:n]
    values = tuple(f * program.unit for f in history)
    return Run(point.x, found.y, status, iterations, values, curvature)


def _model(H: LinearOperator, sigma: Tensor, D: Tensor, n: int, space: Space) -> LinearOperator:
    """D (diag(H, 0) + diag(sigma)) D."""
    weights = D * D * sigma

    def product(V: Tensor) -> Tensor:
        out = (V.T * weights).T
        top = (H @ (V[:n].T * D[:n]).T).T * D[:n]
        return torch.cat([out[:n] + top.T, out[n:]])

    return from_callable(product, space, facts="symmetric")
