"""The largest singular triplets of a rectangular A (m, n), by products with A and A'.

Thick-restart Golub-Kahan bidiagonalization. Orthonormal bases U (m, j) and V (n, j + 1) with

    A V_j = U B,   A'U = V_j B' + beta v_{j+1} e_j'

grow by one vector each per step. The singular triplets (s, p, q) of the small B give u = U p, v = V q with A v = s u
exactly and ||A'u - s v|| = beta |p_j|. A full basis is replaced by its best triplets and v_{j+1}, which couples to all
of them. A itself is used, not A'A: squaring would lose every singular value below sqrt(eps) times the largest.

**Source.** J. Baglama and L. Reichel 2005, "Augmented implicitly restarted Lanczos bidiagonalization methods",
algorithm 3.1 (Ritz vectors), doi 10.1137/04060593X. The search for further copies stops by J. Kuczynski and H.
Wozniakowski 1992, theorem 4.1, doi 10.1137/0613066, for A'A.

**Differs from the source.** (1) Both bases are orthogonalized twice in full. (2) The tolerance is tested inside the
basis. (3) Where a recurrence ends, a random vector continues it. (4) The search for copies keeps the triplets found and
puts a random vector in the place of v_{j+1}.

Cost: 2 products a step (one with A, one with A'); `basis` vectors of memory on each side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from frechet.linalg._basis import ROUNDING, Basis, new_basis
from frechet.linalg._eigsh_run import Search
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._thick_restart import LOCKED, MISSED
from frechet.linalg.systems._protocol import Ending, iterate
from frechet.operators._operator import LinearOperator


@torch.no_grad()
def svds(
    A: LinearOperator,
    k: int,
    *,
    seed: int,
    rtol: float = 1e-3,
    atol: float = 0.0,
    max_products: int | None = None,
    basis: int | None = None,
    copies: bool = False,
) -> Spectrum:
    """Estimate the k largest singular values of A ``(m, n)``, with both sets of singular vectors.

    A multiple singular value is a blind spot of every method that starts from one vector. It may be listed fewer times
    than its multiplicity, unless the Krylov space is exhausted or `copies` is True.

    Args:
        A: any operator ``(m, n)``.
        k: how many, at most min(m, n).
        seed: of the random vectors.
        rtol: relative tolerance. A triplet has converged when ``sqrt(||A v - s u||^2 + ||A'u - s v||^2) <= max(rtol *
            s, atol, 10 eps ||A||)``, where ||A|| is the largest norm of a product so far. Default: 1e-3.
        atol: absolute tolerance on the same number, in the unit of A. Default: 0.
        max_products: the most products, with A and A' together. A run that ends there has the status `max_iterations`
            and the best triplets so far, fewer than k if fewer than 2 k products were allowed. Default: 100 `basis`.
        basis: how many vectors are kept on each side. Default: max(2 k + 30, 40).
        copies: whether to go on from random vectors orthogonal to all that was found, until another copy would have
            shown with probability 0.99. Default: False.

    Returns:
        A `Spectrum`: `values` descending, right vectors `vectors` ``(n, k)`` and `left` ``(m, k)``, both orthonormal.
            `residuals` are the numbers of the tolerance, from the projected matrix; each bounds the distance of its
            value to the singular values of A. 10 eps ||A|| is added in quadrature for the rounding of the products,
            which is typical and not a bound.

    Raises:
        NonFinite: a product holds a NaN; the message has its number.

    Example:
        >>> import torch
        >>> from frechet import from_matrix, svds
        >>> A = from_matrix(torch.tensor([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]))
        >>> [round(s, 4) for s in svds(A, 2, seed=0).values.tolist()]
        [4.0, 3.0]
    """
    smaller = min(A.shape)
    _check(k, smaller, rtol, atol, max_products, basis)
    if k == 0:
        none = torch.zeros(0, dtype=torch.float64)
        return Spectrum(
            none, A.domain.zeros(0), none, none.bool(), 0, 0, Status.CONVERGED, A.codomain.zeros(0), A.domain
        )
    # the side of V is the one that is exhausted first
    G, names = (A, ("A @ v", "A.T @ u")) if A.shape[1] <= A.shape[0] else (A.T, ("A.T @ u", "A @ v"))
    size = min(smaller, max(2 * k + 30, 40) if basis is None else basis)
    limit = 100 * max(size, 40) if max_products is None else max_products
    U, V = new_basis(G.codomain, size, "device", "svds"), new_basis(G.domain, min(size + 1, smaller), "device", "svds")
    c = _Call(G, k, names, seed, rtol, atol, limit, copies, size, U, V, np.zeros((size, size)))
    s, ending = iterate(_Moment(drawn=_random(V, 0, seed, 0)), partial(_judge, c), partial(_step, c))
    svd = s.svd
    assert svd is not None  # a run ends where it is judged
    left, right = U.combine(s.j, svd.P[:, :k]), V.combine(s.j, svd.Q[:k].T)
    if G is not A:
        left, right = right, left
    rounded = np.hypot(np.hypot(svd.residuals, s.locked), ROUNDING * c.eps * s.scale)
    values, errors, done = (torch.from_numpy(x) for x in (svd.s[:k].copy(), rounded, svd.done))
    return Spectrum(values, right, errors, done, s.restarts, s.products, ending.status, left, A.domain)


def _check(k: int, most: int, rtol: float, atol: float, max_products: int | None, basis: int | None) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= most:
        raise ValueError(f"svds: k must be an int between 0 and the smaller dimension {most}, got {k!r}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"svds: rtol and atol must be non-negative, got {rtol} and {atol}")
    if max_products is not None and max_products < 2:
        raise ValueError(f"svds: max_products must be at least 2, got {max_products}")
    if basis is not None and basis < min(most, k + 3):
        raise ValueError(f"svds: basis must be at least {min(most, k + 3)} for {k} triplets, got {basis}")


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one call, and its memory: G is A or A', whichever has no more columns than rows."""

    G: LinearOperator
    k: int
    names: tuple[str, str]
    seed: int
    rtol: float
    atol: float
    limit: int
    copies: bool
    size: int
    U: Basis
    V: Basis
    B: np.ndarray

    @property
    def eps(self) -> float:
        return max(self.G.domain.eps, self.G.codomain.eps)


@dataclass(frozen=True, eq=False)
class _Triplets:
    """The singular triplets of B, and of the first k the residuals and whether they are within the tolerance."""

    P: np.ndarray
    s: np.ndarray
    Q: np.ndarray
    residuals: np.ndarray
    tolerance: np.ndarray

    @property
    def done(self) -> np.ndarray:
        return self.residuals <= self.tolerance


@dataclass(frozen=True, eq=False)
class _Moment:
    """Where a run stands: U has j columns and V has j + 1."""

    j: int = 0
    beta: float = 0.0  # 0 where the recurrence has ended
    products: int = 0
    restarts: int = 0
    drawn: int = 0
    scale: float = 0.0
    search: Search | None = None
    locked: float = 0.0  # what locking has dropped, as a norm
    svd: _Triplets | None = None


def _step(c: _Call, s: _Moment) -> tuple[_Moment, None]:
    """One column of B, by a product with G and one with G'."""
    j, drawn = s.j, s.drawn
    h, alpha, scale = c.U.append(j, c.G @ c.V.column(j), s.scale, f"svds: product {s.products + 1} ({c.names[0]})")
    c.B[:j, j], c.B[j, j] = h.numpy(), alpha
    if alpha == 0.0:
        drawn = _random(c.U, j, c.seed, drawn)
    source = f"svds: product {s.products + 2} ({c.names[1]})"
    _, beta, scale = c.V.append(j + 1, c.G.T @ c.U.column(j), scale, source)
    return replace(s, j=j + 1, beta=beta, products=s.products + 2, drawn=drawn, scale=scale), None


def _judge(c: _Call, s: _Moment) -> tuple[_Moment, Ending | None]:
    if s.j == 0:
        return s, None
    last = s.j == min(c.G.shape)
    stop = last or s.products + 2 > c.limit
    # in a large basis not after every step: the small problem is not free
    if stop or s.j == c.size or (s.j >= c.k and (s.j % (1 + s.j // 24) == 0 or s.beta == 0.0)):
        svd = _triplets(c, s)
        finished = len(svd.s) >= c.k and bool(svd.done.all())
        s = replace(s, svd=svd)
        if c.copies and not last:
            s, finished = _copies(c, s, svd, finished)
            if not stop and s.search is not None and s.search[0] == s.products:  # the search has begun
                _keep(c, svd, c.k, 0)
                locked = math.hypot(s.locked, *svd.residuals)
                return replace(s, j=c.k, locked=locked, drawn=_random(c.V, c.k, c.seed, s.drawn)), None
        if stop or finished:
            return s, Ending(Status.CONVERGED if finished else Status.MAX_ITERATIONS)
    if s.beta == 0.0:
        s = replace(s, drawn=_random(c.V, s.j, c.seed, s.drawn))
    if s.j == c.size and s.svd is not None:
        kept = c.k + (c.size - c.k) // 3
        _keep(c, s.svd, kept, 1)
        s = replace(s, j=kept, restarts=s.restarts + 1)
    return s, None


def _triplets(c: _Call, s: _Moment) -> _Triplets:
    P, values, Q = np.linalg.svd(c.B[: s.j, : s.j])
    tolerance = np.maximum(c.rtol * values[: c.k], max(c.atol, ROUNDING * c.eps * s.scale))
    return _Triplets(P, values, Q, s.beta * np.abs(P[s.j - 1, : c.k]), tolerance)


def _keep(c: _Call, svd: _Triplets, kept: int, p: int) -> None:
    """Replace U and V by the best triplets, followed by p more columns of V."""
    c.U.rotate(len(svd.s), 0, svd.P[:, :kept])
    c.V.rotate(len(svd.s), p, svd.Q[:kept].T)
    c.B[:] = np.diag(np.r_[svd.s[:kept], np.zeros(c.size - kept)])


def _copies(c: _Call, s: _Moment, svd: _Triplets, finished: bool) -> tuple[_Moment, bool]:
    """The search for copies begun or ended, once all triplets are found."""
    # locking drops the residuals: that must be little, also when they add up
    most = max(LOCKED * svd.tolerance.min(), c.eps * s.scale)
    if not (finished and bool((svd.residuals <= most).all())):
        return s, False
    n = c.V.space.dim
    search, finished = _search(svd.s, c.k, svd.tolerance, s.products, s.beta == 0.0, s.search, n)
    return replace(s, search=search), finished


def _search(
    s: np.ndarray, k: int, tolerance: np.ndarray, products: int, ended: bool, search: Search | None, n: int
) -> tuple[Search, bool]:
    """The search for copies after `products`, and whether it may end: a copy would have shown as a Ritz value."""
    values = s[:k]
    if search is None or bool((np.abs(values - np.array(search[1])) > 2 * tolerance).any()):
        return (products, tuple(values.tolist())), False
    if ended:  # the space of a random vector holds one copy of all that is left
        return search, True
    # a second copy of the last value changes nothing in the list: the first value that matters lies above it
    above, steps = values[values > values[-1] + tolerance[-1]], (products - search[0]) // 2
    if not len(above):
        return search, True
    if len(s) == k:
        return search, False
    gap = max(1.0 - (float(s[k]) / float(above[-1])) ** 2, 0.0)
    return search, 1.648 * math.sqrt(n) * math.exp(-math.sqrt(gap) * (2 * steps - 1)) <= MISSED


def _random(W: Basis, j: int, seed: int, drawn: int) -> int:
    """Put a random unit vector, orthogonal to the first j columns of `W`, into column j; the number drawn so far."""
    while True:
        g = W.space.random(drawn, seed, "gaussian")
        drawn += 1
        if W.append(j, g, 0.0, "svds: random vector")[1] > 0.0:
            return drawn
