"""Bounds: trust-region Newton on the faces of l <= x <= u, from products with H. No point outside is evaluated.

In each iteration a search along the projected gradient, P(x - t B^-1 g), finds the face on which the model falls enough
(the Cauchy point). The model is then minimized over that face in a Krylov space, with projected searches that may reach
smaller faces, until its gradient on the face is small or the step leaves the trust region. Near a solution that holds
its bounds strictly the face is the right one after finitely many steps, and the steps are Newton's.

**Source.** C.-J. Lin, J. More (1999), Newton's method for large bound-constrained optimization problems, algorithm 2.1
and section 4, doi 10.1137/S1052623498345075; J. More, G. Toraldo (1991), doi 10.1137/0801008.

**Differs from the source.** (1) The radius holds each search of its own, so that a step is at most twice as long.
(2) Reductions below the rounding error of f are taken from gradients, and the last digits follow by Newton steps on the
face. (3) For small n the Hessian is formed from n products and scales the variables.

**Cost.** One evaluation per trial; per accepted step a gradient, one product per trial of the Cauchy search and those
of some Krylov spaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.operators._constructors import from_diagonal, from_matrix
from frechet.operators._operator import PSD, Fact, LinearOperator
from frechet.optimize._box import Box
from frechet.optimize._geometric import Geometric
from frechet.optimize._smooth.newton_loop import (
    LONG,
    LOOSE,
    Observe,
    Rules,
    Run,
    at_limit,
    gain,
    last_step,
    limits,
    moves_rounding,
    newton_step,
    noise,
    shown,
    spent,
    too_small,
)
from frechet.optimize._smooth.quadratic_model import CLOSE, Diagonal, Model, equilibrated, krylov_model
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction
from frechet.space import Space

ENOUGH = 1e-2  # of the slope, in the Cauchy and the projected search
FACTOR, SEARCHES, FACES = 10.0, 700, 10  # from the longest number to the shortest
ACCEPT, POOR, GOOD, EXCELLENT = 1e-4, 0.25, 0.75, 0.9
CUT, GROW, LEAP = (0.1, 0.5), 2.0, 4.0
NEAR = 1e8  # reductions below this many ftol ask whether the point is a solution
HALF, POLISHES, REFUSALS = 0.5, 20, 80


@dataclass(frozen=True, eq=False, repr=False)
class Masked(LinearOperator):
    """M A M, with M the projection on the free variables."""

    operator: LinearOperator
    free: Tensor  # 1 or 0, (n,)

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts & PSD

    def _matmat(self, V: Tensor) -> Tensor:
        free = self.free[:, None]
        return free * self.operator._matmat(free * V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


@dataclass(frozen=True, eq=False)
class _Bent:
    """The quadratic model at one point: H, the inverse B^-1 of the metric (None: the identity), and the box."""

    f: SmoothFunction
    point: Point
    H: LinearOperator
    inverse: LinearOperator | None
    weights: Tensor | None
    box: Box
    most: int
    beyond: int

    def value(self, s: Tensor, Hs: Tensor) -> float:
        inner = self.f.space.inner
        return float(inner(self.point.gradient, s)) + 0.5 * float(inner(s, Hs))

    def raised(self, g: Tensor) -> Tensor:
        return g if self.inverse is None else self.inverse @ g

    def searched(self, g: Tensor) -> Tensor:
        """The direction of a projected search: what is not held must not turn it where the metric is not diagonal."""
        if self.inverse is None or self.weights is not None:
            return self.raised(g)
        free = (self.box.held(self.point.x, g) == 0).to(g)
        return torch.where(free > 0, Masked(self.inverse, free) @ g, g)

    def length(self, s: Tensor) -> float:
        """norm(s) in the metric where that is diagonal, else in the identity."""
        return float(self.f.space.norm(s if self.weights is None else s * self.weights.sqrt()))

    def face(self, gradient: Tensor, free: Tensor) -> Model | None:
        """The model on the free variables with this gradient; None where that is zero there."""
        mask = free.to(gradient)
        g = mask * gradient
        if not bool((g != 0).any()):
            return None
        P = None if self.inverse is None else Masked(self.inverse, mask)
        model = krylov_model(
            self.f.space, Masked(self.H, mask), g, preconditioner=P, most=self.most, beyond=self.beyond
        )
        model.grow()
        return model


def projected_newton(f: SmoothFunction, point: Point, rules: Rules, box: Box, *, observe: Observe | None = None) -> Run:
    """Run from `point`, which lies between the bounds."""
    iterations, history, radius, t = 0, [point.value], 0.0, 1.0
    status, message, weights, gained, moved, pace = None, "", None, math.inf, math.inf, Geometric(f.space.inner)
    while True:
        free = box.held(point.x, point.gradient) == 0
        if _largest(point, free) <= max(rules.gtol, rules.least):
            break
        if observe is not None and observe(shown(f, point, iterations, radius)):
            status = Status.STOPPED
            break
        status, message = limits(f, point, rules, iterations)
        if status is not None:
            break
        try:
            bent, weights = _bent(f, point, rules, box, weights)
            near = gained <= NEAR * rules.ftol * abs(point.value) or moved <= f.space.eps**0.5 * f.space.norm(point.x)
            if near and (message := _settled(bent, free, rules)):
                if rules.tight:
                    point, more = _polished(bent, rules)
                    iterations, history = iterations + len(more), history + more
                break
            after, radius, t, gained = _step(bent, rules, free, radius, t)
        except NonFinite:
            status, message = Status.NONFINITE, "a product with the Hessian holds a NaN or an infinity"
            break
        if after is None:
            message, model = _settled(bent, free, rules), bent.face(point.gradient, free)
            after, more = _polished(bent, rules)
            iterations, history = iterations + len(more[:-1]), history + more[:-1]
            if after is point:
                message = message or ("" if model is None else spent(f, point, model, rules, box))
                status = None if message else Status.STAGNATED
                break
            gained = 0.0
        moved = float(f.space.norm(after.x - point.x))
        point, iterations = at_limit(f, after, after.x - point.x, pace, rules, box), iterations + 1
        history.append(point.value)
    small = too_small(point, status, rules, box)
    return Run(point, status, iterations, tuple(history), message, small=small)


def _largest(point: Point, free: Tensor) -> float:
    return point.sized(free * point.gradient)


def _bent(
    f: SmoothFunction, point: Point, rules: Rules, box: Box, weights: Tensor | None
) -> tuple[_Bent, Tensor | None]:
    """The model, and what the next one should know of the metric."""
    H = f.hessian(point)
    if rules.preconditioner is not None or f.space.dim > rules.full:
        return _Bent(f, point, H, rules.preconditioner, None, box, rules.most, rules.beyond), None
    A = H @ f.space.units(range(f.space.dim))
    A = 0.5 * (A + A.T)
    if not f.space.finite(A):
        raise NonFinite("minimize: a product with the Hessian holds a NaN or an infinity")
    own = equilibrated(A.double()).to(A)
    weights = own if weights is None else torch.maximum(own, torch.minimum(weights, CLOSE * own))
    matrix = from_matrix(A, domain=f.space, facts="symmetric")
    inverse = from_diagonal(1 / weights, domain=f.space)
    return _Bent(f, point, matrix, inverse, weights, box, rules.most, rules.beyond), weights


def _settled(bent: _Bent, free: Tensor, rules: Rules) -> str:
    """Why the point is a solution, or nothing."""
    model = bent.face(bent.point.gradient, free)
    if model is None:
        return "the gradient on the face is zero"
    step, decrease = newton_step(model, bent.point, rules.ftol * abs(bent.point.value))
    if not (decrease < math.inf and (model.complete or step.residual <= LOOSE * model.size)):
        return ""
    if decrease <= rules.ftol * abs(bent.point.value):
        return f"a Newton step on the face would reduce f by {decrease:.3g}"
    if moves_rounding(model, model.vector(step), bent.point, decrease):
        return "a Newton step on the face would change x by no more than rounding"
    return ""


def _step(bent: _Bent, rules: Rules, free: Tensor, radius: float, t: float) -> tuple[Point | None, float, float, float]:
    """The next point, None where no radius gives one; the radius, the length of the Cauchy search, and the gain."""
    f, point = bent.f, bent.point
    share = min(LOOSE, (_largest(point, free) / rules.start) ** 0.5) if rules.start > 0 else LOOSE
    for _ in range(REFUSALS):
        s, Hs, t, radius = _cauchy(bent, radius, t)
        s, Hs, bounded = _faces(bent, s, Hs, radius, share)
        moved = bent.box.project(point.x + s)
        promised = -bent.value(s, Hs)
        if not promised > 0 or bool((moved == point.x).all()):
            return None, radius, t, 0.0
        trial = f.at(moved)
        if trial.value <= rules.lowest:
            return Point(moved, trial.value, point.gradient, [], []), radius, t, math.inf
        gained, after = gain(f, point, trial, moved - point.x, bent.box)
        length, ratio = bent.length(s), gained / promised
        if ratio > ACCEPT:
            after = f.differentiated(trial) if after is None else after
            if after is not None:
                if ratio > GOOD and (bounded or length > radius / GROW):
                    radius = max(radius, (LEAP if ratio > EXCELLENT else GROW) * length)
                elif ratio < POOR:
                    radius = CUT[1] * min(length, radius)
                return after, radius, t, gained
            gained = -math.inf
        slope = float(f.space.inner(point.gradient, s))
        bend = -gained - slope
        best = -slope / (2 * bend) if math.isfinite(bend) and bend > 0 else 0.25
        radius = min(max(best, CUT[0]), CUT[1]) * min(length, radius)
    return None, radius, t, 0.0


def _cauchy(bent: _Bent, radius: float, t: float) -> tuple[Tensor, Tensor, float, float]:
    """A step along the projected gradient that is long and still good, times H; its t, and the radius."""
    x, g = bent.point.x, bent.point.gradient
    direction = bent.searched(g)
    if radius == 0:
        free = bent.box.held(x, g) == 0
        p = free * direction
        square, bend = float(bent.f.space.inner(g, p)), abs(float(bent.f.space.inner(p, bent.H @ p)))
        t = square / bend if bend > 0 else 1.0
        radius = FACTOR * t * bent.length(p)

    def at(t: float) -> tuple[Tensor, Tensor, bool]:
        s = bent.box.project(x - t * direction) - x
        if bent.length(s) > radius:
            return s, s, False
        Hs = bent.H @ s
        slope = float(bent.f.space.inner(g, s))
        return s, Hs, bent.value(s, Hs) <= ENOUGH * min(slope, 0.0)

    s, Hs, good = at(t)
    for _ in range(SEARCHES):
        longer = t * FACTOR if good else t / FACTOR
        other, Hother, fine = at(longer)
        if good and (not fine or bool((other == s).all())):
            break
        s, Hs, t = other, Hother, longer
        if fine and not good:
            good = True
            break
        good = fine
    return s, Hs, t, radius


def _faces(bent: _Bent, s: Tensor, Hs: Tensor, radius: float, share: float) -> tuple[Tensor, Tensor, bool]:
    """The model minimized from the Cauchy step over its face, and over the smaller faces that are reached."""
    x, box, space = bent.point.x, bent.box, bent.f.space
    g = bent.point.gradient
    for _ in range(FACES):
        here, slope = x + s, g + Hs
        free = (here > box.lower) & (here < box.upper)
        model = bent.face(slope, free)
        if model is None:
            return s, Hs, False
        step = model.solved(partial(Diagonal.within, radius=radius), share * model.size, radius=radius)
        w = model.vector(step)
        descent = float(space.inner(slope, w))
        shorter = 1.0
        for _ in range(SEARCHES):
            moved = box.project(here + shorter * w)
            d = moved - here
            Hd = bent.H @ d
            if float(space.inner(slope, d)) + 0.5 * float(space.inner(d, Hd)) <= ENOUGH * min(
                float(space.inner(slope, d)), 0.0
            ):
                break
            shorter *= 0.5
        else:
            return s, Hs, step.bounded
        s, Hs = s + d, Hs + Hd
        inside = bool(((x + s > box.lower) & (x + s < box.upper) | ~free).all())
        if step.bounded or descent >= 0 or (inside and shorter == 1.0):
            return s, Hs, step.bounded
    return s, Hs, False


def _polished(bent: _Bent, rules: Rules) -> tuple[Point, list[float]]:
    """A point at which a Newton step on the face does not halve the gradient there, and the values on the way."""
    f, point, box = bent.f, bent.point, bent.box
    values: list[float] = []
    for k in range(POLISHES):
        free = box.held(point.x, point.gradient) == 0
        model = bent.face(point.gradient, free)
        if model is None or _largest(point, free) <= max(rules.gtol, rules.least):
            return point, values
        step = last_step(model, k < LONG)
        if step.indefinite or not model.diagonal.newton_decrease() < math.inf:
            return point, values
        trial = f.at(box.project(point.x + model.vector(step)))
        if not trial.value <= point.value + 10 * noise(f, point):
            return point, values
        after = f.differentiated(trial)
        if after is None or not _largest(after, box.held(after.x, after.gradient) == 0) <= HALF * _largest(point, free):
            return point, values
        point = after
        values.append(point.value)
        bent, _ = _bent(f, point, rules, box, bent.weights)
    return point, values
