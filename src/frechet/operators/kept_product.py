"""A sum over a data set, batch by batch from tapes: Hessian, Gauss-Newton, Fisher.

The constants of the first batches are kept, as far as memory goes; those of the others are computed at each product.

One recording serves all batches whose tensors look alike. That is right unless which operations are done hangs on the
numbers in a batch; the recorder notices what could make it so (`Recorder.alone`), and the second batch that a recording
serves is compared with a product. Where either says so, each batch has a recording of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from frechet.errors import NotDifferentiable
from frechet.objective import Batch, Part, Snapshot
from frechet.operators.gauss_newton import OutputProduct
from frechet.operators.hessian import ObjectiveHessian
from frechet.operators.kept import (
    SMALL,
    Look,
    Room,
    compare,
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
class _Program:
    """A tape that computes its constants from a batch, for the batches that look like the one it was recorded with."""

    part: int
    look: Look
    others: list[Any]  # what is in the batch beside tensors
    tape: Tape
    compared: bool = False  # with a product on another batch, or, where there is no other, on the same

    def serves(self, part: int, look: Look, others: list[Any]) -> bool:
        if self.tape.alone or (self.part, self.look) != (part, look):
            return False
        try:
            return bool(self.others == others)
        except (RuntimeError, ValueError):  # arrays, which have no one truth
            return False


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
    programs: list[_Program] = field(default_factory=list)
    first: tuple[_Program, Part, Batch] | None = None  # what was recorded first, and with which batch
    full: bool = False
    plain: bool = False  # some batches have no tape
    each: bool = False  # batches have each their own program
    folding: bool = False  # constants cannot be computed anew
    others: int = 0  # tapes of other operators in the room

    def visit(self, part: Part, batch: Batch) -> None:
        key, tensors = (self.A.snapshot.parts.index(part), batch.index), tensors_of(batch)
        program = self._program(key[0], part, batch, tensors)
        if program is not None and not self.full:
            tape = program.tape.at(tensors)
            if self.room.fits(tape):
                self._keep(key, self.room.held(tape), batch)
                return
            self.full = True
        if program is not None:
            if program.tape not in self.room.tapes:
                program.tape = self.room.held(program.tape)
            self.of[key], self.looks[key] = program.tape, program.look
        elif not self.full:
            try:
                self._keep(key, self._folded(part, batch), batch)
                return
            except MemoryError:
                self.full = self.plain = True
        else:
            self.plain = True
        if isinstance(self.A, OutputProduct) and self.A.drawn:
            raise ValueError(
                f"linearize: memory must hold all batches of a Monte Carlo {self.A.name}, whose labels are drawn in "
                f"one stream, got {int(self.room.most)} bytes; give more memory or use the operator itself"
            )
        self.room.recomputed += 1

    def _keep(self, key: Key, tape: Tape, batch: Batch) -> None:
        self.of[key], self.targets[key] = tape, batch.targets
        self.room.batches += 1

    def finish(self) -> None:
        """Compare the first program with a product, if no second batch of its kind did."""
        if self.first is None or self.first[0].compared:
            return
        program, part, batch = self.first
        try:
            self._compare(program, part, batch)
        except Untraceable:
            if len(self.of) > 1 or self.full:
                raise
            self.room.keep(self.others)
            self.room.batches -= 1
            self.of.clear()  # what is computed outside of PyTorch may be among the constants
            self._keep((program.part, batch.index), self._folded(part, batch), batch)

    def _program(self, j: int, part: Part, batch: Batch, tensors: list[Tensor]) -> _Program | None:
        """A program for a batch, recorded with it or with one before that looks the same; None where there is none."""
        # the constants of a head in chunks would be all at once what the chunks avoid; labels are drawn in one stream
        if part.head is not None or self.folding or (isinstance(self.A, OutputProduct) and self.A.drawn):
            return None
        look = look_of(tensors)
        others = [x for x in tree_leaves((batch.inputs, batch.targets)) if not isinstance(x, Tensor)]
        for program in () if self.each else self.programs:
            if program.serves(j, look, others) and self._is_seen_to_serve(program, part, batch):
                return program
        try:
            program = _Program(j, look, others, self._recorded(part, batch, tensors))
            if program.tape.alone and not self.programs:
                self._compare(program, part, batch)
        except Untraceable as error:
            self.folding, self.room.why = True, f", because its constants cannot be computed anew: {error}"
            return None
        if not self.programs:
            self.first = (program, part, batch)
        self.programs.append(program)
        return program

    def _is_seen_to_serve(self, program: _Program, part: Part, batch: Batch) -> bool:
        """Whether a program gives the product on another batch than that of its recording; it is tried once."""
        try:
            if not program.compared:
                self._compare(program, part, batch)
        except (Untraceable, RuntimeError):  # it is what it is by the values in the batch
            self.each = True
        return not self.each

    def _compare(self, program: _Program, part: Part, batch: Batch) -> None:
        same = self._product(part, batch, self.add)
        compare(self.room, program.tape.at(tensors_of(batch)), same, self.A.domain)
        program.compared = True

    def _recorded(self, part: Part, batch: Batch, tensors: list[Tensor]) -> Tape:
        """The tape of the product on a batch that computes its constants from `tensors`, the batch's."""
        product, space = self._product(part, batch, self.add), self.A.domain
        if self.of or not _convolves(self.A):
            return self.room.record(product, space, batch=tensors)
        reverse = self.room.record(product, space, batch=tensors)
        if reverse.at(tensors).bytes <= SMALL:
            return reverse
        other = replace(self.A, route="forward")
        try:
            forward = self.room.record(self._product(part, batch, other.adding()), space, batch=tensors)
        except (Untraceable, NotDifferentiable, NotImplementedError, RuntimeError):
            return reverse  # an operation without forward mode
        self.operator, self.add = other, other.adding()
        return forward

    def _folded(self, part: Part, batch: Batch) -> Tape:
        """The tape of the product on a batch with its constants in it, where they cannot be computed anew."""
        room, space = self.room, self.A.domain
        # labels that are drawn must be the same ones in the product to compare with
        same = None if self.of else self._product(part, batch, self.A.adding())
        return recorded(room, self._product(part, batch, self.add), space, same)

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
    tapes = _Tapes(A, room, s.leaves(space), A, A.adding(), others=len(room.tapes))
    with differentiating(A.name, space.device), s.installed(tapes.leaves[1]):
        s.sweep(tapes.visit, then=tapes.finish)
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
