"""Functions that make operators whose structure is known, and operators from any function of a block of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from frechet.operators._operator import PD, PSD, SYMMETRIC, Fact, LinearOperator
from frechet.operators._structured import (
    BlockDiagonal,
    Diagonal,
    FromCallable,
    Identity,
    Kronecker,
    LowRank,
    Matrix,
    Restriction,
    _check_agrees,
    declared,
    refuse_sharded,
)
from frechet.space import Space, euclidean


def identity(space: Space) -> LinearOperator:
    """Return the identity on `space`.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal, identity
        >>> A = from_diagonal(torch.tensor([1.0, 2.0]))
        >>> (A + 0.5 * identity(A.domain)).dense()
        tensor([[1.5000, 0.0000],
                [0.0000, 2.5000]])
    """
    return Identity(space)


def from_matrix(
    M: Tensor,
    *,
    domain: Space | None = None,
    codomain: Space | None = None,
    facts: Fact | str | Iterable[Fact | str] = (),
) -> LinearOperator:
    """Return the dense matrix `M` as an operator.

    Args:
        M: the matrix ``(m, n)``.
        domain: the space of the input. Default: R^n with one block.
        codomain: the space of the result. Default: R^m with one block, or the domain where M is square.
        facts: what is known of M: ``"symmetric"``, ``"positive_semidefinite"``, ``"positive_definite"``.

    Example:
        >>> import torch
        >>> from frechet import from_matrix, solve
        >>> A = from_matrix(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), facts="positive_definite")
        >>> solve(A, torch.tensor([2.0, 2.0])).x
        tensor([1.0000, 0.5000])
    """
    if M.ndim != 2:
        raise ValueError(f"from_matrix: M must be a matrix, got shape {tuple(M.shape)}")
    domain = euclidean(M.shape[1], M.dtype, M.device) if domain is None else domain
    codomain = (
        (domain if M.shape[0] == M.shape[1] else euclidean(M.shape[0], M.dtype, M.device))
        if codomain is None
        else codomain
    )
    if (codomain.dim, domain.dim) != tuple(M.shape):
        raise ValueError(f"from_matrix: M must have shape ({codomain.dim}, {domain.dim}), got {tuple(M.shape)}")
    refuse_sharded("from_matrix", domain, codomain)
    _check_agrees(M, domain, "from_matrix: M")
    _check_agrees(M, codomain, "from_matrix: M")
    known = declared(facts)
    if known and domain != codomain:
        raise ValueError(f"from_matrix: facts need a square operator on one space, got {domain!r} and {codomain!r}")
    return Matrix(M.detach(), domain, codomain, known)


def from_diagonal(d: Tensor, *, domain: Space | None = None) -> LinearOperator:
    """Return diag(d) as an operator. The sign of d is a fact of it.

    Args:
        d: the diagonal ``(n,)``.
        domain: its space. Default: R^n with one block.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from_diagonal(torch.tensor([1.0, 2.0])) @ torch.ones(2)
        tensor([1., 2.])
    """
    if d.ndim != 1:
        raise ValueError(f"from_diagonal: d must have shape (n,), got {tuple(d.shape)}")
    low = float(d.min()) if d.numel() else 1.0
    facts = PD if low > 0 else PSD if low >= 0 else SYMMETRIC
    space = euclidean(d.numel(), d.dtype, d.device) if domain is None else domain
    refuse_sharded("from_diagonal", space)
    if d.numel() != space.dim:
        raise ValueError(f"from_diagonal: d must have shape ({space.dim},), got {tuple(d.shape)}")
    _check_agrees(d, space, "from_diagonal: d")
    return Diagonal(d.detach(), space, facts)


def from_factors(U: Tensor, s: Tensor | None = None, *, domain: Space | None = None) -> LinearOperator:
    """Return U diag(s) U' as an operator.

    Args:
        U: the factor ``(n, k)``.
        s: the middle ``(k,)``. Default: ones.
        domain: the space of U's columns. Default: R^n with one block.

    Example:
        >>> import torch
        >>> from frechet.operators import from_factors
        >>> from_factors(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0])).dense()
        tensor([[ 3.,  6.],
                [ 6., 12.]])
    """
    if U.ndim != 2:
        raise ValueError(f"from_factors: U must have shape (n, k), got {tuple(U.shape)}")
    s = U.new_ones(U.shape[1]) if s is None else s
    if s.shape != (U.shape[1],):
        raise ValueError(f"from_factors: s must have shape ({U.shape[1]},), got {tuple(s.shape)}")
    space = euclidean(U.shape[0], U.dtype, U.device) if domain is None else domain
    refuse_sharded("from_factors", space)
    if U.shape[0] != space.dim:
        raise ValueError(f"from_factors: U must have {space.dim} rows, got shape {tuple(U.shape)}")
    _check_agrees(U, space, "from_factors: U")
    _check_agrees(s, space, "from_factors: s")
    return LowRank(U.detach(), s.detach(), space, PSD if bool((s >= 0).all()) else SYMMETRIC)


def kronecker(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    """Return A kron B, which acts on row-major X ``(nA, nB)`` as A X B'.

    Args:
        A: the left factor.
        B: the right factor.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.operators import kronecker
        >>> kronecker(from_matrix(torch.tensor([[1.0, 2.0]])), from_matrix(torch.tensor([[3.0, 4.0]]))).dense()
        tensor([[3., 4., 6., 8.]])
    """
    if A.domain.dtype != B.domain.dtype or A.domain.device != B.domain.device:
        raise ValueError(f"kronecker: A and B must share dtype and device, got {A.domain!r} and {B.domain!r}")
    refuse_sharded("kronecker", A.domain, A.codomain, B.domain, B.codomain)
    return Kronecker(A, B)


def block_diagonal(
    *blocks: LinearOperator, domain: Space | None = None, codomain: Space | None = None
) -> LinearOperator:
    """Return diag(A_1, ..., A_p) on the direct sum of the blocks' spaces.

    Args:
        blocks: the operators on the diagonal.
        domain: the space of the input. Default: the direct sum of the blocks' domains.
        codomain: the space of the result. Default: the direct sum of the blocks' codomains.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.operators import block_diagonal
        >>> block_diagonal(from_matrix(torch.tensor([[2.0]])), from_matrix(torch.tensor([[3.0]]))).dense()
        tensor([[2., 0.],
                [0., 3.]])
    """
    if not blocks:
        raise ValueError("block_diagonal: needs at least one operator, got none")
    kinds = {(s.dtype, s.device) for b in blocks for s in (b.domain, b.codomain, domain or b.domain)}
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise TypeError(f"block_diagonal: all blocks must have one dtype and device, got {listed}")
    refuse_sharded("block_diagonal", *(s for b in blocks for s in (b.domain, b.codomain)))
    domain = _direct_sum([b.domain for b in blocks]) if domain is None else domain
    codomain = _direct_sum([b.codomain for b in blocks]) if codomain is None else codomain
    shape = (sum(b.shape[0] for b in blocks), sum(b.shape[1] for b in blocks))
    if (codomain.dim, domain.dim) != shape:
        raise ValueError(f"block_diagonal: the blocks have shape {shape}, got spaces {codomain!r} and {domain!r}")
    return BlockDiagonal(tuple(blocks), domain, codomain)


def _direct_sum(spaces: Sequence[Space]) -> Space:
    names = [f"{i}.{name}".rstrip(".") for i, s in enumerate(spaces) for name in s.names]
    return Space(tuple(names), tuple(x for s in spaces for x in s.shapes), spaces[0].dtype, spaces[0].device)


def restriction(space: Space, patterns: str | Iterable[str]) -> LinearOperator:
    """Return the map R from `space` to the blocks that match `patterns`. R A R' is the submatrix of A.

    Args:
        space: a space with named blocks.
        patterns: glob patterns of block names, such as ``"layers.*.weight"``.

    Example:
        >>> import torch
        >>> from frechet import Space
        >>> from frechet.operators import restriction
        >>> space = Space(("a", "b"), ((1,), (2,)), torch.float32)
        >>> restriction(space, "b") @ torch.tensor([1.0, 2.0, 3.0])
        tensor([2., 3.])
    """
    return Restriction(space, space.restrict(patterns))


def from_callable(
    matmat: Callable[[Tensor], Tensor],
    domain: Space | int,
    codomain: Space | int | None = None,
    *,
    rmatmat: Callable[[Tensor], Tensor] | None = None,
    facts: Fact | str | Iterable[Fact | str] = (),
    dtype: torch.dtype = torch.float32,
) -> LinearOperator:
    """Return an operator from a function that multiplies a block of vectors.

    Args:
        matmat: the product, ``V (n, k) -> (m, k)``.
        domain: the space of the input, or its dimension n.
        codomain: the space of the result, or its dimension m. Default: the domain.
        rmatmat: the product with the transpose, ``U (m, k) -> (n, k)``. Default: `matmat` where `facts` declares
            symmetry; otherwise the transpose raises.
        facts: what is known of the operator: ``"symmetric"``, ``"positive_semidefinite"``, ``"positive_definite"``.
        dtype: the dtype of the spaces that are given as dimensions.

    Example:
        >>> import torch
        >>> from frechet import from_callable
        >>> A = from_callable(lambda V: V.flip(0), 3, facts="symmetric")
        >>> A @ torch.tensor([1.0, 2.0, 3.0])
        tensor([3., 2., 1.])
    """
    domain = euclidean(domain, dtype) if isinstance(domain, int) else domain
    codomain = domain if codomain is None else euclidean(codomain, dtype) if isinstance(codomain, int) else codomain
    if (domain.dtype, domain.device) != (codomain.dtype, codomain.device):
        raise TypeError(f"from_callable: domain and codomain must share dtype and device, got {domain!r}, {codomain!r}")
    known = declared(facts)
    if known and domain != codomain:
        raise ValueError(f"from_callable: facts need a square operator on one space, got {domain!r} and {codomain!r}")
    return FromCallable(matmat, rmatmat, domain, codomain, known)
