"""Newton's method with a stepsize that needs no constant of the problem: x+ = x - alpha n, n = H^-1 g.

With norm_x(g)^2 = g'H^-1 g the stepsize is alpha = 1 / (1 + theta), which is the step of a model regularized in the
local norm. Two rules for theta:

    universal   theta = sigma 2^j norm_x(g)^(2/3) with the first j >= 0 for which
                n'g(x+) >= norm_x(g(x+))^2 / (2 alpha theta);  the next sigma is sigma 2^(j-1)
    greedy      alpha minimizes (f(x+) - f(x)) / norm_x(g(x+))^2 on (0, 1]

Both converge for convex f as fast as if its smoothness were known, O(k^-3) where third derivatives are Lipschitz, and
quadratically near the solution. The steps do not change with linear changes of coordinates.

**Source.** S. Hanzely, F. Abdukhakimov, M. Takac (2024), Newton method revisited: global convergence rates up to
O(k^-3) for stepsize schedules and linesearch procedures, algorithms UN and GRLS, arXiv 2405.18926.

**Differs from the source.** (1) H is replaced by its absolute value |H|, so that n descends where f is not convex, and
there a step must also reduce f. (2) Systems are solved in Krylov spaces, both that of g and, for the test, that of
g(x+). (3) The greedy rule halves alpha from 1 until the quotient rises. (4) A trial that has converged
is accepted. (5) The first sigma is 1.

**Cost.** A value and a gradient per trial, and the products of one Krylov space for the step and one per trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from frechet.objective import Objective
from frechet.operators._operator import LinearOperator
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.newton_loop import Observe, Rules, Run, forcing, gain, newton_steps
from frechet.optimize._smooth.quadratic_model import TINY, Diagonal, Model, krylov_model
from frechet.optimize._smooth.smooth_function import Curvature, Parameters, Point, SmoothFunction
from frechet.optimize._smooth.smooth_minimum import MOST, smooth_minimum

RATIO, POWER = 2.0, 2.0 / 3.0
TRIALS = 2200  # halvings of the longest number are no longer one
LONGEST = 1e8  # step, in norm(x): where f hardly bends, the Newton step is as long as numbers can be
DUAL = 0.1  # accuracy of the norm in the test
ARMIJO = 1e-4

Rule = Literal["universal", "greedy"]


def stepsized_newton(
    f: Callable[..., Tensor] | Objective,
    x0: Parameters | None = None,
    *,
    rule: Rule = "universal",
    hessian: Curvature | None = None,
    preconditioner: LinearOperator | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    max_iterations: int = 1000,
    max_basis: int = MOST,
    escape: bool = True,
    seed: int = 0,
    observe: Callable[..., bool] | None = None,
) -> MinimizeSolution:
    """Find a minimum of f near x0 along Newton's direction, with stepsizes that need no constant of f.

    The method is here to be studied: no class of problems was found on which it needs fewer evaluations than
    `minimize`. See `claims/stepsized_newton.py`.

    Args:
        f: as in `minimize`.
        x0: as in `minimize`.
        rule: ``"universal"`` or ``"greedy"``, see the module.
        hessian: as in `minimize`.
        preconditioner: as in `minimize`.
        gtol: as in `minimize`.
        ftol: as in `minimize`.
        max_iterations: as in `minimize`.
        max_basis: as in `minimize`.
        escape: as in `minimize`.
        seed: as in `minimize`.
        observe: as in `minimize`.

    Returns:
        A `MinimizeSolution` with the statuses of `minimize`.

    Raises:
        NonFinite: f is not finite at x0.
        ValueError: `rule` is not one of the two.

    Example:
        >>> import torch
        >>> from frechet.optimize import studies
        >>> s = studies.stepsized_newton(lambda x: (x**4).sum() - x.sum(), torch.ones(2, dtype=torch.float64))
        >>> s.x
        tensor([0.6300, 0.6300], dtype=torch.float64)
    """
    if rule not in ("universal", "greedy"):
        raise ValueError(f"stepsized_newton: rule must be 'universal' or 'greedy', got {rule!r}")
    return smooth_minimum(
        f,
        x0,
        partial(stepsized_steps, rule=rule),
        f"stepsized, {rule}",
        caller="stepsized_newton",
        hessian=hessian,
        preconditioner=preconditioner,
        gtol=gtol,
        ftol=ftol,
        max_iterations=max_iterations,
        max_basis=max_basis,
        escape=escape,
        seed=seed,
        observe=observe,
    )


def stepsized_steps(
    f: SmoothFunction, point: Point, rules: Rules, *, rule: Rule = "universal", observe: Observe | None = None
) -> Run:
    """Run from `point`."""

    def step(point: Point, model: Model, sigma: float, _stretched: float) -> tuple[Point | None, float]:
        newton = model.solved(Diagonal.absolute, forcing(f, model, point, rules))
        n, size = model.vector(newton), math.sqrt(max(-float(model.diagonal.slopes @ newton.z), 0.0))
        ray = _Ray(f, point, model, rules, n, size)
        if rule == "greedy":
            return ray.greedy(), sigma
        after, following = ray.universal(sigma or 1.0)
        # what a flat point called for may leave no step where f bends
        return (after, following) if after is not None or sigma <= 1 else ray.universal(1.0)

    return newton_steps(f, point, rules, step, observe)


@dataclass(frozen=True, eq=False)
class _Ray:
    """Trials x + alpha p at one point, p the Newton step and `size` its length in the local norm."""

    f: SmoothFunction
    point: Point
    model: Model
    rules: Rules
    p: Tensor
    size: float

    def universal(self, sigma: float) -> tuple[Point | None, float]:
        """The first trial that meets the test, None where none does, and the next sigma."""
        for j in range(TRIALS):
            theta = sigma * RATIO**j * self.size**POWER
            alpha = 1 / (1 + theta)
            after, gained, hopeless = self.trial(alpha)
            if after is not None and (
                after.largest <= self.rules.gtol
                or (
                    gained >= ARMIJO * alpha * self.size**2
                    and -float(self.f.space.inner(self.p, after.gradient))
                    >= self.local_norm(after.gradient) ** 2 / (2 * alpha * theta)
                )
            ):
                return after, sigma * RATIO ** (j - 1)
            if hopeless:
                break
        return None, sigma

    def greedy(self) -> Point | None:
        """The trial with the least (f+ - f) / norm_x(g+)^2 among alpha = 1, 1/2, ..., up to where it rises."""
        space = self.f.space
        reach, length = LONGEST * (float(space.norm(self.point.x)) or 1.0), float(space.norm(self.p))
        best, lowest, alpha = None, 0.0, min(1.0, reach / length) if length > 0 else 1.0
        for _ in range(TRIALS):
            after, gained, hopeless = self.trial(alpha)
            if hopeless:
                break
            if after is not None:
                if after.largest <= self.rules.gtol:
                    return after
                size = self.local_norm(after.gradient) ** 2
                quotient = -gained / size if size > 0 else -math.inf
                if quotient >= lowest and best is not None:
                    break
                if gained >= ARMIJO * alpha * self.size**2 and quotient < lowest:
                    best, lowest = after, quotient
            alpha *= 0.5
        return best

    def trial(self, alpha: float) -> tuple[Point | None, float, bool]:
        """The point at alpha, None where f is not finite there; what it gains; whether shorter steps are no steps."""
        s = alpha * self.p
        moved = self.point.x + s
        if bool((moved == self.point.x).all()):
            return None, 0.0, True
        trial = self.f.at(moved)
        if trial.value <= self.rules.lowest:
            return Point(moved, trial.value, self.point.gradient * 0, [], []), math.inf, False
        gained, after = gain(self.f, self.point, trial, s)
        if after is None and gained > -math.inf:
            after = self.f.differentiated(trial)
        return after, gained, False

    def local_norm(self, g: Tensor) -> float:
        """sqrt(g'|H|^-1 g), with H at x."""
        space = self.f.space
        if not bool(space.norm(g) > 0):
            return 0.0
        model = self.model
        if model.complete and model.dimension == space.dim:
            c = space.gram(model.V, g[:, None])[:, 0].cpu().numpy()
            floored = np.maximum(np.abs(model.diagonal.values), max(model.diagonal.floor, TINY))
            return math.sqrt(float((c / floored) @ c))
        other = krylov_model(space, model.H, g, preconditioner=self.rules.preconditioner, most=self.rules.most)
        step = other.solved(Diagonal.absolute, DUAL * other.size)
        return math.sqrt(max(-float(other.diagonal.slopes @ step.z), 0.0))
