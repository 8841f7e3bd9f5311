"""Bounds on the rounding errors of float64 sums, so that a certified bound is none of a rounded network.

The library's bounds are about the network in exact arithmetic, with the weights that are stored. Each is computed in
float64, and the error of computing it is bounded and added, outwards. A sum of n products, in whatever order and with
or without fused operations, is off by at most

    gamma_n sum |a_i| |b_i|,    gamma_n = n u / (1 - n u),    u = 2^-53.

**Source.** Higham, "Accuracy and stability of numerical algorithms" (2002), section 3.1.
**Differs from the source:** a few roundings more are counted than there are, for the additions around the sum, and
numbers below 1e-290 are added for underflow.
"""

from __future__ import annotations

from torch import Tensor

UNIT = 2.0**-53
TINY = 1e-290
AROUND = 16  # roundings of what is added to a sum: centre, radius, bias, the bound itself
# torch's elementary functions are off by at most a few units in the last place (SLEEF: 1, libm: below 4)
ELEMENTARY = 16 * 2 * UNIT


def gamma(terms: int) -> float:
    """A bound on the relative error of a sum of `terms` products and the few operations around it."""
    n = terms + AROUND
    return n * UNIT / (1 - n * UNIT)


def above(t: Tensor, roundings: int = 4) -> Tensor:
    """A number that is not below t, had t been computed by this many roundings of numbers of one sign."""
    return t + (t.abs() * (roundings * 2 * UNIT) + TINY)


def below(t: Tensor, roundings: int = 4) -> Tensor:
    """A number that is not above t, had t been computed by this many roundings of numbers of one sign."""
    return t - (t.abs() * (roundings * 2 * UNIT) + TINY)
