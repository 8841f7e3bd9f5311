"""The eigenpairs at the ends of the spectrum of a symmetric A, by Lanczos with thick restarts.

An orthonormal basis W = [V, P] is kept, where A has been applied to V (n, j) and not yet to the pending vectors P
(n, p), with A V = [V, P] T. One product turns the first pending vector into a column of V and adds what is new of it to
P. Eigenpairs of V'A V are the Ritz pairs (theta, V s), with residual ||T[j:] s|| exactly. A full basis is replaced by
its best Ritz vectors and P. Lanczos has p = 1; where P is empty (an invariant space) a random vector is added to it.

The search for copies locks the pairs found: it keeps them, and a random vector instead of P.

In a basis that is kept in fewer bits (`_basis.py`) the relation holds up to their rounding only. The Ritz vectors are
then made orthonormal again in the vectors' own precision, A is projected on them once more, and the residuals are those
of these products: one product a pair at the end.

**Source.** K. Wu and H. Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems",
doi 10.1137/S0895479898334605. Several pending vectors: A. Ruhe 1979, doi 10.1090/S0025-5718-1979-0521282-9. The search
for further copies stops by J. Kuczynski and H. Wozniakowski 1992, theorem 4.1, doi 10.1137/0613066.

**Differs from the source.** (1) Everything is orthogonalized twice against the whole basis; T is stored whole. (2) The
tolerance is tested inside the basis, not only at restarts.

Cost: one product a step, `size` vectors of memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from frechet.linalg._basis import ROUNDING, Basis, Storage, combine, new_basis
from frechet.linalg._eigsh_run import STREAM, EigshState, Run, applied, spectrum
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._symmetry import refuse_asymmetric_matrix
from frechet.operators._operator import LinearOperator

# Two eigenvalues closer than the tolerance may be taken for one, and shift the list. A run for several pairs goes on to
# this share of the tolerance: on uniform random spectra (n = 50 to 200, k = 3 and 8, rtol = 1e-3) 0.5 % of the runs
# skipped an eigenvalue instead of 5 %, for a seventh more products (benchmarks/spectrum.py)
MARGIN = 0.05
ENDED = 100.0  # what leads out of a Krylov space that has ended, in roundings of the largest product, at most
LOCKED = 0.03
MISSED = 0.01  # probability with which the search for further copies may overlook one


def thick_restart(run: Run, wanted: int, size: int, start: Tensor | None, copies: bool, storage: Storage) -> Spectrum:
    A, space, n = run.A, run.A.domain, run.A.domain.dim
    W, T = new_basis(space, size, storage, "eigsh"), np.zeros((size, size))
    # the last products measure the residuals
    limit = max(run.limit - wanted, 1) if W.rounded or copies else run.limit
    j = p = products = restarts = drawn = first = 0  # first: the column at which the last random vector entered
    scale, search, incomplete = 0.0, None, False
    margin, locked = MARGIN if run.k > 1 else 1.0, 0.0
    if run.resume is not None:
        state = run.resume
        products, restarts, drawn = state.products, state.iterations, state.drawn
        scale, search, locked = state.scale, state.search, state.locked
        first, incomplete = state.first, state.incomplete
        j, p = state.matrix.shape[1], state.basis.shape[1] - state.matrix.shape[1]
        W.block[:, : j + p], T[: j + p, :j] = state.basis, state.matrix.numpy()
    elif start is not None and start.shape[1]:
        # one vector in the span of the guesses: cheaper than a block unless the guesses are almost exact
        sizes = space.norm(start).clamp_min(torch.finfo(torch.float64).tiny)
        p = int(W.append(0, start @ (1 / sizes).to(start), 0.0, "eigsh: start")[1] > 0.0)
    while True:
        # in a large basis not after every product: the small eigenproblem is not free
        if p == 0 or products >= limit or (j >= wanted and j % (1 + j // 48) == 0):
            theta, S, ahead, residuals = _ritz(T, j, p, W.rounded)
            best = run.indices(j, wanted)
            done = run.converged(theta[best], residuals[best], scale)
            if not W.rounded:
                refuse_asymmetric_matrix(A, torch.from_numpy(T[:j, :j]), "eigsh")
            enough = len(best) == wanted and bool(run.converged(theta[best], ahead[best], scale, margin).all())
            out = math.hypot(*_lengths(T[j : j + p, :j]))  # 0 where the Krylov space has ended
            # once a restart has mixed what came of the last random vector with the rest, its space cannot be told
            # from the rest when it ends, and rounding leads out of it: only a search can tell
            mixed = incomplete and first == 0
            if (copies or mixed) and enough:
                # what locking drops, r, moves a residual by about r^2 over a gap: that must be within every tolerance
                strictest = math.sqrt(run.tolerance(theta[best], scale).min() * scale)
                enough = math.hypot(*ahead[best]) <= LOCKED * strictest
            if enough and j < n and out <= ENDED * space.eps * scale:
                incomplete = not _complete(run, T[first:j, first:j], theta[best], scale)
                if incomplete or copies:
                    locked, p = math.hypot(locked, out), 0
            enough = enough and (not incomplete or (mixed and p > 0))
            finished = j == n or enough
            if finished and (copies or mixed) and p > 0:  # an exhausted space is complete, copies included
                search, finished = _search(run, theta, best, products, search, scale)
            if run.observe is not None:
                state = EigshState(
                    run.fingerprint, torch.from_numpy(theta[best]), torch.from_numpy(residuals[best]), products,
                    restarts, W.block[:, : j + p], None, torch.from_numpy(T[: j + p, :j].copy()), drawn, scale, search,
                    locked, first, incomplete,
                )  # fmt: skip
                if run.observe(state):
                    status = Status.STOPPED
                    break
            if finished or products >= limit:
                status = _status(finished, len(best) == wanted and bool(done.all()), copies)
                break
            if search is not None and search[0] == products and 0 < p < n - j:  # it has begun: lock the pairs found
                locked = math.hypot(locked, *ahead[best])
                j, p = _keep(W, T, j, 0, S[:, best]), 0
        fresh = p == 0
        if size < n and j + p + fresh >= size:
            S = _ritz(T, j, p, W.rounded)[1]
            kept = run.indices(j, wanted + (size - wanted - p - fresh) // 3)
            j, first = _keep(W, T, j, p, S[:, kept]), 0
            restarts += 1
        if fresh:
            drawn += 1
            g = space.random(STREAM + drawn - 1, run.seed, "gaussian")
            if W.append(j + p, g, 0.0, "eigsh: random vector")[1] == 0.0:
                continue
            first = j if p == 0 else first
            p += 1
        products += 1
        h, beta, scale = W.append(j + p, A @ W.column(j), scale, f"eigsh: product {products} (A @ v)")
        T[: j + p, j] = h.numpy()
        T[j, :first] = T[:first, j]  # what locking has dropped of these columns
        j, p = j + 1, p - 1
        if beta > 0.0:
            T[j + p, j - 1], p = beta, p + 1
    vectors, rounded = W.combine(j, S[:, best]), W.rounded
    del W  # its memory is free for the products that measure residuals
    return _result(
        run, vectors, theta[best], residuals[best], done, rounded, scale, locked, restarts, products, status
    )  # fmt: skip


def _status(finished: bool, within: bool, copies: bool) -> Status:
    """How a run ends: products may be too noisy, or too far from symmetric, for the tolerances."""
    if within and (finished or not copies):
        return Status.CONVERGED
    return Status.STAGNATED if finished else Status.MAX_ITERATIONS


def _result(
    run: Run, vectors: Tensor, values: np.ndarray, errors: np.ndarray, done: np.ndarray, rounded: bool, scale: float,
    locked: float, restarts: int, products: int, status: Status,
) -> Spectrum:  # fmt: skip
    """The pairs found; residuals that are not known well enough are measured."""
    told = bool(run.converged(values, np.hypot(errors, locked), scale).all()) or status is Status.STOPPED
    if rounded or (not told and products + len(values) <= run.limit):
        vectors, values, errors, scale = _measured(run.A, vectors, scale, products)
        # locked pairs, each within rounding, add up
        products, done = products + len(values), run.converged(values, errors, (3.0 if locked else 1.0) * scale)
        status = Status.STAGNATED if status is Status.CONVERGED and not bool(done.all()) else status
    else:
        errors = np.hypot(errors, locked)
    return spectrum(run, values, errors, done, vectors, scale, restarts, products, status)


def _keep(W: Basis, T: np.ndarray, j: int, p: int, S: np.ndarray) -> int:
    """Replace V by its combinations `S`, followed by the p pending vectors; the number of combinations."""
    k = S.shape[1]
    W.rotate(j, p, S)
    inside, coupling = S.T @ T[:j, :j] @ S, T[j : j + p, :j] @ S
    T[:] = 0.0
    T[:k, :k], T[k : k + p, :k] = inside, coupling
    return k


def _measured(
    A: LinearOperator, X: Tensor, scale: float, products: int
) -> tuple[Tensor, np.ndarray, np.ndarray, float]:
    """The Ritz pairs of A in the span of X, values descending, with their residuals by products."""
    space = A.domain
    AX, scale = applied(A, X, scale, products)
    # X is orthonormal up to the rounding of the basis, so its Gram matrix is well conditioned
    L = np.linalg.inv(np.linalg.cholesky(space.gram(X, X).cpu().numpy()))
    H = L @ space.gram(X, AX).cpu().numpy() @ L.T
    theta, S = np.linalg.eigh((H + H.T) / 2)
    theta, C = theta[::-1].copy(), L.T @ S[:, ::-1]
    X = combine(X, C)
    # one at a time: a block of residuals would take the memory that was saved
    errors = [space.norm(combine(AX, C[:, i : i + 1])[:, 0] - t * X[:, i]) for i, t in enumerate(theta.tolist())]
    return X, theta, np.array([float(e) for e in errors]), scale


def _ritz(T: np.ndarray, j: int, p: int, rounded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues (ascending) and vectors of the projected matrix, and two residual norms of the Ritz pairs.

    The first is what the pending vectors hold, the whole residual of a symmetric A. The second counts what T lacks in
    symmetry too: it is ||A v - theta v|| for the products as they are.
    """
    theta, S = np.linalg.eigh((T[:j, :j] + T[:j, :j].T) / 2)
    ahead = _lengths(T[j : j + p, :j] @ S)
    if rounded:  # T is not symmetric there; the residuals are measured in the end
        return theta, S, ahead, ahead
    return theta, S, ahead, np.hypot(ahead, _lengths((T[:j, :j] - T[:j, :j].T) / 2 @ S))


def _lengths(R: np.ndarray) -> np.ndarray:
    """The norms of columns whose squares may not be numbers."""
    unit = np.abs(R).max(initial=0.0) or 1.0
    return unit * np.sqrt(np.square(R / unit).sum(0))


def _complete(run: Run, T: np.ndarray, values: np.ndarray, scale: float) -> bool:
    """Whether no eigenvalue is left that belongs among `values`, where the Krylov space has ended.

    The space of a random vector holds one copy of every eigenvalue that is left, so that only copies of those of the
    last one, `T`, may be missing.
    """
    last = np.linalg.eigvalsh((T + T.T) / 2)
    slack = ROUNDING * run.A.domain.eps * scale
    top = {"largest": len(values), "smallest": 0, "both": (len(values) + 1) // 2}[run.which]
    above = top == 0 or last[-1] <= values[top - 1] + slack
    below = top == len(values) or last[0] >= values[top] - slack
    return bool(above and below)


def _search(
    run: Run,
    theta: np.ndarray,
    best: np.ndarray,
    products: int,
    search: tuple[int, tuple[float, ...]] | None,
    scale: float,
) -> tuple[tuple[int, tuple[float, ...]], bool]:
    """The search for copies after `products`, and whether it may end: a copy would have shown as a Ritz value."""
    values, n = theta[best], run.A.domain.dim
    tolerance = run.tolerance(values, scale)
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
