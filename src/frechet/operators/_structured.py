"""Operators whose structure is known: identity, dense, diagonal, low rank, Kronecker, block diagonal, in another order,
by eigenvectors, restriction.

Cost of a product with k vectors: what the stored arrays cost. `_constructors.py` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frechet.operators._operator import NONE, PD, PSD, SYMMETRIC, Fact, LinearOperator, SymmetricOperator
from frechet.space import Space

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
class Permuted(LinearOperator):
    """A square operator on the entries of a vector in another order: (A v)[order] = operator(v[order])."""

    operator: LinearOperator
    order: Tensor  # (n,) a permutation
    domain: Space

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    @cached_property
    def _in_order(self) -> bool:
        """Whether nothing is permuted."""
        return torch.equal(self.order, torch.arange(len(self.order), device=self.order.device))

    def _matmat(self, V: Tensor) -> Tensor:
        if self._in_order:
            return self.operator._matmat(V)
        return self._back(self.operator._matmat(V.T[:, self.order].T))

    def _rmatmat(self, U: Tensor) -> Tensor:
        if self._in_order:
            return self.operator._rmatmat(U)
        return self._back(self.operator._rmatmat(U.T[:, self.order].T))

    def _back(self, W: Tensor) -> Tensor:
        out = torch.empty_like(W.T, memory_format=torch.contiguous_format)
        out[:, self.order] = W.T
        return out.T


@dataclass(frozen=True, eq=False, repr=False)
class Eigendecomposed(LinearOperator):
    """Q diag(values) Q' with Q orthogonal; its sign is known from the values."""

    Q: LinearOperator
    values: Tensor  # (n,), float64
    facts: frozenset[Fact]

    @property
    def domain(self) -> Space:
        return self.Q.codomain

    @property
    def codomain(self) -> Space:
        return self.Q.codomain

    def _matmat(self, V: Tensor) -> Tensor:
        return self.Q._matmat((self.Q._rmatmat(V).T * self.values.to(V.dtype)).T)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


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
