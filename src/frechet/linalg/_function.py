"""f(A) b for a symmetric A by products alone: exponentials, roots, inverses, logarithms of an operator, on a vector.

m Lanczos steps from b give A V = V T + r e', and f(A) b ~ ||b|| V f(T) e_1: f is replaced by the polynomial of degree
m - 1 that interpolates it at the eigenvalues of T. Exact for polynomials of lower degree and where the Krylov space
ends; otherwise within twice the best polynomial approximation of f on the spectrum.

The error is estimated from the coefficients y_m = ||b|| f(T_m) e_1, padded with zeros: V is orthonormal, so that ||y_m
- y_l|| is the distance of two iterates. Where these shrink by a factor rho < 1 over a few steps, what is still to come
is about rho / (1 - rho) times the last one.

**Source.** Y. Saad 1992, "Analysis of some Krylov subspace approximations to the matrix exponential operator",
doi 10.1137/0729014; N. Higham 2008, "Functions of matrices", section 13.2, doi 10.1137/1.9780898717778.

**Differs from the source.** (1) The basis is orthogonalized in full. (2) The stopping rule, which is an estimate and
not a bound.

Cost: m products, m + 1 vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.linalg._basis import Basis, new_basis
from frechet.linalg._krylov import check_symmetric
from frechet.linalg._result import Solution, Status
from frechet.operators._operator import Fact, LinearOperator


@torch.no_grad()
def apply_function(
    A: LinearOperator,
    b: Tensor,
    f: Callable[[Tensor], Tensor],
    *,
    rtol: float = 1e-6,
    steps: int | None = None,
) -> Solution:
    """Estimate f(A) b for a symmetric A, by the polynomial that interpolates f at the eigenvalues of T.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`.
        b: a vector ``(n,)``.
        f: maps a float64 tensor of eigenvalues to their values, entrywise. For a positive semidefinite A, eigenvalues
            below zero are rounding and enter f as 0.
        rtol: relative tolerance. Converged means that the estimated error ``||x - f(A) b|| <= rtol ||x||``. The
            rounding of the products limits this: a tolerance below 10 eps is taken as 10 eps. Default: 1e-6.
        steps: the most products. Default: min(n, 200).

    Returns:
        A `Solution`. Its `residual` is the estimated error, its `history` the course of it. The status is `converged`,
            also where the Krylov space is exhausted (x is then exact to rounding), or `max_iterations`.

    Raises:
        ValueError: f is not finite at an eigenvalue of T, such as log at 0.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.linalg import apply_function
        >>> A = from_diagonal(torch.tensor([1.0, 4.0, 9.0]))
        >>> [round(x, 4) for x in apply_function(A, torch.ones(3), torch.sqrt).x.tolist()]
        [1.0, 2.0, 3.0]
    """
    check_symmetric(A, "apply_function", "f of a nonsymmetric operator is not provided")
    space = A.domain
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"apply_function: steps must be a positive int, got {steps!r}")
    if not rtol >= 0:
        raise ValueError(f"apply_function: rtol must be non-negative, got {rtol}")
    limit = min(space.dim, 200 if steps is None else steps)
    target, lowest = max(rtol, 10 * space.eps), 0.0 if Fact.POSITIVE_SEMIDEFINITE in A.facts else -math.inf
    if b.shape == (space.length,) and b.dtype == space.dtype and float(space.norm(b)) == 0.0:
        return Solution(space.zeros(), Status.CONVERGED, 0.0, 0, 0, message="apply_function")
    W = new_basis(space, min(17, limit + 1, space.dim), "device", "apply_function")
    size = W.start(b, "apply_function", "b")
    alpha, beta, earlier, history = [], [], [], []
    scale, status, y = 0.0, Status.MAX_ITERATIONS, torch.zeros(0)
    for j in range(limit):
        if j + 1 == W.size < space.dim:
            W = Basis(space, torch.cat([W.block.T, space.zeros(min(W.size, limit - j, space.dim - j - 1)).T]).T)
        source = f"apply_function: product {j + 1} (A @ v)"
        h, off, scale = W.append(j + 1, A @ W.column(j), scale, source)
        alpha.append(float(h[-1]))
        y = size * _first_column(f, alpha, beta, lowest)
        beta.append(off)
        earlier.append(y)
        error = 0.0 if off == 0.0 else _error(earlier)
        history.append(error)
        if off == 0.0 or error <= target * math.hypot(*y.tolist()):
            status = Status.CONVERGED
            break
    m = len(alpha)
    x = W.block[:, :m] @ y.to(W.block)
    error = max(history[-1], space.eps * math.hypot(*y.tolist()))
    return Solution(x, status, error, m, m, tuple(history), message="apply_function")


def _first_column(f: Callable[[Tensor], Tensor], alpha: list[float], beta: list[float], lowest: float) -> Tensor:
    """f(T) e_1 for the tridiagonal T."""
    T = torch.diag(torch.tensor(alpha, dtype=torch.float64))
    if beta:
        b = torch.tensor(beta, dtype=torch.float64)
        T = T + torch.diag(b, 1) + torch.diag(b, -1)
    theta, S = torch.linalg.eigh(T)
    theta = theta.clamp_min(lowest)
    values = f(theta)
    if values.shape != theta.shape:
        raise ValueError(f"apply_function: f must keep the shape {tuple(theta.shape)}, got {tuple(values.shape)}")
    values = values.double()
    if not bool(torch.isfinite(values).all()):
        at = float(theta[~torch.isfinite(values)][0])
        raise ValueError(f"apply_function: f must be finite on the spectrum of A, got a NaN or an infinity at {at:.6g}")
    return S @ (values * S[0])


def _error(earlier: list[Tensor]) -> float:
    """What the iterates still have to move, from how far they moved over the last few steps and before."""
    m = len(earlier)
    lag = max(2, m // 8)
    if m <= 2 * lag:
        return math.inf
    near, far = (_distance(earlier[a - 1], earlier[a - 1 - lag]) for a in (m, m - lag))
    rate = near / far if far > 0.0 else 0.0
    last = _distance(earlier[-1], earlier[-2])
    return math.inf if rate >= 1.0 else max(last, near * rate / (1 - rate))


def _distance(y: Tensor, z: Tensor) -> float:
    """||y - z|| with the shorter one padded by zeros."""
    difference = y.clone()
    difference[: len(z)] -= z
    return math.hypot(*difference.tolist())
