"""Levenberg-Marquardt from products with J alone, for Jacobians too large to form.

Each step minimizes norm(r + J p)^2 + damping norm(D p)^2 by LSMR on J D^-1, to a part of the gradient that gets smaller
as the solution comes nearer; the damping follows the gain ratio. D holds the norms of the columns of J, estimated from
products of J' with a few fixed sign vectors: E (J'z)_j^2 = norm(J_j)^2. Parameters that a bound holds are left out, and
steps stop at the sides.

**Source.** H. B. Nielsen (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05; S. J. Wright and J. N. Holt
(1985), An inexact Levenberg-Marquardt method for large sparse nonlinear least squares, doi 10.1017/S0334270000004604.

**Differs from the source.** The forcing term is min(0.1, sqrt(cosine)), the cosine between r and the columns; the run
ends with full steps as long as what they predict keeps falling, as in `last_digits.py`.

**Cost.** Two products per LSMR iteration, `PROBES` + 2 more per step; about twelve vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._constructors import from_diagonal
from frechet.operators._operator import LinearOperator
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Point, Residual
from frechet.optimize._least_squares.robust import row_scales
from frechet.optimize._least_squares.run import LeastSquaresState

PROBES = 8  # sign vectors for the norms of the columns
FADE, FALLS, ACCEPT = 0.9, 0.9, 1e-4
HALF = 0.5  # of norm(r), or of norm(J'r) that is left: a step that reduces neither was not solved for
LEAST = 1e-40  # norm(r) in its unit: products divide by the unit once more
FIRST, MOST, NOTHING = 1e-3, 1e20, 1e-24  # damping, relative to columns of norm one


@dataclass(frozen=True, eq=False)
class MatrixFreeRun:
    """Where the run ended; `gradient` is J'r ``(n,)`` on the host. `status` is CONVERGED where its tests said so."""

    point: Point
    gradient: Tensor
    optimality: float
    status: Status
    message: str
    iterations: int
    history: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Moment:
    """r, J and J'r at a point, of the weighted problem, in the space's dtype."""

    point: Point
    x: Tensor
    r: Tensor
    J: LinearOperator
    g: Tensor
    size: float
    noise: float
    columns: Tensor  # (n,), the norms of the columns, estimated


@dataclass(eq=False)
class _Damping:
    """The damping of the steps; `full` steps without any, for the last digits, while what they promise falls."""

    residual: Residual
    rules: Rules
    value: float = FIRST
    growth: float = 2.0
    full: bool = False
    last: float = math.inf  # what the last step promised

    def next(self, now: _Moment, D: Tensor, free: Tensor, optimality: float) -> _Moment | None:
        """The point that a step reaches; None where no step is taken."""
        residual, slack = self.residual, now.noise * now.size
        low, high = _sides(residual)
        while self.value < MOST and residual.ledger.residuals < self.rules.max_evaluations:
            mu = 0.0 if self.full or self.value <= NOTHING else self.value
            p, exact = _step(residual, now, D, free, mu, optimality)
            p = torch.minimum(torch.maximum(now.x + p, low), high) - now.x
            promised = _gain(residual, now, p)
            if not self.full and promised <= max(self.rules.ftol * now.size**2 / 2, slack):
                # nothing to gain so near: look further, and at last without damping
                if self.value > NOTHING:
                    self.value *= 1e-3
                    continue
                if not exact:
                    return None
                self.full, self.last = True, math.inf
            if self.full and promised > FALLS * self.last:
                return None
            if bool((p.abs() <= residual.eps * now.x.abs()).all()):
                return None
            moment, gain = self._tried(now, p, promised, slack)
            if moment is not None:
                self.last = promised
                self.value, self.growth = self.value * max(0.1, 1 - (2 * min(gain, 1.0) - 1) ** 3), 2.0
                return moment
            if self.full:
                return None
            self.value, self.growth = self.value * self.growth, 2 * self.growth
        return None

    def _tried(self, now: _Moment, p: Tensor, promised: float, slack: float) -> tuple[_Moment | None, float]:
        """The point after the step p, None where it is refused, and its gain beside what was promised."""
        point = self.residual.at((now.x + p).cpu().double())
        if point is None:
            return None, -math.inf
        gain = (now.point.cost - point.cost + slack) / (max(promised, 0.0) + slack)
        level = point.cost <= now.point.cost * (1 + 1e-10) + 10 * slack
        if not (level if self.full else gain > ACCEPT and promised > 0):
            return None, gain
        moment = _moment(self.residual, point)
        return (moment if bool(moment.g.isfinite().all()) else None), gain

    def why(self, optimality: float) -> tuple[Status, str]:
        """Why no step is taken."""
        if self.full:
            return Status.CONVERGED, "a step would reduce the cost by no more than rounding errors"
        most = self.rules.max_evaluations
        if self.residual.ledger.residuals >= most:
            reached = f"the limit of {most} residuals was reached, optimality {optimality:.3g}"
            return Status.MAX_ITERATIONS, reached
        return Status.STAGNATED, f"no step that lsmr finds reduces the cost, but the optimality is {optimality:.3g}"


def matrix_free(
    residual: Residual,
    start: Point,
    rules: Rules,
    *,
    observe: Callable[[LeastSquaresState], bool] | None = None,
) -> MatrixFreeRun:
    """Run from `start`; the parameters stay in their space, r in that of the residual."""
    now = _moment(residual, start)
    if not math.isfinite(now.size + float(residual.space.norm(now.g))):
        raise NonFinite(
            "least_squares: J'r must be finite at x0, got NaN or infinity; start off the kinks of sqrt or abs"
        )
    low, high = _sides(residual)
    seen, damping = now.columns, _Damping(residual, rules)
    iterations, history = 0, [start.cost]
    while True:
        seen = torch.maximum(now.columns, FADE * seen)
        D = torch.where(seen > 0, seen, 1.0)
        free = ~(((now.x <= low) & (now.g >= 0)) | ((now.x >= high) & (now.g <= 0)) | (low >= high))
        cosines = torch.where(free & (now.columns > 0), now.g.abs() / (now.columns * max(now.size, 1e-300)), 0.0)
        optimality = float(cosines.max()) if len(cosines) else 0.0
        ended = _ending(residual, now, rules, optimality)
        if ended is None and observe is not None:
            spent, cost = residual.ledger.residuals, now.point.cost
            x = now.x.cpu().double()
            if observe(LeastSquaresState(iterations, x, cost, optimality, damping.value, spent)):
                ended = Status.STOPPED, f"observe returned True in iteration {iterations}"
        if ended is not None:
            break
        moment = damping.next(now, D, free, optimality)
        if moment is None:
            ended = damping.why(optimality)
            break
        now, iterations = moment, iterations + 1
        history.append(now.point.cost)
        if not rules.tight and damping.full:
            ended = Status.CONVERGED, "a step would reduce the cost by less than ftol"
            break
    gradient = now.g.cpu().double()
    return MatrixFreeRun(now.point, gradient, optimality, *ended, iterations, tuple(history))


def _sides(residual: Residual) -> tuple[Tensor, Tensor]:
    """The bounds, where the parameters are."""
    space = residual.space
    return residual.lower.to(space.device, space.dtype), residual.upper.to(space.device, space.dtype)


def _ending(residual: Residual, now: _Moment, rules: Rules, optimality: float) -> tuple[Status, str] | None:
    """How the run ends here, and why; None where it goes on."""
    if now.size <= now.noise:
        return Status.CONVERGED, f"the residual is zero to rounding: norm(r) = {now.size:.3g}"
    if optimality <= rules.gtol:
        return Status.CONVERGED, "J'r is zero to gtol"
    if residual.rho is None and now.size < LEAST:
        return Status.STAGNATED, f"the residual has become too small for its unit: {now.size:.3g}"
    return None


def _moment(residual: Residual, point: Point) -> _Moment:
    J = residual.operator(point)
    residual.ledger.jacobians += 1
    space, image = J.domain, J.codomain
    x, r = point.x.to(space.device, space.dtype), point.r.to(image.device, image.dtype)
    if residual.rho is not None:
        factors, rows = row_scales(residual.rho, point.r, residual.rho_scale)
        r = (factors * point.r).to(r)
        J = from_diagonal(rows.to(r), domain=image) @ J
    g, along = J.T @ r, J @ x
    squares = space.zeros()
    for j in range(PROBES):
        squares += (J.T @ image.random(j, 0)).square()
    residual.ledger.products += PROBES + 2
    size = float(image.norm(r))
    noise = residual.eps * (float(image.norm(along)) + size)
    return _Moment(point, x, r, J, g, size, noise, (squares / PROBES).sqrt())


def _step(
    residual: Residual, now: _Moment, D: Tensor, free: Tensor, damping: float, optimality: float
) -> tuple[Tensor, bool]:
    """The damped step in the free parameters, and whether it is as exact as was asked."""
    S = torch.where(free, 1 / D, 0.0)
    A = now.J @ from_diagonal(S, domain=now.J.domain)
    least, limit = 2 * residual.eps, 4 * min(A.shape) + 100
    rtol = max(min(0.1, math.sqrt(optimality)) * min(optimality, 1.0), least)
    while True:
        s = lsmr(A, -now.r, damping=math.sqrt(damping), rtol=rtol, max_iterations=limit)
        residual.ledger.products += s.products
        # the cosines are estimates and lsmr's are of other sizes: a step that solves nothing would pass for exact
        moved = s.residual <= HALF * now.size or (len(s.history) > 1 and s.history[-1] <= HALF * s.history[0])
        if moved or rtol <= least or not s.converged:
            return S * s.x, s.status not in (Status.MAX_ITERATIONS, Status.NONFINITE)
        rtol = max(1e-2 * rtol, least)


def _gain(residual: Residual, now: _Moment, p: Tensor) -> float:
    """What p takes off r'r / 2 in the linear model."""
    residual.ledger.products += 1
    space, image = now.J.domain, now.J.codomain
    return -float(space.inner(now.g, p)) - 0.5 * float(image.norm(now.J @ p)) ** 2
