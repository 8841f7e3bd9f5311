"""Rows and columns of an operator as a dense matrix.

Where the structure shows entries (dense, diagonal, low rank, Kronecker and block diagonal ones, the inverse of a Fisher
matrix, and their sums, multiples and reorderings) they are read; elsewhere columns come by products with unit vectors,
64 at a time, or rows by products with the transpose where those are fewer.

Cost: what the structure stores for the rows and columns; else as many products as rows or columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frechet.operators._closed_form import Proved
from frechet.operators._inverse_fisher import InverseFisher, inverse_entries
from frechet.operators._operator import Adjoint, LinearOperator, Scaled, Sum
from frechet.operators._structured import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Matrix,
    Permuted,
    refuse_sharded,
)

COLUMNS = 64  # unit vectors at a time


@torch.no_grad()
def submatrix(A: LinearOperator, rows: Tensor | Sequence[int], columns: Tensor | Sequence[int] | None = None) -> Tensor:
    """Return the entries of A in the given rows and columns as a dense matrix ``(rows, columns)``.

    Args:
        A: the operator ``(m, n)``.
        rows: indices from 0 to m - 1, in any order, repeated or not.
        columns: indices from 0 to n - 1. Default: those of the rows.

    Raises:
        ValueError: an index is out of range, or A acts on sharded vectors.

    Example:
        >>> import torch
        >>> from frechet.operators import inverse_fisher, submatrix
        >>> submatrix(inverse_fisher(torch.tensor([[1.0, 1.0]]), 2.0), [0], [1])
        tensor([[-0.1250]])
    """
    refuse_sharded("submatrix", A.domain, A.codomain)
    i = _indices("rows", rows, A.shape[0], A)
    j = i if columns is None else _indices("columns", columns, A.shape[1], A)
    if columns is None and A.shape[0] != A.shape[1]:
        raise ValueError(f"submatrix: columns must be given for an A that is not square, got shape {A.shape}")
    return _entries(A, i, j)


def _indices(name: str, given: Tensor | Sequence[int], size: int, A: LinearOperator) -> Tensor:
    found = torch.as_tensor(given, device=A.domain.device)
    if not found.numel():
        found = found.long().reshape(-1)
    if found.ndim != 1 or (found.dtype == torch.bool or found.is_floating_point()):
        raise ValueError(
            f"submatrix: {name} must be a list of indices, got {found.dtype} of shape {tuple(found.shape)}"
        )
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
        raise ValueError(
            f"submatrix: {name} must lie between 0 and {size - 1}, got {int(found.min())} to {int(found.max())}"
        )
    return found.long()


def _entries(A: LinearOperator, i: Tensor, j: Tensor) -> Tensor:
    match A:
        case Scaled(c, B):
            return c * _entries(B, i, j)
        case Sum(terms):
            return torch.stack([_entries(t, i, j) for t in terms]).sum(0)
        case Adjoint(B):
            return _entries(B, j, i).T
        case Proved(B):
            return _entries(B, i, j)
        case Permuted(B, order):
            back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            return _entries(B, back[i], back[j])
        case Kronecker(B, C):
            (mB, nB), (m, n) = B.shape, C.shape
            if not mB * nB * m * n:
                return A.domain.zeros(0).new_zeros(len(i), len(j))
            return _entries(B, i // m, j // n) * _entries(C, i % m, j % n)
        case BlockDiagonal(blocks):
            return _of_blocks(A, blocks, i, j)
        case _:
            return _stored(A, i, j)


def _stored(A: LinearOperator, i: Tensor, j: Tensor) -> Tensor:
    """The entries of what is made of no other operator."""
    match A:
        case Identity(domain):
            return (i[:, None] == j).to(domain.dtype)
        case Diagonal(d):
            return (i[:, None] == j) * d[i][:, None]
        case Matrix(M):
            return M[i][:, j]
        case LowRank(U, s):
            return (U[i] * s) @ U[j].T
        case InverseFisher():
            return inverse_entries(A, i, j)
        case _ if len(i) < len(j):
            return _columns(A.T, i)[j].T
        case _:
            return _columns(A, j)[i]


def _of_blocks(A: LinearOperator, blocks: Sequence[LinearOperator], i: Tensor, j: Tensor) -> Tensor:
    found = A.domain.zeros(0).new_zeros(len(i), len(j))
    row, column = 0, 0
    for B in blocks:
        m, n = B.shape
        r, c = (((row <= i) & (i < row + m)).nonzero()[:, 0], ((column <= j) & (j < column + n)).nonzero()[:, 0])
        if len(r) and len(c):
            found[r[:, None], c] = _entries(B, i[r] - row, j[c] - column)
        row, column = row + m, column + n
    return found


def _columns(A: LinearOperator, j: Tensor) -> Tensor:
    """Columns j of A, by products."""
    found = A.codomain.zeros(len(j))
    for a in range(0, len(j), COLUMNS):
        E = A.domain.zeros(len(j[a : a + COLUMNS]))
        E[j[a : a + COLUMNS], torch.arange(E.shape[1], device=E.device)] = 1.0
        found[:, a : a + E.shape[1]] = A @ E
    return found
