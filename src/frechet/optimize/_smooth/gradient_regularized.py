"""Newton's method regularized by the norm of the gradient: x+ = x - (H + (norm(g) / gamma) B)^-1 g, gamma searched for.

gamma approximates the largest radius on which the model of the gradient is right to the size of the gradient. A trial
is accepted if, with lambda = norm(g) / gamma,

    f(x) - f(x+) >= norm(g+)^2 / (8 lambda),

then gamma doubles; otherwise it is halved. The regularization vanishes with the gradient, so the end is superlinear,
and no constant of the problem is needed, whether its Hessian, its third derivative or its logarithm is Lipschitz. H may
be any symmetric approximation. One Krylov space serves all trials at a point, and is extended where a smaller lambda
needs more of it.

**Source.** A. Semenov, M. Jaggi, N. Doikov (2026), Gradient-normalized smoothness for optimization with approximate
Hessians, algorithm 1, arXiv 2506.13710.

**Differs from the source.** (1) The first gamma is the length of the step along -g to the model's minimum. (2) With H
indefinite lambda is at least twice the negative curvature, so the step always descends. (3) A trial that is refused is
never taken. (4) Systems are solved to a residual of lambda norm(s) / 4 at most, which the condition above tolerates.
(5) Reductions below the rounding error of f are taken from gradients.

**Cost.** A value and a gradient per trial; per accepted step the products of one Krylov space.
"""

from __future__ import annotations

import math

from frechet.optimize._smooth.newton_loop import Observe, Rules, Run, forcing, gain, newton_steps
from frechet.optimize._smooth.quadratic_model import Model, size_of
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction

UP, DOWN = 2.0, 0.5
MARGIN = 2.0  # of the regularization over negative curvature
ACCURACY = 0.25  # of a system, in lambda norm(s)


def gradient_regularized(f: SmoothFunction, point: Point, rules: Rules, *, observe: Observe | None = None) -> Run:
    """Run from `point`."""

    def step(point: Point, model: Model, gamma: float, stretched: float) -> tuple[Point | None, float]:
        return _step(f, point, model, rules, gamma * stretched or first_length(model))

    return newton_steps(f, point, rules, step, observe)


def first_length(model: Model) -> float:
    """The length of the step along -g to where the model's curvature ends it."""
    c, values = model.diagonal.slopes, model.diagonal.values
    size = size_of(c)
    bend = abs(float((c / size) ** 2 @ values)) if size > 0 else 0.0
    return size / bend if bend > 0 and size / bend < math.inf else 1.0


def _step(f: SmoothFunction, point: Point, model: Model, rules: Rules, gamma: float) -> tuple[Point | None, float]:
    """The next point, None where no trial is accepted, and the next gamma."""
    accuracy = forcing(f, model, point, rules)
    while True:
        wanted = model.size / gamma
        step = model.solved(
            lambda d, w=wanted: d.shifted(max(w, -MARGIN * float(d.values[0]))),
            lambda s: min(accuracy, ACCURACY * s.shift * s.length),
            radius=math.inf,
        )
        shift = step.shift
        gamma = min(gamma, model.size / shift)
        s = model.vector(step)
        moved = point.x + s
        if step.length == 0 or bool((moved == point.x).all()):
            break
        trial = f.at(moved)
        if trial.value <= rules.lowest:
            return Point(moved, trial.value, point.gradient, [], []), gamma
        gained, after = gain(f, point, trial, s)
        if gained > 0:
            after = f.differentiated(trial) if after is None else after
            if after is not None and gained >= model.dual_norm(after.gradient) ** 2 / (8 * shift):
                return after, UP * gamma
        gamma *= DOWN
    return None, gamma
