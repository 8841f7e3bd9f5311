"""Projections for rows with slacks, in the space of x alone.

    A = [ E      0   ]     E = J_E D_x,  K = D_s^-1 J_I D_x
        [ D_s K  -D_s ]

The null space of the second rows is (p, K p): with M = I + K'K and the orthonormal basis Z = (I; K) M^(-1/2) of it,
what remains are the rows F = E M^(-1/2) of R^n. K = U diag(s) V' is kept from its products (`projection.py`); its rank
is at most n however many inequalities there are. D_s becomes small where a side is active: there K is large and
M^(-1/2) moves along the side, so that the ill-conditioning of a barrier is in closed forms and not in the iteration.

**Source.** the condensed systems of interior methods, Wright (1997), Primal-dual interior-point methods, chapter 11,
doi 10.1137/1.9781611971453; here as an orthonormal basis.
**Cost.** 2 rank(K) + 2 rank(E) + 2 products with J once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.projection import ENTRIES, Rows, rows_of
from frechet.optimize._constrained.raw import DenseRows
from frechet.space import Space, euclidean


@dataclass(frozen=True, eq=False)
class SlackRows:
    """Questions to A as in `Rows`, by the kept K and F."""

    A: LinearOperator
    domain: Space  # of x
    K: Rows
    F: Rows
    Ds: Tensor

    def project(self, v: Tensor) -> Tensor:
        """The part of `v` in the null space of A."""
        n = self.domain.dim
        return self._out(self.F.project(self._in(v[:n], v[n:])))

    def multipliers(self, g: Tensor) -> Tensor:
        """The y that minimizes norm(g + A'y)."""
        n = self.domain.dim
        q = self._in(g[:n], g[n:])
        yE = self.F.multipliers(q)
        return torch.cat([yE, (g[n:] - self._out(self.F.project(q))[n:]) / self.Ds])

    def least_norm(self, b: Tensor) -> Tensor:
        """The x of least norm that minimizes norm(A x - b) on the first rows and solves the others."""
        e = self.F.A.codomain.dim
        t = b[e:] / self.Ds
        coefficients = self._left(t)
        u = t - _times(self.K.U, coefficients * self._s**2 / (1 + self._s**2))
        x = _times(self.K.V, coefficients * self._s / (1 + self._s**2))
        first = torch.cat([x, -u])
        missing = b[:e] - (self.A @ first)[:e] if e else b[:e]
        return first + self._out(self.F.least_norm(missing))

    @property
    def _s(self) -> Tensor:
        assert self.K.s is not None  # slack_rows keeps them
        return self.K.s

    def _left(self, t: Tensor) -> Tensor:
        """U't."""
        assert self.K.U is not None
        return self.K.A.codomain.gram(self.K.U, t.unsqueeze(1))[:, 0]

    def _in(self, a: Tensor, b: Tensor) -> Tensor:
        """Z'(a, b)."""
        return _root(self.K, a + _times(self.K.V, self._s * self._left(b)))

    def _out(self, q: Tensor) -> Tensor:
        """Z q."""
        p = _root(self.K, q)
        assert self.K.V is not None
        return torch.cat([p, _times(self.K.U, self._s * self.domain.gram(self.K.V, p.unsqueeze(1))[:, 0])])


def slack_rows(
    A: LinearOperator, J: LinearOperator | DenseRows, D: Tensor, equal: Tensor, slack: Tensor
) -> SlackRows | Rows:
    """The rows of A; by `lsmr` on A itself where K would be too large to keep."""
    domain, n, m = J.domain, J.domain.dim, len(slack)
    if not m or min(m, n) * (m + n) > ENTRIES:
        return rows_of(A)
    Dx, Ds = D[:n], D[n:]

    def push(V: Tensor, numbers: Tensor, divide: Tensor | None) -> Tensor:
        rows = (J @ (V.T * Dx).T)[numbers]
        return rows if divide is None else (rows.T / divide).T

    def pull(W: Tensor, numbers: Tensor, divide: Tensor | None) -> Tensor:
        whole = J.codomain.zeros(W.shape[1])
        whole[numbers] = W if divide is None else (W.T / divide).T
        return ((J.T @ whole).T * Dx).T

    image, others = euclidean(m, D.dtype, D.device), euclidean(len(equal), D.dtype, D.device)
    K = rows_of(from_callable(lambda V: push(V, slack, Ds), domain, image, rmatmat=lambda W: pull(W, slack, Ds)))

    def F_push(V: Tensor) -> Tensor:
        return push(torch.stack([_root(K, v) for v in V.T]).T, equal, None)

    def F_pull(W: Tensor) -> Tensor:
        return torch.stack([_root(K, v) for v in pull(W, equal, None).T]).T

    return SlackRows(A, domain, K, rows_of(from_callable(F_push, domain, others, rmatmat=F_pull)), Ds)


def _root(K: Rows, v: Tensor) -> Tensor:
    """M^(-1/2) v."""
    assert K.V is not None
    assert K.s is not None
    shrink = 1 / (1 + K.s**2).sqrt() - 1
    return v + _times(K.V, shrink * K.A.domain.gram(K.V, v.unsqueeze(1))[:, 0])


def _times(basis: Tensor | None, coefficients: Tensor) -> Tensor:
    assert basis is not None
    return basis @ coefficients.to(basis.device)
