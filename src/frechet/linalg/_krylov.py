"""Orthonormal bases of Krylov spaces, and what A looks like in them.

    lanczos      A V = V T + r e'        A symmetric, T tridiagonal (m, m)
    arnoldi      A V_m = V_{m+1} H       H upper Hessenberg (m + 1, m)
    golub_kahan  A V_m = U_{m+1} B,  A' U_m = V_m B_m'    B lower bidiagonal (m + 1, m)

with e the last unit vector. Every new vector is orthogonalized twice against the whole basis (`_basis.py`), so the
bases are orthonormal to rounding and no eigenvalue appears twice. A remainder that is rounding noise means that the
space is invariant: the recurrence ends there with status ``breakdown`` and nothing is divided by it.

**Source.** C. Lanczos 1950, doi 10.6028/jres.045.026. W. E. Arnoldi 1951, doi 10.1090/qam/42792. G. Golub and W. Kahan
1965, "Calculating the singular values and pseudo-inverse of a matrix", doi 10.1137/0702016. Quadrature: G. Golub and
J. Welsch 1969, doi 10.1090/S0025-5718-69-99647-1.

**Differs from the source.** (1) The three-term recurrences are replaced by full orthogonalization. (2) alpha_j is the
whole coefficient found in both passes, so that the relations above hold to rounding in float32 too.

Cost: m products for lanczos and arnoldi, 2 m for golub_kahan; m + 1 vectors of memory (2 m + 1 for golub_kahan).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.linalg._basis import Storage, new_basis
from frechet.linalg._result import Status
from frechet.linalg._shown import Result
from frechet.operators._operator import Fact, LinearOperator
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class Lanczos(Result):
    """A V = V T + r e' (+ Q Q'A V with `deflate=Q`); status ``max_iterations`` (all steps), ``breakdown`` (r = 0)."""

    V: Tensor  # (n, m), orthonormal; as and where `storage` keeps it
    alpha: Tensor  # (m,), float64, diagonal of T
    beta: Tensor  # (m - 1,), float64, off-diagonal of T
    residual: Tensor  # (n,), r
    norm: float  # ||v|| of the start vector, after deflation
    status: Status
    products: int

    @property
    def T(self) -> Tensor:
        """The tridiagonal matrix ``(m, m)`` in float64."""
        return torch.diag(self.alpha) + torch.diag(self.beta, 1) + torch.diag(self.beta, -1)


@dataclass(frozen=True, eq=False)
class Arnoldi(Result):
    """A V[:, :m] = V H; V has m + 1 columns and H is ``(m + 1, m)``, or m and ``(m, m)`` after a breakdown."""

    V: Tensor
    H: Tensor  # float64
    norm: float
    status: Status
    products: int


@dataclass(frozen=True, eq=False)
class GolubKahan(Result):
    """A V = U B and A' U[:, :m] = V B[:m]'; B is ``(m + 1, m)`` lower bidiagonal, ``(m, m)`` where A V ends in U."""

    U: Tensor
    V: Tensor  # (n, m)
    B: Tensor  # float64
    norm: float
    status: Status
    products: int


@torch.no_grad()
def lanczos(
    A: LinearOperator, v: Tensor, *, steps: int, deflate: Tensor | None = None, storage: Storage = "device"
) -> Lanczos:
    """Return an orthonormal basis of span{v, A v, ..., A^(steps-1) v} and the tridiagonal matrix of A in it.

    The recurrence ends early, with status `breakdown`, when what remains of A v_j is at most 10 eps times the largest
    product so far: the space is then invariant and the eigenvalues of T are eigenvalues of A.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`.
        v: the start vector ``(n,)``.
        steps: how many, each one product; at most n - p are taken.
        deflate: an orthonormal block Q ``(n, p)`` from which everything is kept orthogonal. The recurrence is then that
            of P A P with P = I - Q Q'. Default: none.
        storage: where V is kept: "device", "host", or in fewer bits (`_basis.py`). "float16" rounds each vector by up
            to 2^-11 of its length. The relation then holds to that much of ||A||, and an invariant space may not be
            noticed. Default: "device".

    Raises:
        NonFinite: a product holds a NaN; the message has its number.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.linalg import lanczos
        >>> L = lanczos(from_diagonal(torch.tensor([3.0, 1.0, 1.0, 1.0])), torch.ones(4), steps=4)
        >>> L.status.value, [round(x, 4) for x in torch.linalg.eigvalsh(L.T).tolist()]
        ('breakdown', [1.0, 3.0])
    """
    check_symmetric(A, "lanczos", "use arnoldi(A, v, steps=...), or golub_kahan for a rectangular A")
    _check_steps(steps, "lanczos")
    space, p = A.domain, 0
    if deflate is not None:
        check_orthonormal(space, deflate, "lanczos")
        p = deflate.shape[1]
    m = min(steps, space.dim - p)
    if m < 1:
        raise ValueError(f"lanczos: deflate must leave a direction of R^{space.dim}, got {p} columns")
    W = new_basis(space, min(m + 1, space.dim - p), storage, "lanczos", deflate)
    norm = W.start(v, "lanczos", "v")
    alpha, beta, scale, status = [], [], 0.0, Status.MAX_ITERATIONS
    for j in range(m):
        h, b, scale = W.append(j + 1, A @ W.column(j), scale, f"lanczos: product {j + 1} (A @ v)")
        alpha.append(float(h[-1]))
        beta.append(b)
        if b == 0.0:
            status = Status.BREAKDOWN
            break
    m = len(alpha)
    residual = beta[-1] * W.column(m) if beta[-1] else space.zeros()
    return Lanczos(W.block[:, :m], _double(alpha), _double(beta[:-1]), residual, norm, status, m)


@torch.no_grad()
def arnoldi(A: LinearOperator, v: Tensor, *, steps: int) -> Arnoldi:
    """Return an orthonormal basis of span{v, A v, ..., A^steps v} and the Hessenberg matrix of a square A in it.

    V is ``(n, m + 1)`` and H ``(m + 1, m)`` with A V[:, :m] = V H and m = min(steps, n). Where the space becomes
    invariant (remainder at most 10 eps times the largest product so far) the status is `breakdown`, V has m columns and
    H is ``(m, m)``.

    Args:
        A: the operator ``(n, n)``.
        v: the start vector ``(n,)``.
        steps: how many, each one product.

    Raises:
        NonFinite: a product holds a NaN; the message has its number.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import arnoldi
        >>> shift = from_matrix(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> result = arnoldi(shift, torch.tensor([1.0, 0.0, 0.0]), steps=5)
        >>> result.status.value, result.H.tolist()
        ('breakdown', [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    """
    if A.domain != A.codomain:
        raise ValueError(f"arnoldi: A must map a space to itself, got {A!r}; use golub_kahan(A, u, steps=...)")
    _check_steps(steps, "arnoldi")
    space, m = A.domain, min(steps, A.domain.dim)
    V = new_basis(space, min(m + 1, space.dim), "device", "arnoldi")
    norm = V.start(v, "arnoldi", "v")
    H = torch.zeros(m + 1, m, dtype=torch.float64)
    scale, products, rank, status = 0.0, 0, 1, Status.MAX_ITERATIONS
    for j in range(m):
        h, beta, scale = V.append(j + 1, A @ V.column(j), scale, f"arnoldi: product {j + 1} (A @ v)")
        H[: j + 1, j], H[j + 1, j] = h, beta
        products = j + 1
        if beta == 0.0:
            status = Status.BREAKDOWN
            break
        rank += 1
    return Arnoldi(V.block[:, :rank], H[:rank, :products], norm, status, products)


@torch.no_grad()
def golub_kahan(A: LinearOperator, u: Tensor, *, steps: int) -> GolubKahan:
    """Return orthonormal bases U of span{u, A A'u, ...} and V of span{A'u, ...} in which A is lower bidiagonal.

    A V = U B and A'U[:, :k] = V B[:k]' for the k steps taken, with U ``(m, k + 1)``, V ``(n, k)``, B ``(k + 1, k)``.
    The recurrence ends early, with status `breakdown`, where A V lies in the span of the k columns of U (U ``(m, k)``,
    B square) or where A'U lies in the span of V (then A'U = V B' for all columns).

    Args:
        A: any operator ``(m, n)``.
        u: the start vector ``(m,)``, with A'u not zero.
        steps: how many, each one product with A and one with A'.

    Raises:
        NonFinite: a product holds a NaN; the message has its number.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import golub_kahan
        >>> result = golub_kahan(from_matrix(torch.diag(torch.tensor([2.0, 5.0]))), torch.ones(2), steps=2)
        >>> [round(s, 4) for s in torch.linalg.svdvals(result.B).tolist()]
        [5.0, 2.0]
    """
    _check_steps(steps, "golub_kahan")
    k = min(steps, *A.shape)
    U = new_basis(A.codomain, min(k + 1, A.codomain.dim), "device", "golub_kahan")
    V = new_basis(A.domain, k, "device", "golub_kahan")
    norm = U.start(u, "golub_kahan", "u")
    B = torch.zeros(k + 1, k, dtype=torch.float64)
    scale, products, rows, columns, status = 0.0, 0, 1, 0, Status.MAX_ITERATIONS
    for j in range(k):
        products += 1
        source = f"golub_kahan: product {products} (A.T @ u)"
        _, alpha, scale = V.append(j, A.T @ U.column(j), scale, source)
        if alpha == 0.0:
            status = Status.BREAKDOWN
            break
        B[j, j], columns = alpha, j + 1
        products += 1
        source = f"golub_kahan: product {products} (A @ v)"
        _, beta, scale = U.append(j + 1, A @ V.column(j), scale, source)
        B[j + 1, j] = beta
        if beta == 0.0:
            status = Status.BREAKDOWN
            break
        rows += 1
    if columns == 0:
        raise ValueError("golub_kahan: u must not lie in the null space of A.T, got A.T @ u = 0; start elsewhere")
    return GolubKahan(U.block[:, :rows], V.block[:, :columns], B[:rows, :columns], norm, status, products)


def gauss_quadrature(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (ascending, float64, weights sum to 1) with v'f(A) v ~ ||v||^2 sum_j weights_j f(nodes_j).

    Exact where f is a polynomial of degree at most 2 m - 1, m the number of Lanczos steps from v, or the space ended.
    """
    nodes, vectors = scipy.linalg.eigh_tridiagonal(alpha.numpy(), beta.numpy())
    return torch.from_numpy(nodes), torch.from_numpy(np.square(vectors[0]))


def check_symmetric(A: LinearOperator, caller: str, advice: str) -> None:
    """Raise unless A is known to be symmetric."""
    if Fact.SYMMETRIC not in A.facts:
        raise ValueError(
            f"{caller}: A must be symmetric, got {A!r}; {advice}, or declare it with facts='symmetric' if it is"
        )


def check_orthonormal(space: Space, Q: Tensor, caller: str) -> None:
    """Raise unless `Q` is an orthonormal block ``(n, p)`` of the space."""
    if Q.ndim != 2 or Q.shape[0] != space.length or Q.dtype != space.dtype or Q.device != space.device:
        got = f"{tuple(Q.shape)}, {Q.dtype}, {Q.device}"
        raise ValueError(f"{caller}: deflate must be a block ({space.length}, p) of {space!r}, got {got}")
    eye = torch.eye(Q.shape[1], dtype=torch.float64)
    error = float((space.gram(Q, Q).cpu() - eye).abs().max()) if Q.shape[1] else 0
    if not error <= 1e3 * space.eps:
        raise ValueError(
            f"{caller}: deflate must have orthonormal columns, got |Q'Q - I| up to {error:.2g}; "
            "use space.orthonormalize(Q)[0]"
        )


def _check_steps(steps: int, caller: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{caller}: steps must be a positive int, got {steps!r}")


def _double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
