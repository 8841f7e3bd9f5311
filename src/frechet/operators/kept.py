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
from frechet.operators.script import Untraceable, storage_of
from frechet.operators.tape import Tape, record
from frechet.space import Space

SMALL = 1 << 24  # bytes: a tape of at most this size spends its time in calls rather than in arithmetic
Look = list[tuple[torch.Size, torch.dtype]]  # of a batch's tensors
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
    plain: float = 0.0  # seconds of the first batch's product, and of the same one played back
    played: float = 0.0
    released: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def hold_apart(self, tensors: Iterable[Tensor]) -> None:
        self.apart |= {storage_of(t) for t in tensors}

    def record(self, product: Map, vector: list[Tensor], most: float, batch: Sequence[Tensor] | None) -> Tape:
        # with a batch nothing is kept but what was there
        most = min(most, self.most - self.bytes) if batch is None else math.inf
        tape = record(product, vector, most, self.apart, batch)
        tape = tape.compiled() if self.compile else tape
        self.tapes.append(tape)
        self._count(tape)
        return tape

    def _count(self, tape: Tape) -> None:
        self.storages.update({key: size for key, size in tape.storages.items() if key not in self.apart})

    def keep(self, count: int) -> None:
        """Forget all tapes but the first `count`."""
        for tape in self.tapes[count:]:
            tape.constants.clear()
            if tape.before is not None:
                tape.before.constants.clear()
        del self.tapes[count:]
        self.storages = {}
        for tape in self.tapes:
            self._count(tape)


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in a fixed order."""
    return [t for t in tree_leaves((batch.inputs, batch.targets)) if isinstance(t, Tensor)]


def look_of(tensors: list[Tensor]) -> Look:
    return [(t.shape, t.dtype) for t in tensors]


def refuse_another(what: str, batch: Batch, tensors: list[Tensor], recorded: Look) -> None:
    """Raise where a batch does not look like the one whose product was recorded."""
    if look_of(tensors) != recorded:
        raise UnusableObjective(
            f"{what}: the data must give the same batches each time, but batch {batch.index} has tensors of shapes "
            f"{[tuple(t.shape) for t in tensors]}, and {[tuple(shape) for shape, _ in recorded]} when it was linearized"
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def recorded(
    room: Room,
    product: Map,
    space: Space,
    same: Map | None = None,
    most: float = math.inf,
    batch: Sequence[Tensor] | None = None,
) -> Tape:
    """The tape of a product on one batch, of at most `most` bytes, compared with `same`, which is not recorded.

    With the tensors of the `batch` it is one that computes its constants anew.
    """
    probe, other = (space.random(range(i, i + 1), 0) for i in range(2))
    # views of one vector, as the parameters are: where layouts differ forward mode copies tangents
    tape = room.record(product, columns(space, probe)[0], most, batch)
    if same is not None:
        [v] = columns(space, other)
        t0 = _now(space.device)
        expected = [b.detach() for b in same(v)]
        t1 = _now(space.device)
        found = tape.at(batch or ())(v)
        room.plain, room.played = t1 - t0, _now(space.device) - t1
        error = sum(float((a - b).square().sum()) for a, b in zip(expected, found, strict=True))
        size = sum(float(a.square().sum()) for a in expected)
        # relative 2-norm: the square root of eps; where the product is not finite, it says so when it is used
        if math.isfinite(size) and not error <= space.eps * size:
            raise Untraceable(
                "a second product differs from the recorded one, so they use more than PyTorch operations"
            )
    return tape


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
