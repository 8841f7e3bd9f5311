"""Whether central differences prove a derivative, contradict it, or say nothing.

A difference of numbers that are rounded by r has an error of about r / h, and its truncation falls with h squared. So
the steps become smaller until one agrees; two that agree with each other and not with the derivative contradict it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective._check import Proved

STEPS = (1e-5, 1e-7, 1e-8)  # of float64, relative to the parameters: truncation is 1e-10, rounding 1e-9 to 1e-8
SINGLE = (3e-2, 1e-2, 3e-3)  # of float32
CLOSE = 1e-4  # relative difference below which a claim is proved
APART = {torch.float64: 1e-3, torch.float32: 2e-2}  # above three times this it is contradicted

Noise = Callable[[float], float]  # of a step


def linear(rounded: float) -> Noise:
    """The rounding of a difference of numbers that are rounded by `rounded` each."""
    return lambda h: 100 * rounded / h


def squared(eps: float, value: float, size: float) -> Noise:
    """The rounding of a sum `value` of squared differences of numbers whose squares add up to `size`."""

    def noise(h: float) -> float:
        off = 100 * eps * size**0.5 / h
        return 2 * value**0.5 * off + off * off

    return noise


def compare(
    claim: str, difference: Callable[[float], Tensor], exact: Tensor, steps: tuple[float, ...], noise: Noise
) -> Proved:
    """Hold `exact` against differences with ever smaller steps; `noise(h)` bounds their rounding."""
    seen: list[tuple[Tensor, float]] = []
    best, apart = 1.0, APART[torch.float32 if steps is SINGLE else torch.float64]
    for h in steps:
        found, rounding = difference(h), noise(h)
        size = max(float(found.norm()), float(exact.norm()))
        missing = float((found - exact).norm())
        if size <= rounding:  # both are zero, as far as differences can tell
            return Proved(claim, False, 0.0)
        best = min(best, missing / size)
        if missing <= CLOSE * size:
            return Proved(claim, True, missing / size)
        seen.append((found, apart * size + rounding))
    for (a, wide), (b, near) in pairwise(seen):
        if float((a - b).norm()) <= max(wide, near) and float((b - exact).norm()) > 3 * max(wide, near):
            raise NotDifferentiable(
                f"check: it must hold that {claim}, but differences are {float(b.norm()):.6g} in size where the "
                f"derivative is {float(exact.norm()):.6g}, and {float((b - exact).norm()):.3g} apart: a derivative of "
                "the model or of the criterion is wrong or incomplete (a backward that leaves no graph, a backward "
                "hook, a tensor kept from an earlier pass, a parameter that is used by another way than its module)"
            )
    return Proved(claim, False, best)
