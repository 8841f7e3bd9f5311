"""The linear systems of a Newton step under constraints, changed as little as makes the step one of descent.

    [ W + a I    J'        ] [dx]     [r]
    [ J         -(E + b I) ] [dy]  =  [q]

By LDL' with pivots of one and two rows, whose signs count: n positive and m negative ones mean that the matrix is
positive definite on the null space of J. a grows until that is so, and b is small and positive where rows depend on
each other.

Rows with E > 0 are put into W as J'J / E where they are more than the unknowns.

**Source.** Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y, section 3.1 (algorithm IC, with its constants).
**Cost.** One factorization of order n + m, or n and the rows with E = 0, and one more for each change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from frechet.optimize._constrained.dense import Array

FIRST, LEAST, MOST = 1e-4, 1e-20, 1e40
GROW_FIRST, GROW, SHRINK = 100.0, 8.0, 1 / 3
DEPENDENT = 1e-8  # of rows, times mu^(1/4)
WORST = 1e-6  # relative residual of a solution that is taken


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix with the right signs, and the a and b that gave it them."""

    K: Array
    ldl: Array
    pivots: NDArray[np.int32]
    a: float
    b: float

    def solve(self, right: Array) -> Array | None:
        """The solution, refined; None where it is of no use."""
        x = scipy.linalg.lapack.dsysvx(self.K, right, af=self.ldl, ipiv=self.pivots, factored=True, lower=1)[4].reshape(
            -1
        )
        if not np.isfinite(x).all():
            return None
        left = np.abs(self.K @ x - right).max(initial=0.0)
        return x if left <= WORST * (np.abs(right).max(initial=0.0) + min(1e3, np.abs(x).max(initial=0.0))) else None


@dataclass(frozen=True, eq=False)
class Condensed:
    """Factors without the last rows, which have E > 0."""

    inner: Factors
    J: Array  # of the rows left out
    E: Array

    @property
    def a(self) -> float:
        return self.inner.a

    def solve(self, right: Array) -> Array | None:
        n, kept = self.J.shape[1], len(right) - len(self.E)
        q = right[kept:] / self.E
        short = right[:kept].copy()
        short[:n] += self.J.T @ q
        x = self.inner.solve(short)
        return None if x is None else np.concatenate([x, self.J @ x[:n] / self.E - q])


def signs(ldl: Array, pivots: NDArray[np.int32]) -> tuple[int, int]:
    """The numbers of positive and of negative pivots."""
    single = pivots > 0
    d = np.diagonal(ldl)[single]
    pairs = (len(pivots) - len(d)) // 2  # each of one positive and one negative
    return pairs + int((d > 0).sum()), pairs + int((d < 0).sum())


def factored(W: Array, J: Array, E: Array, a: float, b: float) -> tuple[Factors, bool, bool]:
    """The factors with these a and b; whether the signs are right, and whether a pivot vanishes."""
    n, m = len(W), len(J)
    K = np.zeros((n + m, n + m), order="F")
    K[:n, :n], K[n:, :n], K[:n, n:] = W, J, J.T
    diagonal = K.reshape(-1, order="F")[:: n + m + 1]  # a view
    diagonal[:n] += a
    diagonal[n:] += -E - b
    ldl, pivots, info = scipy.linalg.lapack.dsytrf(K, lower=1)
    up, down = signs(ldl, pivots)
    whole = info == 0 and bool(np.isfinite(ldl).all())
    return Factors(K, ldl, pivots, a, b), whole and up == n and down == m, not whole or up + down < n + m or down < m


def corrected(
    W: Array, J: Array, E: Array, mu: float, last: float, right: Array, rows: int
) -> tuple[Factors | Condensed, Array] | tuple[None, None]:
    """Factors with the right signs, and the solution; None where there are none.

    The first `rows` of J have E = 0; `last` is the a of the step before.
    """
    if len(J) - rows > len(W):
        inequalities, E = J[rows:], E[rows:]
        short = W + (inequalities.T / E) @ inequalities
        probe = np.zeros(len(W) + rows)
        inner, _ = _corrected(short, J[:rows], np.zeros(rows), mu, last, probe)
        if inner is None:
            return None, None
        factors = Condensed(inner, inequalities, E)
        solution = factors.solve(right)
        return (None, None) if solution is None else (factors, solution)
    return _corrected(W, J, E, mu, last, right)


def _corrected(
    W: Array, J: Array, E: Array, mu: float, last: float, right: Array
) -> tuple[Factors, Array] | tuple[None, None]:
    a, b, first = 0.0, 0.0, GROW_FIRST if last == 0 else GROW
    while a <= MOST:
        factors, good, singular = factored(W, J, E, a, b)
        solution = factors.solve(right) if good else None
        if solution is not None:
            return factors, solution
        if b == 0 and len(J) and (singular or good):
            b = DEPENDENT * max(mu, 1e-20) ** 0.25
            continue
        a = first * a if a > 0 else FIRST if last == 0 else max(LEAST, SHRINK * last)
    return None, None
