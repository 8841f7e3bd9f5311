"""Jacobians whose products are kept: two tapes for each batch, and the derivatives of functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Batch, Part
from frechet.operators.function import FunctionHessian, FunctionJacobian
from frechet.operators.jacobian import OutputJacobian
from frechet.operators.kept import Look, Room, look_of, recorded, refuse_another, tensors_of
from frechet.operators.operator import Fact, LinearOperator
from frechet.operators.products import Sums, add_into, columns, differentiating
from frechet.operators.structured import FromCallable
from frechet.operators.tape import Tape
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class _OnBatch:
    """J v and J'u on one batch."""

    push: Tape
    pull: Tape
    outputs: int
    look: Look
    error: NonFinite  # what to say where it gives a NaN: the inputs may be gone


def kept_jacobian(A: OutputJacobian, room: Room) -> LinearOperator:
    """A by two tapes for each batch, J v and J'u. Where memory does not hold all, each computes its constants."""
    s, space = A.snapshot, A.domain
    room.hold_apart([s.x, *s.constants.values()])
    leaves, before = s.leaves(space), len(room.tapes)

    def recorded_on(part: Part, batch: Batch, tensors: list[Tensor] | None, compare: bool) -> _OnBatch:
        def pull(u: list[Tensor]) -> list[Tensor]:
            sums = Sums([[]])
            A.pull(leaves, batch, u, sums)
            return sums.rows[0]

        def push(v: list[Tensor]) -> list[Tensor]:
            return A.push(leaves, batch, [v])

        with torch.no_grad():
            size = s.forward(leaves[1], batch).numel()
        outputs = Space(("",), ((size,),), space.dtype, space.device)
        pushed = recorded(room, push, space, push if compare else None, batch=tensors)
        pulled = recorded(room, pull, outputs, pull if compare else None, batch=tensors)
        return _OnBatch(pushed, pulled, size, look_of(tensors_of(batch)), s.nonfinite("jacobian", part, batch))

    def record_all(keep: bool) -> list[_OnBatch]:
        found: list[_OnBatch] = []
        s.sweep(lambda p, b: found.append(recorded_on(p, b, None if keep else tensors_of(b), not found)))
        return found

    with differentiating("jacobian", space.device), s.installed(leaves[1]):
        try:
            batches, kept = record_all(True), True
            room.batches += len(batches)
        except MemoryError:
            room.keep(before)
            batches, kept = record_all(False), False
            room.recomputed += len(batches)
    room.routes.add(A.route)

    def each(use: Callable[[_OnBatch, list[Tensor]], None]) -> None:
        """Call `use` for each batch, with its tensors where the constants are not kept."""
        if kept:
            for on in batches:
                use(on, [])
            return
        at = iter(batches)

        def visit(_part: Part, batch: Batch) -> None:
            on, tensors = next(at), tensors_of(batch)
            refuse_another("jacobian", batch, tensors, on.look)
            use(on, tensors)

        s.sweep(visit)

    def matmat(V: Tensor) -> Tensor:
        vectors, rows = columns(space, V), []

        def use(on: _OnBatch, tensors: list[Tensor]) -> None:
            push = on.push.at(tensors)
            rows.append(torch.stack([push(v)[0].reshape(-1) for v in vectors]))
            if not _finite(rows[-1]):
                raise NonFinite(*on.error.args)

        each(use)
        return torch.cat(rows, 1).T

    def rmatmat(U: Tensor) -> Tensor:
        out = space.zeros(U.shape[1])
        sums = [space.split(row) for row in out.T]
        start = 0

        def use(on: _OnBatch, tensors: list[Tensor]) -> None:
            nonlocal start
            pull = on.pull.at(tensors)
            for blocks, u in zip(sums, U.T[:, start : start + on.outputs], strict=True):
                add_into(blocks, pull([u.contiguous()]))
            start += on.outputs

        def look(on: _OnBatch, tensors: list[Tensor]) -> None:
            nonlocal start
            pull, some = on.pull.at(tensors), U.T[:, start : start + on.outputs]
            if not all(_finite(b) for u in some for b in pull([u.contiguous()])):
                raise NonFinite(*on.error.args)
            start += on.outputs

        each(use)
        if not _finite(out):
            start = 0
            each(look)
            raise NonFinite(f"jacobian: the sum over all batches overflows {space.dtype}, though each batch is finite")
        return out

    return FromCallable(matmat, rmatmat, space, A.codomain, A.facts)


def _finite(t: Tensor) -> bool:
    # one cheap reduction first: a finite sum has finite terms
    return math.isfinite(float(t.sum())) or bool(torch.isfinite(t).all())


def kept_function(A: FunctionHessian | FunctionJacobian, room: Room) -> LinearOperator:
    """The derivative of a function, by the tapes of A v and A'u; its constants are those of one batch of nothing."""

    def flat(space: Space) -> Space:
        return Space(("",), ((space.dim,),), space.dtype, space.device)

    def push(v: list[Tensor]) -> list[Tensor]:
        return [A._matmat(v[0].unsqueeze(1))[:, 0]]

    def pull(u: list[Tensor]) -> list[Tensor]:
        return [A._rmatmat(u[0].unsqueeze(1))[:, 0]]

    def record_both(batch: list[Tensor] | None) -> tuple[Tape, Tape]:
        forward = recorded(room, push, flat(A.domain), push, batch=batch)
        if Fact.SYMMETRIC in A.facts:
            return forward, forward
        return forward, recorded(room, pull, flat(A.codomain), pull, batch=batch)

    def played(tape: Tape, V: Tensor) -> Tensor:
        filled = tape.at([])
        return torch.stack([filled([v.contiguous()])[0] for v in V.T]).T

    room.hold_apart(A.x.values())
    before = len(room.tapes)
    try:
        forward, transposed = record_both(None)
        room.batches += 1
    except MemoryError:
        room.keep(before)
        forward, transposed = record_both([])
        room.recomputed += 1
    room.routes.add(A.route)
    return FromCallable(lambda V: played(forward, V), lambda U: played(transposed, U), A.domain, A.codomain, A.facts)
