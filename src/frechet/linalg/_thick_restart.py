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
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from frechet.linalg._basis import ROUNDING, Basis, Storage, combine, new_basis
from frechet.linalg._eigsh_run import STREAM, EigshState, Run, Search, applied, spectrum
from frechet.linalg._result import Spectrum, Status
from frechet.linalg._symmetry import refuse_asymmetric_matrix
from frechet.linalg.systems._protocol import Ending, iterate
from frechet.operators._operator import LinearOperator

# Two eigenvalues closer than the tolerance may be taken for one, and shift the list. A run for several pairs goes on to
# this share of the tolerance: on uniform random spectra (n = 50 to 200, k = 3 and 8, rtol = 1e-3) 0.5 % of the runs
# skipped an eigenvalue instead of 5 %, for a seventh more products (benchmarks/spectrum.py)
MARGIN = 0.05
ENDED = 100.0  # what leads out of a Krylov space that has ended, in roundings of the largest product, at most
LOCKED = 0.03
MISSED = 0.01  # probability with which the search for further copies may overlook one


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one call, and its memory: W holds [V, P], T is stored whole."""

    run: Run
    wanted: int
    size: int
    copies: bool
    limit: int
    W: Basis
    T: np.ndarray


@dataclass(frozen=True, eq=False)
class _Ritz:
    """Eigenvalues (ascending) and vectors of the projected matrix, two residual norms, and which are wanted.

    `ahead` is what the pending vectors hold, the whole residual of a symmetric A. `residuals` counts what T lacks in
    symmetry too: ||A v - theta v|| for the products as they are.
    """

    theta: np.ndarray
    S: np.ndarray
    ahead: np.ndarray
    residuals: np.ndarray
    best: np.ndarray
    done: np.ndarray  # of the wanted ones, whether they have converged


@dataclass(frozen=True, eq=False)
class _Moment:
    """Where a run stands: V has j columns and P has p."""

    j: int = 0
    p: int = 0
    products: int = 0
    restarts: int = 0
    drawn: int = 0
    first: int = 0  # the column at which the last random vector entered
    scale: float = 0.0
    search: Search | None = None
    incomplete: bool = False
    locked: float = 0.0
    ritz: _Ritz | None = None


def thick_restart(run: Run, wanted: int, size: int, x0: Tensor | None, copies: bool, storage: Storage) -> Spectrum:
    W, T = new_basis(run.A.domain, size, storage, "eigsh"), np.zeros((size, size))
    # the last products measure the residuals
    limit = max(run.limit - wanted, 1) if W.rounded or copies else run.limit
    call = _Call(run, wanted, size, copies, limit, W, T)
    s, ending = iterate(_begin(call, x0), partial(_judge, call), partial(_step, call))
    ritz = s.ritz
    assert ritz is not None  # a run ends where it is judged
    vectors, rounded = W.combine(s.j, ritz.S[:, ritz.best]), W.rounded
    del W, call  # this memory is free for the products that measure residuals
    return _result(run, vectors, ritz, rounded, s, ending.status)


def _begin(c: _Call, x0: Tensor | None) -> _Moment:
    run, space = c.run, c.run.A.domain
    if run.resume is not None:
        state = run.resume
        j, m = state.matrix.shape[1], state.basis.shape[1]
        c.W.block[:, :m], c.T[:m, :j] = state.basis, state.matrix.numpy()
        counts = (state.products, state.iterations, state.drawn, state.first)
        return _Moment(j, m - j, *counts, state.scale, state.search, state.incomplete, state.locked)
    if x0 is None or not x0.shape[1]:
        return _Moment()
    # one vector in the span of the guesses: cheaper than a block unless the guesses are almost exact
    sizes = space.norm(x0).clamp_min(torch.finfo(torch.float64).tiny)
    return _Moment(p=int(c.W.append(0, x0 @ (1 / sizes).to(x0), 0.0, "eigsh: x0")[1] > 0.0))


def _judge(c: _Call, s: _Moment) -> tuple[_Moment, Ending | None]:
    run, j, products = c.run, s.j, s.products
    # in a large basis not after every product: the small eigenproblem is not free
    if not (s.p == 0 or products >= c.limit or (j >= c.wanted and j % (1 + j // 48) == 0)):
        return s, None
    ritz = _ritz(c, s)
    if not c.W.rounded:
        refuse_asymmetric_matrix(run.A, torch.from_numpy(c.T[:j, :j]), "eigsh")
    s, finished = _finished(c, replace(s, ritz=ritz), ritz)
    if run.observe is not None and run.observe(_state(c, s, ritz)):
        return s, Ending(Status.STOPPED)
    if finished or products >= c.limit:
        return s, Ending(_status(finished, len(ritz.best) == c.wanted and bool(ritz.done.all()), c.copies))
    if s.search is not None and s.search[0] == products and 0 < s.p < run.A.domain.dim - j:
        # the search has begun: lock the pairs found
        locked = math.hypot(s.locked, *ritz.ahead[ritz.best])
        s = replace(s, locked=locked, j=_keep(c.W, c.T, j, 0, ritz.S[:, ritz.best]), p=0)
    return s, None


def _finished(c: _Call, s: _Moment, ritz: _Ritz) -> tuple[_Moment, bool]:
    """Whether all wanted pairs are found; the state with a search for copies begun or ended."""
    run, n, best, j, scale = c.run, c.run.A.domain.dim, ritz.best, s.j, s.scale
    values, ahead, margin = ritz.theta[best], ritz.ahead[best], MARGIN if run.k > 1 else 1.0
    enough = len(best) == c.wanted and bool(run.converged(values, ahead, scale, margin).all())
    out = math.hypot(*_lengths(c.T[j : j + s.p, :j]))  # 0 where the Krylov space has ended
    # once a restart has mixed what came of the last random vector with the rest, its space cannot be told
    # from the rest when it ends, and rounding leads out of it: only a search can tell
    mixed = s.incomplete and s.first == 0
    if (c.copies or mixed) and enough:
        # what locking drops, r, moves a residual by about r^2 over a gap: that must be within every tolerance
        strictest = math.sqrt(run.tolerance(values, scale).min() * scale)
        enough = math.hypot(*ahead) <= LOCKED * strictest
    if enough and j < n and out <= ENDED * run.A.domain.eps * scale:
        s = replace(s, incomplete=not _complete(run, c.T[s.first : j, s.first : j], values, scale))
        if s.incomplete or c.copies:
            s = replace(s, locked=math.hypot(s.locked, out), p=0)
    enough = enough and (not s.incomplete or (mixed and s.p > 0))
    finished = j == n or enough
    if finished and (c.copies or mixed) and s.p > 0:  # an exhausted space is complete, copies included
        search, finished = _search(run, ritz.theta, best, s.products, s.search, scale)
        s = replace(s, search=search)
    return s, finished


def _step(c: _Call, s: _Moment) -> tuple[_Moment, None]:
    """A restart where the basis is full, a random vector where none is pending, and one product."""
    run, space, W, T = c.run, c.run.A.domain, c.W, c.T
    fresh = s.p == 0
    if c.size < space.dim and s.j + s.p + fresh >= c.size:
        kept = run.indices(s.j, c.wanted + (c.size - c.wanted - s.p - fresh) // 3)
        s = replace(s, j=_keep(W, T, s.j, s.p, _ritz(c, s).S[:, kept]), first=0, restarts=s.restarts + 1)
    if fresh:
        g = space.random(STREAM + s.drawn, run.seed, "gaussian")
        s = replace(s, drawn=s.drawn + 1)
        if W.append(s.j, g, 0.0, "eigsh: random vector")[1] == 0.0:
            return s, None
        s = replace(s, first=s.j, p=1)
    j, p, products = s.j, s.p, s.products + 1
    h, beta, scale = W.append(j + p, run.A @ W.column(j), s.scale, f"eigsh: product {products} (A @ v)")
    T[: j + p, j] = h.numpy()
    T[j, : s.first] = T[: s.first, j]  # what locking has dropped of these columns
    if beta > 0.0:
        T[j + p, j] = beta
    return replace(s, j=j + 1, p=p - 1 + (beta > 0.0), products=products, scale=scale), None


def _state(c: _Call, s: _Moment, ritz: _Ritz) -> EigshState:
    j, m, best = s.j, s.j + s.p, ritz.best
    return EigshState(
        c.run.fingerprint, torch.from_numpy(ritz.theta[best]), torch.from_numpy(ritz.residuals[best]), s.products,
        s.restarts, c.W.block[:, :m], None, torch.from_numpy(c.T[:m, :j].copy()), s.drawn, s.scale, s.search, s.locked,
        s.first, s.incomplete,
    )  # fmt: skip


def _status(finished: bool, within: bool, copies: bool) -> Status:
    """How a run ends: products may be too noisy, or too far from symmetric, for the tolerances."""
    if within and (finished or not copies):
        return Status.CONVERGED
    return Status.STAGNATED if finished else Status.MAX_ITERATIONS


def _result(run: Run, vectors: Tensor, ritz: _Ritz, rounded: bool, s: _Moment, status: Status) -> Spectrum:
    """The pairs found; residuals that are not known well enough are measured."""
    values, errors, done = ritz.theta[ritz.best], ritz.residuals[ritz.best], ritz.done
    scale, products = s.scale, s.products
    told = bool(run.converged(values, np.hypot(errors, s.locked), scale).all()) or status is Status.STOPPED
    if rounded or (not told and products + len(values) <= run.limit):
        vectors, values, errors, scale = _measured(run.A, vectors, scale, products)
        # locked pairs, each within rounding, add up
        products, done = products + len(values), run.converged(values, errors, (3.0 if s.locked else 1.0) * scale)
        status = Status.STAGNATED if status is Status.CONVERGED and not bool(done.all()) else status
    else:
        errors = np.hypot(errors, s.locked)
    return spectrum(run, values, errors, done, vectors, scale, s.restarts, products, status)


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


def _ritz(c: _Call, s: _Moment) -> _Ritz:
    T, coupling = c.T[: s.j, : s.j], c.T[s.j : s.j + s.p, : s.j]
    theta, S = np.linalg.eigh((T + T.T) / 2)
    ahead = _lengths(coupling @ S)
    # with a rounded basis T is not symmetric; the residuals are measured in the end
    residuals = ahead if c.W.rounded else np.hypot(ahead, _lengths((T - T.T) / 2 @ S))
    best = c.run.indices(s.j, c.wanted)
    return _Ritz(theta, S, ahead, residuals, best, c.run.converged(theta[best], residuals[best], s.scale))


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
    search: Search | None,
    scale: float,
) -> tuple[Search, bool]:
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
