"""Jacobians whose products are kept: two tapes for each batch, and the derivatives of functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Batch, Part
from frechet.operators.function import FunctionHessian, FunctionJacobian
from frechet.operators.jacobian import OutputJacobian
from frechet.operators.kept import Room, recorded
from frechet.operators.operator import Fact, LinearOperator
from frechet.operators.products import Sums, add_into, columns, differentiating
from frechet.operators.structured import FromCallable
from frechet.operators.tape import Tape
from frechet.space import Space


def kept_jacobian(A: OutputJacobian, room: Room) -> LinearOperator:
    """A by two tapes for each batch, J v and J'u."""
    s, space = A.snapshot, A.domain
    leaves = s.leaves(space)
    tapes: list[tuple[Tape, Tape]] = []
    sizes: list[int] = []  # outputs of each batch
    errors: list[NonFinite] = []  # what to say where a batch gives a NaN: its inputs are not kept

    def visit(part: Part, batch: Batch) -> None:
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
        tapes.append((pushed, recorded(room, pull, outputs, None if tapes else pull)))
        sizes.append(size)
        errors.append(s.nonfinite("jacobian", part, batch))
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

    def matmat(V: Tensor) -> Tensor:
        rows = [torch.cat([push(v)[0].reshape(-1) for push, _ in tapes]) for v in columns(space, V)]
        out = torch.stack(rows).T
        if not _finite(out):
            for part, error in zip(out.split(sizes), errors, strict=True):
                if not _finite(part):
                    raise NonFinite(*error.args)
        return out

    def rmatmat(U: Tensor) -> Tensor:
        out = space.zeros(U.shape[1])
        for u, row in zip(U.T, out.T, strict=True):
            blocks = space.split(row)
            for (_, pull), piece in zip(tapes, u.split(sizes), strict=True):
                add_into(blocks, pull([piece.contiguous()]))
        if not _finite(out):
            for (_, pull), part, error in zip(tapes, U.split(sizes), errors, strict=True):
                if not all(_finite(b) for u in part.T for b in pull([u.contiguous()])):
                    raise NonFinite(*error.args)
            raise NonFinite(f"jacobian: the sum over all batches overflows {space.dtype}, though each batch is finite")
        return out

    return FromCallable(matmat, rmatmat, space, A.codomain, A.facts)


def _finite(t: Tensor) -> bool:
    # one cheap reduction first: a finite sum has finite terms
    return math.isfinite(float(t.sum())) or bool(torch.isfinite(t).all())


def kept_function(A: FunctionHessian | FunctionJacobian, room: Room) -> LinearOperator:
    """The derivative of a function, by the tapes of A v and A'u."""

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
    return FromCallable(
        lambda V: torch.stack([forward([v.contiguous()])[0] for v in V.T]).T,
        lambda U: torch.stack([transposed([u.contiguous()])[0] for u in U.T]).T,
        *(A.domain, A.codomain, A.facts),
    )
