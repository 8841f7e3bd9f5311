"""Newton's method on an exact augmented Lagrangian, for equalities c(x) = 0.

    L_eta(x, y) = f + c'y + eta1/2 norm(c)^2 + eta2/2 norm(grad_x L)^2,    L = f + c'y

has, for eta1 large and eta2 small enough, its unconstrained minima where the problem has its own: x and y are searched
together, by inexact Newton steps z of the first-order conditions

    [ W + t I  J' ] [dx]     [ grad_x L ]
    [ J        0  ] [dy] = - [ c        ],      W = Hessian of L in x

and an Armijo search on L_eta. The system is solved only as far as z'grad L_eta <= -eta2/2 norm(grad_x L, c)^2 asks:
while that fails, the tolerance falls, eta1 grows and eta2 falls. t > 0 is added where W has no positive curvature on
the null space of J.

`Projections` solves it: dx is the least-norm step to J dx = -c plus projected CG; dy follows by least squares.

**Source.** Hong, Na, Mahoney and Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized
iterative sketching, ICML, arXiv 2305.18379, algorithm 1; Pillo and Grippo (1979), doi 10.1137/0317044 (the function).

**Differs from the source.** 1. The gradient of L_eta takes the Hessian of L, not of f, as the published code does.
2. The bounds on norms and condition numbers that set the tolerance are replaced by the test of descent itself. 3. The
tolerance also falls with norm(grad_x L, c), which makes the steps superlinear. 4. The shift t is found by curvature met
in CG, not by eigenvalues of a formed matrix.

**Cost** per iteration: one gradient per trial step; one Hessian product per CG iteration and one for grad L_eta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.kkt import STATIONARY, Conditions, conditions, stationary_violation
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.projected_cg import projected_cg
from frechet.optimize._constrained.projection import Rows, rows_of
from frechet.optimize._constrained.raw import as_operator
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.space import Space

ETA1, ETA2 = 1.0, 0.1
GROWTH = 1.5
DELTA, LEAST_DELTA = 0.1, 1e-12
ARMIJO = 0.1
MOST_ETA1, LEAST_ETA2 = 1e10, 1e-10
SHIFTS = 40
SMALLEST = 1e-12  # fraction of a step
TOO_FAR = 1e20


@dataclass(frozen=True, eq=False)
class Step:
    """(dx, dy), and a direction without positive curvature, if met."""

    dx: Tensor
    dy: Tensor
    curvature: Tensor | None


@dataclass
class Penalties:
    """The weights of L_eta, the tolerance of the systems, the last shift, and the last direction of no curvature."""

    eta1: float = ETA1
    eta2: float = ETA2
    delta: float = DELTA
    shift: float = 0.0
    bend: Tensor | None = None

    def raised(self) -> bool:
        """Weigh the constraints more, the gradient less, and solve more exactly; False at the end of the range."""
        self.eta1, self.eta2 = GROWTH**2 * self.eta1, self.eta2 / GROWTH
        self.delta = max(LEAST_DELTA, self.delta / GROWTH**4)
        return self.eta1 <= MOST_ETA1 and self.eta2 >= LEAST_ETA2


@dataclass(frozen=True, eq=False)
class Moment:
    """A point with its multipliers: c, the gradient and the Hessian of the Lagrangian, the size of both residuals."""

    point: Point
    y: Tensor
    c: Tensor
    gradient: Tensor
    W: LinearOperator
    rows: Rows
    size: float


class NewtonSystem(Protocol):
    """A way to solve the Newton system at one moment."""

    @property
    def projects(self) -> bool:
        """Whether it uses the rows at each moment."""
        ...

    def step(self, at: Moment, t: float, rtol: float) -> Step:
        """The step for the shift t, with a residual of at most `rtol`."""
        ...

    def bends(self, at: Moment, t: float, step: Step) -> bool:
        """Whether a step that was refused shows that the shift is too small."""
        ...


def augmented(
    program: Program, start: Point, rules: Rules, observe: Observe | None, *, system: NewtonSystem | None = None
) -> Run:
    """Run from `start`, by `Projections` unless `system` is given. All rows are equalities, and there are no bounds."""
    system = system or Projections()
    space, image = program.domain, program.codomain
    point, rows, eta = start, rows_of(as_operator(start.J)), Penalties()
    y = rows.multipliers(point.g)
    iterations, history = 0, [point.f]
    while True:
        c, gradient = point.c - program.low, point.g + point.J.T @ y
        W, size = point.hessian(y), math.hypot(float(space.norm(gradient)), float(image.norm(c)))
        at, found = Moment(point, y, c, gradient, W, rows, size), conditions(program, point, y)
        status, over = _over(program, at, found, rules, iterations)
        state = ConstrainedState(
            iterations, point.x, point.f * program.unit, found.residual, found.infeasibility, eta.eta1, 0
        )
        if observe is not None and observe(state):
            status, over = Status.STOPPED, True
        if over:
            break
        step, slope = _step(program, at, eta, system)
        status = Status.STAGNATED
        if step is None or not slope < 0 or not (space.finite(step.dx) and image.finite(step.dy)):
            break
        iterations += 1
        accepted = _searched(program, at, step, slope, eta)
        if accepted is None or (bool((accepted[0].x == point.x).all()) and bool((accepted[1] == y).all())):
            break
        point, y = accepted
        rows = rows_of(as_operator(point.J)) if system.projects else rows
        history.append(point.f)
    ended = status in (Status.STAGNATED, Status.MAX_ITERATIONS)
    if ended and found.infeasibility > rules.ctol and stationary_violation(program, point, STATIONARY):
        status = Status.INFEASIBLE
    values = tuple(f * program.unit for f in history)
    return Run(point.x, found.y, status, iterations, values, eta.bend)


def _over(program: Program, at: Moment, found: Conditions, rules: Rules, iterations: int) -> tuple[Status | None, bool]:
    """The status at the end of a run, and whether it is there."""
    if found.hold(rules.gtol, rules.ctol, strict=True):
        return None, True
    if iterations >= rules.max_iterations:
        return Status.MAX_ITERATIONS, True
    if at.point.f < -TOO_FAR or float(program.domain.norm(at.point.x)) > TOO_FAR:
        return Status.UNBOUNDED if found.infeasibility <= 1e-6 else Status.STAGNATED, True
    return None, False


def _step(program: Program, at: Moment, eta: Penalties, system: NewtonSystem) -> tuple[Step | None, float]:
    """A step of descent for L_eta, if there is one, and its slope."""
    space, image, W = program.domain, program.codomain, at.W
    bent, pulled, pushed = W @ at.gradient, at.point.J.T @ at.c, at.point.J @ at.gradient
    step, slope, t = None, math.inf, 0.0
    for _ in range(SHIFTS):
        rtol = min(eta.delta, at.size)
        step = system.step(at, t, rtol)
        slope_x = float(space.inner(at.gradient + eta.eta2 * bent + eta.eta1 * pulled, step.dx))
        slope = slope_x + float(image.inner(at.c + eta.eta2 * pushed, step.dy))
        if step.curvature is None and slope <= -0.5 * eta.eta2 * at.size * at.size:
            break
        eta.bend = step.curvature if step.curvature is not None else eta.bend
        if system.bends(at, t, step):
            t = max(4 * t, eta.shift / 4, 1e-3 * max(1.0, _bending(W, step, space)))
        elif not eta.raised():
            break
    eta.shift = t
    return step, slope


def _searched(program: Program, at: Moment, step: Step, slope: float, eta: Penalties) -> tuple[Point, Tensor] | None:
    """The first point along the step that L_eta takes, and its multipliers."""
    value = _value(program, at.point, at.c, at.gradient, at.y, eta.eta1, eta.eta2)
    noise = 10 * program.eps * (abs(at.point.f) + abs(value) + abs(float(program.codomain.inner(at.c, at.y))))
    alpha = 1.0
    while alpha > SMALLEST:
        trial = program.point(program.rounded(at.point.x + alpha * step.dx))
        if trial is not None:
            y = at.y + alpha * step.dy
            gradient = trial.g + trial.J.T @ y
            reached = _value(program, trial, trial.c - program.low, gradient, y, eta.eta1, eta.eta2)
            if reached <= value + ARMIJO * alpha * slope + noise:
                return trial, y
        alpha /= 2
    return None


@dataclass(frozen=True)
class Projections:
    """The step by projections: the rows exactly, the gradient to `rtol`."""

    projects: bool = True

    def step(self, at: Moment, t: float, rtol: float) -> Step:
        space, rows, W = at.point.J.domain, at.rows, at.W
        B = from_callable(lambda V: W @ V + t * V, space, facts="symmetric")
        v = rows.least_norm(-at.c)
        bent = B @ v
        tangent = projected_cg(B, at.gradient + bent, rows, radius=math.inf, rtol=rtol)
        dy = rows.multipliers(at.gradient + bent + tangent.Bp)
        return Step(v + tangent.p, dy, tangent.curvature)

    def bends(self, at: Moment, t: float, step: Step) -> bool:
        return step.curvature is not None


def _bending(W: LinearOperator, step: Step, space: Space) -> float:
    """|curvature| of W along the direction that was met, or of the step."""
    d = step.dx if step.curvature is None else step.curvature
    length = float(space.norm(d))
    return abs(float(space.inner(d, W @ d))) / length**2 if length > 0 else 1.0


def _value(program: Program, at: Point, c: Tensor, gradient: Tensor, y: Tensor, eta1: float, eta2: float) -> float:
    space, image = program.domain, program.codomain
    penalties = 0.5 * eta1 * float(image.inner(c, c)) + 0.5 * eta2 * float(space.inner(gradient, gradient))
    return at.f + float(image.inner(c, y)) + penalties
