"""Interior trust region for bounds: all iterates lie strictly between them, in a metric that bends towards the sides.

With the affine scaling d(x) of `affine_scaling` and p = S q, S = diag(sqrt(d)), each step minimizes

    norm(r + J S q)^2 / 2 + q' C q / 2   within norm(q) <= radius,    C the nonnegative part of diag(g dd/dx)

by the dense factorization of [J S; C^(1/2)]. A step that would leave the box is shortened to a part of the way to it;
it competes with the scaled steepest descent direction, treated alike. When the tests say that the interior point is
near a solution, the parameters whose bounds hold them are put on the bounds, and `levenberg_marquardt` finishes on that
face.

**Source.** T. F. Coleman and Y. Li (1996), doi 10.1137/0806023; S. Bellavia, M. Macconi and B. Morini (2003), An affine
scaling trust-region approach to bound-constrained nonlinear systems, doi 10.1016/S0168-9274(02)00170-8.

**Differs from the source.** The choice of scalings; the box is measured in units of its width or of the parameter; the
last steps on the active face, so that a bound that holds is met exactly and the others have all digits.

**Cost.** One residual and one Jacobian per step; one SVD of (m + n, n).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.affine_scaling import Scaling, affine_scaling
from frechet.optimize._least_squares.damped_step import NEAR, Factor
from frechet.optimize._least_squares.levenberg_marquardt import levenberg_marquardt
from frechet.optimize._least_squares.optimality import IDLE, Rules
from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._least_squares.run import LeastSquaresState, Run

ACCEPT, POOR, GOOD = 1e-4, 0.25, 0.75
PART = 0.995  # of the way to the box
INWARD = 0.01  # a start on a side moves inwards by this part of the room
CLOSE = 1e-6  # of the cost: what a full interior step gains when the face is clear


def interior(  # noqa: C901 - one branch for each way to go on or to end
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    scaling: Scaling = "combined",
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> Run:
    """Run from `linear`, or from the point strictly inside that is nearest to it but for a small part of the room."""
    low, high = residual.lower, residual.upper
    width = high - low
    units = torch.where(width < math.inf, width, torch.where(rules.x0 > 0, rules.x0, 1.0))
    units = torch.where(units > 0, units, 1.0)
    history, iterations, status, radius, idle = [linear.cost], 0, None, -1.0, 0
    start = residual.at(_inside(linear.x, low, high, units))
    moved = None if start is None else residual.linearized(start)
    linear = linear if moved is None else moved
    while True:
        x, size, slack = linear.x, linear.size, linear.noise * linear.size
        whole = linear.columns * units * size
        relative = torch.where(whole > 0, linear.gradient * units / whole, 0.0)
        d, bend = affine_scaling(scaling, (x - low) / units, (high - x) / units, relative)
        free = (low < high) & (d > 0)
        S, C = d.sqrt() * units, bend * whole
        factor = _factored(linear, S, C, free)
        near = size <= linear.noise or factor.reduction <= max(CLOSE * 0.5 * size * size, slack)
        if near or idle >= IDLE or not bool(free.any()):
            break
        optimality = float((d * relative).abs().max())
        if observe is not None and observe(
            LeastSquaresState(iterations, x, linear.cost, optimality, radius, residual.ledger.residuals)
        ):
            status = Status.STOPPED
            break
        if radius < 0:
            radius = length(torch.where(free, x / S, 0.0)) or 1.0
        accepted = None
        while accepted is None and residual.ledger.residuals < rules.max_evaluations:
            newton, _ = factor.within(radius)
            steepest = torch.where(free, -S.square() * linear.gradient, 0.0)
            part = max(PART, 1 - optimality)
            p, predicted = max(
                (_shortened(linear, S, C, free, step, radius, part, low, high) for step in (newton, steepest)),
                key=lambda found: found[1],
            )
            if not predicted > 0 or bool((p.abs() <= residual.eps * x.abs()).all()):
                break
            point = residual.at(_between(x + p, low, high))
            gain = -math.inf if point is None else (linear.cost - point.cost + slack) / (predicted + slack)
            if gain > ACCEPT and point is not None:
                accepted = residual.linearized(point)
            reach = length(torch.where(free, p / S, 0.0))
            if accepted is None or gain <= POOR:
                radius = 0.25 * min(radius, 4 * reach)
            elif gain >= GOOD:
                radius = max(radius, 2 * reach)
        if accepted is None:
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * slack else 0
        linear, iterations = accepted, iterations + 1
        history.append(linear.cost)
    if status is not None or residual.ledger.residuals >= rules.max_evaluations:
        return Run(linear, status or Status.MAX_ITERATIONS, iterations, tuple(history))
    face = _on_face(residual, linear, units)
    end = levenberg_marquardt(residual, face, rules, first=1.0, observe=observe)
    return Run(end.linear, end.status, iterations + end.iterations, (*history, *end.history))


def _factored(linear: Linearization, S: Tensor, C: Tensor, free: Tensor) -> Factor:
    J = linear.J
    rows = torch.diag(C.sqrt())[:, free].to(J.device)
    A = torch.cat([J[:, free.to(J.device)] * S[free].to(J.device), rows])
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    U = U[: len(linear.r)]
    s, b = s.cpu(), (U.T @ linear.r).cpu()
    rank = int((s > max(A.shape) * torch.finfo(s.dtype).eps * s[:1]).sum()) if s.numel() else 0
    return Factor(U, s, Vh.T.cpu(), b, torch.where(free, 1 / S, 1.0), free, rank)


def _shortened(
    linear: Linearization,
    S: Tensor,
    C: Tensor,
    free: Tensor,
    step: Tensor,
    radius: float,
    part: float,
    low: Tensor,
    high: Tensor,
) -> tuple[Tensor, float]:
    """The best multiple of `step` within the radius and a `part` of the way to the box, and the gain it predicts."""
    q = torch.where(free, step / S, 0.0)
    slope = float(linear.gradient @ step)
    Jp = linear.J @ step.to(linear.J.device)
    curvature = float(Jp.square().sum()) + float((C * q.square()).sum())
    room = torch.where(step > 0, (high - linear.x) / step, torch.where(step < 0, (low - linear.x) / step, math.inf))
    limits = [part * float(room.min()), (1 + NEAR) * radius / max(length(q), 1e-300)]
    best = -slope / curvature if curvature > 0 else math.inf
    t = min(best, *limits)
    return t * step, -(t * slope + 0.5 * t * t * curvature)


def _inside(x: Tensor, low: Tensor, high: Tensor, units: Tensor) -> Tensor:
    """`x` moved off the sides."""
    room = torch.minimum(INWARD * units, 0.1 * (high - low))
    return torch.minimum(torch.maximum(x, low + room), high - room)


def _between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` strictly inside, where there is room."""
    inside = torch.minimum(torch.maximum(x, torch.nextafter(low, high)), torch.nextafter(high, low))
    return torch.where(low < high, inside, low)


def _on_face(residual: Residual, linear: Linearization, units: Tensor) -> Linearization:
    """The parameters that are nearer to the side they are pushed to than their relative gradient, put there."""
    x, low, high = linear.x, residual.lower, residual.upper
    whole = linear.columns * linear.size
    relative = torch.where(whole > 0, linear.gradient.abs() / whole, 0.0)
    down = (linear.gradient > 0) & ((x - low) / units <= relative)
    up = (linear.gradient < 0) & ((high - x) / units <= relative)
    point = residual.at(torch.where(down, low, torch.where(up, high, x)))
    if point is None or point.cost > linear.cost * (1 + CLOSE) + linear.noise * linear.size:
        return linear
    return residual.linearized(point) or linear
