"""A linear map between two spaces, known by its products, and the lazy algebra on such maps.

An operator writes two methods, ``_matmat`` (A V) and ``_rmatmat`` (A' U), on blocks of flat vectors; everything else is
here once. Operators are frozen: nothing is cached on them, no product leaves an autograd graph, no input is changed.

Facts (`symmetric`, `positive_semidefinite`, `positive_definite`) steer the choice of algorithms. They are derived where
they can be proved (a product that reads the same transposed around a semidefinite middle, such as J'CJ or JJ'; sums;
positive multiples), declared otherwise, and tested by `check_operator`.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

import numpy as np
import torch
from torch import Tensor

from frechet.space import Space


class Fact(StrEnum):
    """What is known of a square operator. Definite implies semidefinite implies symmetric."""

    SYMMETRIC = "symmetric"
    POSITIVE_SEMIDEFINITE = "positive_semidefinite"
    POSITIVE_DEFINITE = "positive_definite"


NONE: frozenset[Fact] = frozenset()
SYMMETRIC = frozenset({Fact.SYMMETRIC})
PSD = SYMMETRIC | {Fact.POSITIVE_SEMIDEFINITE}
PD = PSD | {Fact.POSITIVE_DEFINITE}


class LinearOperator(ABC):
    """A linear map from `domain` to `codomain`. ``A @ v``, ``A @ V``, ``A @ {name: tensor}``, ``A @ B``, ``v @ A``.

    Vectors are flat ``(n,)``, blocks ``(n, k)``, or dicts shaped like the space's blocks (a dict in gives a dict out).
    """

    __array_ufunc__ = None  # so that numpy hands `array @ A` to __rmatmul__

    # a final class provides each of these as a frozen field or as a property
    domain: Space
    codomain: Space
    facts: frozenset[Fact]

    @abstractmethod
    def _matmat(self, V: Tensor) -> Tensor: ...  # (n, k) -> (m, k)

    @abstractmethod
    def _rmatmat(self, U: Tensor) -> Tensor: ...  # (m, k) -> (n, k)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): rows and columns."""
        return (self.codomain.dim, self.domain.dim)

    @property
    def T(self) -> LinearOperator:
        """The transpose; the operator itself where it is symmetric."""
        return self if Fact.SYMMETRIC in self.facts else Adjoint(self)

    def dense(self) -> Tensor:
        """The matrix ``(m, n)``, by products with the unit vectors of the smaller side."""
        if self.shape[0] < self.shape[1]:
            return self.T.dense().T
        m, n = self.shape
        try:
            columns = torch.empty(n, m, dtype=self.domain.dtype, device=self.domain.device)
        except RuntimeError as error:  # the allocator's
            size = m * n * self.domain.dtype.itemsize / 2**30
            raise MemoryError(
                f"dense: the matrix {(m, n)} needs {size:.3g} GiB, which is more than there is; ask by products "
                "(eigsh, trace, diagonal), or restrict= the operator to fewer parameters"
            ) from error
        for a in range(0, self.shape[1], 64):
            b = min(a + 64, self.shape[1])
            columns[a:b] = self.codomain.whole(self @ self.domain.units(range(a, b))).T
        return columns.T

    def __repr__(self) -> str:
        facts = f", {_strongest(self.facts)}" if self.facts else ""
        return f"{type(self).__name__} {self.domain!r} -> R^{self.codomain.dim}{facts}"

    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(
        self, other: LinearOperator | Tensor | Mapping[str, Tensor]
    ) -> LinearOperator | Tensor | dict[str, Tensor]:
        if isinstance(other, LinearOperator):
            return _product(self, other)
        if isinstance(other, Mapping):
            return self.codomain.unflatten(self @ self.domain.flatten(other))
        _check_vector(other, self.domain, f"{type(self).__name__} @ v")
        with torch.no_grad():
            V = other.detach()
            if V.ndim == 2 and not V.shape[1]:
                return self.codomain.zeros(0)
            result = self._matmat(V) if V.ndim == 2 else self._matmat(V.unsqueeze(1))[:, 0]
            # a map that returns its input (the identity) must not hand out the caller's memory
            shared = result.untyped_storage().data_ptr() == V.untyped_storage().data_ptr()
            return result.clone() if shared and V.numel() else result

    def __rmatmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if isinstance(other, Tensor) and other.ndim == 2:
            if other.shape[1] != self.codomain.length:
                raise ValueError(
                    f"V @ {type(self).__name__}: expected shape (k, {self.codomain.length}) for {self.codomain!r}, "
                    f"got {tuple(other.shape)}"
                )
            return (self.T @ other.T).T
        return self.T @ other

    def __add__(self, other: object) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            raise TypeError(
                f"{type(self).__name__} + c: the right side must be an operator, got {type(other).__name__}; "
                "for a multiple of the identity write A + c * identity(A.domain)"
            )
        for name in ("domain", "codomain"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"A + B: {name}s must be equal, {_got(getattr(self, name), getattr(other, name))}")
        terms = (*_terms(self), *_terms(other))
        return Sum(terms)

    def __radd__(self, other: object) -> LinearOperator:
        return self.__add__(other)

    def __sub__(self, other: object) -> LinearOperator:
        return self + (-other) if isinstance(other, LinearOperator) else self + other

    def __rsub__(self, other: object) -> LinearOperator:
        return self.__add__(other)

    def __mul__(self, c: float | Tensor) -> LinearOperator:
        if isinstance(c, LinearOperator):
            raise TypeError("A * B: compose operators with A @ B; * takes a number")
        if isinstance(c, Tensor | np.ndarray) and c.ndim > 0:
            raise TypeError(
                f"c * A: c must be a number, got shape {tuple(c.shape)}; to compose write from_matrix(c) @ A, "
                "for a row scaling from_diagonal(c) @ A"
            )
        if isinstance(c, Tensor):
            c = c.detach().item()
        if not isinstance(c, numbers.Real | np.ndarray):
            raise TypeError(f"c * A: c must be a real number, got {type(c).__name__}")
        scale = float(c)
        if isinstance(self, Scaled):
            return Scaled(scale * self.scale, self.operator)
        return Scaled(scale, self)

    __rmul__ = __mul__

    def __truediv__(self, c: float) -> LinearOperator:
        return self * (1.0 / c)

    def __neg__(self) -> LinearOperator:
        return self * -1.0


class SymmetricOperator(LinearOperator):
    """A linear map from a space to itself that is its own transpose. It writes ``_matmat`` alone."""

    @property
    def codomain(self) -> Space:
        return self.domain

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


def _strongest(facts: frozenset[Fact]) -> str:
    return max(facts, key=list(Fact).index).value.replace("_", " ")


def _got(a: Space, b: Space) -> str:
    """Two different spaces, with the block that differs where their lines look alike."""
    text = f"got {a!r} and {b!r}"
    for name, shape, other, other_shape in zip(a.names, a.shapes, b.names, b.shapes, strict=False):
        if repr(a) == repr(b) and (name, shape) != (other, other_shape):
            return f"{text} with block '{name}' of shape {shape} and block '{other}' of shape {other_shape}"
    return text


def _check_vector(v: object, space: Space, what: str) -> None:
    if isinstance(v, np.ndarray):
        raise TypeError(f"{what}: expected a torch tensor, got a numpy array; convert with torch.from_numpy")
    if not isinstance(v, Tensor):
        raise TypeError(f"{what}: expected a tensor, a dict or an operator, got {type(v).__name__}")
    if v.ndim not in (1, 2) or v.shape[0] != space.length:
        raise ValueError(
            f"{what}: expected shape ({space.length},) or ({space.length}, k) for {space!r}, got {tuple(v.shape)}"
        )
    if v.dtype != space.dtype:
        raise TypeError(f"{what}: expected {space.dtype}, got {v.dtype}; convert with v.to({space.dtype})")
    if v.device != space.device:
        raise ValueError(f"{what}: expected a tensor on {space.device}, got {v.device}; move it with v.to(...)")


# --- algebra ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Adjoint(LinearOperator):
    """The transpose of an operator that is not known to be symmetric."""

    operator: LinearOperator

    @property
    def domain(self) -> Space:
        return self.operator.codomain

    @property
    def codomain(self) -> Space:
        return self.operator.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    @property
    def T(self) -> LinearOperator:
        return self.operator

    def _matmat(self, V: Tensor) -> Tensor:
        return self.operator._rmatmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self.operator._matmat(U)


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(LinearOperator):
    """c A."""

    scale: float
    operator: LinearOperator

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def facts(self) -> frozenset[Fact]:
        if self.scale > 0:
            return self.operator.facts
        if self.scale == 0 and Fact.SYMMETRIC in self.operator.facts:
            return PSD
        return self.operator.facts & SYMMETRIC

    def _matmat(self, V: Tensor) -> Tensor:
        return self.scale * self.operator._matmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self.scale * self.operator._rmatmat(U)


@dataclass(frozen=True, eq=False, repr=False)
class Sum(LinearOperator):
    """A_1 + A_2 + ..."""

    terms: tuple[LinearOperator, ...]

    @property
    def domain(self) -> Space:
        return self.terms[0].domain

    @property
    def codomain(self) -> Space:
        return self.terms[0].codomain

    @property
    def facts(self) -> frozenset[Fact]:
        shared = frozenset.intersection(*(t.facts for t in self.terms))
        definite = any(Fact.POSITIVE_DEFINITE in t.facts for t in self.terms)
        return PD if Fact.POSITIVE_SEMIDEFINITE in shared and definite else shared

    def _matmat(self, V: Tensor) -> Tensor:
        return sum((t._matmat(V) for t in self.terms[1:]), start=self.terms[0]._matmat(V))

    def _rmatmat(self, U: Tensor) -> Tensor:
        return sum((t._rmatmat(U) for t in self.terms[1:]), start=self.terms[0]._rmatmat(U))


@dataclass(frozen=True, eq=False, repr=False)
class Product(LinearOperator):
    """A_1 A_2 ... A_p, applied from the right."""

    factors: tuple[LinearOperator, ...]

    @property
    def domain(self) -> Space:
        return self.factors[-1].domain

    @property
    def codomain(self) -> Space:
        return self.factors[0].codomain

    @property
    def facts(self) -> frozenset[Fact]:
        p = len(self.factors)
        if not all(_transposes(self.factors[i], self.factors[p - 1 - i]) for i in range(p // 2)):
            return NONE
        # a congruence keeps the sign of its middle, but not definiteness: the outer factor may have a null space
        return self.factors[p // 2].facts & PSD if p % 2 else PSD

    def _matmat(self, V: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            V = factor._matmat(V)
        return V

    def _rmatmat(self, U: Tensor) -> Tensor:
        for factor in self.factors:
            U = factor._rmatmat(U)
        return U


def _terms(A: LinearOperator) -> tuple[LinearOperator, ...]:
    return A.terms if isinstance(A, Sum) else (A,)


def _transposes(A: LinearOperator, B: LinearOperator) -> bool:
    """Whether A is provably the transpose of B."""
    match A, B:
        case Adjoint(a), Adjoint(b):
            return _transposes(a, b)
        case Adjoint(a), _:
            return a is B
        case _, Adjoint(b):
            return b is A
        case Scaled(c, a), Scaled(d, b):
            return c == d and _transposes(a, b)
        case _:
            return A is B and Fact.SYMMETRIC in A.facts


def _product(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    if A.domain != B.codomain:
        raise ValueError(f"A @ B: A's domain must equal B's codomain, {_got(A.domain, B.codomain)}")
    (a, left), (b, right) = _factors(A), _factors(B)
    product = Product((*left, *right))
    return product if a * b == 1.0 else Scaled(a * b, product)


def _factors(A: LinearOperator) -> tuple[float, tuple[LinearOperator, ...]]:
    """A as a number times factors, looking through transposes so that (A B)' A B is seen to be symmetric."""
    match A:
        case Scaled(scale, operator):
            c, factors = _factors(operator)
            return scale * c, factors
        case Product(factors):
            return 1.0, factors
        case Adjoint(Scaled() | Product() as operator):
            c, factors = _factors(operator)
            return c, tuple(f.T for f in reversed(factors))
        case _:
            return 1.0, (A,)
