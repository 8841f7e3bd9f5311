"""Preconditioners: cheap operators near (A + damping I)^{-1}, for A symmetric positive semidefinite.

    jacobi              from_diagonal(1 / (diag A + damping))
    nystrom             a random low-rank approximation U diag(s) U' of A in place of A, its least eigenvalue elsewhere
    pivoted_cholesky    L L' in place of A, with L made of the columns of A at the largest pivots

All are positive definite, and closed-form inverses of structured operators: a product costs O(n k) for rank k. They go
to `cg` or `minres` as ``preconditioner=``.

**Source.** Z. Frangella, J. A. Tropp and M. Udell (2023), Randomized Nystrom preconditioning, algorithm 2.1 and
equation 1.3, doi 10.1137/21M1466244. H. Harbrecht, M. Peters and R. Schneider (2012), On the low-rank approximation by
the pivoted Cholesky decomposition, algorithm 1, doi 10.1016/j.apnum.2011.10.001.

**Differs from the source.**
1. The Nystrom approximation comes from the eigenvectors of the sketch W'AW instead of a shifted Cholesky factor: what
   is below rounding is left out, and an indefinite A is noticed instead of shifted away.
2. All are scaled to approximate (A + damping I)^{-1} itself, so that they may also serve as an approximate inverse.

**Cost.** `jacobi` none; `nystrom` k products for rank k and 3 k vectors; `pivoted_cholesky` k products and 2 k vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.linalg._diagonal import closed_diagonal
from frechet.linalg._result import Estimate
from frechet.operators._closed_form import inverse
from frechet.operators._constructors import from_diagonal, from_factors, identity
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.space import Space, euclidean


def jacobi(
    A: LinearOperator | Estimate | Tensor,
    *,
    damping: float = 0.0,
    floor: float = 0.0,
    domain: Space | None = None,
) -> LinearOperator:
    """Return the inverse of the diagonal of A + damping I, a positive definite operator.

    Args:
        A: an operator whose structure shows its diagonal, an estimate ``diagonal(A, seed=...)``, or the diagonal
            ``(n,)`` itself.
        damping: is added to each entry, >= 0, in the unit of A. Default: 0.
        floor: entries below `floor` times their mean are raised to that, which makes a noisy estimate safe. An entry
            that is not positive then raises. Default: 0.
        domain: the space of an estimate or of a diagonal. Default: plain R^n.

    Example:
        >>> import torch
        >>> from frechet.linalg import jacobi
        >>> jacobi(torch.tensor([1.0, 3.0]), damping=1.0) @ torch.ones(2)
        tensor([0.5000, 0.2500])
    """
    _check_damping("jacobi", damping)
    if floor < 0:
        raise ValueError(f"jacobi: floor must be >= 0, got {floor}")
    d, domain = _diagonal("jacobi", A, domain)
    d = d + damping
    if floor and d.numel():
        d = d.clamp_min(floor * float(d.mean()))
    bad = ~((d > 0) & d.isfinite())
    if bool(bad.any()):
        raise ValueError(
            f"jacobi: diag A + damping must be positive and finite, got {int(bad.sum())} entries that are not, the "
            f"least {float(d.min()):.3g}; raise damping or floor"
        )
    return from_diagonal(1 / d, domain=domain)


def nystrom(A: LinearOperator, *, rank: int, damping: float, seed: int) -> LinearOperator:
    """Return a positive definite approximation of (A + damping I)^{-1} from products with random vectors.

    With U diag(s) U' the Nystrom approximation of A and t the least s, A is replaced by t I + U diag(s - t) U'. When
    rank is a few times the effective dimension trace(A (A + damping I)^{-1}), the preconditioned condition number is a
    small constant. Where rank(A) < rank, t is 0; with damping = 0 too, the least positive s stands for the zeros.

    Args:
        A: the operator ``(n, n)``, positive semidefinite. An eigenvalue of the sketch below ``-10 rank * eps *
            largest`` raises.
        rank: how many products, at most n.
        damping: >= 0, in the unit of A.
        seed: of the random vectors.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.linalg import nystrom
        >>> A = from_diagonal(torch.tensor([8.0, 3.0, 0.0, 0.0], dtype=torch.float64))
        >>> M = nystrom(A, rank=3, damping=1.0, seed=0)
        >>> torch.linalg.eigvalsh(M.dense()).round(decimals=6)  # 1 / (8 + 1), 1 / (3 + 1), 1, 1
        tensor([0.1111, 0.2500, 1.0000, 1.0000], dtype=torch.float64)
    """
    space = _check_low_rank("nystrom", A, rank, damping)
    W, _ = space.orthonormalize(space.random(range(rank), seed, "gaussian"))
    Y = A @ W
    core = space.gram(W, Y)
    values, Q = torch.linalg.eigh((core + core.T) / 2)
    if not bool(values.isfinite().all()):
        raise ValueError(f"nystrom: A @ W must be finite, got a NaN or an infinity from {A!r}")
    largest = float(values.abs().max())
    noise = rank * space.eps * largest
    if float(values.min()) < -10 * noise:
        raise ValueError(
            f"nystrom: A must be positive semidefinite, got the eigenvalue {float(values.min()):.3g} in a sketch whose "
            f"largest is {largest:.3g}; add damping to A first, A + c * identity(A.domain)"
        )
    kept = values > noise
    if not bool(kept.any()):
        if damping == 0:
            raise ValueError("nystrom: damping must be > 0 for A = 0, got 0")
        return (1 / damping) * identity(space)
    B = Y @ (Q[:, kept] / values[kept].sqrt()).to(Y)  # A is near B B'
    U, R = space.orthonormalize(B)
    P, singular, _ = torch.linalg.svd(R, full_matrices=False)
    s = singular.square()
    least = float(s.min()) if bool(kept.all()) or damping == 0 else 0.0
    V = U @ P.to(U)
    return inverse(from_factors(V, (s - least).to(V), domain=space) + (least + damping) * identity(space))


def pivoted_cholesky(
    A: LinearOperator, *, rank: int, damping: float, diagonal: Estimate | Tensor | None = None
) -> LinearOperator:
    """Return (L L' + damping I)^{-1}, with L the first columns of the Cholesky factor of A in the order of the pivots.

    Each step takes the row with the largest remaining diagonal, one product with a unit vector, and ends early when
    nothing remains. Good where a few columns of A span it (kernels); `nystrom` needs no diagonal and does not depend on
    the coordinates.

    Args:
        A: the operator ``(n, n)``, positive semidefinite. A remainder that turns negative raises.
        rank: how many columns, at most n.
        damping: > 0, in the unit of A.
        diagonal: diag A ``(n,)``, exact. Default: the one that the structure of A shows.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.linalg import pivoted_cholesky
        >>> A = from_diagonal(torch.tensor([1.0, 7.0, 3.0], dtype=torch.float64))
        >>> pivoted_cholesky(A, rank=2, damping=1.0).dense().diagonal()
        tensor([1.0000, 0.1250, 0.2500], dtype=torch.float64)
    """
    space = _check_low_rank("pivoted_cholesky", A, rank, damping)
    if damping == 0:
        raise ValueError("pivoted_cholesky: damping must be > 0, got 0")
    d, _ = _diagonal("pivoted_cholesky", A if diagonal is None else diagonal, space)
    d = d.clone()
    L = space.zeros(rank)
    largest, k = float(d.max()), 0
    for k in range(rank):
        pivot, i = (float(t) for t in d.max(0))
        if not math.isfinite(pivot):
            raise ValueError("pivoted_cholesky: A must be finite, got a NaN or an infinity")
        if float(d.min()) < -10 * rank * space.eps * largest:
            raise ValueError(
                f"pivoted_cholesky: A must be positive semidefinite, got the remaining diagonal entry "
                f"{float(d.min()):.3g} after {k} columns; the largest of A is {largest:.3g}"
            )
        if pivot <= rank * space.eps * largest:
            break
        unit = space.zeros()
        unit[int(i)] = 1.0
        column = A @ unit - L[:, :k] @ L[int(i), :k]
        L[:, k] = column / math.sqrt(pivot)
        d -= L[:, k].square()
        d[int(i)] = 0.0
    else:
        k = rank
    return inverse(from_factors(L[:, :k], domain=space) + damping * identity(space))


def _check_damping(method: str, damping: float) -> None:
    if not 0 <= damping < math.inf:
        raise ValueError(f"{method}: damping must be a number >= 0, got {damping}")


def _check_low_rank(method: str, A: LinearOperator, rank: int, damping: float) -> Space:
    if Fact.SYMMETRIC not in A.facts:
        raise ValueError(f"{method}: A must be symmetric, got {A!r} without that fact")
    if not 1 <= rank <= A.domain.dim:
        raise ValueError(f"{method}: rank must lie between 1 and {A.domain.dim}, got {rank}")
    _check_damping(method, damping)
    refuse_sharded(method, A.domain)
    return A.domain


def _diagonal(method: str, A: LinearOperator | Estimate | Tensor, domain: Space | None) -> tuple[Tensor, Space]:
    """diag A as a vector of its space."""
    refuse_sharded(method, *((A.domain,) if isinstance(A, LinearOperator) else (domain,) if domain else ()))
    if isinstance(A, LinearOperator):
        d = closed_diagonal(A) if A.domain == A.codomain else None
        if d is None:
            raise ValueError(
                f"{method}: A must show its diagonal, got {A!r}; pass one, diagonal(A, seed=...) or "
                "diagonal(A, method='exact')"
            )
        return d, A.domain
    d = A.value if isinstance(A, Estimate) else A.detach()
    domain = euclidean(d.numel(), d.dtype, d.device) if domain is None else domain
    if d.shape != (domain.dim,):
        raise ValueError(f"{method}: the diagonal must have shape ({domain.dim},), got {tuple(d.shape)}")
    return d.to(domain.device, domain.dtype), domain
