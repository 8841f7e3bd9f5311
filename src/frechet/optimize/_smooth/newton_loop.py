"""What the methods of `minimize` share: where they stop, how reductions are measured near rounding, the last digits.

A point is a solution where one of these holds, by the rule of `stopping`, with g the gradient of f and p = -H^-1 g:

    gradient     max |g_i| <= gtol             0 if left out
    value        g'H^-1 g / 2 <= ftol |f|      what a Newton step could gain, H without negative curvature
    step         p'H p <= (4 eps)^2 x'H x      a Newton step moves x by its rounding
    rounding     no step is found that reduces f or its gradient, and g is as small as it is exact

All but the first do not change with the units of x and f. Where the two values of f that a step compares differ by less
than their rounding error, the reduction is taken from the gradients, -(g + g+)'s / 2, which is right to third order in
s, and only if g+ is not larger than g.
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
from frechet.linalg._result import Status
from frechet.operators._operator import LinearOperator
from frechet.optimize._box import Box
from frechet.optimize._geometric import BETTER, Geometric
from frechet.optimize._smooth.quadratic_model import Diagonal, Model, Step, full_model, krylov_model
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction, Trial
from frechet.optimize._stopping import Evaluate, at_rounding, is_rounding

NOISE = 4.0  # rounding errors of f, in eps (|f| + |g|'|x|)
HALF, POLISHES, LONG = 0.5, 20, 3  # LONG: those whose Krylov space goes beyond its basis
WORN = 16.0  # times the rounding of x that a Newton step may move where no step reduces f or its gradient
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
    start: float  # the largest entry of the gradient where the run begins
    full: int
    most: int
    beyond: int  # dimensions that a step may use beyond the basis
    preconditioner: LinearOperator | None
    tight: bool  # whether to go on to the last digits
    least: float  # a gradient whose largest entry is smaller needs another unit of f
    smallest: float  # values and first-order changes of f so small are nothing where no step is found
    lowest: float  # a value below this is taken for minus infinity
    farthest: float  # a point whose norm is larger is taken for infinity


@dataclass(frozen=True, eq=False)
class Run:
    """Where a method ended. `status` is None where its tests said that it is done."""

    point: Point
    status: Status | None
    iterations: int
    history: tuple[float, ...]
    message: str = ""
    notes: tuple[str, ...] = ()
    small: bool = False  # whether the run ended since f needs another unit


@dataclass(eq=False)
class Models:
    """Makes the quadratic models of one run.

    The metric of small ones is that of the largest scales so far, or of those at the start if `fixed`.
    """

    function: SmoothFunction
    rules: Rules
    fixed: bool = False
    weights: Tensor | None = None
    before: Tensor | None = None  # the weights of the last model but one
    step: Tensor | None = None  # the last step

    def stretched(self) -> float:
        """By how much the change of the metric has made the last step longer: as much as a radius has to grow."""
        if self.step is None or self.weights is None or self.before is None or self.weights is self.before:
            return 1.0
        space, s = self.function.space, self.step
        old, new = (float(space.norm(s * w.sqrt().to(s))) for w in (self.before, self.weights))
        return new / old if 0 < old < math.inf and 0 < new < math.inf else 1.0

    def at(self, point: Point) -> Model:
        f, rules = self.function, self.rules
        try:
            H = f.hessian(point)
            if rules.preconditioner is None and f.space.dim <= rules.full:
                model = full_model(f.space, H, point.gradient, self.weights, kept=self.fixed)
                assert model.weights is not None
                self.before, self.weights = self.weights, model.weights
                return model
            model = krylov_model(
                f.space, H, point.gradient, preconditioner=rules.preconditioner, most=rules.most, beyond=rules.beyond
            )
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
        return f"the {point.measure} is {point.largest:.3g}"
    step, decrease = newton_step(model, point, rules.ftol * abs(point.value))
    if not (decrease < math.inf and (model.complete or step.residual <= LOOSE * model.size)):
        return ""
    if decrease <= rules.ftol * abs(point.value):
        return f"a Newton step would reduce f by {decrease:.3g}"
    if moves_rounding(model, model.vector(step), point, decrease):
        return "a Newton step would change x by no more than rounding"
    return ""


def newton_step(model: Model, point: Point, little: float) -> tuple[Step, float]:
    """The Newton step and its decrease of the model; only roughly where it is clear that the point is no solution.

    What a larger space adds makes the decrease and the step larger, so a part of it tells that they are too large:
    a decrease of more than `little`, and a step of more than the rounding of x, or a direction that bends downwards.
    """
    space = model.space
    short = space.eps**0.5 * float(space.norm(point.x))

    def enough(step: Step) -> float:
        if model.complete:
            return math.inf
        decrease = model.diagonal.newton_decrease()
        if decrease == math.inf or (decrease > little and float(space.norm(model.vector(step))) > short):
            return math.inf
        return LOOSE * model.size

    step = model.solved(NEWTON, enough, radius=math.inf)
    if step.indefinite:
        return step, math.inf
    return step, model.diagonal.newton_decrease() if step.tail is None else step.decrease


def moves_rounding(model: Model, p: Tensor, point: Point, decrease: float) -> bool:
    """Whether a Newton step p is as long as the rounding of x, in the norm of H."""
    space = model.space
    if float(space.norm(p)) > space.eps**0.5 * float(space.norm(point.x)):
        return False  # which spares a product where one is dear
    whole = float(space.inner(point.x, model.H @ point.x))
    return at_rounding(math.sqrt(2 * decrease), math.sqrt(max(whole, 0.0)), space.eps)


def spent(f: SmoothFunction, point: Point, model: Model, rules: Rules, box: Box | None = None) -> str:
    """Why a point that no step improves is a solution, or nothing: its gradient is rounding, or out of range."""
    vanished = abs(point.value) + float(f.space.inner(point.gradient.abs(), point.x.abs())) <= rules.smallest
    steep = float(free_gradient(point, box).abs().max()) * f.unit
    if vanished and steep <= math.sqrt(rules.smallest * f.unit):
        return f"f and its gradient have vanished: {point.value * f.unit:.3g}, {point.largest * f.unit:.3g} at most"
    step = model.solved(NEWTON, LOOSE * model.size, radius=math.inf)
    if step.indefinite or not model.diagonal.newton_decrease() < math.inf:
        return ""
    p, y = model.vector(step), free_gradient(point, box)
    if moves_rounding(model, p, point, model.diagonal.newton_decrease() / WORN**2):
        return "no step reduces f or its gradient, and a Newton step would change x by little more than rounding"
    if is_rounding(gradients(f, y != 0), model.dual_norm, point.x, p, y, -y):
        return f"no step reduces f or its gradient, whose largest entry of {float(y.abs().max()):.3g} is its rounding"
    return ""


def gradients(f: SmoothFunction, free: Tensor) -> Evaluate:
    """The gradient at a point, zero where not `free`."""

    def evaluate(x: Tensor) -> Tensor | None:
        at = f.differentiated(f.at(x))
        return None if at is None else torch.where(free, at.gradient, 0.0)

    return evaluate


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


def polished(f: SmoothFunction, point: Point, models: Models) -> tuple[Point, list[float]]:
    """A point at which a Newton step does not halve the gradient, and the values of f on the way."""
    values: list[float] = []
    for k in range(POLISHES):
        if point.largest <= max(models.rules.gtol, models.rules.least):
            return point, values
        model = models.at(point)
        step = last_step(model, k < LONG)
        if step.indefinite or not model.diagonal.newton_decrease() < math.inf:
            return point, values
        trial = f.at(point.x + model.vector(step))
        if not trial.value <= point.value + 10 * noise(f, point):
            return point, values
        after = f.differentiated(trial)
        if after is None or not model.dual_norm(after.gradient) <= HALF * model.size:
            return point, values
        point = after
        values.append(point.value)
    return point, values


def last_step(model: Model, long: bool) -> Step:
    """The Newton step for the last digits: accurate where the basis can give that, and if `long` good enough beyond."""
    step = model.solved(NEWTON, max(1e-6, 10 * model.space.eps) * model.size)
    if not long or step.residual <= LOOSE * model.size:
        return step
    return model.solved(NEWTON, LOOSE * model.size, radius=math.inf)


def forcing(f: SmoothFunction, model: Model, point: Point, rules: Rules) -> float:
    """The residual that a step may leave, in the dual norm: less the nearer the solution is."""
    share = min(LOOSE, (point.largest / rules.start) ** 0.5) if rules.start > 0 else LOOSE
    return max(share, 10 * f.space.eps) * model.size


# the next point by a model, and the next control; the last number says how lengths have grown with the metric
Next = Callable[[Point, Model, float, float], tuple[Point | None, float]]


def newton_steps(f: SmoothFunction, point: Point, rules: Rules, step: Next, observe: Observe | None) -> Run:
    """Steps from `point` until it is solved. `step` gets a control of 0 first, and gives None where no step gains."""
    models, control, iterations, history = Models(f, rules), 0.0, 0, [point.value]
    status, message, pace = None, "", Geometric(f.space.inner)
    while True:
        if point.largest <= max(rules.gtol, rules.least) and point.value > rules.lowest:
            break
        if observe is not None and observe(shown(f, point, iterations, control)):
            status = Status.STOPPED
            break
        status, message = limits(f, point, rules, iterations)
        if status is not None:
            break
        model = models.at(point)
        if message := solved(point, model, rules):
            if rules.tight:
                point, more = polished(f, point, models)
                iterations, history = iterations + len(more), history + more
            break
        after, control = step(point, model, control, models.stretched())
        if after is None:
            after, more = polished(f, point, models)
            iterations, history = iterations + len(more[:-1]), history + more[:-1]
            if after is point:
                message = spent(f, point, model, rules)
                status = None if message else Status.STAGNATED
                break
        models.step = after.x - point.x
        point, iterations = at_limit(f, after, models.step, pace, rules), iterations + 1
        history.append(point.value)
    return Run(point, status, iterations, tuple(history), message, small=too_small(point, status, rules))


def at_limit(
    f: SmoothFunction, point: Point, s: Tensor, pace: Geometric, rules: Rules, box: Box | None = None
) -> Point:
    """The limit of steps that shrink by a constant factor, the last one `s`, if that is much better than the point."""
    t = pace.multiple(s) if point.value > rules.lowest else 0.0
    if not t:
        return point
    x = point.x + t * s
    trial = f.at(x if box is None else box.project(x))
    limit = f.differentiated(trial) if trial.value <= point.value else None
    most = BETTER * float(f.space.norm(free_gradient(point, box)))
    better = limit is not None and float(f.space.norm(free_gradient(limit, box))) <= most
    pace.tried(better)
    return limit if limit is not None and better else point


def too_small(point: Point, status: Status | None, rules: Rules, box: Box | None = None) -> bool:
    """Whether a run ended only since the gradient has become too small for the unit of f, and f with it."""
    g = free_gradient(point, box)
    return status is None and rules.gtol < float(g.abs().max()) <= rules.least and abs(point.value) <= rules.least**0.5


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
