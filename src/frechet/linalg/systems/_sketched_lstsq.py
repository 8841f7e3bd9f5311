"""Dense least squares with many rows by random sketches: min norm(A x - b), A (m, n), m much larger than n.

A sketch S with d rows, a small multiple of n, keeps all lengths in the range of A up to a factor 1 +- sqrt(n/d). The
singular values of S A (d, n) = U s V' therefore tell the rank of A, and P = V / s makes A P well conditioned however A
is conditioned itself.

    precondition   x = P U'S b; then conjugate gradients on P'A'A P y = P'A'r for the residual r = b - A x, x += P y,
                   and again with the new residual: as exact as a QR factorization of A
    solve          x' = P U'S b alone, with a bound on the error of every entry

**The bound.** Let x* be exact, r* = b - A x*. Then x' - x* = (S A)^+ S r*, with r* orthogonal to the range of A. If the
entries of S were independent and normal, S r* would be independent of S A, so with s^2 = norm(S (b - A x'))^2 / (d - n)
each (x' - x*)_i / (s norm(row i of (S A)^+)) has Student's t distribution with d - n degrees of freedom, exactly; the
bound is its quantile, shared among all entries. The rows of the Hadamard sketch are sums of all rows of [A, b] with
random signs, for which the same holds in the limit, and with a variance that is smaller by the factor 1 - d/N; tests
count how often it fails. Sparse signs may put the few rows that matter together, and carry no bound. Its size is about
sqrt(log n / d) norm(r*) norm(A^+): the error of single entries, smaller by sqrt(n) than that of the vector may be.

**Source.** V. Rokhlin and M. Tygert (2008), A fast randomized algorithm for overdetermined linear least-squares
regression, doi 10.1073/pnas.0804869105; X. Meng, M. Saunders and M. Mahoney (2014), LSRN, algorithm 1 (least norm by
the singular values), doi 10.1137/120866580; E. Epperly, M. Meier and Y. Nakatsukasa (2024), Fast randomized
least-squares solvers can be just as accurate and stable as classical direct solvers, arXiv 2406.03468 (refinement of
the sketched solution, and the estimate of the backward error); Z. Song, M. Ye, J. Yin and L. Zhang (2023), A
nearly-optimal bound for fast regression with l-infinity guarantee, arXiv 2302.00248 (why a Hadamard sketch bounds
entries and a sparse one does not).

**Differs from the source.** 1. The bound comes from the sketch at hand, not from the constants of a theorem. 2. A round
of conjugate gradients gains half of the digits; rounds go on until the backward error is 2 eps or stops falling.

**Cost.** The sketch and a singular value decomposition of (d, n); to precondition also some 50 products with A and A'.
Memory: d n numbers for sparse signs, two copies of A for the Hadamard sketch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import scipy
import torch
from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.linalg._shown import Result
from frechet.linalg._sketch import hadamard_sketch, sparse_sign_sketch
from frechet.space import Space, euclidean

MOST_ROUNDS = 8
FALLS = 0.5  # a round that gains less is the last
CACHED = 1 << 16  # entries of a piece of A


@dataclass(frozen=True, eq=False)
class SketchedSolution(Result):
    """Where `sketched_lstsq` ended; x and what is told per column of b have the shape that b asks for.

    `residual` is norm(b - A x), recomputed. `backward_error` estimates, relative to norm(A), the least change of A for
    which x is exact. `rank` and `condition` (largest over smallest singular value that counts) are those of S A, which
    are those of A up to 1 +- sqrt(n/d). `bound` has, for method "solve" with a Hadamard sketch, for each entry of x a
    number that its error exceeds in none of them with probability `confidence`; None otherwise.
    """

    x: Tensor  # (n,) or (n, k)
    status: Status
    message: str
    residual: Tensor  # () or (k,), float64
    backward_error: Tensor  # () or (k,), float64
    rank: int
    condition: float
    rows: int  # d
    iterations: int
    method: str
    bound: Tensor | None = None  # like x
    confidence: float | None = None

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> SketchedSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(f"sketched_lstsq: {self.message} (status '{self.status}')", self)


@torch.no_grad()
def sketched_lstsq(
    A: Tensor,
    b: Tensor,
    *,
    seed: int,
    method: Literal["precondition", "solve"] = "precondition",
    sketch: Literal["sparse_sign", "hadamard"] | None = None,
    oversampling: float | None = None,
    rtol: float | None = None,
    confidence: float = 0.99,
    max_iterations: int = 200,
) -> SketchedSolution:
    """Solve the least-squares problem min norm(A x - b) with many rows, for the x of least norm.

    Where d >= m there is nothing to gain by a sketch: A itself is factored, and both methods are exact.

    Args:
        A: a matrix ``(m, n)`` with m >= n, in float32 or float64.
        b: a vector ``(m,)`` or a block ``(m, k)``. The solution has its shape.
        seed: of the sketch.
        method: "precondition" is exact to rounding. "solve" costs the sketch alone, and its residual is larger by a
            factor of about sqrt(1 + n / d). Default: "precondition".
        sketch: "sparse_sign" or "hadamard". Default: sparse signs to precondition, and a Hadamard sketch to solve.
        oversampling: rows of the sketch, d = `oversampling` n. Default: 6 to 32, the more the larger m / n.
        rtol: relative tolerance of "precondition": `backward_error` <= rtol. Default: 10 eps sqrt(n) of the dtype.
        confidence: of `bound`, which "solve" with a Hadamard sketch has. Default: 0.99.
        max_iterations: the most iterations, in all rounds together. Default: 200.

    Returns:
        A `SketchedSolution`. Columns of A that depend on each other (singular values of the sketch, with the columns at
            length one, below max(n, 50) eps times the largest) lower its `rank`. The status is `converged` or one of
            these, with a sentence in `message`: `stagnated` (rounding errors leave a larger backward error),
            `max_iterations`, `nonfinite` (NaN or infinity in A or b; x is NaN).

    Example:
        >>> import torch
        >>> from frechet.linalg import sketched_lstsq
        >>> t = torch.linspace(0, 1, 1000, dtype=torch.float64)
        >>> A = torch.stack([torch.ones_like(t), t], 1)
        >>> s = sketched_lstsq(A, 2 - 3 * t + (A.T[0] * 0.1).cumsum(0) % 0.2 - 0.1, seed=0)
        >>> s.status.value, s.rank
        ('converged', 2)
        >>> bool(((A.T @ (A @ sketched_lstsq(A, 2 - 3 * t, seed=0).x - 2 + 3 * t)).abs() < 1e-9).all())
        True
    """
    single, B, kind = _arguments(A, b, method, sketch, oversampling, rtol, confidence, max_iterations)
    (m, n), k = A.shape, B.shape[1]
    eps = torch.finfo(A.dtype).eps
    # without rtol, on to where rounding ends it, and a little more than that is good enough
    goal, aim = (10 * eps * math.sqrt(n), 2 * eps) if rtol is None else (rtol, rtol)
    space = euclidean(m, A.dtype, A.device)  # of the rows
    # more rows cost more to factor and save iterations: with m / n large that pays
    d = max(math.ceil((min(max(m / (20 * max(n, 1)), 6), 32) if oversampling is None else oversampling) * n), n + 1)
    if d >= m:
        d, SA, SB, kind = m, A, B, "no sketch: A has too few rows to gain by one"
    elif kind == "hadamard":
        both = hadamard_sketch(space, d, seed=seed) @ torch.cat([A, B], 1)
        SA, SB, kind = both[:, :n], both[:, n:], f"Hadamard sketch of {d} rows"
    else:
        S = sparse_sign_sketch(space, d, seed=seed, nonzeros=min(8, d))
        SA, SB, kind = S @ A, S @ B, f"sparse signs, {d} rows"
    told = f"{method}, {kind}"

    def shaped(t: Tensor) -> Tensor:
        return t[..., 0] if single else t

    if not bool((SA.sum() + SB.sum()).isfinite()):  # every entry enters them
        name = "b" if bool(A.isfinite().all()) else "A"
        text = f"{name} has entries that are not finite, or so large that sums of them are not"
        nothing = torch.full((k,), math.nan, dtype=torch.float64)
        x = torch.full((n, k), math.nan, dtype=A.dtype, device=A.device)
        return SketchedSolution(
            shaped(x), Status.NONFINITE, text, shaped(nothing), shaped(nothing), 0, math.nan, d, 0, told
        )

    U, s, P, D = _factored(SA, max(n, 50) * eps)
    rank = len(s)
    x = P @ (U.T @ SB)
    iterations, status, message = 0, Status.CONVERGED, "the solution of the sketched problem"
    r = B - A @ x
    error = _backward_error(A, x, r, P, s, D)
    if method == "precondition":
        x, r, error, iterations = _refined(A, B, (P, s, D), x, r, error, aim, max_iterations)
        largest = float(error.amax()) if k else 0.0
        message = f"the backward error is {largest:.3g}"
        if not largest <= goal:
            status = Status.MAX_ITERATIONS if iterations >= max_iterations else Status.STAGNATED
            cause = f"after {iterations} iterations" if iterations >= max_iterations else "and falls no more"
            message += f" {cause}, above the tolerance {goal:.3g}"
    if rank < n:
        message += f"; A has rank {rank} of {n}, and x is the solution of least norm"
    condition = float(s[0] / s[-1]) if rank else 1.0
    bound, certain = None, None
    if method == "solve" and (d == m or kind.startswith("Hadamard")):
        certain = confidence
        bound = torch.zeros_like(x) if d == m else _bound(P, SB - SA @ x, d - rank, max(n * k, 1), confidence)
    return SketchedSolution(
        x=shaped(x),
        status=status,
        message=message,
        residual=shaped(_lengths(space, r)),
        backward_error=shaped(error),
        rank=rank,
        condition=condition,
        rows=d,
        iterations=iterations,
        method=told,
        bound=None if bound is None else shaped(bound),
        confidence=certain,
    )


def _lengths(space: Space, V: Tensor) -> Tensor:
    return space.norm(V)


def _factored(SA: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U ``(d, r)``, s ``(r,)``, P ``(n, r)`` with S A P = U, and the lengths D ``(n,)`` that the columns were freed of.

    The columns are given length one, so that units do not look like dependence; where they are dependent all the same,
    without it, so that P spans the row space and solutions have least norm.
    """
    lengths = SA.square().sum(0).sqrt()
    D = torch.where(lengths > 0, lengths, 1.0)
    U, s, Vt = torch.linalg.svd(SA / D, full_matrices=False)
    if len(s) and not bool(s[-1] > floor * s[0]):
        rank = int((s > floor * s[0]).sum())
        U, s, Vt = torch.linalg.svd(SA, full_matrices=False)
        U, s, Vt, D = U[:, :rank], s[:rank], Vt[:rank], torch.ones_like(D)
    return U, s, (Vt / s[:, None]).T / D[:, None], D


def _refined(
    A: Tensor, B: Tensor, factors: tuple[Tensor, Tensor, Tensor], x: Tensor, r: Tensor, error: Tensor, aim: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, int]:  # fmt: skip
    """x, r, the backward error and the iterations after rounds of conjugate gradients, while the error falls."""
    (P, s, D), iterations, falls = factors, 0, True
    for _ in range(MOST_ROUNDS):
        if bool((error <= aim).all()) or not falls or iterations >= limit:
            break
        y, spent = _conjugate_gradients(A, P, r, math.sqrt(torch.finfo(A.dtype).eps), limit - iterations)
        iterations += spent
        trial = x + P @ y
        r_trial = B - A @ trial
        after = _backward_error(A, trial, r_trial, P, s, D)
        better = (after < error).to(x.device)
        falls = bool((after <= FALLS * error)[error > aim].any())
        x, r = torch.where(better, trial, x), torch.where(better, r_trial, r)
        error = torch.minimum(after, error)
    return x, r, error, iterations


def _conjugate_gradients(A: Tensor, P: Tensor, r: Tensor, rtol: float, limit: int) -> tuple[Tensor, int]:
    """y with P'A'A P y = P'A'r in each column; stops where the residual of that is at most rtol times its start.

    The residual g follows from g itself and not from r - A P y: the rounding errors of A'r, times the condition of A,
    are those of the right-hand side alone, and the next round's to repair.
    """
    y, g = r.new_zeros(P.shape[1], r.shape[1]), P.T @ (A.T @ r)
    p, gamma = g, g.square().sum(0)
    target, k = gamma * rtol**2, 0
    while k < limit and bool((gamma > target).any()):
        h = P.T @ _normal_product(A, P @ p)
        curvature = (p * h).sum(0)
        step = torch.where((gamma > target) & (curvature > 0), gamma / curvature, 0.0)
        y, g = y + step * p, g - step * h
        before, gamma = gamma, g.square().sum(0)
        p = g + torch.where(before > 0, gamma / before, 0.0) * p
        k += 1
    return y, k


def _normal_product(A: Tensor, V: Tensor) -> Tensor:
    """A'A V, with each piece of A read from memory once where there is a cache to keep it in."""
    if A.device.type != "cpu":
        return A.T @ (A @ V)
    total, rows = torch.zeros_like(V), max(CACHED // A.shape[1], 1)
    for a in range(0, len(A), rows):
        piece = A[a : a + rows]
        total += piece.T @ (piece @ V)
    return total


def _backward_error(A: Tensor, x: Tensor, r: Tensor, P: Tensor, s: Tensor, D: Tensor) -> Tensor:
    """The least change of A D^-1, relative to its norm, for which each column of x is exact, up to a factor near 1.

    With the singular values s of A D^-1 it is norm(s g / sqrt(s^2 norm(D x)^2 + norm(r)^2)) / s_1, g = P'A'r (Karlson
    and Walden); those of the sketch stand for them.
    """
    if not len(s):
        return torch.zeros(x.shape[1], dtype=torch.float64)
    g, size, left = P.T @ (A.T @ r), (D[:, None] * x).square().sum(0), r.square().sum(0)
    below = ((s / s[0])[:, None].square() * size + left / s[0] ** 2).sqrt()
    share = torch.where(below > 0, (s / s[0])[:, None] * g / below, 0.0)
    return share.square().sum(0).sqrt().double().cpu() / float(s[0])


def _bound(P: Tensor, left: Tensor, freedom: int, entries: int, confidence: float) -> Tensor:
    """Student's quantile times the standard error of each entry; `left` is the residual of the sketched problem."""
    q = float(scipy.stats.t.ppf(1 - (1 - confidence) / (2 * entries), freedom))
    s = (left.square().sum(0) / freedom).sqrt()
    return q * P.square().sum(1).sqrt()[:, None] * s


def _arguments(
    A: Tensor,
    b: Tensor,
    method: str,
    sketch: str | None,
    oversampling: float | None,
    rtol: float | None,
    confidence: float,
    max_iterations: int,
) -> tuple[bool, Tensor, str]:
    """Whether b is one vector, b as a block, and the kind of sketch."""
    _check_matrices(A, b)
    if method not in ("precondition", "solve"):
        raise ValueError(f"sketched_lstsq: method must be 'precondition' or 'solve', got {method!r}")
    if sketch not in (None, "sparse_sign", "hadamard"):
        raise ValueError(f"sketched_lstsq: sketch must be 'sparse_sign' or 'hadamard', got {sketch!r}")
    if oversampling is not None and not 1 < oversampling < math.inf:
        raise ValueError(f"sketched_lstsq: oversampling must be a number > 1, got {oversampling}")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"sketched_lstsq: rtol must lie in [0, 1), got {rtol}")
    if not 0 < confidence < 1:
        raise ValueError(f"sketched_lstsq: confidence must lie between 0 and 1, got {confidence}")
    if max_iterations < 0:
        raise ValueError(f"sketched_lstsq: max_iterations must be >= 0, got {max_iterations}")
    kind = sketch or ("sparse_sign" if method == "precondition" else "hadamard")
    return b.ndim == 1, b.detach()[:, None] if b.ndim == 1 else b.detach(), kind


def _check_matrices(A: Tensor, b: Tensor) -> None:
    for name, t in (("A", A), ("b", b)):
        if not isinstance(t, Tensor):
            raise TypeError(f"sketched_lstsq: {name} must be a tensor, got {type(t).__name__}; for operators use lsmr")
    if A.ndim != 2 or A.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"sketched_lstsq: A must be a matrix (m, n) in float32 or float64, got {A.dtype} of shape {tuple(A.shape)}"
        )
    m, n = A.shape
    if m < n:
        raise ValueError(
            f"sketched_lstsq: A must have at least as many rows as columns, got {m} x {n}; for the solution of least "
            "norm of a wide system use lsmr(from_matrix(A), b)"
        )
    if b.ndim not in (1, 2) or b.shape[0] != m:
        raise ValueError(f"sketched_lstsq: b must have shape ({m},) or ({m}, k), got {tuple(b.shape)}")
    if b.dtype != A.dtype or b.device != A.device:
        raise TypeError(f"sketched_lstsq: b must be {A.dtype} on {A.device} like A, got {b.dtype} on {b.device}")
