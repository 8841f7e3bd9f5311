"""When an iteration is done: one rule for `minimize`, `root` and `least_squares`, of the point and never of the start.

At a point x a solver has a model of what it drives to zero, y(x + p) = y + A p, and the full step p with A p = -y: y is
the gradient and A the Hessian of a minimum, y the residual and A the Jacobian of a root or of a fit. A point is solved
where one of these holds

    value      what p would gain is at most ftol times the value there (of f, or of the cost)
    step       norm(A p) <= xtol norm(A x) in the norm that belongs to the model: p moves x by its rounding
    rounding   y cannot get smaller: y(x + p) is about as large as y, though y is linear along p far beyond p

No test refers to the start, and all are unchanged by the units of x and y. The third is measured where no step helps
any more: if y(x + t p) agrees with y + t A p to a quarter of t norm(A p) on both sides, for some t, then the solution
lies within about t p. What is left of y is the rounding error of its evaluation, which parts of p must show too. A
wrong derivative or a jump does not pass.

A function that falls for ever, such as exp(-x), has no solution, but gradients as small as you like. There p does not
lead to a solution, it leads on: `leads_on` goes farther and farther, where y must be smaller and smaller.

**Cost.** Nothing for the first two where p is at hand; the others evaluate y some times, at an end only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

SCALES = (4.0, 16.0, 64.0, 256.0, 1024.0)  # multiples of a step
AGREES = 0.25  # share of the linear change by which y may miss it
SMOOTH = 0.02  # errors of y, in norm(A p), over parts of a step p: less is no rounding
HELPS = 0.1  # a step that leaves so little of y would be worth taking
HALF_WAY = (0.2, 0.9, 1.1)  # of norm(y): least and most half a step on, least half a step back
FARTHER, FARTHEST = 4.0, 100.0  # multiples of a step: each of the last, and of norm(x)
FEW = 4.0  # units of rounding
SHORT = 1e-6  # of norm(x): a step that is shorter does not lead away

Evaluate = Callable[[Tensor], Tensor | None]  # y at a point; None where it is not finite
Norm = Callable[[Tensor], float]
Inner = Callable[[Tensor, Tensor], Tensor]


def at_rounding(moved: float, whole: float, eps: float) -> bool:
    """Whether a step is as long as the rounding of x, both lengths in the norm of the model: norm(A p), norm(A x)."""
    return moved <= FEW * eps * whole


def is_rounding(evaluate: Evaluate, size_of: Norm, x: Tensor, p: Tensor, y: Tensor, change: Tensor) -> bool:
    """Whether what is left of y at x is the rounding error of its evaluation; `change` is A p."""
    slope = size_of(change)
    if not 0 < slope < math.inf:
        return False
    there = evaluate(x + p)
    if there is None or size_of(there) <= HELPS * size_of(y):
        return False
    for side in (1, -1):  # a jump, or a wrong derivative, leaves y smooth on one side at least
        near = [(t, evaluate(x + t * p)) for t in (side * 0.5, side * 0.25, side * 0.125)]
        if not any(y_t is not None and size_of(y_t - y - t * change) > SMOOTH * slope for t, y_t in near):
            return False
    for t in SCALES:
        ahead, behind = evaluate(x + t * p), evaluate(x - t * p)
        if ahead is None or behind is None:
            return False
        miss = max(size_of(ahead - y - t * change), size_of(behind - y + t * change))
        if miss <= AGREES * t * slope:
            return True
    return False


def leads_on(evaluate: Evaluate, inner: Inner, x: Tensor, p: Tensor, y: Tensor) -> bool:
    """Whether a function with the gradient y falls for ever along p, far beyond where the linear y would be zero."""

    def size_of(v: Tensor) -> float:
        return math.sqrt(float(inner(v, v)))

    size, length = size_of(y), size_of(p)
    if not SHORT * size_of(x) < length < math.inf:
        return False
    least, most, back = HALF_WAY
    ahead, behind = evaluate(x + 0.5 * p), evaluate(x - 0.5 * p)
    if ahead is None or behind is None or not least * size <= size_of(ahead) <= most * size:
        return False  # a linear y has a half here, and noise has anything
    if not size_of(behind) >= back * size:
        return False
    last, t = 0.5 * size, FARTHER
    while t <= FARTHEST * max(1.0, size_of(x) / length):
        there = evaluate(x + t * p)
        if there is None or not size_of(there) <= last or float(inner(there, p)) > 0:
            return False
        last, t = size_of(there), FARTHER * t
    return True
