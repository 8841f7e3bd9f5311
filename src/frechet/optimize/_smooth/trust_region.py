"""Trust-region Newton: x+ = x + s, s the minimizer of g's + s'Hs/2 with norm(s) <= radius, from products with H.

Steps follow negative curvature to the boundary. The radius grows where the model promised what f then gave, and a
refused step is replaced by the minimizer within a smaller radius in the same Krylov space: without any product.

**Source.** A. Conn, N. Gould, Ph. Toint (2000), Trust-region methods, algorithm 6.1.1 and sections 7.5.4 and 17.4,
doi 10.1137/1.9780898719857; T. Steihaug (1983), doi 10.1137/0720042, for the truncation, which here goes on along the
boundary (see quadratic_model.py).

**Differs from the source.** (1) Reductions below the rounding error of f are taken from gradients. (2) The first radius
is a tenth of the step to the minimizer along -g. (3) After a refused step the radius is cut to where a parabola
through the values has its minimum, between a tenth and a half of the step.

**Cost.** One evaluation per trial; per accepted step a gradient and the products of one Krylov space.
"""

from __future__ import annotations

import math
from functools import partial

from frechet.optimize._smooth.newton_loop import Observe, Rules, Run, forcing, gain, newton_steps
from frechet.optimize._smooth.quadratic_model import Diagonal, Model
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction

ACCEPT, GOOD = 1e-4, 0.75
FIRST = 0.1  # radius, in steps along the gradient
CUT, GROW = (0.1, 0.5), 2.0


def trust_region(f: SmoothFunction, point: Point, rules: Rules, *, observe: Observe | None = None) -> Run:
    """Run from `point`."""

    def step(point: Point, model: Model, radius: float, stretched: float) -> tuple[Point | None, float]:
        return _step(f, point, model, rules, radius * stretched or _first(model))

    return newton_steps(f, point, rules, step, observe)


def _first(model: Model) -> float:
    c, values = model.diagonal.slopes, model.diagonal.values
    curvature = float((c * c) @ values)
    square = float(c @ c)
    if curvature > 0:
        return FIRST * square**1.5 / curvature
    largest = max(abs(float(values[0])), abs(float(values[-1])))
    return FIRST * math.sqrt(square) / largest if largest > 0 else 1.0


def _step(f: SmoothFunction, point: Point, model: Model, rules: Rules, radius: float) -> tuple[Point | None, float]:
    """The next point, None where no radius gives one, and the next radius."""
    accuracy = forcing(f, model, point, rules)
    while True:
        step = model.solved(partial(Diagonal.within, radius=radius), accuracy, radius=radius)
        s = model.vector(step)
        moved = point.x + s
        if step.decrease <= 0 or bool((moved == point.x).all()):
            return None, radius
        trial = f.at(moved)
        if trial.value == -math.inf or trial.value <= rules.lowest:
            return Point(moved, trial.value, point.gradient, [], []), radius
        gained, after = gain(f, point, trial, s)
        ratio = gained / step.decrease
        if ratio > ACCEPT:
            after = f.differentiated(trial) if after is None else after
            if after is not None:
                if ratio > GOOD and step.bounded:
                    radius = max(radius, GROW * step.length)
                elif ratio < 0.25:
                    radius = CUT[1] * step.length
                elif not step.bounded:
                    radius = max(radius, GROW * step.length)
                return after, radius
            gained = -math.inf
        slope = float(model.diagonal.slopes @ step.z) if step.tail is None else float(f.space.inner(point.gradient, s))
        bend = -gained - slope  # f+ - f - slope
        best = -slope / (2 * bend) if math.isfinite(bend) and bend > 0 else 0.25
        radius = min(max(best, CUT[0]), CUT[1]) * step.length
