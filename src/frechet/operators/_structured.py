"""Operators whose structure is known: identity, dense, diagonal, low rank, Kronecker, block diagonal, restriction.

Cost of a product with k vectors: what the stored arrays cost. `from_callable` wraps any function of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._operator import NONE, PD, PSD, SYMMETRIC, Fact, LinearOperator, SymmetricOperator
from frechet.space import Space, euclidean

_IMPLIED = {
    Fact.SYMMETRIC: SYMMETRIC,
    Fact.POSITIVE_SEMIDEFINITE: PSD,
    Fact.POSITIVE_DEFINITE: PD,
}


def declared(facts: Fact | str | Iterable[Fact | str]) -> frozenset[Fact]:
    """The given facts with all that they imply."""
    given = [facts] if isinstance(facts, str) else list(facts)
    unknown = [f for f in given if f not in [x.value for x in Fact]]
    if unknown:
        raise ValueError(f"facts: must be among {[f.value for f in Fact]}, got {unknown[0]!r}")
    return NONE.union(*(_IMPLIED[Fact(f)] for f in given))


@dataclass(frozen=True, eq=False, repr=False)
class Identity(SymmetricOperator):
    """I on a space."""

    domain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return PD

    def _matmat(self, V: Tensor) -> Tensor:
        return V


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(LinearOperator):
    """A dense matrix ``(m, n)``."""

    matrix: Tensor
    domain: Space
    codomain: Space
    facts: frozenset[Fact]

    def _matmat(self, V: Tensor) -> Tensor:
        return (V.T @ self.matrix.T).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        return (U.T @ self.matrix).T


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(SymmetricOperator):
    """diag(d)."""

    diagonal: Tensor
    domain: Space
    facts: frozenset[Fact]

    def _matmat(self, V: Tensor) -> Tensor:
        return (V.T * self.diagonal).T


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(SymmetricOperator):
    """U diag(s) U' with U ``(n, k)``."""

    U: Tensor
    s: Tensor
    domain: Space
    facts: frozenset[Fact]

    def _matmat(self, V: Tensor) -> Tensor:
        return (((V.T @ self.U) * self.s) @ self.U.T).T


@dataclass(frozen=True, eq=False, repr=False)
class Kronecker(LinearOperator):
    """A kron B: on X ``(nA, nB)`` flattened row by row, X -> A X B'."""

    A: LinearOperator
    B: LinearOperator

    @property
    def domain(self) -> Space:
        return Space(("",), ((self.A.domain.dim, self.B.domain.dim),), self.A.domain.dtype, self.A.domain.device)

    @property
    def codomain(self) -> Space:
        return Space(("",), ((self.A.codomain.dim, self.B.codomain.dim),), self.A.domain.dtype, self.A.domain.device)

    @property
    def facts(self) -> frozenset[Fact]:
        return self.A.facts & self.B.facts

    def _matmat(self, V: Tensor) -> Tensor:
        return _kronecker(self.A._matmat, self.B._matmat, self.A.domain.dim, self.B.shape, V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return _kronecker(
            self.A._rmatmat, self.B._rmatmat, self.A.codomain.dim, (self.B.domain.dim, self.B.codomain.dim), U
        )


def _kronecker(
    A: Callable[[Tensor], Tensor], B: Callable[[Tensor], Tensor], nA: int, shapeB: tuple[int, int], V: Tensor
) -> Tensor:
    (mB, nB), k = shapeB, V.shape[1]
    X = B(V.T.reshape(k * nA, nB).T).T.reshape(k, nA, mB)
    X = A(X.transpose(0, 1).reshape(nA, k * mB))  # (mA, k mB)
    return X.reshape(X.shape[0], k, mB).transpose(0, 1).reshape(k, X.shape[0] * mB).T


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(LinearOperator):
    """diag(A_1, ..., A_p): each operator acts on its own stretch of the flat vector."""

    blocks: tuple[LinearOperator, ...]
    domain: Space
    codomain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return frozenset.intersection(*(b.facts for b in self.blocks)) if self.domain == self.codomain else NONE

    def _matmat(self, V: Tensor) -> Tensor:
        parts = V.split([b.domain.dim for b in self.blocks])
        return torch.cat([b._matmat(p).T for b, p in zip(self.blocks, parts, strict=True)], dim=1).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        parts = U.split([b.codomain.dim for b in self.blocks])
        return torch.cat([b._rmatmat(p).T for b, p in zip(self.blocks, parts, strict=True)], dim=1).T


@dataclass(frozen=True, eq=False, repr=False)
class Restriction(LinearOperator):
    """The map that keeps the blocks of a subspace. Its transpose fills the others with zeros."""

    domain: Space
    codomain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return PSD if self.domain == self.codomain else NONE

    def _matmat(self, V: Tensor) -> Tensor:
        return torch.cat([V.T[:, :0], *(V.T[:, self.domain.block(n)] for n in self.codomain.names)], dim=1).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        out = self.domain.zeros(U.shape[1])
        for name in self.codomain.names:
            out[self.domain.block(name)] = U[self.codomain.block(name)]
        return out


@dataclass(frozen=True, eq=False, repr=False)
class FromCallable(LinearOperator):
    """An operator given by functions of a block."""

    matmat: Callable[[Tensor], Tensor]
    rmatmat: Callable[[Tensor], Tensor] | None
    domain: Space
    codomain: Space
    facts: frozenset[Fact]

    def _matmat(self, V: Tensor) -> Tensor:
        return _checked(self.matmat(V), self.codomain, V.shape[1], "matmat")

    def _rmatmat(self, U: Tensor) -> Tensor:
        if Fact.SYMMETRIC in self.facts:
            return self._matmat(U)
        if self.rmatmat is None:
            raise TypeError(
                f"from_callable: this operator {self!r} was made without rmatmat, so its transpose is unknown; "
                "pass rmatmat=, or facts='symmetric' if it is"
            )
        return _checked(self.rmatmat(U), self.domain, U.shape[1], "rmatmat")


def _checked(result: Tensor, space: Space, k: int, which: str) -> Tensor:
    if tuple(result.shape) != (space.length, k):
        raise ValueError(f"from_callable: {which} must return shape {(space.length, k)}, got {tuple(result.shape)}")
    if result.dtype != space.dtype:
        raise TypeError(f"from_callable: {which} must return {space.dtype}, got {result.dtype}")
    return result


# --- constructors -----------------------------------------------------------------------------------------------------


def _check_agrees(t: Tensor, space: Space, what: str) -> None:
    if t.dtype != space.dtype or t.device != space.device:
        raise TypeError(f"{what} must be {space.dtype} on {space.device} as its space, got {t.dtype} on {t.device}")


def refuse_sharded(what: str, *spaces: Space) -> None:
    """Raise for a space whose vectors are held in pieces by several processes."""
    for space in spaces:
        if space.shard is not None:
            raise ValueError(f"{what}: must be given whole vectors, got the sharded space {space!r}")


def identity(space: Space) -> LinearOperator:
    """The identity on `space`."""
    return Identity(space)


def from_matrix(
    M: Tensor,
    *,
    domain: Space | None = None,
    codomain: Space | None = None,
    facts: Fact | str | Iterable[Fact | str] = (),
) -> LinearOperator:
    """The dense matrix `M` ``(m, n)`` as an operator; `facts` are what you know of it (``"positive_definite"``)."""
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
    """diag(d), with its sign as a fact."""
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
    """U diag(s) U' with U ``(n, k)`` and s ``(k,)`` (ones if left out)."""
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
    """A kron B, acting on row-major X ``(nA, nB)`` as A X B'."""
    if A.domain.dtype != B.domain.dtype or A.domain.device != B.domain.device:
        raise ValueError(f"kronecker: A and B must share dtype and device, got {A.domain!r} and {B.domain!r}")
    refuse_sharded("kronecker", A.domain, A.codomain, B.domain, B.codomain)
    return Kronecker(A, B)


def block_diagonal(
    *blocks: LinearOperator, domain: Space | None = None, codomain: Space | None = None
) -> LinearOperator:
    """diag(A_1, ..., A_p) on the direct sum of the blocks' spaces, or on the `domain` and `codomain` given."""
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
    """The map from `space` to the blocks matching `patterns`: R A R' is the submatrix of A."""
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
    """An operator from a function of a block, ``matmat(V (n, k)) -> (m, k)``.

    `dtype` is used where a space is given as a dimension. Without `rmatmat` the transpose raises, unless `facts`
    declares symmetry.

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
