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

import numpy as np
import torch

from frechet.linalg._basis import ROUNDING, Basis, new_basis
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._thick_restart import LOCKED, MISSED
from frechet.operators._operator import LinearOperator

Search = tuple[int, tuple[float, ...]]  # the products when it began, and the values then


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
    """The k largest singular values of A ``(m, n)``, descending, with right vectors ``(n, k)`` and `left` ``(m, k)``.

    A triplet has converged when ``sqrt(||A v - s u||^2 + ||A'u - s v||^2) <= max(rtol s, atol, 10 eps ||A||)``, ||A||
    being the largest norm of a product so far. `residuals` are these numbers, from the projected matrix; each bounds
    the distance of its value to the singular values of A. 10 eps ||A|| is added in quadrature for the rounding of the
    products, which is typical and not a bound. Both sets of vectors are orthonormal.

    `max_products` (with A and A' together; default 100 times the basis) ends a run with status ``max_iterations`` and
    the best triplets so far, fewer than k if it allows fewer than 2 k products. `basis` (default max(2 k + 30, 40)) is
    the number of vectors kept on each side. A NaN in a product raises `NonFinite` with its number.

    A multiple singular value is a blind spot of every method that starts from one vector: it may be listed fewer times
    than its multiplicity, unless the Krylov space is exhausted. With ``copies=True`` the run goes on from random
    vectors orthogonal to all that was found, until another copy would have shown with probability 0.99.

    Example:
        >>> import torch
        >>> from frechet import from_matrix, svds
        >>> A = from_matrix(torch.tensor([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]))
        >>> [round(s, 4) for s in svds(A, 2, seed=0).values.tolist()]
        [4.0, 3.0]
    """
    smaller = min(A.shape)
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= smaller:
        raise ValueError(f"svds: k must be an int between 0 and the smaller dimension {smaller}, got {k!r}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"svds: rtol and atol must be non-negative, got {rtol} and {atol}")
    if max_products is not None and max_products < 2:
        raise ValueError(f"svds: max_products must be at least 2, got {max_products}")
    if basis is not None and basis < min(smaller, k + 3):
        raise ValueError(f"svds: basis must be at least {min(smaller, k + 3)} for {k} triplets, got {basis}")
    if k == 0:
        none = torch.zeros(0, dtype=torch.float64)
        return Spectrum(
            none, A.domain.zeros(0), none, none.bool(), 0, 0, Status.CONVERGED, A.codomain.zeros(0), A.domain
        )
    # the side of V is the one that is exhausted first
    G = A if A.shape[1] <= A.shape[0] else A.T
    names = ("A @ v", "A.T @ u") if G is A else ("A.T @ u", "A @ v")
    size = min(smaller, max(2 * k + 30, 40) if basis is None else basis)
    limit = 100 * max(size, 40) if max_products is None else max_products
    U, B = new_basis(G.codomain, size, "device", "svds"), np.zeros((size, size))
    V = new_basis(G.domain, min(size + 1, smaller), "device", "svds")
    j = products = restarts = 0
    scale, eps, status = 0.0, max(A.domain.eps, A.codomain.eps), Status.MAX_ITERATIONS
    search: Search | None = None
    locked = 0.0  # what locking has dropped, as a norm
    drawn = _random(V, 0, seed, 0)
    while True:
        source = f"svds: product {products + 1} ({names[0]})"
        h, alpha, scale = U.append(j, G @ V.column(j), scale, source)
        B[:j, j], B[j, j] = h.numpy(), alpha
        if alpha == 0.0:
            drawn = _random(U, j, seed, drawn)
        source = f"svds: product {products + 2} ({names[1]})"
        _, beta, scale = V.append(j + 1, G.T @ U.column(j), scale, source)
        products, j = products + 2, j + 1
        stop = j == smaller or products + 2 > limit
        # in a large basis not after every step: the small problem is not free
        if stop or j == size or (j >= k and (j % (1 + j // 24) == 0 or beta == 0.0)):
            P, s, Q = np.linalg.svd(B[:j, :j])
            residuals = beta * np.abs(P[j - 1, :k])
            tolerance = np.maximum(rtol * s[:k], max(atol, ROUNDING * eps * scale))
            done = residuals <= tolerance
            finished = len(s) >= k and bool(done.all())
            if copies and j < smaller:
                # locking drops the residuals: that must be little, also when they add up
                finished = finished and bool((residuals <= max(LOCKED * tolerance.min(), eps * scale)).all())
                if finished:
                    search, finished = _search(s, k, tolerance, products, beta == 0.0, search, V.space.dim)
                if not stop and search is not None and search[0] == products:  # it has begun
                    locked = math.hypot(locked, *residuals)
                    U.rotate(j, 0, P[:, :k])
                    V.rotate(j, 0, Q[:k].T)
                    B[:] = np.diag(np.r_[s[:k], np.zeros(size - k)])
                    j, drawn = k, _random(V, k, seed, drawn)
                    continue
            if stop or finished:
                status = Status.CONVERGED if finished else status
                break
            if j == size:
                kept = k + (size - k) // 3
                if beta == 0.0:
                    drawn = _random(V, j, seed, drawn)
                U.rotate(j, 0, P[:, :kept])
                V.rotate(j, 1, Q[:kept].T)
                B[:] = np.diag(np.r_[s[:kept], np.zeros(size - kept)])
                j, restarts = kept, restarts + 1
                continue
        if beta == 0.0:
            drawn = _random(V, j, seed, drawn)
    left, right = U.combine(j, P[:, :k]), V.combine(j, Q[:k].T)
    if G is not A:
        left, right = right, left
    rounded = np.hypot(np.hypot(residuals, locked), ROUNDING * eps * scale)
    values, errors = torch.from_numpy(s[:k].copy()), torch.from_numpy(rounded)
    return Spectrum(values, right, errors, torch.from_numpy(done), restarts, products, status, left, A.domain)


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
