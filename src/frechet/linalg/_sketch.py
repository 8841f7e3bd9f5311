"""Sketches: random linear maps S from R^n to R^d, d << n, that nearly keep the lengths of a whole subspace.

    gaussian_sketch       independent normal entries; the best quality for its d, O(d n) memory and time per product
    sparse_sign_sketch    a few signs per column; O(n) memory and time, nearly as good
    hadamard_sketch       signs, fast Walsh-Hadamard transform, sampled rows; O(n log n) time

All have E[S'S] = I, so norm(S v)^2 is unbiased for norm(v)^2. For a subspace of dimension r and d of a few times r, all
of its vectors keep their length up to a factor 1 +- O(sqrt(r / d)) with high probability. They are operators like any
other: ``S @ A`` sketches the rows of A for least squares, ``S.T`` is the transpose.

**Source.** D. Woodruff (2014), Sketching as a tool for numerical linear algebra, doi 10.1561/0400000060. Sparse signs
in one row of each of several bands: J. Nelson and H. Nguyen (2013), OSNAP, section 1.1, doi 10.1109/FOCS.2013.21.
Sampled transform: J. Tropp (2011), Improved analysis of the subsampled randomized Hadamard transform, definition 1.1,
doi 10.1142/S1793536911000787.

**Differs from the source.** n is padded with zeros to a power of two for the transform, and its entries take random
places there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._constructors import from_matrix
from frechet.operators._operator import NONE, Fact, LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.space import Space, euclidean, generator

RADIX = 32  # of the Walsh-Hadamard transform


def gaussian_sketch(space: Space, d: int, *, seed: int) -> LinearOperator:
    """Return S ``(d, n)`` with independent normal entries of variance 1/d, stored.

    Args:
        space: of the n entries.
        d: how many rows. Row i is ``space.random(i, seed) / sqrt(d)``.
        seed: of the entries.

    Example:
        >>> import torch
        >>> from frechet.linalg import gaussian_sketch
        >>> from frechet.space import euclidean
        >>> gaussian_sketch(euclidean(1000), 20, seed=0).shape
        (20, 1000)
    """
    _check_rows("gaussian_sketch", d)
    refuse_sharded("gaussian_sketch", space)
    rows = space.random(range(d), seed, "gaussian").T / math.sqrt(d)
    return from_matrix(rows, domain=space, codomain=euclidean(d, space.dtype, space.device))


def sparse_sign_sketch(space: Space, d: int, *, seed: int, nonzeros: int = 8) -> LinearOperator:
    """Return S ``(d, n)`` with a few entries +-1/sqrt(nonzeros) in each column, one in each of as many bands of rows.

    Every column has norm 1. On a GPU the sums of a product are taken in no fixed order, so that its last digits may
    vary from call to call.

    Args:
        space: of the n entries.
        d: how many rows.
        seed: of the places and the signs.
        nonzeros: in each column, at most d. Default: 8.

    Example:
        >>> import torch
        >>> from frechet.linalg import sparse_sign_sketch
        >>> from frechet.space import euclidean
        >>> S = sparse_sign_sketch(euclidean(50, torch.float64), 16, seed=0, nonzeros=4)
        >>> (S.dense() != 0).sum(0).unique()
        tensor([4])
    """
    _check_rows("sparse_sign_sketch", d)
    if not 1 <= nonzeros <= d:
        raise ValueError(f"sparse_sign_sketch: nonzeros must lie between 1 and d = {d}, got {nonzeros}")
    refuse_sharded("sparse_sign_sketch", space)
    rows = torch.empty(nonzeros, space.dim, dtype=torch.long)
    for band in range(nonzeros):
        low, high = band * d // nonzeros, (band + 1) * d // nonzeros
        rows[band] = torch.randint(low, high, (space.dim,), generator=generator(seed, band, 1))  # apart from the signs
    signs = space.random(range(nonzeros), seed).T / math.sqrt(nonzeros)
    return SparseSigns(rows.to(space.device), signs, space, euclidean(d, space.dtype, space.device))


def hadamard_sketch(space: Space, d: int, *, seed: int) -> LinearOperator:
    """Return S = sqrt(N/d) P H Q D: signs D, places Q, the orthogonal Walsh-Hadamard transform H, d distinct rows P.

    H has the size N, the least power of two that is at least n. Q puts the n entries in random places of N: the
    transforms of entries whose numbers form a subgroup, as the first eight do, depend on each other.

    Args:
        space: of the n entries.
        d: how many rows, at most N.
        seed: of the signs, the places and the rows.

    Example:
        >>> import torch
        >>> from frechet.linalg import hadamard_sketch
        >>> from frechet.space import euclidean
        >>> S = hadamard_sketch(euclidean(8, torch.float64), 8, seed=0)  # all rows: orthogonal
        >>> bool(torch.allclose(S.dense() @ S.dense().T, torch.eye(8, dtype=torch.float64)))
        True
    """
    _check_rows("hadamard_sketch", d)
    refuse_sharded("hadamard_sketch", space)
    N = 1 << max(space.dim - 1, 0).bit_length()
    if d > N:
        raise ValueError(f"hadamard_sketch: d must be at most {N}, n = {space.dim} padded to a power of two, got {d}")
    rows = torch.randperm(N, generator=generator(seed, 0, 1))[:d].to(space.device)
    places = torch.randperm(N, generator=generator(seed, 1, 1))[: space.dim].to(space.device)
    return SampledHadamard(rows, places, space.random(0, seed), N, space, euclidean(d, space.dtype, space.device))


@dataclass(frozen=True, eq=False, repr=False)
class SparseSigns(LinearOperator):
    """Column j has the entries signs[:, j] at rows[:, j]."""

    rows: Tensor  # (nonzeros, n)
    signs: Tensor  # (nonzeros, n)
    domain: Space
    codomain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _matmat(self, V: Tensor) -> Tensor:
        if V.shape[1] > 1 and V.is_contiguous():  # stored by rows: a sparse product reads each row once
            columns = torch.arange(self.domain.dim, device=self.rows.device).expand_as(self.rows)
            places = torch.stack([self.rows.reshape(-1), columns.reshape(-1)])
            S = torch.sparse_coo_tensor(places, self.signs.reshape(-1), self.shape, check_invariants=False)
            return torch.sparse.mm(S, V)
        out = self.codomain.zeros(V.shape[1]).T  # (k, d)
        for rows, signs in zip(self.rows, self.signs, strict=True):
            out.index_add_(1, rows, V.T * signs)
        return out.T

    def _rmatmat(self, U: Tensor) -> Tensor:
        out = self.domain.zeros(U.shape[1]).T  # (k, n)
        for rows, signs in zip(self.rows, self.signs, strict=True):
            out += U.T[:, rows] * signs
        return out.T


@dataclass(frozen=True, eq=False, repr=False)
class SampledHadamard(LinearOperator):
    """sqrt(N/d) P H Q D."""

    rows: Tensor  # (d,)
    places: Tensor  # (n,), of the entries
    signs: Tensor  # (n,)
    size: int  # N
    domain: Space
    codomain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _matmat(self, V: Tensor) -> Tensor:
        scale = 1 / math.sqrt(self.codomain.dim)
        if V.shape[1] > 1 and V.is_contiguous():  # stored by rows
            X = V.new_zeros(self.size, V.shape[1])
            X[self.places] = V * self.signs[:, None]
            return _transformed(X[None])[0, self.rows] * scale
        X = V.new_zeros(V.shape[1], self.size)
        X[:, self.places] = V.T * self.signs
        return (walsh_hadamard(X)[:, self.rows] * scale).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        X = U.new_zeros(U.shape[1], self.size)
        X[:, self.rows] = U.T / math.sqrt(self.codomain.dim)
        return (walsh_hadamard(X)[:, self.places] * self.signs).T


def walsh_hadamard(X: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of each row of X ``(k, N)``, N a power of two; entries +-1, so H H = N I."""
    return _transformed(X[..., None])[..., 0]


def _transformed(X: Tensor) -> Tensor:
    """The transform along the middle of X ``(p, N, c)``: H is a Kronecker product, taken `RADIX` rows at a time.

    Each pass is one matrix product with a small H: more arithmetic than butterflies, a fifth of the memory traffic.
    """
    shape, N = X.shape, X.shape[1]
    H = X.new_ones(1, 1)
    while len(H) < min(N, RADIX):
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    left = N
    while left > 1:
        h = H[: min(left, RADIX), : min(left, RADIX)]
        left //= len(h)
        inner = left * shape[2]
        X = torch.matmul(h, X.reshape(-1, len(h), inner)) if inner > 1 else X.reshape(-1, len(h)) @ h
    return X.reshape(shape)


def _check_rows(method: str, d: int) -> None:
    if d < 1:
        raise ValueError(f"{method}: d must be >= 1, got {d}")
