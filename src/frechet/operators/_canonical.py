"""A normal form for sums, scalings and Gram products of structured operators.

``normal_form(A)`` is the same map as one structure where that is possible: scalars and diagonals are added, dense terms
are added, block diagonals are added block by block, low-rank terms are stacked, and X'X, X X', X'D X of a dense X
become low rank. What comes out is one structured operator, or ``D + L`` with D a diagonal or a multiple of the identity
in front and L of low rank, or ``c I + A kron B``; anything else comes back as it was. No product with A is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.operators._constructors import from_diagonal
from frechet.operators._operator import PSD, SYMMETRIC, Adjoint, LinearOperator, Product, Scaled, Sum
from frechet.operators._structured import (
    BlockDiagonal,
    Diagonal,
    Eigendecomposed,
    Identity,
    Kronecker,
    LowRank,
    Matrix,
    Permuted,
)


def normal_form(A: LinearOperator) -> LinearOperator:
    """The same map as one structure where that is possible, `A` itself otherwise (see the module)."""
    match A:
        case Product() if (factors := _factors(A)) is not None:
            return LowRank(*factors, A.domain, A.facts)
        case Scaled() | Sum():
            return _added_up(A)
        case _:
            return A


def _added_up(A: LinearOperator) -> LinearOperator:
    """A sum, or a multiple of one: all its scalars and diagonals as one diagonal, and its other terms as one."""
    shift, diagonal, rest = 0.0, None, []
    for c, term in _flat(A, 1.0):
        match term:
            case Identity():
                shift += c
            case Diagonal(d):
                diagonal = c * d if diagonal is None else diagonal + c * d
            case _:
                rest.append((c, term))
    added = shift * Identity(A.domain) if diagonal is None else from_diagonal(diagonal + shift, domain=A.domain)
    if not rest:
        return added
    return _beside(A, None if diagonal is None and shift == 0 else added, rest)


def _beside(
    A: LinearOperator, added: LinearOperator | None, rest: list[tuple[float, LinearOperator]]
) -> LinearOperator:
    """The sum A of a diagonal or a multiple of the identity, where there is one, and of multiples of other terms."""
    if any(isinstance(_untransposed(t), Matrix) for _, t in rest):
        return _dense(A, added, rest)
    if all(isinstance(t, BlockDiagonal) for _, t in rest):
        return _blockwise(A, rest, added)
    if all(_factors(t) is not None for _, t in rest):
        pairs = [(c, *f) for c, t in rest if (f := _factors(t)) is not None]
        s = torch.cat([c * s for c, _, s in pairs])
        facts = PSD if bool((s >= 0).all()) else SYMMETRIC
        L = LowRank(torch.cat([U for _, U, _ in pairs], dim=1), s, A.domain, facts)
        return L if added is None else Sum((added, L))
    match added, rest:
        case Scaled() | None, [(c, Kronecker(B, C) as K)]:
            K = K if c == 1.0 else Kronecker(c * B, C)
            return K if added is None else Sum((added, K))
        case Scaled() | Identity(), [(1.0, Eigendecomposed() as E)]:
            return Sum((1.0 * added if isinstance(added, Identity) else added, E))
        case _, [(c, Permuted(B, order, domain))]:
            return Permuted(normal_form(_with(c * B if c != 1.0 else B, added, order)), order, domain)
    return A


def _with(A: LinearOperator, added: LinearOperator | None, order: Tensor) -> LinearOperator:
    """A plus a diagonal whose entries come in another order."""
    match added:
        case None:
            return A
        case Diagonal(d):
            return A + from_diagonal(d[order], domain=A.domain)
        case Scaled(c):
            return A + c * Identity(A.domain)
        case _:
            return A + Identity(A.domain)


def _dense(A: LinearOperator, added: LinearOperator | None, rest: list[tuple[float, LinearOperator]]) -> LinearOperator:
    """The sum A of dense terms, and of what stands beside them, as one dense matrix."""
    parts = [_entries(t) for _, t in rest]
    if any(p is None for p in parts):
        return A
    total = torch.stack([c * p for (c, _), p in zip(rest, parts, strict=True) if p is not None]).sum(0)
    match added:
        case Scaled(c):
            total = total + torch.diag(total.new_full((A.domain.dim,), c))
        case Diagonal(d):
            total = total + torch.diag(d)
    return Matrix(total, A.domain, A.codomain, A.facts)


def _flat(A: LinearOperator, c: float) -> list[tuple[float, LinearOperator]]:
    match A:
        case Scaled(scale, operator):
            return _flat(operator, c * scale)
        case Sum(terms):
            return [pair for term in terms for pair in _flat(term, c)]
        case _:
            return [(c, A)]


def _untransposed(A: LinearOperator) -> LinearOperator:
    return A.operator if isinstance(A, Adjoint) else A


def _entries(A: LinearOperator) -> Tensor | None:
    """The dense matrix of a term that stands beside a dense one."""
    match A:
        case Matrix(M):
            return M
        case Adjoint(Matrix(M)):
            return M.T
        case _ if (factors := _factors(A)) is not None:
            U, s = factors
            return (U * s) @ U.T
        case _:
            return None


def _factors(A: LinearOperator) -> tuple[Tensor, Tensor] | None:
    """U and s with A = U diag(s) U', also for the Gram matrices X'X, X X' and X'D X of a dense X."""
    match A:
        case LowRank(U, s):
            return U, s
        case Product(factors=(Adjoint(Matrix(M) as X), Matrix() as Y)) if X is Y:
            return M.T, M.new_ones(M.shape[0])
        case Product(factors=(Matrix(M) as X, Adjoint(Matrix() as Y))) if X is Y:
            return M, M.new_ones(M.shape[1])
        case Product(factors=(Adjoint(Matrix(M) as X), Diagonal(d), Matrix() as Y)) if X is Y:
            return M.T, d
        case Product(factors=(Matrix(M) as X, Diagonal(d), Adjoint(Matrix() as Y))) if X is Y:
            return M, d
        case _:
            return None


def _blockwise(
    A: LinearOperator, rest: list[tuple[float, LinearOperator]], added: LinearOperator | None
) -> LinearOperator:
    """A sum of block diagonals with the same blocks, and of a diagonal, as one block diagonal."""
    sums = [(c, t.blocks) for c, t in rest if isinstance(t, BlockDiagonal)]
    spaces = [[(b.domain, b.codomain) for b in blocks] for _, blocks in sums]
    if any(s != spaces[0] for s in spaces) or (added is not None and any(d != c for d, c in spaces[0])):
        return A
    blocks, start = [], 0
    for i, (domain, codomain) in enumerate(spaces[0]):
        terms = tuple(c * bs[i] if c != 1.0 else bs[i] for c, bs in sums)
        match added:
            case Scaled(c, Identity()):
                terms = (*terms, c * Identity(domain))
            case Diagonal(d):
                terms = (*terms, from_diagonal(d[start : start + domain.dim], domain=domain))
        blocks.append(terms[0] if len(terms) == 1 else Sum(terms))
        start += codomain.dim
    return BlockDiagonal(tuple(blocks), A.domain, A.codomain)
