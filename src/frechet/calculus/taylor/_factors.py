"""Matrix factorizations: each order solves the linearized equations with the factors of the value.

    A = L L'      L_k = L_0 P(X),                  X = L_0^-1 M L_0^-T,  P: lower part, half the diagonal
    A = P L U     L_k = L_0 tril(X, -1),  U_k = triu(X) U_0,             X = L_0^-1 P' M U_0^-1
    A = Q R       R_k = (X - W) R_0,  Q_k = Q_0 W + (I - Q_0 Q_0') M R_0^-1,  X = Q_0' M R_0^-1
    A V = V D     D_k = diag X,  V_k = V_0 W,  W_ij = X_ij / (d_j - d_i)

M is A_k less the products of lower coefficients. W holds what orthogonality asks for, and the skew part that makes R
triangular.

**Source.** Walter and Lehmann, "Algorithmic differentiation of linear algebra functions with application in optimum
experimental design" (2010), sections 4 and 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound
from frechet.calculus.taylor._linear import wrapped
from frechet.calculus.taylor._matrix import convolved
from frechet.calculus.taylor._series import Coefficients, Frame
from frechet.calculus.taylor._tensor import coefficients
from frechet.calculus.taylor._truncated import plus
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import OpOverload


def _less(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return plus(a, None if b is None else -b)


def _right_divided(X: Tensor, R: Tensor) -> Tensor:
    """Return X R^-1 for an upper triangular R."""
    return torch.linalg.solve_triangular(R, X, upper=True, left=False)


def _cholesky(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A = given["self"]
    a = coefficients((A + A.transpose(-2, -1)) / 2, frame)
    A0: Any = a[0]
    L = torch.linalg.cholesky(A0)
    inverse_L = torch.linalg.solve_triangular(L, _eye(L), upper=False)
    half = _eye(L) / 2
    lower: Coefficients = [L]
    for k in range(1, frame.order + 1):
        M = _less(a[k], convolved(frame, [*lower, None], [*lower, None], k, k - 1, transpose=True))
        if M is None:
            lower.append(None)
            continue
        X = inverse_L @ M @ inverse_L.transpose(-2, -1)
        lower.append(L @ (X.tril(-1) + X * half))
    found = wrapped(frame, lower)
    found = found.transpose(-2, -1) if given.get("upper") else found
    if op._schema.name == "aten::cholesky":
        return found
    return found, _no_errors(A)


def _eye(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def _no_errors(A: Tensor) -> Tensor:
    return torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)


def _lu(frame: Frame, A: Any, name: str) -> tuple[Any, Any, Tensor, Tensor]:
    """Return L, U and what torch says of the permutation, of a square matrix with a series."""
    if A.shape[-1] != A.shape[-2]:
        raise NotDifferentiable(f"jet: {name} has a rule for square matrices only, got {tuple(A.shape)}")
    a = coefficients(A, frame)
    A0: Any = a[0]
    P, L, U = torch.linalg.lu(A0)
    low: Coefficients = [L]
    up: Coefficients = [U]
    for k in range(1, frame.order + 1):
        moved = None if a[k] is None else P.transpose(-2, -1) @ a[k]
        M = _less(moved, convolved(frame, [*low, None], [*up, None], k, k - 1))
        if M is None:
            low.append(None)
            up.append(None)
            continue
        X = _right_divided(torch.linalg.solve_triangular(L, M, upper=False, unitriangular=True), U)
        low.append(L @ X.tril(-1))
        up.append(X.triu() @ U)
    return wrapped(frame, low), wrapped(frame, up), P, torch.linalg.lu_factor(A0.detach())[1]


def _lu_factors(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    L, U, _, pivots = _lu(frame, args[0], str(op))
    return torch.tril(L, -1) + U, pivots, _no_errors(args[0])


def _lu_parts(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    L, U, P, _ = _lu(frame, args[0], str(op))
    return P, L, U


def _lu_unpacked(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    LU = given["LU_data"]
    if LU.shape[-1] != LU.shape[-2]:
        raise NotDifferentiable(f"jet: {op} has a rule for square matrices only, got {tuple(LU.shape)}")
    P = torch.lu_unpack(LU.value.detach(), given["LU_pivots"], unpack_data=False)[0]
    return P, torch.tril(LU, -1) + _eye(LU), torch.triu(LU)


def _qr(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A, mode = given["A"], given["mode"]
    if mode == "r" or A.shape[-2] < A.shape[-1] or (mode == "complete" and A.shape[-2] != A.shape[-1]):
        raise NotDifferentiable(
            f"jet: {op} has a rule for reduced factors of matrices with at least as many rows as columns, got mode "
            f"{mode!r} "
            f"and {tuple(A.shape)}"
        )
    a = coefficients(A, frame)
    Q, R = torch.linalg.qr(a[0])  # type: ignore[arg-type]
    q: Coefficients = [Q]
    r: Coefficients = [R]
    for k in range(1, frame.order + 1):
        M = _less(a[k], convolved(frame, [*q, None], [*r, None], k, k - 1))
        overlap = convolved(frame, _transposed(q), [*q, None], k, k - 1)
        if M is None:
            q.append(None)
            r.append(None)
            continue
        scaled = _right_divided(M, R)
        X = Q.transpose(-2, -1) @ scaled
        S = torch.zeros_like(X) if overlap is None else -overlap / 2
        below = (X - S).tril(-1)
        W = S + below - below.transpose(-2, -1)
        q.append(Q @ W + scaled - Q @ X)
        r.append((X - W) @ R)
    return wrapped(frame, q), wrapped(frame, r)


def _transposed(c: Coefficients) -> Coefficients:
    return [None if t is None else t.transpose(-2, -1) for t in [*c, None]]


def _eigh(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A = given["A"]
    lower = given["UPLO"].upper() == "L"  # the other triangle is not read
    kept, rest = (torch.tril(A), torch.tril(A, -1)) if lower else (torch.triu(A), torch.triu(A, 1))
    a = coefficients(kept + rest.transpose(-2, -1), frame)
    d, V = torch.linalg.eigh(a[0])  # type: ignore[arg-type]
    gaps = d.unsqueeze(-2) - d.unsqueeze(-1) + _eye(V)
    size = d.detach().abs().amax() if d.numel() else d.detach().sum()
    if bool((gaps.detach().abs() <= 8 * torch.finfo(d.dtype).eps * size).any()):
        raise NotDifferentiable(
            "jet: eigh of a matrix with repeated eigenvalues has no derivatives of single eigenvectors; take a "
            "function of "
            "the whole matrix, such as a trace or a power"
        )
    values: Coefficients = [d]
    vectors: Coefficients = [V]
    for k in range(1, frame.order + 1):
        left = convolved(frame, a, [*vectors, None], k, k)
        right = convolved(
            frame, [*vectors, None], [None if t is None else t.diag_embed() for t in [*values, None]], k, k - 1
        )
        overlap = convolved(frame, _transposed(vectors), [*vectors, None], k, k - 1)
        M = _less(left, right)
        if M is None:
            values.append(None)
            vectors.append(None)
            continue
        X = V.transpose(-2, -1) @ M
        W = X / gaps * (1 - _eye(V))
        if overlap is not None:
            W = W - _eye(V) * overlap / 2
        values.append(X.diagonal(dim1=-2, dim2=-1))
        vectors.append(V @ W)
    return wrapped(frame, values), wrapped(frame, vectors)


FACTORS: dict[str, Rule] = {
    "linalg_cholesky_ex": _cholesky,
    "cholesky": _cholesky,
    "linalg_lu_factor_ex": _lu_factors,
    "linalg_lu": _lu_parts,
    "lu_unpack": _lu_unpacked,
    "linalg_qr": _qr,
    "_linalg_eigh": _eigh,
}
