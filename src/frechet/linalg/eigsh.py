"""Eigenpairs at the ends of the spectrum of a symmetric A, by products alone.

``lanczos`` (thick restart). An orthonormal basis W = [V, P] is kept, where A has been applied to V (n, j) and not yet
to the pending vectors P (n, p), with A V = [V, P] T. One product turns the first pending vector into a column of V and
adds what is new of it to P. Eigenpairs of V'A V are the Ritz pairs (theta, V s), with residual ||T[j:] s|| exactly. A
full basis is replaced by its best Ritz vectors and P. Lanczos has p = 1; where P is empty (an invariant space) and in
the search for copies a random vector is added to it.

``lobpcg``. Rayleigh-Ritz on [X, P, K R]: the Ritz vectors, their last change, and the (preconditioned) residuals.

**Source.** K. Wu and H. Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems",
doi 10.1137/S0895479898334605. Several pending vectors: A. Ruhe 1979, doi 10.1090/S0025-5718-1979-0521282-9. The search
for further copies stops by J. Kuczynski and H. Wozniakowski 1992, theorem 4.1, doi 10.1137/0613066. A. Knyazev 2001,
"Toward the optimal preconditioned eigensolver", doi 10.1137/S1064827500366124, with the basis of U. Hetmaniuk and
R. Lehoucq 2006, doi 10.1016/j.jcp.2006.02.007.

**Differs from the source.** (1) Everything is orthogonalized twice against the whole basis; T is stored whole. (2) The
tolerance is tested inside the basis, not only at restarts. (3) lobpcg applies A to the new directions only, the images
of X and P follow in the coefficients, and it carries a few pairs more than were asked for.

Cost: lanczos one product a step and `basis` vectors of memory; lobpcg one product per open pair and iteration and about
eight blocks of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg.krylov import ROUNDING, append, check_symmetric, combine, rotate
from frechet.linalg.result import Spectrum, Status
from frechet.operators.operator import LinearOperator
from frechet.space import Space

Which = Literal["largest", "smallest", "both"]
Method = Literal["lanczos", "lobpcg"]

STREAM = (
    1 << 40
)  # probes far from 0, 1, ...: what deflates an estimate of the same seed must not be drawn from its probes
MISSED = 0.01  # probability with which the search for further copies may overlook one


@dataclass(frozen=True, eq=False)
class EigshState:
    """Where a run of `eigsh` stands. `basis` and `image` are views of its memory: pickle or clone them to keep them."""

    fingerprint: tuple[object, ...]
    values: Tensor  # wanted Ritz values so far, descending
    residuals: Tensor
    products: int
    iterations: int
    basis: Tensor  # (n, j + p), or [X, P] of lobpcg
    image: Tensor | None  # A [X, P], lobpcg only
    matrix: Tensor  # T (j + p, j)
    drawn: int  # random vectors used
    scale: float  # largest norm of a product
    search: tuple[int, tuple[float, ...]] | None  # first column of the search for copies, values when it began


@torch.no_grad()
def eigsh(
    A: LinearOperator,
    k: int,
    *,
    seed: int,
    which: Which = "largest",
    rtol: float = 1e-3,
    atol: float = 0.0,
    max_products: int | None = None,
    method: Method = "lanczos",
    basis: int | None = None,
    start: Tensor | None = None,
    copies: bool = False,
    preconditioner: LinearOperator | None = None,
    observe: Callable[[EigshState], bool] | None = None,
    resume: EigshState | None = None,
) -> Spectrum:
    """The k algebraically largest or smallest eigenpairs of a symmetric A, or k from each end, listed descending.

    A pair has converged when ``||A v - lambda v|| <= max(rtol |lambda|, atol, 10 eps ||A||)``, ||A|| being the largest
    norm of a product so far. `residuals` are these norms; they bound the distance of each value to the spectrum. They
    come from the projected matrix without a product (``||T[j:] s||``, exact for exact products), with 10 eps ||A||
    added in quadrature for the rounding of the products, which is typical and not a bound. ``which="both"`` gives 2 k
    pairs, or all n where the ends meet. `vectors` ``(n, k)`` are orthonormal. A NaN raises `NonFinite` with the number
    of the product.

    - `max_products` (default 50 times the basis) ends a run with status ``max_iterations`` and the best pairs so far,
      fewer than k if it allows fewer than k products. `basis` (default max(2 k + 30, 40)) vectors are kept.
    - `start` ``(n, j)`` holds guesses of the wanted vectors, such as those of an earlier operator; lanczos starts from
      their sum, lobpcg from the block.
    - A multiple eigenvalue is a blind spot of every method that starts from one vector: it is listed once. With
      ``copies=True`` the run continues (by about half) from random vectors orthogonal to all that was found, until
      another copy, or an eigenvalue that `start` had missed, would have shown with probability 0.99.
    - ``method="lobpcg"`` works on blocks, takes a positive definite `preconditioner`, about the inverse of A - lambda
      (of lambda - A for the largest), and finds one end. It pays where such a preconditioner is at hand.
    - `observe` is called after each test of convergence; True stops with status ``stopped``. `resume` continues.

    Example:
        >>> import torch
        >>> from frechet import eigsh, from_diagonal
        >>> A = from_diagonal(torch.cat([torch.tensor([9.0, 5.0, -7.0]), torch.linspace(0, 1, 97)]))
        >>> spectrum = eigsh(A, 1, which="both", seed=0, rtol=1e-5)
        >>> [round(x, 3) for x in spectrum.values.tolist()], bool(spectrum.converged.all())
        ([9.0, -7.0], True)
    """
    wanted = _check(A, k, which, rtol, atol, max_products, method, basis, start, copies, preconditioner)
    space = A.domain
    if wanted == 0:
        empty = torch.zeros(0, dtype=torch.float64)
        return Spectrum(empty, space.zeros(0), empty, empty.bool(), 0, 0, Status.CONVERGED, space=space)
    size = min(space.dim, max(2 * wanted + 30, 40) if basis is None else basis)
    limit = 50 * max(size, 40) if max_products is None else max_products
    fingerprint = (repr(space), method, k, which, seed, size, copies)
    if resume is not None and resume.fingerprint != fingerprint:
        raise ValueError(
            f"eigsh: resume must come from the same call, got (space, method, k, which, seed, basis, copies) = "
            f"{resume.fingerprint} for {fingerprint}"
        )
    run = _Run(A, k, which, seed, rtol, atol, limit, fingerprint, observe, resume)
    if method == "lobpcg":
        return _lobpcg(run, wanted, start, preconditioner)
    return _lanczos(run, wanted, size, start, copies)


@dataclass(frozen=True, eq=False)
class _Run:
    """The arguments of one call."""

    A: LinearOperator
    k: int
    which: Which
    seed: int
    rtol: float
    atol: float
    limit: int
    fingerprint: tuple[object, ...]
    observe: Callable[[EigshState], bool] | None
    resume: EigshState | None

    def indices(self, j: int, count: int) -> np.ndarray:
        """Positions of the `count` best of j ascending values, in descending order of value."""
        count = min(count, j)
        top = {"largest": count, "smallest": 0, "both": (count + 1) // 2}[self.which]
        return np.r_[j - 1 : j - 1 - top : -1, count - top - 1 : -1 : -1].astype(int)

    def converged(self, values: np.ndarray, residuals: np.ndarray, scale: float) -> np.ndarray:
        floor = max(self.atol, ROUNDING * self.A.domain.eps * scale)
        return residuals <= np.maximum(self.rtol * np.abs(values), floor)


def _lanczos(run: _Run, wanted: int, size: int, start: Tensor | None, copies: bool) -> Spectrum:
    A, space, n = run.A, run.A.domain, run.A.domain.dim
    W, T = space.zeros(size), np.zeros((size, size))
    j = p = products = restarts = drawn = 0
    scale, search = 0.0, None
    if run.resume is not None:
        state = run.resume
        products, restarts, drawn = state.products, state.iterations, state.drawn
        scale, search = state.scale, state.search
        j, p = state.matrix.shape[1], state.basis.shape[1] - state.matrix.shape[1]
        W[:, : j + p], T[: j + p, :j] = state.basis, state.matrix.numpy()
    elif start is not None and start.shape[1]:
        # one vector in the span of the guesses: cheaper than a block unless the guesses are almost exact
        sizes = space.norm(start).clamp_min(torch.finfo(torch.float64).tiny)
        p = int(append(space, W, 0, start @ (1 / sizes).to(start), 0.0, "eigsh: start")[1] > 0.0)
    while True:
        # in a large basis not after every product: the small eigenproblem is not free
        if p == 0 or products >= run.limit or (j >= wanted and j % (1 + j // 48) == 0):
            theta, S, residuals = _ritz(T, j, p)
            best = run.indices(j, wanted)
            done = run.converged(theta[best], residuals[best], scale)
            finished = j == n or (len(best) == wanted and bool(done.all()))
            if finished and copies and j + p < n:
                search, finished = _search(run, theta, best, products, search)
            if run.observe is not None:
                state = EigshState(
                    run.fingerprint, torch.from_numpy(theta[best]), torch.from_numpy(residuals[best]), products,
                    restarts, W[:, : j + p], None, torch.from_numpy(T[: j + p, :j].copy()), drawn, scale, search,
                )  # fmt: skip
                if run.observe(state):
                    status = Status.STOPPED
                    break
            if finished or products >= run.limit:
                status = Status.CONVERGED if finished else Status.MAX_ITERATIONS
                break
        fresh = p == 0 or (search is not None and search[0] == products and j + p < n and wanted + p + 3 < size)
        if size < n and j + p + fresh >= size:
            theta, S, _ = _ritz(T, j, p)
            kept = run.indices(j, wanted + (size - wanted - p - fresh) // 3)
            rotate(W, j, p, S[:, kept])
            coupling = T[j : j + p, :j] @ S[:, kept]
            j, T[:] = len(kept), 0.0
            T[:j, :j], T[j : j + p, :j] = np.diag(theta[kept]), coupling
            restarts += 1
        if fresh:
            drawn += 1
            g = space.random(STREAM + drawn - 1, run.seed, "gaussian")
            if append(space, W, j + p, g, 0.0, "eigsh: random vector")[1] == 0.0:
                continue
            p += 1
            _swap(W, T, j, j + p - 1)
        products += 1
        h, beta, scale = append(space, W, j + p, A @ W[:, j], scale, f"eigsh: product {products} (A @ v)")
        T[: j + p, j], j, p = h.numpy(), j + 1, p - 1
        if beta > 0.0:
            T[j + p, j - 1], p = beta, p + 1
            if search is not None:  # follow the random vector's own Krylov space before the rest
                _swap(W, T, j, j + p - 1)
    vectors = combine(W[:, :j], S[:, best])
    return _spectrum(run, theta[best], residuals[best], done, vectors, scale, restarts, products, status)


def _ritz(T: np.ndarray, j: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues (ascending) and vectors of the projected matrix, and the residual norms of the Ritz pairs."""
    theta, S = np.linalg.eigh((T[:j, :j] + T[:j, :j].T) / 2)
    return theta, S, np.sqrt(np.square(T[j : j + p, :j] @ S).sum(0))


def _search(
    run: _Run, theta: np.ndarray, best: np.ndarray, products: int, search: tuple[int, tuple[float, ...]] | None
) -> tuple[tuple[int, tuple[float, ...]], bool]:
    """The search for copies after `products`, and whether it may end: a copy would have shown as a Ritz value."""
    values, n = theta[best], run.A.domain.dim
    tolerance = np.maximum(run.rtol * np.abs(values), run.atol)
    if search is None or bool((np.abs(values - np.array(search[1])) > 2 * tolerance).any()):
        return (products, tuple(values.tolist())), False
    steps, rest = products - search[0], np.delete(theta, best)
    ends = []
    if run.which != "smallest":
        top = values if run.which == "largest" else values[: (len(values) + 1) // 2]
        ends.append((top, tolerance[: len(top)], rest.max(initial=-math.inf), theta[0]))
    if run.which != "largest":
        low = values if run.which == "smallest" else values[(len(values) + 1) // 2 :]
        ends.append((-low[::-1], tolerance[len(values) - len(low) :][::-1], (-rest).max(initial=-math.inf), -theta[-1]))
    for end, tol, following, least in ends:
        # a second copy of the last value changes nothing in the list: the first value that matters lies above it
        above = end[end > end[-1] + tol[-1]]
        if len(above) and not math.isinf(following):
            gap = max(above[-1] - following, 0.0) / (above[-1] - least)
            if 1.648 * math.sqrt(n) * math.exp(-math.sqrt(gap) * (2 * steps - 1)) > MISSED:
                return search, False
    return search, True


def _swap(W: Tensor, T: np.ndarray, a: int, b: int) -> None:
    """Exchange two pending vectors."""
    if a != b:
        W[:, a], W[:, b] = W[:, b].clone(), W[:, a].clone()
        T[[a, b]] = T[[b, a]]


def _spectrum(
    run: _Run, values: np.ndarray, residuals: np.ndarray, done: np.ndarray, vectors: Tensor, scale: float,
    iterations: int, products: int, status: Status,
) -> Spectrum:  # fmt: skip
    rounded = np.hypot(residuals, ROUNDING * run.A.domain.eps * scale)
    return Spectrum(
        torch.from_numpy(values), vectors, torch.from_numpy(rounded), torch.from_numpy(done), iterations, products,
        status, space=run.A.domain,
    )  # fmt: skip


def _lobpcg(run: _Run, wanted: int, start: Tensor | None, preconditioner: LinearOperator | None) -> Spectrum:
    A, space, state = run.A, run.A.domain, run.resume
    b = min(space.dim, wanted + max(2, wanted // 4))
    if state is not None and state.image is not None:
        Q, AQ, theta = state.basis, state.image, state.matrix[0].numpy()
        b, products, iterations, scale = len(theta), state.products, state.iterations, state.scale
    else:
        Q = space.orthonormalize(_guesses(space, start, b, run.seed))[0]
        AQ, scale = _applied(A, Q, 0.0, 0)
        b, products, iterations = min(b, Q.shape[1]), Q.shape[1], 0
        Q, AQ, theta = _improved(run, Q, AQ, b, Q.shape[1])
    while True:
        R = AQ[:, :b] - Q[:, :b] * torch.from_numpy(theta).to(Q)
        residuals = space.norm(R).cpu().numpy()
        best = run.indices(b, wanted)
        done = run.converged(theta[best], residuals[best], scale)
        open_ = np.flatnonzero(~run.converged(theta, residuals, scale))
        if run.observe is not None:
            state = EigshState(
                run.fingerprint, torch.from_numpy(theta[best]), torch.from_numpy(residuals[best]), products, iterations,
                Q, AQ, torch.from_numpy(theta)[None], 0, scale, None,
            )  # fmt: skip
            if run.observe(state):
                status = Status.STOPPED
                break
        if bool(done.all()):
            status = Status.CONVERGED
            break
        if products >= run.limit:
            status = Status.MAX_ITERATIONS
            break
        W = R[:, torch.from_numpy(open_).to(R.device)]
        W = _complement(space, Q, W if preconditioner is None else preconditioner @ W)
        if W.shape[1] == 0:
            status = Status.STAGNATED
            break
        AW, scale = _applied(A, W, scale, products)
        products, iterations = products + W.shape[1], iterations + 1
        Q, AQ, theta = _improved(run, torch.cat([Q.T, W.T]).T, torch.cat([AQ.T, AW.T]).T, b, b)
    order = torch.from_numpy(best).to(Q.device)
    vectors = Q[:, order].T.contiguous().T
    return _spectrum(run, theta[best], residuals[best], done, vectors, scale, iterations, products, status)


def _improved(run: _Run, Q: Tensor, AQ: Tensor, b: int, x: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """[X, P], A [X, P] and the values of X: the b best Ritz vectors of span Q, and their part outside x old columns."""
    # Q is orthonormal up to drift: its Gram matrix keeps rounding from adding up over the iterations
    L = np.linalg.inv(np.linalg.cholesky(run.A.domain.gram(Q, Q).cpu().numpy()))
    H = L @ run.A.domain.gram(Q, AQ).cpu().numpy() @ L.T
    theta, S = np.linalg.eigh((H + H.T) / 2)
    chosen = slice(-b, None) if run.which == "largest" else slice(b)
    C, theta = S[:, chosen], theta[chosen]
    D = C.copy()
    D[:x] = 0.0
    for _ in range(2):
        D -= C @ (C.T @ D)
    U, size, _ = np.linalg.svd(D, full_matrices=False)
    C = L.T @ np.concatenate([C, U[:, size > 1e-6]], 1)
    return combine(Q, C), combine(AQ, C), theta


def _complement(space: Space, Q: Tensor, W: Tensor) -> Tensor:
    """An orthonormal basis of what W adds to the span of the orthonormal Q."""
    for _ in range(2):
        W = W / space.norm(W).clamp_min(torch.finfo(torch.float64).tiny).to(W)
        for _ in range(2):
            W = W - Q @ space.gram(Q, W).to(W)
        size = space.norm(W)
        W = space.orthonormalize(W[:, (size > 100 * space.eps).to(W.device)])[0]
    return W


def _applied(A: LinearOperator, W: Tensor, scale: float, products: int) -> tuple[Tensor, float]:
    """A W and the largest norm of a product so far."""
    AW = A @ W
    largest = float(A.domain.norm(AW).max()) if AW.shape[1] else 0.0
    if not math.isfinite(largest):
        which = f"products {products + 1} to {products + W.shape[1]}"
        raise NonFinite(f"eigsh: one of {which} (A @ V) holds a NaN or an infinity; check the data and the loss")
    return AW, max(scale, largest)


def _guesses(space: Space, start: Tensor | None, b: int, seed: int) -> Tensor:
    """The start block, filled up with random vectors."""
    missing = b if start is None else max(b - start.shape[1], 0)
    drawn = space.random(range(STREAM, STREAM + missing), seed, "gaussian")
    return drawn if start is None else torch.cat([start.T, drawn.T]).T


def _check(
    A: LinearOperator, k: int, which: str, rtol: float, atol: float, max_products: int | None, method: str,
    basis: int | None, start: Tensor | None, copies: bool, preconditioner: LinearOperator | None,
) -> int:  # fmt: skip
    """The number of pairs to find; raises on bad arguments."""
    check_symmetric(A, "eigsh", "for singular values use svds(A, k)")
    space, n = A.domain, A.domain.dim
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= n:
        raise ValueError(f"eigsh: k must be an int between 0 and the dimension {n}, got {k!r}")
    if which not in ("largest", "smallest", "both"):
        raise ValueError(f"eigsh: which must be 'largest', 'smallest' or 'both', got {which!r}")
    if method not in ("lanczos", "lobpcg"):
        raise ValueError(f"eigsh: method must be 'lanczos' or 'lobpcg', got {method!r}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"eigsh: rtol and atol must be non-negative, got {rtol} and {atol}")
    if max_products is not None and max_products < 1:
        raise ValueError(f"eigsh: max_products must be positive, got {max_products}")
    wanted = min(n, 2 * k) if which == "both" else k
    if method == "lobpcg" and (which == "both" or copies or basis is not None):
        raise ValueError("eigsh: which='both', copies and basis must be left out with method='lobpcg'; use 'lanczos'")
    if method == "lanczos" and preconditioner is not None:
        raise ValueError("eigsh: preconditioner must be None with method='lanczos', got one; use method='lobpcg'")
    if preconditioner is not None:
        check_symmetric(preconditioner, "eigsh", "pass a symmetric positive definite preconditioner")
        if preconditioner.domain != space:
            raise ValueError(f"eigsh: preconditioner must act on {space!r}, got {preconditioner!r}")
    if start is not None:
        fits = start.ndim == 2 and start.shape[0] == space.length
        if not fits or start.dtype != space.dtype or start.device != space.device:
            got = f"{tuple(start.shape)}, {start.dtype}, {start.device}"
            raise ValueError(f"eigsh: start must be a block ({space.length}, j) of {space!r}, got {got}")
        if not space.finite(start):
            raise NonFinite("eigsh: start holds a NaN or an infinity")
    need = min(n, wanted + 5)
    if basis is not None and basis < need:
        raise ValueError(f"eigsh: basis must be at least {need} for {wanted} pairs, got {basis}")
    return wanted
