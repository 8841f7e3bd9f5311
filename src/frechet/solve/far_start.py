"""Runs that begin far up: where f is out of all proportion at x0, a small part of its gradient there is still large.

Without a `gtol` of the caller's a run may end where the gradient has fallen to eps times that at x0. With a gradient of
1e26 at x0 that is 1e10, and x is nowhere. So at such an end g'g / norm(H g), which is no longer than the step along -g
that would end the slope, is compared with x: where it is no small part of x, the run goes on as from a new start, once.

**Cost.** One product at an end by the size of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg.result import Status
from frechet.solve.box import Box
from frechet.solve.smooth_function import Point, SmoothFunction
from frechet.solve.smooth_run import Rules, Run, free_gradient

MOVES = 0.6  # power of eps: the part of norm(x), 4e-10 in float64 and 7e-5 in float32


def from_afar(
    f: SmoothFunction, go: Callable[[Point, Rules], Run], point: Point, rules: Rules, sides: Box | None
) -> Run:
    """`go(point, rules)`, and once more from its end where only a far start called that solved."""
    run = go(point, rules)
    end, left = run.point, rules.max_iterations - run.iterations
    g = free_gradient(end, sides)
    size = _largest(g)
    if run.status is not None or not 0 < size <= rules.gtol or left <= 0:
        return run
    if not _moves(f, end, g):
        return run
    nearer = replace(rules, start=size, value=end.value, gtol=f.space.eps * size, max_iterations=left)
    more = go(end, nearer)
    iterations, history = run.iterations + more.iterations, (*run.history, *more.history[1:])
    if more.status is Status.STAGNATED and _largest(free_gradient(more.point, sides)) <= rules.gtol:
        return replace(run, point=more.point, iterations=iterations, history=history)  # what the first said still holds
    return replace(more, iterations=iterations, history=history, notes=(*run.notes, *more.notes))


def _largest(g: Tensor) -> float:
    return float(g.abs().max()) if g.numel() else 0.0


def _moves(f: SmoothFunction, point: Point, g: Tensor) -> bool:
    unit = g / _largest(g)  # whose squares are numbers
    try:
        bend = float(f.space.norm(f.hessian(point) @ unit))
    except NonFinite:
        return False
    return _largest(g) * float(f.space.inner(unit, unit)) > f.space.eps**MOVES * bend * float(f.space.norm(point.x))
