"""Gradient descent with Armijo's rule on an objective: what surrogates are lowered by.

    x+ = x - t g,   f(x - t g) <= f(x) - t norm(g)^2 / 2,   t halved until that holds, and doubled for the next step

**Source.** L. Armijo (1966), doi 10.2140/pjm.1966.16.1. The constant 1/2 is that of J. Lavington et al. (2023), arXiv
2302.02607. By slopes: W. Hager, H. Zhang (2005), doi 10.1137/030601880, (4.1).
**Cost** in gradients: one more than steps, and a third for each trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.space import Space

SHARE = 0.5  # of the decrease that the slope predicts
SLACK = 10.0  # multiples of the rounding of a value
HALVINGS = 60  # down to rounding from any first length

Value = Callable[[Tensor], float]
Gradient = Callable[[Tensor], Tensor]


@torch.no_grad()
def descend(
    space: Space, value: Value, gradient: Gradient, x: Tensor, length: float, steps: int
) -> tuple[Tensor, float, int, int]:
    """The point after so many steps, the length to begin with next time, the steps taken and the values computed."""
    now, g, values = value(x), gradient(x), 1
    for step in range(steps):
        bend = float(space.inner(g, g))
        if not 0 < bend < math.inf:
            return x, length, step, values
        t, slack = length, SLACK * space.eps * abs(now)
        for _ in range(HALVINGS):
            trial, ahead = x - t * g, None
            after, values = value(trial), values + 1
            drop = SHARE * t * bend
            if drop > slack and after <= now - drop:
                break
            # where values differ by rounding alone, the same rule by slopes: exact for a quadratic function
            if drop <= slack and after <= now + slack and float(space.inner(ahead := gradient(trial), g)) >= 0:
                break
            t /= 2
        else:
            return x, length, step, values  # down to rounding
        x, now, length = trial, after, 2 * t
        g = gradient(x) if ahead is None else ahead
    return x, length, steps, values
