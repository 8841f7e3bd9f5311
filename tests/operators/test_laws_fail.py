"""Every law is seen to fail: for each, an operator that breaks it and little else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import laws
from cases import NAMED, Case, definite, random
from frechet.operators._operator import NONE, PD, PSD, SYMMETRIC, Adjoint, Fact, LinearOperator
from frechet.space import Space

M = random(7, 7)
S = definite(7)


@dataclass(frozen=True, eq=False, repr=False)
class Twin(LinearOperator):
    """A correct operator until a field is replaced; unlike `from_callable` it checks nothing."""

    matmat: Callable[[Tensor], Tensor]
    rmatmat: Callable[[Tensor], Tensor]
    facts: frozenset[Fact] = NONE
    domain: Space = NAMED
    codomain: Space = NAMED

    def _matmat(self, V):
        return self.matmat(V)

    def _rmatmat(self, U):
        return self.rmatmat(U)


RIGHT = Twin(lambda V: M @ V, lambda U: M.T @ U)
DEFINITE = Twin(lambda V: S @ V, lambda V: S @ V, PD)
CASE, DEFINITE_CASE = Case("right", RIGHT, M), Case("definite", DEFINITE, S)


class TransposedAnew(Twin):
    @property
    def T(self):
        return Adjoint(replace(self))


class ForgetsABlock(Twin):
    def __matmul__(self, other):
        if not isinstance(other, Mapping):
            return super().__matmul__(other)
        return self.codomain.unflatten(self @ self.domain.flatten({**other, "head": 0 * other["head"]}))


class LeftIsRight(Twin):
    def __rmatmul__(self, other):
        return (self @ other.T).T if isinstance(other, Tensor) else self @ other


class KeepsGraph(Twin):
    def __matmul__(self, other):
        return self._matmat(other) if isinstance(other, Tensor) and other.ndim == 2 else super().__matmul__(other)


class SharesMemory(Twin):
    def __matmul__(self, other):
        return self._matmat(other) if isinstance(other, Tensor) and other.ndim == 2 else super().__matmul__(other)


class Unrestrictable(Twin):
    """Right on whole spaces, wrong as a factor: products call `_matmat`, users call `@`."""

    def __matmul__(self, other):
        return M @ other if isinstance(other, Tensor) else super().__matmul__(other)


class NotPositive(Twin):
    """A.T @ A is not recognized: the transpose is not linked to A."""

    @property
    def T(self):
        return Twin(self.rmatmat, self.matmat)


def without_column(V):
    return torch.cat([M @ V[:, :-1], 0 * V[:, -1:]], dim=1)


def noisy():
    state = iter(range(1000))
    return lambda V: M @ V + 1e-6 * random(7, V.shape[1], next(state))


BROKEN = [
    (laws.agrees_with_dense, replace(RIGHT, matmat=lambda V: 1.0001 * (M @ V)), CASE),
    (laws.transposes, replace(RIGHT, rmatmat=lambda U: M @ U), CASE),
    (laws.transposes, replace(DEFINITE, rmatmat=lambda U: M @ U), DEFINITE_CASE),
    (laws.transpose_of_transpose_is_itself, TransposedAnew(RIGHT.matmat, RIGHT.rmatmat), CASE),
    (laws.transpose_of_transpose_is_itself, TransposedAnew(DEFINITE.matmat, DEFINITE.rmatmat, PD), DEFINITE_CASE),
    (laws.is_linear, replace(RIGHT, matmat=lambda V: M @ V + 1e-6 * V.square()), CASE),
    (laws.is_linear, replace(RIGHT, matmat=lambda V: M @ V + 1e-6), CASE),
    (laws.is_linear, replace(RIGHT, matmat=lambda V: M @ V.float().double()), CASE),
    (laws.acts_on_columns, replace(RIGHT, matmat=without_column), CASE),
    (laws.acts_on_columns, replace(RIGHT, rmatmat=lambda U: M.T @ U + 1e-6 * U.sum(1, keepdim=True)), CASE),
    (laws.maps_dicts_to_dicts, ForgetsABlock(RIGHT.matmat, RIGHT.rmatmat), CASE),
    (laws.facts_hold, replace(RIGHT, facts=SYMMETRIC), CASE),
    (laws.facts_hold, replace(DEFINITE, facts=PSD), Case("indefinite", DEFINITE, S - 5.0 * torch.eye(7).double())),
    (laws.facts_hold, DEFINITE, Case("semidefinite", DEFINITE, M[:, :2] @ M[:, :2].T)),
    (laws.facts_hold_on_compositions, NotPositive(RIGHT.matmat, RIGHT.rmatmat), CASE),
    (laws.restricts_to_submatrices, Unrestrictable(lambda V: M @ V.flip(0), RIGHT.rmatmat), CASE),
    (laws.keeps_dtype_and_device, replace(RIGHT, matmat=lambda V: (M @ V).float()), CASE),
    (laws.keeps_dtype_and_device, replace(RIGHT, rmatmat=lambda U: (M.T @ U)[:-1]), CASE),
    (laws.keeps_no_graph, KeepsGraph(RIGHT.matmat, RIGHT.rmatmat), CASE),
    (laws.leaves_its_input, replace(RIGHT, matmat=lambda V: M @ V.mul_(1.0 + 1e-9)), CASE),
    (laws.leaves_its_input, SharesMemory(lambda V: V, lambda U: U), Case("identity", RIGHT, torch.eye(7).double())),
    (laws.multiplies_from_the_left, LeftIsRight(RIGHT.matmat, RIGHT.rmatmat), CASE),
    (laws.repeats_itself, replace(RIGHT, matmat=noisy()), CASE),
]


@pytest.mark.parametrize(
    ("law", "twin", "case"), BROKEN, ids=[f"{law.__name__}-{i}" for i, (law, *_) in enumerate(BROKEN)]
)
def test_the_law_fails_for_its_broken_twin(law, twin, case):
    with pytest.raises(AssertionError):
        law(twin, case)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_the_law_holds_for_the_operator_that_was_broken(law):
    law(RIGHT, CASE)
    law(DEFINITE, DEFINITE_CASE)


def test_every_law_has_a_broken_twin():
    assert {law for law, *_ in BROKEN} == set(laws.LAWS)
