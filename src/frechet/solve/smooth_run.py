"""What the methods of `minimize` share: where they stop, how reductions are measured near rounding, the last digits.

A point is a solution where one of these holds, g the gradient of f, x0 the start:

    gradient     max |g_i| <= gtol                        gtol = eps max |g_i(x0)| if left out
    reduction    g'H^-1 g / 2 <= ftol |f|                 what a Newton step could gain, H without negative curvature;
                 or <= eps |f(x0)|, where no step is found that reduces f or its gradient

The second does not change with the units of x and f. Where the two values of f that a step compares differ by less than
their rounding error, the reduction is taken from the gradients, -(g + g+)'s / 2, which is right to third order in s,
and only if g+ is not larger than g.
Once a Newton step would gain nothing that f can show, steps go on as long as each reduces the gradient to less than
half: `polished`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg.result import Status
from frechet.operators.operator import LinearOperator
from frechet.solve.box import Box
from frechet.solve.quadratic_model import Diagonal, Model, full_model, krylov_model
from frechet.solve.smooth_function import Point, SmoothFunction, Trial

NOISE = 4.0  # rounding errors of f, in eps (|f| + |g|'|x|)
HALF, POLISHES = 0.5, 20
LOOSE = 0.1  # largest relative residual of a step
NEWTON = partial(Diagonal.shifted, sigma=0.0)


@dataclass(frozen=True, eq=False)
class MinimizeState:
    """One moment of `minimize`. `x` is flat ``(n,)``; `control` is the radius or the regularization of the method."""

    iteration: int
    x: Tensor
    value: float
    gradient: float  # its largest entry
    control: float
    evaluations: int
    products: int


Observe = Callable[[MinimizeState], bool]


@dataclass(frozen=True)
class Rules:
    """Tolerances and limits. `full` is the largest n whose Hessian is a matrix, `most` the largest Krylov space."""

    gtol: float
    ftol: float
    max_iterations: int
    start: float  # the largest entry of the gradient at x0
    value: float  # f(x0)
    full: int
    most: int
    preconditioner: LinearOperator | None
    tight: bool  # whether to go on to the last digits
    lowest: float  # a value below this is taken for minus infinity
    farthest: float  # a point whose norm is larger is taken for infinity


@dataclass(frozen=True, eq=False)
class Run:
    """Where a method ended. `status` is None where its tests said that it is done."""

    point: Point
    status: Status | None
    iterations: int
    history: tuple[float, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Models:
    """Makes the quadratic models of one run.

    The metric of small ones is that of the largest scales so far; `fixed` keeps the first.
    """

    function: SmoothFunction
    rules: Rules
    fixed: bool = False
    weights: Tensor | None = None

    def at(self, point: Point) -> Model:
        f, rules = self.function, self.rules
        try:
            H = f.hessian(point)
            if rules.preconditioner is None and f.space.dim <= rules.full:
                model = full_model(f.space, H, point.gradient, self.weights, kept=self.fixed)
                assert model.weights is not None
                self.weights = model.weights
                return model
            model = krylov_model(f.space, H, point.gradient, preconditioner=rules.preconditioner, most=rules.most)
            model.grow()
            return model
        except NonFinite:
            return _flat(f, point)

    def raised(self, g: Tensor) -> tuple[Tensor, float]:
        """B^-1 g and sqrt(g'B^-1 g), B the metric of the last model."""
        P, space = self.rules.preconditioner, self.function.space
        direction = P @ g if P is not None else g if self.weights is None else g / self.weights.to(g)
        return direction, float(space.inner(g, direction)) ** 0.5


def _flat(f: SmoothFunction, point: Point) -> Model:
    """The model without curvature, where products with the Hessian are not finite."""
    g = point.gradient
    size = float(f.space.norm(g))
    V = (g / size)[:, None]
    model = Model(f.space, f.hessian(point), None, size, 1, V, V, complete=True)
    model.Q, model.diagonal = np.eye(1), Diagonal(np.zeros(1), np.array([size]), np.zeros(1))
    return model


def noise(f: SmoothFunction, point: Point) -> float:
    """The rounding error of a value of f near the point."""
    return NOISE * f.space.eps * (abs(point.value) + float(f.space.inner(point.gradient.abs(), point.x.abs())))


def solved(point: Point, model: Model, rules: Rules) -> str:
    """Why the point is a solution, or nothing. Grows the model's space until it can tell."""
    if point.largest <= rules.gtol:
        return f"the largest entry of the gradient is {point.largest:.3g}"
    step = model.solved(NEWTON, LOOSE * model.size)
    decrease = model.diagonal.newton_decrease()
    if decrease <= rules.ftol * abs(point.value) and (model.complete or step.residual <= LOOSE * model.size):
        return f"a Newton step would reduce f by {decrease:.3g}"
    return ""


def spent(f: SmoothFunction, decrease: float, rules: Rules) -> str:
    """Why a point that no step improves is a solution, or nothing."""
    if decrease <= f.space.eps * abs(rules.value):
        return f"no step reduces f or its gradient, and a Newton step would reduce f by {decrease:.3g}"
    return ""


def free_gradient(point: Point, box: Box | None) -> Tensor:
    """The gradient, zero where a bound holds x."""
    g = point.gradient
    return g if box is None else torch.where(box.held(point.x, g) == 0, g, 0.0)


def gain(
    f: SmoothFunction, point: Point, trial: Trial, s: Tensor, box: Box | None = None
) -> tuple[float, Point | None]:
    """f(x) - f(x + s), from the gradients where the values are equal to rounding; with the point if it was needed.

    Then the gradient must not grow, at a bound that holds x not counted.
    """

    difference = point.value - trial.value
    if not math.isfinite(trial.value):
        return -math.inf, None
    if abs(difference) > noise(f, point):
        return difference, None
    after = f.differentiated(trial)
    if after is None or f.space.norm(free_gradient(after, box)) > f.space.norm(free_gradient(point, box)):
        return -math.inf, after
    return -0.5 * float(f.space.inner(s, point.gradient + after.gradient)), after


def polished(f: SmoothFunction, point: Point, models: Models) -> tuple[Point, int]:
    """A point at which a Newton step does not halve the gradient, and the number of steps there."""
    for i in range(POLISHES):
        if point.largest <= models.rules.gtol:
            return point, i
        model = models.at(point)
        tight = max(1e-6, 10 * f.space.eps)
        step = model.solved(NEWTON, tight * model.size)
        if not model.diagonal.newton_decrease() < math.inf:
            return point, i
        trial = f.at(point.x + model.vector(step))
        if not trial.value <= point.value + 10 * noise(f, point):
            return point, i
        after = f.differentiated(trial)
        if after is None or not model.dual_norm(after.gradient) <= HALF * model.size:
            return point, i
        point = after
    return point, POLISHES


def forcing(f: SmoothFunction, model: Model, point: Point, rules: Rules) -> float:
    """The residual that a step may leave, in the dual norm: less the nearer the solution is."""
    share = min(LOOSE, (point.largest / rules.start) ** 0.5) if rules.start > 0 else LOOSE
    return max(share, 10 * f.space.eps) * model.size


Next = Callable[[Point, Model, float], tuple[Point | None, float]]  # the next point by a model, and the next control


def newton_steps(f: SmoothFunction, point: Point, rules: Rules, step: Next, observe: Observe | None) -> Run:
    """Steps from `point` until it is solved. `step` gets a control of 0 first, and gives None where no step gains."""
    models, control, iterations, history = Models(f, rules), 0.0, 0, [point.value]
    status, reason = None, ""
    while True:
        if point.largest <= rules.gtol and point.value > rules.lowest:
            break
        if observe is not None and observe(shown(f, point, iterations, control)):
            status = Status.STOPPED
            break
        status, reason = limits(f, point, rules, iterations)
        if status is not None:
            break
        model = models.at(point)
        if reason := solved(point, model, rules):
            if rules.tight:
                point, more = polished(f, point, models)
                iterations += more
            break
        after, control = step(point, model, control)
        if after is None:
            after, more = polished(f, point, models)
            iterations += more
            if after is point:
                reason = spent(f, model.diagonal.newton_decrease(), rules)
                status = None if reason else Status.STAGNATED
                break
        point, iterations = after, iterations + 1
        history.append(point.value)
    return Run(point, status, iterations, tuple(history), reason)


def limits(f: SmoothFunction, point: Point, rules: Rules, iterations: int) -> tuple[Status | None, str]:
    """Whether values or iterations ran out."""
    if point.value <= rules.lowest:
        return Status.UNBOUNDED, f"f falls without end: {point.value:.3g} after {iterations} iterations"
    if float(f.space.norm(point.x)) > rules.farthest:
        return (
            Status.UNBOUNDED,
            f"x runs away while f falls: {point.value:.3g} at norm(x) = {float(f.space.norm(point.x)):.3g}",
        )
    if iterations >= rules.max_iterations:
        return Status.MAX_ITERATIONS, f"the limit of {rules.max_iterations} iterations was reached"
    return None, ""


def shown(f: SmoothFunction, point: Point, iterations: int, control: float) -> MinimizeState:
    """The state to observe."""
    c = f.counts
    return MinimizeState(iterations, point.x, point.value, point.largest, control, c.evaluations, c.products)
