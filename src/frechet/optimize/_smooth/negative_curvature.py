"""Is a stationary point a minimum? A probe for directions along which f bends downwards, and the way out along one.

The probe is one Krylov space of H from a random vector: a negative Ritz value proves negative curvature, none makes it
unlikely. From there x + t v is tried for t in both directions, from a length at which the third order may count.

**Cost.** As many products as the space has dimensions, 30 at most; one evaluation per trial.
"""

from __future__ import annotations

import math

from torch import Tensor

from frechet.errors import NonFinite
from frechet.optimize._smooth.newton_loop import noise
from frechet.optimize._smooth.quadratic_model import krylov_model
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction

STEPS = 30
ROUNDING = 100.0  # curvature of this many eps of the largest is none
TRIALS = 40


def downward_curvature(f: SmoothFunction, point: Point, seed: int) -> tuple[Tensor, float] | None:
    """A unit direction with negative curvature and that curvature, None where none was met."""
    space = f.space
    model = krylov_model(space, f.hessian(point), space.random(0, seed, "gaussian"), most=STEPS)
    try:
        while not model.exhausted:
            model.grow()
    except NonFinite:
        return None
    values = model.diagonal.values
    floor = ROUNDING * space.eps * max(1.0, math.sqrt(space.dim)) * float(abs(values).max(initial=0.0))
    if not len(values) or values[0] >= -floor:
        return None
    v = model.ritz_vector(0)
    return v / space.norm(v).to(v), float(values[0])


def escaped(f: SmoothFunction, point: Point, v: Tensor, curvature: float, lowest: float) -> Point | None:
    """A point below, along +-v; None where no length gives one."""
    t = max(1.0, float(f.space.norm(point.x)))
    v = -v if float(f.space.inner(point.gradient, v)) > 0 else v
    for _ in range(TRIALS):
        for s in (t * v, -t * v):
            trial = f.at(point.x + s)
            if trial.value <= lowest:
                return Point(trial.x, trial.value, point.gradient, [], [])
            if trial.value < point.value - max(noise(f, point), 0.1 * abs(curvature) * t * t):
                after = f.differentiated(trial)
                if after is not None:
                    return after
        t *= 0.5
    return None
