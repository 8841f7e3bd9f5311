"""What `minimize` does around a run: units in which squares are numbers, ways out of saddles, falls without end.

A run ends where its gradient is too small for the unit of f, and goes on in another one. At an end that a method calls
solved the gradient is followed outwards, where f may fall for ever (`stopping.leads_on`), and the curvature is probed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.optimize._box import Box
from frechet.optimize._smooth.negative_curvature import downward_curvature, escaped
from frechet.optimize._smooth.newton_loop import LOOSE, NEWTON, Models, Rules, Run, free_gradient, gradients, noise
from frechet.optimize._smooth.smooth_function import Point, SmoothFunction
from frechet.optimize._stopping import leads_on
from frechet.space import Space

ESCAPES = 10
PARTS = (1e-4, 1e-5, 1e-6)  # of norm(x), over which slopes of values are measured
CLEAR, STEADY, WRONG = 1e3, 0.01, 0.1  # multiples of rounding; differences between slopes, and from 1
LITTLE = 30  # dimensions of a Krylov space that looks where f falls for ever

Algorithm = Callable[[SmoothFunction, Point, Rules], Run]


def followed(  # noqa: C901 - one branch for each way to go on or to end
    f: SmoothFunction, go: Algorithm, point: Point, rules: Rules, sides: Box | None, escape: bool, seed: int
) -> tuple[SmoothFunction, Run, Tensor | None]:
    """Runs, each from below the saddle point at which the one before ended; and negative curvature at the last end.

    Values in the run are those of f itself, its point is in the unit of the function that is returned.
    """
    total, history, notes, left = 0, (point.value,), (), 0
    while True:
        f, point = _in_range(f, point, sides)
        run = go(
            f, point, _in_units(rules, f, max_iterations=rules.max_iterations - total, start=largest_free(point, sides))
        )
        total, notes = total + run.iterations, notes + run.notes
        history = (*history, *(value * f.unit for value in run.history[1:]))
        run = replace(run, iterations=total, history=history, notes=notes)
        if run.small and largest_free(run.point, sides) * f.unit > largest_number(f.space) ** -0.9:
            point = run.point
            if _runs_away(f, point, rules, sides):
                return f, replace(run, status=Status.UNBOUNDED, message=_away(f, point)), None
            continue
        if run.status is Status.MAX_ITERATIONS:
            run = replace(run, message=f"the limit of {rules.max_iterations} iterations was reached")
            measured = slope_of_values(f, run.point, sides)
            if measured is not None:
                message = f"f changes by {measured:.3g} of what its gradient says: the gradient is not that of f"
                return f, replace(run, status=Status.STAGNATED, message=message), None
        if run.status is None and _runs_away(f, run.point, rules, sides):
            return f, replace(run, status=Status.UNBOUNDED, message=_away(f, run.point)), None
        if run.status is not None or f.curvature is not None or sides is not None:
            return f, run, None
        found = downward_curvature(f, run.point, seed + left)
        if found is None:
            return f, replace(run, notes=(*notes, f"{left} saddle points were left") if left else notes), None
        v, curvature = found
        bends = f"f bends downwards with curvature {curvature:.3g}"
        if not escape or left == ESCAPES:
            return f, replace(run, notes=(*notes, f"{bends}: the point is no minimum")), v
        below = escaped(f, run.point, v, curvature, rules.lowest / f.unit)
        if below is None:
            message = f"the gradient is zero and {bends}, but no point below was found along that"
            return f, replace(run, status=Status.STAGNATED, message=message), v
        point, left = below, left + 1


def slope_of_values(f: SmoothFunction, point: Point, sides: Box | None) -> float | None:
    """The slope of the values along the gradient, over that of the gradient; None where they agree or nothing shows.

    A gradient that is too long lets steps shrink for ever: each falls by less than it promised.
    """
    g = free_gradient(point, sides)
    size = float(f.space.norm(g))
    if not 0 < size < math.inf:
        return None
    length, ratios = float(f.space.norm(point.x)) or 1.0, []
    for part in PARTS:
        move = g * (part * length / size)
        ahead, behind = point.x + move, point.x - move
        if sides is not None and not (
            torch.equal(sides.project(ahead), ahead) and torch.equal(sides.project(behind), behind)
        ):
            return None
        change = f.at(ahead).value - f.at(behind).value
        if not math.isfinite(change) or abs(2 * part * length * size) <= CLEAR * noise(f, point):
            return None
        ratios.append(change / (2 * part * length * size))
    steady = max(ratios) - min(ratios) <= STEADY * max(1.0, abs(ratios[0]))
    return ratios[-1] if steady and abs(ratios[-1] - 1) > WRONG else None


def largest_number(space: Space) -> float:
    return torch.finfo(space.dtype).max


def _in_range(f: SmoothFunction, point: Point, sides: Box | None) -> tuple[SmoothFunction, Point]:
    """f in a unit, a power of two, in which squares of the gradient are numbers."""
    most, size = largest_number(f.space) ** 0.25, largest_free(point, sides)
    if size == 0 or 1 / most < size < most:
        return f, point
    other = replace(f, unit=f.unit * 2.0 ** round(math.log2(size)))
    again = other.differentiated(other.at(point.x))
    return (f, point) if again is None else (other, again)


def _in_units(rules: Rules, f: SmoothFunction, max_iterations: int, start: float) -> Rules:
    return replace(
        rules,
        gtol=rules.gtol / f.unit,
        lowest=rules.lowest / f.unit,
        smallest=rules.smallest / f.unit,
        max_iterations=max_iterations,
        start=start,
    )


def _runs_away(f: SmoothFunction, point: Point, rules: Rules, sides: Box | None) -> bool:
    """Whether f falls for ever along a Newton step from the point, or along its gradient."""
    g = free_gradient(point, sides)
    if not bool((g != 0).any()):
        return False
    try:
        for p in _directions(f, point, g, rules if sides is None else None):
            far = point.x + 100 * p
            inside = sides is None or torch.equal(sides.project(far), far)
            if inside and leads_on(gradients(f, g != 0), f.space.inner, point.x, p, g):
                return True
    except NonFinite:
        pass  # a product is not finite there: nothing is shown
    return False


def _directions(f: SmoothFunction, point: Point, g: Tensor, rules: Rules | None) -> Iterator[Tensor]:
    unit = g / g.abs().max()
    bends = float(f.space.inner(unit, f.hessian(point) @ unit))
    if bends > 0:
        yield -g * (float(f.space.inner(unit, unit)) / bends)
    if rules is not None:
        model = Models(f, replace(rules, most=min(rules.most, LITTLE))).at(point)
        step = model.solved(NEWTON, LOOSE * model.size)
        if model.diagonal.newton_decrease() < math.inf:
            yield model.vector(step)


def _away(f: SmoothFunction, point: Point) -> str:
    return (
        f"f = {point.value * f.unit:.6g} falls for ever at norm(x) = {float(f.space.norm(point.x)):.3g}, less and "
        "less: x runs to infinity, and no minimum exists along that"
    )


def largest_free(point: Point, sides: Box | None) -> float:
    """The size of the gradient in the entries that no bound holds."""
    return point.sized(free_gradient(point, sides))
