"""Mixed derivatives from one jet, by directions at chosen orders of a curve.

On x(t) = x + sum over j of v_j t^{p_j} / p_j! the derivative of order L of f(x(t)) at t = 0 is, by Faa di Bruno's
formula,

    d^L = sum over all m >= 0 with m_1 p_1 + m_2 p_2 + ... = L of  L! / prod over j of (m_j! (p_j!)^m_j)  d^m f
    [v_1^m_1, ...].

If the index i is the only solution m, it is one number times the mixed derivative i. The search goes through L upwards
and through all orders p, and counts solutions: what it returns is clean by construction.

**Source.** Shi, Hu, Lin and Kawaguchi, "Stochastic Taylor derivative estimator" (2024), section 4. **Differs from the
source:** orders are searched for, where some of those printed there are not clean (appendix on the equation of Korteweg
and de Vries: its 13-jet mixes u_xxxy with u_xxt).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tangents:
    """Where the directions go, and what the last derivative of the jet must be divided by."""

    index: tuple[int, ...]  # how often f is differentiated along each direction
    orders: tuple[int, ...]  # p_j: the order of the curve's coefficient that is direction j
    order: int  # L, of the jet
    factor: int  # its last derivative over the mixed derivative


def solutions(orders: Sequence[int], order: int) -> Iterator[tuple[int, ...]]:
    """All m >= 0 with sum of m_j p_j = order."""
    if not orders:
        if order == 0:
            yield ()
        return
    for m in range(order // orders[0] + 1):
        for rest in solutions(orders[1:], order - m * orders[0]):
            yield (m, *rest)


def prefactor(index: Sequence[int], orders: Sequence[int]) -> int:
    """Return L! / prod of (m_j! (p_j!)^m_j), which is the number of partitions and so whole."""
    order = sum(m * p for m, p in zip(index, orders, strict=True))
    found = math.factorial(order)
    for m, p in zip(index, orders, strict=True):
        found //= math.factorial(m) * math.factorial(p) ** m
    return found


def tangents(index: tuple[int, ...]) -> Tangents:
    """Return the jet of lowest order whose last derivative is the mixed derivative `index` alone, times a number.

    Args:
        index: how often f is differentiated along each direction, integers >= 1.

    Example:
        >>> from frechet.calculus.taylor import tangents
        >>> tangents((2, 1))
        Tangents(index=(2, 1), orders=(2, 3), order=7, factor=105)
        >>> tangents((3, 1)).order
        11
    """
    if not index or any(isinstance(i, bool) or not isinstance(i, int) or i < 1 for i in index):
        raise ValueError(f"tangents: index must be a tuple of integers >= 1, one for each direction, got {index!r}")
    return _searched(index)


@functools.cache
def _searched(index: tuple[int, ...]) -> Tangents:
    for order in itertools.count(sum(index)):
        for orders in itertools.permutations(range(1, order + 1), len(index)):
            if sum(m * p for m, p in zip(index, orders, strict=True)) != order:
                continue
            if list(itertools.islice(solutions(orders, order), 2)) == [index]:
                return Tangents(index, orders, order, prefactor(index, orders))
    raise AssertionError
