"""The inverse of damping I plus the mean of outer products of gradients, while gradients come and go.

    F = damping I + (1/m) sum_i g_i g_i' = damping I + G'G / m        G (m, n)
    F^-1 x = (x - G' K^-1 G x) / damping        K = m damping I + G G'  (m, m)

It is the map of ``inverse(from_factors(G.T, 1/m) + damping * identity(space))``. That one keeps an orthonormal basis of
the gradients, from which roots and determinants come; this one keeps their Gram matrix, in which a gradient is a row
that is added or taken away. `inverse` leads from the one to the other.

In blocks, entries of F between two stretches of `block` entries are left out, and each stretch is inverted alone.

**Source.** E. Frantar, E. Kurtic, D. Alistarh (2021), M-FAC: efficient matrix-free approximations of second-order
information, NeurIPS, arXiv 2107.03356.
**Differs from the source.** (1) One Cholesky factor of K in float64 instead of recursions through q_i = m + g_i'v_i,
which divide by what cancels: it is stable, and m is any number. (2) While a window fills, the mean is over the
gradients that are there. (3) Sums over the n entries are taken in float64 in any dtype: where x lies among the
gradients, x - G'K^-1 G x is smaller than x by damping / |g|^2.
**Cost.** Of the operator m^2 n, of a gradient more or less m n + m^3; memory m n. A product 4 m n, the diagonal m^2 n,
an entry m after m^2 n and m n float64 numbers once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frechet.operators._eigendecomposition import double
from frechet.operators._operator import PD, PSD, Fact, LinearOperator, Sum, SymmetricOperator
from frechet.operators._structured import BlockDiagonal, Identity, LowRank, _check_agrees, refuse_sharded
from frechet.space import Space, euclidean

ENTRIES = 1 << 22  # of the gradients that are in float64 at a time: 32 MiB
Span = tuple[slice, slice]  # of the blocks, and of their entries


@dataclass(frozen=True, eq=False, repr=False)
class InverseFisher(SymmetricOperator):
    """The inverse of damping I + G'G / m, in blocks of the diagonal. `inverse_fisher` makes it.

    Args:
        gradients: G ``(m, n)``, one gradient a row, the oldest first.
        damping: what is added to the diagonal, > 0.
        domain: the space of the gradients.
        block: how many entries a block has.
        gram: the blocks of G G' ``(blocks, m, m)``, float64.
    """

    gradients: Tensor
    damping: float
    domain: Space
    block: int
    gram: Tensor

    @property
    def facts(self) -> frozenset[Fact]:
        return PD

    def added(self, gradient: Tensor, *, window: int | None = None) -> InverseFisher:
        """Return the operator with one gradient more, the newest.

        Args:
            gradient: the gradient ``(n,)``.
            window: the most gradients that are kept; the oldest leave. Default: all are kept.
        """
        g = gradient.detach()
        if g.shape != (self.domain.dim,):
            raise ValueError(f"InverseFisher.added: gradient must be ({self.domain.dim},), got {tuple(g.shape)}")
        _check_agrees(g, self.domain, "InverseFisher.added: gradient")
        _check_finite("InverseFisher.added", g)
        if window is not None and window < 1:
            raise ValueError(f"InverseFisher.added: window must be >= 1, got {window}")
        first = 0 if window is None else max(0, len(self.gradients) + 1 - window)
        G = torch.cat([self.gradients[first:], g[None]])
        row = self._inner(G, g[:, None])[:, :, 0]
        m = len(G)
        gram = row.new_empty(len(row), m, m)
        gram[:, :-1, :-1] = self.gram[:, first:, first:]
        gram[:, -1], gram[:, :, -1] = row, row
        return InverseFisher(G, self.damping, self.domain, self.block, gram)

    def removed(self, i: int = 0) -> InverseFisher:
        """Return the operator without gradient number i, the oldest by default."""
        m = len(self.gradients)
        if not -m <= i < m:
            raise ValueError(f"InverseFisher.removed: i must be one of {m} gradients, got {i}")
        rest = [j for j in range(m) if j != i % m]
        gram = self.gram[:, rest][:, :, rest]
        return InverseFisher(self.gradients[rest], self.damping, self.domain, self.block, gram)

    def products(self, v: Tensor) -> Tensor:
        """Return G v of each block ``(blocks, m, 1)`` in float64: the gradients times a vector ``(n,)``."""
        return self._inner(self.gradients, v[:, None])

    def of_gradient(self, i: int) -> Tensor:
        """Return F^-1 g_i ``(n,)`` of gradient number i as a sum of gradients: m G' K^-1 e_i, where nothing cancels."""
        m = len(self.gradients)
        if not -m <= i < m:
            raise ValueError(f"InverseFisher.of_gradient: i must be one of {m} gradients, got {i}")
        unit = self.gram.new_zeros(len(self.gram), m, 1)
        unit[:, i] = 1.0
        return self.of_combination(unit)

    def of_combination(self, c: Tensor) -> Tensor:
        """Return F^-1 G'c ``(n,)`` for coefficients of the gradients in each block ``(blocks, m, 1)``, in float64."""
        y, found = torch.cholesky_solve(len(self.gradients) * c, self._triangle), self.domain.zeros()
        for blocks, entries in self._spans():
            part = y[blocks].transpose(1, 2) @ self._stretch(self.gradients, blocks, entries)
            found[entries] = part.reshape(-1).to(found)
        return found

    def _matmat(self, V: Tensor) -> Tensor:
        out = torch.empty_like(V.T, memory_format=torch.contiguous_format)
        coefficients = torch.cholesky_solve(self._inner(self.gradients, V), self._triangle)
        for blocks, entries in self._spans():
            G, v = self._stretch(self.gradients, blocks, entries), self._stretch(V.T, blocks, entries)
            left = (v - coefficients[blocks].transpose(1, 2) @ G) / self.damping
            out[:, entries] = left.transpose(0, 1).reshape(len(out), entries.stop - entries.start).to(out)
        return out.T

    @cached_property
    def _triangle(self) -> Tensor:
        """The Cholesky factor of K, block by block."""
        m = len(self.gradients)
        triangle, failed = torch.linalg.cholesky_ex(self.gram + m * self.damping * torch.eye(m).to(self.gram))
        if bool(failed.any()):
            raise ValueError(
                f"inverse_fisher: damping must exceed the rounding of the gradients' squared lengths, got "
                f"{self.damping:.3g} beside squares up to {float(self.gram.abs().max()):.3g}"
            )
        return triangle

    @cached_property
    def _whitened(self) -> Tensor:
        """C^-1 G ``(m, n)`` in float64, where K = C C': the inverse is (I - its Gram matrix) / damping."""
        found = double(self.gradients).clone()
        for blocks, entries in self._spans():
            white = self._white(blocks, entries).transpose(0, 1)
            found[:, entries] = white.reshape(len(found), entries.stop - entries.start)
        return found

    def _white(self, blocks: slice, entries: slice) -> Tensor:
        G = self._stretch(self.gradients, blocks, entries)
        return torch.linalg.solve_triangular(self._triangle[blocks], G, upper=False)

    def _inner(self, G: Tensor, V: Tensor) -> Tensor:
        """G V of each block ``(blocks, m, k)``, in float64."""
        count = math.ceil(self.domain.dim / self.block)
        total = double(G.new_zeros(0)).new_zeros(count, len(G), V.shape[1])
        for blocks, entries in self._spans():
            g, v = self._stretch(G, blocks, entries), self._stretch(V.T, blocks, entries)
            total[blocks] += g @ v.transpose(1, 2)
        return total

    def _stretch(self, G: Tensor, blocks: slice, entries: slice) -> Tensor:
        """Columns of G as ``(blocks, m, entries of a block)``, in float64."""
        many = blocks.stop - blocks.start
        return double(G[:, entries]).reshape(len(G), many, (entries.stop - entries.start) // many).transpose(0, 1)

    def _spans(self) -> Iterator[Span]:
        """Whole blocks, or parts of one, with about `ENTRIES` numbers of the gradients in each."""
        n, size = self.domain.dim, self.block
        most = max(1, ENTRIES // max(1, len(self.gradients)))
        if size > most:
            for start in (s for a in range(0, n, size) for s in range(a, min(a + size, n), most)):
                b = start // size
                yield slice(b, b + 1), slice(start, min(start + most, (b + 1) * size, n))
            return
        full, together = n // size, most // size
        for a in range(0, full, together):
            b = min(a + together, full)
            yield slice(a, b), slice(a * size, b * size)
        if full * size < n:
            yield slice(full, full + 1), slice(full * size, n)


def inverse_fisher(
    gradients: Tensor, damping: float, *, domain: Space | None = None, block: int | None = None
) -> InverseFisher:
    """Return the exact inverse of damping I + (1/m) sum_i g_i g_i' as an operator (M-FAC).

    `submatrix` reads its entries, and `diagonal` the diagonal.

    Args:
        gradients: the gradients g_i as rows ``(m, n)``; m may be 0. The operator holds them, and not a copy.
        damping: what is added to the diagonal, > 0, in the unit of a squared gradient.
        domain: the space of the gradients. Default: plain R^n.
        block: how many entries a block of the diagonal has; what lies between blocks is left out. Default: all.

    Raises:
        ValueError: gradients are no matrix or not finite, or a number is out of range.

    Example:
        >>> import torch
        >>> from frechet.operators import inverse_fisher
        >>> B = inverse_fisher(torch.tensor([[1.0, 1.0]]), 2.0)
        >>> B.dense()  # of [[3, 1], [1, 3]]
        tensor([[ 0.3750, -0.1250],
                [-0.1250,  0.3750]])
        >>> B.added(torch.tensor([1.0, -1.0])).dense()  # of [[3, 0], [0, 3]]
        tensor([[0.3333, 0.0000],
                [0.0000, 0.3333]])
    """
    if gradients.ndim != 2:
        raise ValueError(f"inverse_fisher: gradients must have shape (m, n), got {tuple(gradients.shape)}")
    if not 0 < damping < math.inf:
        raise ValueError(f"inverse_fisher: damping must be a number > 0, got {damping}")
    G = gradients.detach()
    n = G.shape[1]
    space = euclidean(n, G.dtype, G.device) if domain is None else domain
    refuse_sharded("inverse_fisher", space)
    if space.dim != n:
        raise ValueError(f"inverse_fisher: gradients must have {space.dim} columns, got {n}")
    _check_agrees(G, space, "inverse_fisher: gradients")
    _check_finite("inverse_fisher", G)
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ValueError(f"inverse_fisher: block must be an int >= 1, got {block!r}")
    size = max(1, n if block is None else min(block, n))
    bare = InverseFisher(G, damping, space, size, G.new_zeros(0))
    return InverseFisher(G, damping, space, size, bare._inner(G, G.T))


def inverse_diagonal(A: InverseFisher) -> Tensor:
    """The diagonal ``(n,)``, each entry right to the rounding of the dtype."""
    found = A.domain.zeros()
    for blocks, entries in A._spans():
        found[entries] = ((1 - A._white(blocks, entries).square().sum(1)) / A.damping).reshape(-1).to(found)
    return found


def inverse_entries(A: InverseFisher, rows: Tensor, columns: Tensor) -> Tensor:
    """The entries of these rows and columns as a matrix."""
    Y = A._whitened
    i, j = rows.to(Y.device), columns.to(Y.device)
    same = (i // A.block)[:, None] == (j // A.block)
    inner = Y[:, i].T @ Y[:, j]
    found = ((i[:, None] == j).double() - torch.where(same, inner, torch.zeros_like(inner))) / A.damping
    return found.to(A.domain.device, A.domain.dtype)


def inverse_trace(A: InverseFisher) -> float:
    """The trace, from the eigenvalues."""
    return float(sum((1 / values).sum() + rest / A.damping for values, rest in _eigenvalues(A)))


def inverse_log_determinant(A: InverseFisher) -> float:
    """log det, from the eigenvalues."""
    return -float(sum(values.log().sum() + rest * math.log(A.damping) for values, rest in _eigenvalues(A)))


def _eigenvalues(A: InverseFisher) -> Iterator[tuple[Tensor, int]]:
    """The eigenvalues of F in each block where gradients are, and how many others there are, equal to the damping."""
    m, n = len(A.gradients), A.domain.dim
    for gram, start in zip(torch.linalg.eigvalsh(A.gram), range(0, n, A.block), strict=True):
        size = min(A.block, n - start)
        r = min(m, size)  # the others are rounding
        yield A.damping + gram[m - r :].clamp_min(0) / max(1, m), size - r


def before_inversion(A: InverseFisher) -> LinearOperator:
    """damping I + G'G / m, block by block."""
    n, size = A.domain.dim, A.block
    s = A.gradients.new_full((len(A.gradients),), 1 / max(1, len(A.gradients)))
    parts = []
    for a in range(0, n, size):
        g = A.gradients[:, a : a + size]
        space = A.domain if size >= n else euclidean(g.shape[1], g.dtype, g.device)
        parts.append(Sum((A.damping * Identity(space), LowRank(g.T, s, space, PSD))))
    return parts[0] if size >= n else BlockDiagonal(tuple(parts), A.domain, A.domain)


def _check_finite(name: str, gradients: Tensor) -> None:
    if not bool(gradients.isfinite().all()):
        raise ValueError(f"{name}: gradients must be finite, got a NaN or an infinity")
