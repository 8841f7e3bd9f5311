"""The tapes of a linearization, within a bound on memory: recorded, compared with a product, played back."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from frechet.errors import UnusableObjective
from frechet.objective import Batch
from frechet.operators.products import Sums, columns
from frechet.operators.recorder import Map
from frechet.operators.script import Untraceable, place_of, storage_of
from frechet.operators.tape import Tape, record
from frechet.space import Space

SMALL = 1 << 24  # bytes: a tape of at most this size spends its time in calls rather than in arithmetic
Look = list[tuple[torch.Size, torch.dtype, int]]  # of a batch's tensors; the number says which are one and the same
TOGETHER = 8  # vectors that go through such a tape at once: more would leave the caches


@dataclass(eq=False)
class Room:
    """What is kept so far, and how much more may be."""

    most: float
    compile: bool
    tapes: list[Tape] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)  # bytes
    apart: set[int] = field(default_factory=set)  # storages that are not counted: the operator holds them anyway
    routes: set[str] = field(default_factory=set)
    batches: int = 0
    recomputed: int = 0
    why: str = ""  # what does not fit must be held
    plain: float = 0.0  # seconds of the first batch's product, and of the same one played back
    played: float = 0.0
    released: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def hold_apart(self, tensors: Iterable[Tensor]) -> None:
        self.apart |= {storage_of(t) for t in tensors}

    def record(self, product: Map, space: Space, most: float = math.inf, batch: Sequence[Tensor] | None = None) -> Tape:
        """The tape of a product that holds at most `most` bytes; one that computes from the tensors of a `batch`."""
        # views of one vector, as the parameters are: where layouts differ forward mode copies tangents
        [probe] = columns(space, space.random(range(1), 0))
        return record(product, probe, most, self.apart, batch)

    def fits(self, tape: Tape) -> bool:
        """Whether the constants of a tape may be held beside what is held already."""
        return self.bytes + sum(self._new(tape).values()) <= self.most

    def held(self, tape: Tape) -> Tape:
        """The tape, compiled if so asked, whose constants are held from now on."""
        tape = tape.compiled() if self.compile else tape
        self.tapes.append(tape)
        self.storages.update(self._new(tape))
        return tape

    def _new(self, tape: Tape) -> dict[int, int]:
        known = self.apart | self.storages.keys()
        return {key: size for key, size in tape.storages.items() if key not in known}

    def keep(self, count: int) -> None:
        """Forget all tapes but the first `count`."""
        for tape in self.tapes[count:]:
            tape.constants.clear()
            if tape.before is not None:
                tape.before.constants.clear()
        del self.tapes[count:]
        self.storages = {}
        for tape in self.tapes:
            self.storages.update(self._new(tape))


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in a fixed order."""
    return [t for t in tree_leaves((batch.inputs, batch.targets)) if isinstance(t, Tensor)]


def look_of(tensors: list[Tensor]) -> Look:
    """What tensors have in common with others that could take their places."""
    places = [place_of(t) for t in tensors]
    return [(t.shape, t.dtype, places.index(place)) for t, place in zip(tensors, places, strict=True)]


def refuse_another(what: str, batch: Batch, tensors: list[Tensor], recorded: Look) -> None:
    """Raise where a batch does not look like the one whose product was recorded."""
    if look_of(tensors) != recorded:
        found, before = [tuple(t.shape) for t in tensors], [tuple(shape) for shape, *_ in recorded]
        raise UnusableObjective(
            f"{what}: the data must give the same batches each time, but batch {batch.index} has tensors of shapes "
            f"{found}, and {before} when it was linearized"
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def recorded(
    room: Room, product: Map, space: Space, same: Map | None = None, batch: Sequence[Tensor] | None = None
) -> Tape:
    """The tape of a product, held in the room and compared with `same`, which is not recorded.

    With the tensors of a `batch` it is one that computes its constants anew, and holds next to nothing.
    """
    tape = room.record(product, space, room.most - room.bytes if batch is None else math.inf, batch)
    if batch is None and not room.fits(tape):
        raise MemoryError
    tape = room.held(tape)
    if same is not None:
        compare(room, tape.at(batch or ()), same, space)
    return tape


def compare(room: Room, tape: Tape, same: Map, space: Space) -> None:
    """Raise where a tape differs from a product that is not recorded; the room notes the seconds of both."""
    [v] = columns(space, space.random(range(1, 2), 0))
    t0 = _now(space.device)
    expected = [b.detach() for b in same(v)]
    t1 = _now(space.device)
    found = tape(v)
    room.plain, room.played = t1 - t0, _now(space.device) - t1
    if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        raise Untraceable("a second product has another shape than the recorded one")
    error = sum(float((a - b).square().sum()) for a, b in zip(expected, found, strict=True))
    size = sum(float(a.square().sum()) for a in expected)
    # relative 2-norm: the square root of eps; where the product is not finite, it says so when it is used
    if math.isfinite(size) and not error <= space.eps * size:
        raise Untraceable("a second product differs from the recorded one, so they use more than PyTorch operations")


def goes_in_blocks(tape: Tape, v: list[Tensor]) -> bool:
    """Whether the tape is small, and vmap plays it back without falling back to a loop."""
    if tape.bytes > SMALL:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            together = tape.block([torch.stack([b, 2 * b]) for b in v])
    except (RuntimeError, NotImplementedError, UserWarning):
        return False
    alone = tape(v)
    return all(
        bool(((t[0] - a).abs() <= 1e-3 * (a.abs() + a.abs().max())).all())  # not so where the data hold a NaN
        for t, a in zip(together, alone, strict=True)
        if a.numel()
    )


def play(tape: Tape, vectors: list[list[Tensor]], blocks: bool, sums: Sums) -> None:
    if not blocks:
        for i, v in enumerate(vectors):
            sums.add(i, tape(v))
        return
    for a in range(0, len(vectors), TOGETHER):
        some = vectors[a : a + TOGETHER]
        together = tape.block([torch.stack(list(column)) for column in zip(*some, strict=True)])
        for i in range(len(some)):
            sums.add(a + i, [t[i] for t in together])
