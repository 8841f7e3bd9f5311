"""Linear systems, inverses and determinants: recurrences from the equations that define them.

A y = b          A_0 y_k = b_k - sum over j >= 1 of A_j y_{k-j}
log |det A|      k y_k = sum over j >= 1 of j tr(A_j (A^-1)_{k-j})
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound
from frechet.calculus.taylor._linear import wrapped
from frechet.calculus.taylor._series import Coefficients, Frame
from frechet.calculus.taylor._tensor import coefficients, fixed, values
from frechet.calculus.taylor._truncated import plus
from frechet.objective._torch_internals import OpOverload

Apply = Callable[[Tensor], Tensor]


def convolved(frame: Frame, a: Coefficients, b: Coefficients, k: int, last: int, transpose: bool = False) -> Any:
    """Return sum over 1 <= j <= last of a_j b_{k-j}, or of a_j b_{k-j}'."""
    outer = inner = None
    for j in range(1, last + 1):
        x, y = a[j], b[k - j]
        if x is None or y is None:
            continue
        term = x @ (y.transpose(-2, -1) if transpose else y)
        if j < k:
            inner = plus(inner, term)
        else:
            outer = plus(outer, term)
    if inner is not None and frame.collapsed(k):
        inner = frame.summed(inner)
    return plus(outer, inner)


def _solved(frame: Frame, A: Coefficients, B: Coefficients, value: Tensor, apply: Apply) -> Coefficients:
    """Return the series of A^-1 B; `apply` multiplies by the inverse of the value of A."""
    y: Coefficients = [value]
    for k in range(1, frame.order + 1):
        moved = convolved(frame, A, [*y, None], k, k)
        right = plus(B[k], None if moved is None else -moved)
        y.append(None if right is None else apply(right))
    return y


def _as_columns(A: Any, B: Any) -> bool:
    """Whether B holds vectors, one for each matrix of A, as torch.linalg.solve decides."""
    return B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])


def _solve(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A, B, left = given["A"], given["B"], given["left"]
    vector = _as_columns(A, B)
    B = B.unsqueeze(-1) if vector else B
    if not left:
        A, B = A.transpose(-2, -1), B.transpose(-2, -1)
    a, b = coefficients(A, frame), coefficients(B, frame)
    A0: Any = a[0]
    found = wrapped(frame, _solved(frame, a, b, torch.linalg.solve(A0, b[0]), lambda t: torch.linalg.solve(A0, t)))
    found = found if left else found.transpose(-2, -1)
    found = found.squeeze(-1) if vector else found
    return (found, *op(*values(args, frame), **kwargs)[1:])


def _triangular(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A, B = given["self"], given["B"]
    upper, left, unit = given["upper"], given["left"], given["unitriangular"]
    A = torch.triu(A, 1 if unit else 0) if upper else torch.tril(A, -1 if unit else 0)
    if not left:
        A, B, upper = A.transpose(-2, -1), B.transpose(-2, -1), not upper
    a, b = coefficients(A, frame), coefficients(B, frame)
    A0: Any = a[0]

    def apply(t: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(A0, t, upper=upper, unitriangular=unit)

    B0: Any = b[0]
    found = wrapped(frame, _solved(frame, a, b, apply(B0), apply))
    return found if left else found.transpose(-2, -1)


def inverse(frame: Frame, A: Any) -> Any:
    a = coefficients(A, frame)
    A0: Any = a[0]
    Y = torch.linalg.inv(A0)
    return wrapped(frame, _solved(frame, a, frame.empty(Y), Y, lambda t: Y @ t))


def _inverse(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    A = args[0]
    return inverse(frame, A), torch.zeros(A.shape[:-2], dtype=torch.int32, device=A.device)


def _log_determinant(frame: Frame, A: Any) -> tuple[Tensor, Any]:
    a, y = coefficients(A, frame), inverse(frame, A).c
    sign, value = torch.linalg.slogdet(a[0])  # type: ignore[arg-type]
    found: Coefficients = [value]
    for k in range(1, frame.order + 1):
        scaled: Coefficients = [None if t is None else t * (j / k) for j, t in enumerate(a)]
        total = convolved(frame, scaled, y, k, k)
        found.append(None if total is None else total.diagonal(dim1=-2, dim2=-1).sum(-1))
    return sign, wrapped(frame, found)


def _slogdet(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    A = args[0]
    return (*_log_determinant(frame, A), *op(A.value)[2:])


def _determinant(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    A = args[0]
    sign, log = _log_determinant(frame, A)
    found: Any = sign * torch.exp(log)
    found.c[0] = torch.linalg.det(A.value)
    return (found, *op(A.value)[1:])


def _old_triangular(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    A, upper, unit = given["A"], given["upper"], given["unitriangular"]
    if given["transpose"]:
        found = torch.linalg.solve_triangular(A.mT, given["self"], upper=not upper, unitriangular=unit)
    else:
        found = torch.linalg.solve_triangular(A, given["self"], upper=upper, unitriangular=unit)
    return found, A


def _cholesky_solve(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    L = given["input2"].mT if given["upper"] else given["input2"]
    half = torch.linalg.solve_triangular(L, given["self"], upper=False)
    return torch.linalg.solve_triangular(L.mT, half, upper=True)


def _cholesky_inverse(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    L = given["self"].mT if given["upper"] else given["self"]
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand(L.shape)
    half = torch.linalg.solve_triangular(L, eye, upper=False)
    return half.mT @ half


def _lu_solve(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    LU, pivots, B = given["LU"], given["pivots"], given["B"]
    P = torch.lu_unpack(fixed(LU), pivots, unpack_data=False)[0]
    A = (P @ (torch.tril(LU, -1) + torch.eye(LU.shape[-1], dtype=LU.dtype, device=LU.device))) @ torch.triu(LU)
    return torch.linalg.solve(A.mT if given["adjoint"] else A, B, left=given["left"])


MATRICES: dict[str, Rule] = {
    "_linalg_solve_ex": _solve,
    "linalg_solve_triangular": _triangular,
    "linalg_inv_ex": _inverse,
    "triangular_solve": _old_triangular,
    "cholesky_solve": _cholesky_solve,
    "cholesky_inverse": _cholesky_inverse,
    "linalg_lu_solve": _lu_solve,
    "_linalg_slogdet": _slogdet,
    "_linalg_det": _determinant,
}
