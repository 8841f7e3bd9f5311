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
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.active_set import STEPS, on_active_set
from frechet.optimize._constrained.barrier import barrier_error, duals, kept_duals, merit_of, moved_duals
from frechet.optimize._constrained.frame import (
    Frame,
    framed,
    pulled_back,
    pushed_inside,
    row_multipliers,
    slack_reset,
    tried,
)
from frechet.optimize._constrained.kkt import STATIONARY, Conditions, conditions, largest, stationary_violation
from frechet.optimize._constrained.normal_step import normal_step
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.projected_cg import projected_cg
from frechet.optimize._constrained.projection import Rows
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.optimize._constrained.slack_rows import SlackRows, slack_rows
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

Trial = tuple[Tensor, float, Tensor]  # w as it is evaluated, f and C there


@dataclass(eq=False)
class _Iterate:
    """w = (x, s) with the multipliers z of its sides, and what judges the steps from it."""

    frame: Frame
    point: Point
    w: Tensor
    C: Tensor
    has_L: Tensor
    has_U: Tensor
    zL: Tensor
    zU: Tensor
    mu: float
    radius: float
    nu: float = 1.0
    widest: float = math.inf  # the largest norm(C) that this barrier problem allows

    def merit(self, f: float, w: Tensor, C: Tensor) -> float:
        return merit_of(f, w, C, self.mu, self.nu, self.frame, self.has_L, self.has_U)


@dataclass(frozen=True, eq=False)
class _Local:
    """The scaled rows A = dC D at an iterate, their multipliers y, and the gradient of the Lagrangian `dual`."""

    to_L: Tensor  # distances of w to its sides
    to_U: Tensor
    sigma: Tensor
    D: Tensor
    A: LinearOperator
    rows: Rows | SlackRows
    slope: Tensor  # of f by w
    y: Tensor
    dual: Tensor


@dataclass(frozen=True, eq=False)
class _Step:
    """A scaled step d within its limits, and what it promises; `left` is norm(C) after it in the linear model."""

    d: Tensor
    low: Tensor
    high: Tensor
    length: float
    left: float
    predicted: float
    merit: float  # before the step
    noise: float  # rounding errors of the merit function
    curvature: Tensor | None
    stuck: bool  # the constraints are not met, and the normal step does not bring them nearer


def composite(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:  # noqa: C901 - one branch for each way to end
    """Run from `start`, a point of `program` strictly inside the bounds."""
    at = _begun(framed(program), start)
    barred = at.mu > 0
    mu_least = min(rules.gtol, rules.ctol) / 10
    iterations, history, still = 0, [start.f], 0
    status, bend, stuck = None, None, False
    while True:
        here = _local(at)
        found = conditions(program, at.point, at.frame.whole(here.y))
        if observe is not None and observe(_state(at, found, iterations)):
            status = Status.STOPPED
            break
        if found.hold(rules.gtol, rules.ctol, strict=True):
            break
        status = _ending(at, rules, found, stuck, iterations)
        if status is not None:
            break
        if _next_barrier(at, here, mu_least, first=not iterations) and at.mu <= CROSS:
            best = _by_active_set(at, here, rules, 4)
            if best[2].hold(rules.gtol, rules.ctol, strict=True):
                at.point, found = best[0], best[2]
                break
        step = _step(at, here, rules)
        stuck, bend = step.stuck, step.curvature if step.curvature is not None else bend
        iterations += 1
        d = _taken(at, here, step)
        history.append(at.point.f)
        space = at.frame.space
        tiny = float(space.norm(here.D * d)) <= 4 * program.eps * max(1e-3, float(space.norm(at.w)))
        still = still + 1 if tiny or step.predicted <= step.noise else 0
        if still >= 3 or at.radius < 1e-20:
            if at.mu > mu_least and at.radius >= 1e-20:
                at.mu, still = _smaller(at.mu, mu_least), 0
                continue
            status = Status.STAGNATED
            break
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS) or (status is None and barred):
        best = _by_active_set(at, here, rules)
        if best[2].worst < found.worst:
            at.point, found = best[0], best[2]
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS) and stationary_violation(program, at.point, STATIONARY):
        status = Status.INFEASIBLE if found.infeasibility > rules.ctol else status
    curvature = None if bend is None else (here.D * bend)[: program.space.dim]
    values = tuple(f * program.unit for f in history)
    return Run(at.point.x, found.y, status, iterations, values, curvature)


def _begun(frame: Frame, point: Point) -> _Iterate:
    """The first iterate, with slacks off their sides and z = mu / distance."""
    n, L, U = frame.program.space.dim, frame.L, frame.U
    has_L, has_U = torch.isfinite(L) & ~frame.fixed, torch.isfinite(U) & ~frame.fixed
    w = torch.cat([point.x, pushed_inside(point.c[frame.slack], L[n:], U[n:])])
    mu = 0.1 if bool((has_L | has_U).any()) else 0.0
    zL, zU = duals(has_L, w - L, mu), duals(has_U, U - w, mu)
    radius = max(1.0, 0.1 * float(frame.space.norm(w)))
    return _Iterate(frame, point, w, frame.C(w, point.c), has_L, has_U, zL, zU, mu, radius)


def _local(at: _Iterate) -> _Local:
    frame, point, w, zL, zU = at.frame, at.point, at.w, at.zL, at.zU
    to_L, to_U = torch.where(at.has_L, w - frame.L, math.inf), torch.where(at.has_U, frame.U - w, math.inf)
    sigma = zL / to_L + zU / to_U
    metric = 1 + sigma + (min(1.0, 10 * at.mu)) * (to_L**-2 + to_U**-2)
    D = torch.where(frame.fixed, 0.0, metric.rsqrt())
    A = frame.jacobian(point.J, D)
    rows = slack_rows(A, point.J, D, frame.equal, frame.slack)
    slope = torch.cat([point.g, torch.zeros_like(w[frame.program.space.dim :])])
    y = rows.multipliers(D * (slope - zL + zU))
    dual = torch.where(frame.fixed, 0.0, slope + pulled_back(frame, point.J, y) - zL + zU)
    return _Local(to_L, to_U, sigma, D, A, rows, slope, y, dual)


def _state(at: _Iterate, found: Conditions, iterations: int) -> ConstrainedState:
    value = at.point.f * at.frame.program.unit
    return ConstrainedState(iterations, at.point.x, value, found.residual, found.infeasibility, at.mu, at.radius)


def _ending(at: _Iterate, rules: Rules, found: Conditions, stuck: bool, iterations: int) -> Status | None:
    """Why the run ends without a solution; None where it goes on."""
    program, infeasible = at.frame.program, found.infeasibility > rules.ctol
    if stuck and infeasible and stationary_violation(program, at.point, STATIONARY):
        return Status.INFEASIBLE
    if iterations >= rules.max_iterations:
        return Status.MAX_ITERATIONS
    if at.point.f < -UNBOUNDED and largest(at.C) <= max(1e-6, rules.ctol) * max(1.0, largest(at.w)):
        return Status.UNBOUNDED
    return None


def _smaller(mu: float, least: float) -> float:
    return max(least, min(0.2 * mu, mu**1.5))


def _next_barrier(at: _Iterate, here: _Local, mu_least: float, *, first: bool) -> bool:
    """Whether the conditions of the barrier problem hold to SLOW mu; then mu falls and steps are judged anew."""
    before = at.mu
    while at.mu > mu_least and (
        barrier_error(here.dual, at.C, at.zL, at.zU, here.to_L, here.to_U, here.y, at.mu) <= SLOW * at.mu
    ):
        at.mu = _smaller(at.mu, mu_least)
    fell = at.mu < before
    if fell or first:
        image = at.frame.codomain
        at.nu = max(1.0, min(MOST_NU, 1.1 * float(image.norm(here.y))))
        at.widest = WIDER * max(1.0, float(image.norm(at.C)))
    if fell:
        at.radius = max(at.radius, 1.0)
    return fell


def _by_active_set(at: _Iterate, here: _Local, rules: Rules, steps: int = STEPS) -> tuple[Point, Tensor, Conditions]:
    """The solution of the problem in which the sides that now hold are equalities."""
    program, z = at.frame.program, (at.zU - at.zL)[: at.frame.program.space.dim]
    y = row_multipliers(at.frame, here.y, at.zL, at.zU)
    return on_active_set(program, at.point, y, z, rules.gtol, rules.ctol, steps)


def _step(at: _Iterate, here: _Local, rules: Rules) -> _Step:
    """The normal and the tangential part of a step; nu rises to what the normal part asks for."""
    frame, D, mu, radius, n = at.frame, here.D, at.mu, at.radius, at.frame.program.space.dim
    space, norm_C, to_side = frame.space, float(frame.codomain.norm(at.C)), max(TO_SIDE, 1 - at.mu)
    g = D * torch.where(frame.fixed, 0.0, here.slope - mu / here.to_L + mu / here.to_U)
    B = _model(at.point.hessian(frame.whole(here.y)), here.sigma, D, n, space)
    low = torch.where(at.has_L, -to_side * here.to_L / D, -math.inf)
    high = torch.where(at.has_U, to_side * here.to_U / D, math.inf)
    v, left = g * 0, 0.0
    Bv = v
    if norm_C > 0:
        v, left = normal_step(here.A, here.rows, at.C, NORMAL * radius, 0.5 * low, 0.5 * high)
        Bv = B @ v
    size_v = float(space.norm(v))
    tangent = projected_cg(
        B,
        g + Bv,
        here.rows,
        radius=math.sqrt(max(radius**2 - size_v**2, 0.0)),
        low=low - v,
        high=high - v,
        atol=1e-3 * min(rules.gtol, mu or 1.0),
    )
    d = v + tangent.p
    model = float(space.inner(g, v)) + 0.5 * float(space.inner(v, Bv)) + tangent.model
    gain_C = norm_C - left
    if gain_C > 0 and model > 0:
        at.nu = max(at.nu, 1.1 * model / ((1 - ENOUGH) * gain_C))
    merit = at.merit(at.point.f, at.w, at.C)
    noise = 10 * frame.program.eps * (abs(merit) + abs(at.point.f) + at.nu * norm_C)
    predicted, length = at.nu * gain_C - model, float(space.norm(d))
    stuck = left >= LITTLE * norm_C > 0
    return _Step(d, low, high, length, left, predicted, merit, noise, tangent.curvature, stuck)


def _tried(at: _Iterate, here: _Local, step: _Step) -> tuple[Trial | None, float, Tensor]:
    """The values after the step, its gain beside what it promised, and the step, corrected where C asks for it."""
    frame, image, d = at.frame, at.frame.codomain, step.d

    def ratio_of(trial: Trial) -> float:
        return (step.merit - at.merit(trial[1], trial[0], trial[2]) + step.noise) / (step.predicted + step.noise)

    trial = tried(frame, at.w, here.D * d)
    if trial is None:
        return None, -math.inf, d
    ratio = ratio_of(trial)
    if ratio < 0.1 and float(image.norm(trial[2])) > 1.1 * step.left:
        reach = max(at.radius, step.length)
        more, _ = normal_step(here.A, here.rows, trial[2], reach, step.low - d, step.high - d)
        again = tried(frame, at.w, here.D * (d + more))
        if again is not None and (second := ratio_of(again)) > max(ratio, 1e-4):
            trial, ratio, d = again, second, d + more
    if float(image.norm(trial[2])) > at.widest:
        ratio = -math.inf
    return trial, ratio, d


def _taken(at: _Iterate, here: _Local, step: _Step) -> Tensor:
    """The step that was tried; the iterate moves where it succeeds, and the radius follows its ratio."""
    frame, mu = at.frame, at.mu
    trial, ratio, d = _tried(at, here, step)
    n = frame.program.space.dim
    accepted = frame.program.point(trial[0][:n]) if trial is not None and ratio >= 1e-4 else None
    if trial is None or accepted is None:
        at.radius = (0.1 if trial is None else 0.25) * min(at.radius, step.length)
        return d
    along, to_side = here.D * d, max(TO_SIDE, 1 - mu)
    zL = moved_duals(at.zL, at.has_L, here.to_L, -along, mu, to_side)
    zU = moved_duals(at.zU, at.has_U, here.to_U, along, mu, to_side)
    at.w, at.point = slack_reset(frame, trial[0], accepted), accepted
    at.C = frame.C(at.w, accepted.c)
    at.zL, at.zU = kept_duals(zL, at.has_L, at.w - frame.L, mu), kept_duals(zU, at.has_U, frame.U - at.w, mu)
    if ratio >= 0.9:
        at.radius = max(at.radius, 7 * step.length)
    elif ratio >= 0.3:
        at.radius = max(at.radius, 2 * step.length)
    elif ratio < 0.1:
        at.radius = 0.5 * step.length
    return d


def _model(H: LinearOperator, sigma: Tensor, D: Tensor, n: int, space: Space) -> LinearOperator:
    """D (diag(H, 0) + diag(sigma)) D."""
    weights = D * D * sigma

    def product(V: Tensor) -> Tensor:
        out = (V.T * weights).T
        top = (H @ (V[:n].T * D[:n]).T).T * D[:n]
        return torch.cat([out[:n] + top.T, out[n:]])

    return from_callable(product, space, facts="symmetric")
