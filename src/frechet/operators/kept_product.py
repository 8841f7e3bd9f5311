"""A sum over a data set of which some batches' products are kept: Hessian, Gauss-Newton, Fisher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from frechet.errors import NotDifferentiable
from frechet.objective import Batch, Part, Snapshot
from frechet.operators.gauss_newton import OutputProduct
from frechet.operators.hessian import ObjectiveHessian
from frechet.operators.kept import SMALL, Room, goes_in_blocks, play, recorded
from frechet.operators.operator import LinearOperator
from frechet.operators.products import Adding, Sums, columns, differentiating
from frechet.operators.recorder import Map, Untraceable
from frechet.operators.route import lacks_forward
from frechet.operators.structured import FromCallable
from frechet.operators.tape import Tape
from frechet.space import Space

Key = tuple[int, int]  # part, batch


@dataclass(frozen=True, eq=False)
class _Absent:
    """Stands for a batch whose product is kept: of the batch itself only the targets are needed, to count."""

    targets: Any


@dataclass(frozen=True, eq=False)
class _Rest:
    """A data set whose first batches are kept."""

    absent: list[_Absent]
    data: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        yield from self.absent
        yield from islice(self.data, len(self.absent), None)


def _without(s: Snapshot, targets: dict[Key, Any], complete: bool) -> Snapshot:
    """The snapshot whose passes do not read the batches in `targets`."""
    parts = []
    for j, part in enumerate(s.parts):
        absent = [_Absent(t) for (i, _), t in targets.items() if i == j]
        data = absent if complete else _Rest(absent, part.data)
        parts.append(replace(part, data=data, split=_split(part)))
    return replace(s, parts=tuple(parts))


def _split(part: Part) -> Callable[[Any], tuple[Any, Any]]:
    return lambda raw: (None, raw.targets) if isinstance(raw, _Absent) else part.split(raw)


def kept_product(A: ObjectiveHessian | OutputProduct, room: Room) -> LinearOperator:
    """A by a tape for each batch that fits, and by its own products for the others."""
    s, space = A.snapshot, A.domain
    if space.shard is not None:
        raise ValueError(
            f"linearize: A must have whole parameters, got {A!r} with sharded ones (fully_shard), which are gathered "
            "for each product; use the operator itself"
        )
    leaves, targets = s.leaves(space), {}
    operator, full, add = A, False, A.adding()
    tapes: dict[Key, Tape] = {}
    blocks: dict[str, bool] = {}  # by a tape's code: whether it takes several vectors at once; found when asked

    def product_on(part: Part, batch: Batch, add: Adding) -> Map:
        def product(v: list[Tensor]) -> list[Tensor]:
            sums = Sums([[]])
            add(leaves, part, batch, [v], sums)
            return sums.rows[0]

        return product

    def in_blocks(tape: Tape) -> bool:
        if tape.code not in blocks:
            blocks[tape.code] = goes_in_blocks(tape, columns(space, space.random(range(1), 0))[0])
        return blocks[tape.code]

    def visit(part: Part, batch: Batch) -> None:
        nonlocal operator, full, add
        if not full:
            first = not tapes
            try:
                # labels that are drawn must be the same ones in the product to compare with
                same = product_on(part, batch, A.adding()) if first else None
                tape = None
                if first and _convolves(A):
                    tape = _attempt(room, product_on(part, batch, add), space, same, SMALL)
                    if tape is None:
                        other = replace(A, route="forward")
                        tape = _attempt(room, product_on(part, batch, other.adding()), space, same)
                        operator, add = (A, add) if tape is None else (other, other.adding())
                if tape is None:
                    tape = recorded(room, product_on(part, batch, add), space, same)
                key = (s.parts.index(part), batch.index)
                tapes[key], targets[key] = tape, batch.targets
                room.batches += 1
                return
            except MemoryError:
                full = True
        room.recomputed += 1

    with differentiating(A.name, space.device), s.installed(leaves[1]):
        s.sweep(visit)
    room.routes.add(operator.route)
    if full and isinstance(A, OutputProduct) and A.drawn:
        raise ValueError(
            f"linearize: memory must hold all batches of a Monte Carlo {A.name}, whose labels are drawn in one stream, "
            f"got {int(room.most)} bytes; give more memory or use the operator itself"
        )
    rest = _without(s, targets, not full)

    def matmat(V: Tensor) -> Tensor:
        with differentiating(A.name, space.device):
            leaves, vectors = rest.leaves(space), columns(space, V)
            add = operator.adding()

            def contribute(part: Part, batch: Batch, rows: list[list[Tensor]]) -> None:
                tape = tapes.get((rest.parts.index(part), batch.index))
                if tape is None:
                    add(leaves, part, batch, vectors, Sums(rows))
                else:
                    play(tape, vectors, len(vectors) > 1 and in_blocks(tape), Sums(rows))

            with rest.installed(leaves[1]):
                product = rest.average_rows(contribute, space, len(vectors), A.name, A.scale, V)
            if isinstance(A, OutputProduct) and not A.penalized:
                return product.T
            return rest.plus_penalty(A.name, product, lambda: A.of_penalty(leaves, vectors)).T

    return FromCallable(matmat, matmat, space, space, A.facts)


def _convolves(A: ObjectiveHessian | OutputProduct) -> bool:
    """Whether A is a Hessian by double backward through convolutions, whose second backward does needless work."""
    model = A.snapshot.model
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    return convolves and isinstance(A, ObjectiveHessian) and A.route == "reverse" and lacks_forward(model) is None


def _attempt(room: Room, product: Map, space: Space, same: Map | None, most: float = math.inf) -> Tape | None:
    """The tape of a product if it can be recorded in at most `most` bytes."""
    before = len(room.tapes)
    try:
        return recorded(room, product, space, same, most)
    except (Untraceable, NotDifferentiable, NotImplementedError, RuntimeError, MemoryError):
        room.keep(before)  # an operation without this mode, or more memory
        return None
