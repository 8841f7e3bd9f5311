"""A sum over a data set, batch by batch from tapes: Hessian, Gauss-Newton, Fisher.

The constants of the first batches are kept, as far as memory goes; those of the others are computed at each product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from frechet.errors import NotDifferentiable
from frechet.objective import Batch, Part, Snapshot
from frechet.operators.gauss_newton import OutputProduct
from frechet.operators.hessian import ObjectiveHessian
from frechet.operators.kept import (
    SMALL,
    Look,
    Room,
    goes_in_blocks,
    look_of,
    play,
    recorded,
    refuse_another,
    tensors_of,
)
from frechet.operators.operator import LinearOperator
from frechet.operators.products import Adding, Leaves, Sums, columns, differentiating
from frechet.operators.recorder import Map
from frechet.operators.route import lacks_forward
from frechet.operators.script import Untraceable
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
    if not targets:
        return s
    parts = []
    for j, part in enumerate(s.parts):
        absent = [_Absent(t) for (i, _), t in targets.items() if i == j]
        data = absent if complete else _Rest(absent, part.data)
        parts.append(replace(part, data=data, split=_split(part)))
    return replace(s, parts=tuple(parts))


def _split(part: Part) -> Callable[[Any], tuple[Any, Any]]:
    return lambda raw: (None, raw.targets) if isinstance(raw, _Absent) else part.split(raw)


@dataclass(eq=False)
class _Tapes:
    """The tapes of a product's batches, as a pass over the data records them, and how the others are computed."""

    A: ObjectiveHessian | OutputProduct
    room: Room
    leaves: Leaves
    operator: ObjectiveHessian | OutputProduct
    add: Adding
    of: dict[Key, Tape] = field(default_factory=dict)
    targets: dict[Key, Any] = field(default_factory=dict)  # of the batches whose constants are kept
    looks: dict[Key, Look] = field(default_factory=dict)  # of the others
    full: bool = False
    plain: bool = False  # some batches have no tape

    def visit(self, part: Part, batch: Batch) -> None:
        key = (self.A.snapshot.parts.index(part), batch.index)
        if not self.full:
            try:
                self.of[key] = self._recorded(part, batch, None, compare=not self.of)
            except MemoryError:
                self.full = True
                if isinstance(self.A, OutputProduct) and self.A.drawn:
                    raise ValueError(
                        f"linearize: memory must hold all batches of a Monte Carlo {self.A.name}, whose labels are "
                        f"drawn in one stream, got {int(self.room.most)} bytes; give more memory or use the operator "
                        "itself"
                    ) from None
            else:
                self.targets[key] = batch.targets
                self.room.batches += 1
                return
        self.room.recomputed += 1
        before, tensors = len(self.room.tapes), tensors_of(batch)
        # the constants of a head in chunks would be all at once what the chunks avoid
        if part.head is None:
            try:
                self.of[key] = self._recorded(part, batch, tensors, compare=not self.looks)
                self.looks[key] = look_of(tensors)
                return
            except Untraceable:
                if not self.of:
                    raise
                self.room.keep(before)
        self.plain = True

    def _recorded(self, part: Part, batch: Batch, tensors: list[Tensor] | None, compare: bool) -> Tape:
        """The tape of the product on a batch; from `tensors`, the batch's, where it computes its constants."""
        room, space, before = self.room, self.A.domain, len(self.room.tapes)
        # labels that are drawn must be the same ones in the product to compare with
        same = self._product(part, batch, self.A.adding()) if compare else None
        if not self.of and _convolves(self.A):
            tape = _attempt(room, self._product(part, batch, self.add), space, same, SMALL, tensors)
            if tape is not None and tape.at(tensors or ()).bytes <= SMALL:
                return tape
            room.keep(before)
            other = replace(self.A, route="forward")
            tape = _attempt(room, self._product(part, batch, other.adding()), space, same, math.inf, tensors)
            if tape is not None:
                self.operator, self.add = other, other.adding()
                return tape
        return recorded(room, self._product(part, batch, self.add), space, same, math.inf, tensors)

    def _product(self, part: Part, batch: Batch, add: Adding) -> Map:
        def product(v: list[Tensor]) -> list[Tensor]:
            sums = Sums([[]])
            add(self.leaves, part, batch, [v], sums)
            return sums.rows[0]

        return product


def kept_product(A: ObjectiveHessian | OutputProduct, room: Room) -> LinearOperator:
    """A by a tape for each batch, and by its own products for those that have none."""
    s, space = A.snapshot, A.domain
    if space.shard is not None:
        raise ValueError(
            f"linearize: A must have whole parameters, got {A!r} with sharded ones (fully_shard), which are gathered "
            "for each product; use the operator itself"
        )
    room.hold_apart([s.x, *s.constants.values()])
    tapes = _Tapes(A, room, s.leaves(space), A, A.adding())
    with differentiating(A.name, space.device), s.installed(tapes.leaves[1]):
        s.sweep(tapes.visit)
    room.routes.add(tapes.operator.route)
    rest = _without(s if tapes.plain else s.without_model(), tapes.targets, not tapes.full)
    blocks: dict[str, bool] = {}  # by a tape's code: whether it takes several vectors at once; found when asked

    def in_blocks(tape: Tape) -> bool:
        if tape.code not in blocks:
            blocks[tape.code] = goes_in_blocks(tape, columns(space, space.random(range(1), 0))[0])
        return blocks[tape.code]

    def matmat(V: Tensor) -> Tensor:
        with differentiating(A.name, space.device):
            vectors = columns(space, V)
            leaves = rest.leaves(space) if tapes.plain or rest.penalties else ([], {})
            add = tapes.operator.adding()

            def contribute(part: Part, batch: Batch, rows: list[list[Tensor]]) -> None:
                key = (rest.parts.index(part), batch.index)
                tape = tapes.of.get(key)
                if tape is None:
                    add(leaves, part, batch, vectors, Sums(rows))
                    return
                if tape.before is not None:
                    tensors = tensors_of(batch)
                    refuse_another(A.name, batch, tensors, tapes.looks[key])
                    tape = tape.at(tensors)
                play(tape, vectors, len(vectors) > 1 and in_blocks(tape), Sums(rows))

            with rest.installed(leaves[1]) if tapes.plain else nullcontext():
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


def _attempt(
    room: Room, product: Map, space: Space, same: Map | None, most: float, tensors: list[Tensor] | None
) -> Tape | None:
    """The tape of a product if it can be recorded in at most `most` bytes."""
    before = len(room.tapes)
    try:
        return recorded(room, product, space, same, most, tensors)
    except (Untraceable, NotDifferentiable, NotImplementedError, RuntimeError, MemoryError):
        room.keep(before)  # an operation without this mode, or more memory
        return None
