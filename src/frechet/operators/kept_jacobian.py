"""Jacobians whose products are kept: two tapes for each batch, and the derivatives of functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.objective import Batch, Part
from frechet.operators.function import FunctionHessian, FunctionJacobian
from frechet.operators.jacobian import OutputJacobian
from frechet.operators.kept import Room, recorded
from frechet.operators.operator import Fact, LinearOperator
from frechet.operators.products import Sums, add_into, columns, differentiating
from frechet.operators.tape import Tape
from frechet.space import Space


@dataclass(frozen=True, eq=False, repr=False)
class KeptJacobian(LinearOperator):
    """A Jacobian by two tapes per batch, J v and J'u."""

    operator: OutputJacobian
    tapes: list[tuple[Tape, Tape, int]]  # with the number of outputs

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    def _matmat(self, V: Tensor) -> Tensor:
        vectors = columns(self.domain, V)
        return torch.stack([torch.cat([push(v)[0].reshape(-1) for push, _, _ in self.tapes]) for v in vectors]).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        out = self.domain.zeros(U.shape[1])
        for u, row in zip(U.T, out.T, strict=True):
            blocks, pieces = self.domain.split(row), u.split([size for _, _, size in self.tapes])
            for (_, pull, _), piece in zip(self.tapes, pieces, strict=True):
                add_into(blocks, pull([piece.contiguous()]))
        return out


def kept_jacobian(A: OutputJacobian, room: Room) -> KeptJacobian:
    s, space = A.snapshot, A.domain
    leaves, tapes, row = s.leaves(space), [], 0

    def visit(_part: Part, batch: Batch) -> None:
        nonlocal row

        def pull(u: list[Tensor]) -> list[Tensor]:
            sums = Sums([[]])
            A.pull(leaves, batch, u, sums)
            return sums.rows[0]

        def push(v: list[Tensor]) -> list[Tensor]:
            return A.push(leaves, batch, [v])

        with torch.no_grad():
            size = s.forward(leaves[1], batch).numel()
        outputs = Space(("",), ((size,),), space.dtype, space.device)
        pushed = recorded(room, push, space, None if tapes else push)
        tapes.append((pushed, recorded(room, pull, outputs, None if tapes else pull), size))
        room.batches += 1

    try:
        with differentiating("jacobian", space.device), s.installed(leaves[1]):
            s.sweep(visit)
    except MemoryError:
        raise MemoryError(
            f"linearize: memory must hold all batches of a Jacobian, got {int(room.most)} bytes; use the operator "
            "itself"
        ) from None
    room.routes.add(A.route)
    return KeptJacobian(A, tapes)


@dataclass(frozen=True, eq=False, repr=False)
class KeptFunction(LinearOperator):
    """The derivative of a function, by the tapes of A v and A'u."""

    operator: FunctionHessian | FunctionJacobian
    forward: Tape
    transposed: Tape

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    def _matmat(self, V: Tensor) -> Tensor:
        return torch.stack([self.forward([v.contiguous()])[0] for v in V.T]).T

    def _rmatmat(self, U: Tensor) -> Tensor:
        return torch.stack([self.transposed([u.contiguous()])[0] for u in U.T]).T


def kept_function(A: FunctionHessian | FunctionJacobian, room: Room) -> KeptFunction:
    def flat(space: Space) -> Space:
        return Space(("",), ((space.dim,),), space.dtype, space.device)

    def push(v: list[Tensor]) -> list[Tensor]:
        return [A._matmat(v[0].unsqueeze(1))[:, 0]]

    def pull(u: list[Tensor]) -> list[Tensor]:
        return [A._rmatmat(u[0].unsqueeze(1))[:, 0]]

    forward = transposed = recorded(room, push, flat(A.domain), push)
    if Fact.SYMMETRIC not in A.facts:
        transposed = recorded(room, pull, flat(A.codomain), pull)
    room.routes.add(A.route)
    return KeptFunction(A, forward, transposed)
