"""Composite steps in a trust region: equalities by projected CG, sides and bounds by a primal-dual barrier.

With slacks s for the rows that are no equalities, w = (x, s) between its sides, and rows C(w) = (c_E(x) - b; c_I(x) - s),
the barrier problem is min f(x) - mu sum log(distances of w to its sides) subject to C(w) = 0. A step D d has a normal
part towards C = 0 (dogleg between the steepest descent and the least-norm Gauss-Newton step) and a tangential part in
the null space of the rows (projected CG on the model of the Lagrangian, to the ball). The metric D^-2 = 1 + Sigma takes
the diagonal Sigma = z / distance of the barrier into the projections. Steps are judged by barrier + nu norm(C); a
second-order correction follows a step that fails on its constraints. mu falls superlinearly. Without sides it is
sequential quadratic programming in a trust region (Byrd and Omojokun).

**Source.** Byrd, Hribar and Nocedal (1999), An interior point algorithm for large-scale nonlinear programming,
doi 10.1137/S1052623497325107; Byrd, Gilbert and Nocedal (2000), doi 10.1007/PL00011391; Lalee, Nocedal and Plantenga
(1998), On the implementation of an algorithm for large-scale equality constrained optimization,
doi 10.1137/S1052623493262993; Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y (the safeguard of z).

**Differs from the source.** 1. Bounds on x enter the barrier directly, not as rows. 2. z has its own steps and is kept
within a factor of mu / distance. 3. The metric is that of the primal-dual Sigma instead of the slacks. 4. Gains below
the rounding error of the merit function count as gains.

**Cost** per iteration: one gradient, the kept rows of `projection.py`, one Hessian product per CG iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg.result import Status
from frechet.operators.operator import LinearOperator
from frechet.operators.structured import from_callable
from frechet.solve.constrained.active_set import on_active_set
from frechet.solve.constrained.kkt import conditions, largest, stationary_violation
from frechet.solve.constrained.program import Point, Program
from frechet.solve.constrained.projected_cg import projected_cg, to_ball
from frechet.solve.constrained.projection import Rows
from frechet.solve.constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.solve.constrained.slack_rows import SlackRows, slack_rows
from frechet.solve.lsmr import lsmr
from frechet.space import Space, euclidean

TO_SIDE = 0.995  # of the way to a side
NORMAL = 0.8  # of the radius for the normal part
ENOUGH = 0.3  # of the reduction of the constraints that the merit function must predict
TURNS = 4  # of the normal step along the box
FEW = 0.1  # of norm(C) that a normal step may leave
SAFE = 1e10  # z stays within this factor of mu / distance
SLOW = 10.0  # mu falls when the conditions hold to this many mu
UNBOUNDED = 1e20
MOST_NU = 100.0  # penalty that multipliers at the start of a barrier problem may ask for
WIDER = 10.0  # growth of norm(C) within one barrier problem
CROSS = 1e-4  # mu from which on the active set is tried


@dataclass(frozen=True, eq=False)
class Frame:
    """The variables w = (x, s): their sides, the rows that are equalities and those that have slacks."""

    program: Program
    equal: Tensor  # numbers of rows
    slack: Tensor
    L: Tensor
    U: Tensor
    fixed: Tensor  # entries of w whose sides are the same
    space: Space
    image: Space

    def C(self, w: Tensor, c: Tensor) -> Tensor:
        n = self.program.space.dim
        return torch.cat([c[self.equal] - self.program.low[self.equal], c[self.slack] - w[n:]])

    def jacobian(self, J: LinearOperator, D: Tensor) -> LinearOperator:
        """dC D."""
        n, order = self.program.space.dim, torch.cat([self.equal, self.slack])
        tail = len(self.slack)

        def push(V: Tensor) -> Tensor:
            V = (V.T * D).T
            out = (J @ V[:n])[order] if len(order) else J.codomain.zeros(V.shape[1])[order]
            if tail:
                out = out.clone()
                out[len(self.equal) :] -= V[n:]
            return out

        def pull(W: Tensor) -> Tensor:
            whole = J.codomain.zeros(W.shape[1])
            whole[order] = W
            out = torch.cat([J.T @ whole, -W[len(self.equal) :]])
            return (out.T * D).T

        return from_callable(push, self.space, self.image, rmatmat=pull)

    def whole(self, y: Tensor) -> Tensor:
        """Multipliers of C as multipliers of all rows ``(m,)``."""
        out = torch.zeros_like(self.program.low)
        out[torch.cat([self.equal, self.slack])] = y
        return out


def framed(program: Program) -> Frame:
    open_row = (program.low == -math.inf) & (program.high == math.inf)
    equal = program.low == program.high
    slack = (~equal & ~open_row).nonzero()[:, 0]
    L = torch.cat([program.lower, program.low[slack]])
    U = torch.cat([program.upper, program.high[slack]])
    kept = equal.nonzero()[:, 0]
    device = program.domain.device
    space = euclidean(len(L), torch.float64, device)
    image = euclidean(len(kept) + len(slack), torch.float64, device)
    return Frame(program, kept, slack, L, U, L == U, space, image)


def composite(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:
    """Run from `start`, a point of `program` strictly inside the bounds."""
    frame = framed(program)
    space, image, n = frame.space, frame.image, program.space.dim
    L, U, fixed = frame.L, frame.U, frame.fixed
    has_L, has_U = (L > -math.inf) & ~fixed, (U < math.inf) & ~fixed
    barred = bool((has_L | has_U).any())
    point = start
    w = torch.cat([point.x, pushed_inside(point.c[frame.slack], L[n:], U[n:])])
    C = frame.C(w, point.c)
    mu = 0.1 if barred else 0.0
    mu_least = min(rules.gtol, rules.ctol) / 10
    zL, zU = _duals(has_L, w - L, mu), _duals(has_U, U - w, mu)
    nu, widest, radius = 1.0, math.inf, max(1.0, 0.1 * float(space.norm(w)))
    iterations, history, status, bend, still = 0, [point.f], None, None, 0
    while True:
        distance_L, distance_U = torch.where(has_L, w - L, math.inf), torch.where(has_U, U - w, math.inf)
        sigma = zL / distance_L + zU / distance_U
        D = torch.where(fixed, 0.0, (1 + sigma + (min(1.0, 10 * mu)) * (distance_L**-2 + distance_U**-2)).rsqrt())
        A = frame.jacobian(point.J, D)
        rows = slack_rows(A, point.J, D, frame.equal, frame.slack)
        slope = torch.cat([point.g, torch.zeros_like(w[n:])])
        y = rows.multipliers(D * (slope - zL + zU))
        dual = torch.where(fixed, 0.0, slope + _pull(frame, point.J, y) - zL + zU)
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
        if iterations >= rules.max_iterations:
            status = Status.MAX_ITERATIONS
            break
        if point.f < -UNBOUNDED and largest(C) <= max(1e-6, rules.ctol) * max(1.0, largest(w)):
            status = Status.UNBOUNDED
            break
        error = _barrier_error(dual, C, zL, zU, distance_L, distance_U, y, mu)
        fell = False
        while barred and mu > mu_least and error <= SLOW * mu:
            mu, fell = max(mu_least, min(0.2 * mu, mu**1.5)), True
            error = _barrier_error(dual, C, zL, zU, distance_L, distance_U, y, mu)
        if fell:
            nu = 1.0
        if fell or not iterations:
            nu = max(1.0, min(MOST_NU, 1.1 * float(image.norm(y))))
            widest = WIDER * max(1.0, float(image.norm(C)))
        if fell:
            radius = max(radius, 1.0)
            if mu <= CROSS:
                y_rows = _row_multipliers(frame, y, zL, zU)
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
        if gain_C > 0 and model > 0:
            nu = max(nu, 1.1 * model / ((1 - ENOUGH) * gain_C))
        predicted = nu * gain_C - model
        merit = _merit(point.f, w, C, mu, nu, frame, has_L, has_U)
        noise = 10 * program.eps * (abs(merit) + abs(point.f) + nu * norm_C)
        length = float(space.norm(d))
        iterations += 1

        # --- the trial
        accepted, ratio = None, -math.inf
        trial = _tried(frame, w, D * d)
        if trial is not None:
            ratio = (merit - _merit(trial[1], trial[0], trial[2], mu, nu, frame, has_L, has_U) + noise) / (
                predicted + noise
            )
            if ratio < 0.1 and float(image.norm(trial[2])) > 1.1 * left:
                more, _ = normal_step(A, rows, trial[2], max(radius, length), low - d, high - d)
                again = _tried(frame, w, D * (d + more))
                if again is not None:
                    second = (merit - _merit(again[1], again[0], again[2], mu, nu, frame, has_L, has_U) + noise) / (
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
            zL = _moved_dual(zL, has_L, distance_L, -step, mu, to_side)
            zU = _moved_dual(zU, has_U, distance_U, step, mu, to_side)
            assert trial is not None
            w, point = _slack_reset(frame, trial[0], accepted), accepted
            C = frame.C(w, point.c)
            zL, zU = _kept(zL, has_L, w - L, mu), _kept(zU, has_U, U - w, mu)
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
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS):
        best = on_active_set(program, point, _row_multipliers(frame, y, zL, zU), (zU - zL)[:n], rules.gtol, rules.ctol)
        if best[2].worst < found.worst:
            point, found = best[0], best[2]
    if status in (Status.STAGNATED, Status.MAX_ITERATIONS) and stationary_violation(program, point, 1e-6):
        if found.infeasibility > rules.ctol:
            status = Status.INFEASIBLE
    curvature = None if bend is None else (D * bend)[:n]
    values = tuple(f * program.unit for f in history)
    return Run(point.x, found.y, status, iterations, values, curvature)


def pushed_inside(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`v` moved off its sides: by 1e-2 max(1, |side|), at most by 1e-2 of the width."""
    width = torch.where((low > -math.inf) & (high < math.inf), 1e-2 * (high - low), math.inf)
    from_low = torch.minimum(1e-2 * low.abs().clamp_min(1.0), width)
    from_high = torch.minimum(1e-2 * high.abs().clamp_min(1.0), width)
    above = torch.where(low > -math.inf, low + from_low, -math.inf)
    below = torch.where(high < math.inf, high - from_high, math.inf)
    return torch.minimum(torch.maximum(v, above), below)


def normal_step(
    A: LinearOperator, rows: Rows | SlackRows, C: Tensor, radius: float, low: Tensor, high: Tensor
) -> tuple[Tensor, float]:
    """A step towards A v = -C in the ball and the box, and norm(A v + C): the best of three."""
    space, image = A.domain, A.codomain
    newton = rows.least_norm(-C)
    downhill = -(A.T @ C)
    pushed = A @ downhill
    bend = float(image.inner(pushed, pushed))
    if bend <= 0:
        return space.zeros(), float(image.norm(C))
    cauchy = (float(space.inner(downhill, downhill)) / bend) * downhill
    candidates = []
    if float(space.norm(newton)) <= radius:
        candidates.append(newton)
    elif float(space.norm(cauchy)) < radius:
        way = newton - cauchy
        a, b = float(space.inner(way, way)), float(space.inner(cauchy, way))
        c = radius**2 - float(space.inner(cauchy, cauchy))
        root = math.sqrt(b * b + a * c)
        candidates.append(cauchy + (c / (b + root) if b > 0 else (root - b) / a) * way)
    size = float(space.norm(newton))
    candidates += [newton * min(1.0, radius / size)] if size > 0 else []
    candidates += [cauchy * min(1.0, radius / length)] if (length := float(space.norm(cauchy))) > 0 else []
    best, left = space.zeros(), float(image.norm(C))
    for v in candidates:
        v = _share(v, low, high) * v
        rest = float(image.norm(A @ v + C))
        if rest < left:
            best, left = v, rest
    for _ in range(TURNS):  # what the box stopped is held, the rest goes on
        free = ((best > 0.99 * low) & (best < 0.99 * high)).to(best.dtype)
        if bool(free.all()) or left <= FEW * float(image.norm(C)):
            break
        masked = from_callable(
            lambda V, free=free: A @ (V.T * free).T, space, image, rmatmat=lambda W, free=free: ((A.T @ W).T * free).T
        )
        more = lsmr(masked, -(A @ best + C), rtol=1e-2, max_iterations=2 * len(C)).x
        length = float(space.norm(more))
        if not 0 < length < math.inf:
            break
        more = more * min(1.0, to_ball(float(space.inner(best, more)), length, float(space.norm(best)), radius))
        v = best + _share(more, low - best, high - best) * more
        rest = float(image.norm(A @ v + C))
        if rest >= left:
            break
        best, left = v, rest
    return best, left


def _share(v: Tensor, low: Tensor, high: Tensor) -> float:
    """The largest t <= 1 with t v in the box."""
    ratios = torch.where(v < 0, low / v, torch.where(v > 0, high / v, math.inf))
    return max(0.0, min(1.0, float(ratios.min()))) if len(v) else 1.0


def _row_multipliers(frame: Frame, y: Tensor, zL: Tensor, zU: Tensor) -> Tensor:
    """Multipliers of all rows: of those with slacks, by the multipliers of their sides."""
    e, n = len(frame.equal), frame.program.space.dim
    return frame.whole(torch.cat([y[:e], (zU - zL)[n:]]))


def _pull(frame: Frame, J: LinearOperator, y: Tensor) -> Tensor:
    """dC' y."""
    whole = frame.whole(y)
    return torch.cat([J.T @ whole, -y[len(frame.equal) :]])


def _model(H: LinearOperator, sigma: Tensor, D: Tensor, n: int, space: Space) -> LinearOperator:
    """D (diag(H, 0) + diag(sigma)) D."""
    weights = D * D * sigma

    def product(V: Tensor) -> Tensor:
        out = (V.T * weights).T
        top = (H @ (V[:n].T * D[:n]).T).T * D[:n]
        return torch.cat([out[:n] + top.T, out[n:]])

    return from_callable(product, space, facts="symmetric")


def _merit(
    f: float, w: Tensor, C: Tensor, mu: float, nu: float, frame: Frame, has_L: Tensor, has_U: Tensor
) -> float:
    total = f + nu * float(frame.image.norm(C))
    if mu > 0:
        logs = torch.where(has_L, (w - frame.L).log(), 0.0) + torch.where(has_U, (frame.U - w).log(), 0.0)
        total -= mu * float(logs.sum())
    return total


def _tried(frame: Frame, w: Tensor, step: Tensor) -> tuple[Tensor, float, Tensor] | None:
    """w + step as it is evaluated, f and C there; None where they are not finite."""
    program, n = frame.program, frame.program.space.dim
    x = program.rounded(w[:n] + step[:n], strict=True)
    s = w[n:] + step[n:]
    tail = slice(n, None)
    inside = torch.nextafter(frame.L[tail], frame.U[tail]), torch.nextafter(frame.U[tail], frame.L[tail])
    s = torch.minimum(torch.maximum(s, inside[0]), inside[1])
    values = program.values(x)
    if values is None:
        return None
    moved = torch.cat([x, s])
    return moved, values.f, frame.C(moved, values.c)


def _slack_reset(frame: Frame, w: Tensor, point: Point) -> Tensor:
    """Slacks with one side follow their rows inwards: the barrier and norm(C) both fall."""
    n = frame.program.space.dim
    c, s, L, U = point.c[frame.slack], w[n:], frame.L[n:], frame.U[n:]
    s = torch.where(U == math.inf, torch.maximum(s, c), torch.where(L == -math.inf, torch.minimum(s, c), s))
    return torch.cat([w[:n], s])


def _duals(has: Tensor, distance: Tensor, mu: float) -> Tensor:
    return torch.where(has, mu / distance, 0.0)


def _moved_dual(z: Tensor, has: Tensor, distance: Tensor, towards: Tensor, mu: float, to_side: float) -> Tensor:
    """z after a step that moves w `towards` its side: Newton on z distance = mu, kept positive."""
    dz = torch.where(has, (mu + z * towards) / distance - z, 0.0)
    down = dz < 0
    t = min(1.0, float((-to_side * z[down] / dz[down]).min())) if bool(down.any()) else 1.0
    return z + t * dz


def _kept(z: Tensor, has: Tensor, distance: Tensor, mu: float) -> Tensor:
    """z within a factor of mu / distance."""
    centered = torch.where(has, mu / distance, 0.0)
    return torch.where(has, torch.minimum(torch.maximum(z, centered / SAFE), centered * SAFE), 0.0)


def _barrier_error(
    dual: Tensor, C: Tensor, zL: Tensor, zU: Tensor, dL: Tensor, dU: Tensor, y: Tensor, mu: float
) -> float:
    """How far the conditions of the barrier problem are from holding, with multipliers beyond 100 scaled down."""
    sizes = [float(t.abs().sum()) for t in (zL, zU, y)]
    count = max(1, 2 * len(zL) + len(y))
    scale = max(100.0, sum(sizes) / count) / 100.0
    products = [torch.where(dL < math.inf, zL * dL - mu, 0.0), torch.where(dU < math.inf, zU * dU - mu, 0.0)]
    return max(largest(dual) / scale, largest(C), *(largest(p) / scale for p in products))
