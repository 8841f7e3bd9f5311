"""What is kept of a linearization: tapes within a bound on memory, recorded, compared with a product, played back."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.operators.products import Sums, columns
from frechet.operators.recorder import Map, Untraceable
from frechet.operators.tape import Tape, record
from frechet.space import Space

SMALL = 1 << 24  # bytes: a tape of at most this size spends its time in calls rather than in arithmetic
TOGETHER = 8  # vectors that go through such a tape at once: more would leave the caches


@dataclass(eq=False)
class Room:
    """What is kept so far, and how much more may be."""

    most: float
    compile: bool
    tapes: list[Tape] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)  # bytes; the parameters' are shared by all tapes
    routes: set[str] = field(default_factory=set)
    batches: int = 0
    recomputed: int = 0
    plain: float = 0.0  # seconds of the first batch's product, and of the same one played back
    played: float = 0.0
    released: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def record(self, product: Map, vector: list[Tensor], most: float) -> Tape:
        tape = record(product, vector, min(most, self.most - self.bytes))
        tape = tape.compiled() if self.compile else tape
        self.tapes.append(tape)
        self.storages.update(tape.storages)
        return tape

    def keep(self, count: int) -> None:
        """Forget all tapes but the first `count`."""
        for tape in self.tapes[count:]:
            tape.constants.clear()
        del self.tapes[count:]
        self.storages = {key: size for tape in self.tapes for key, size in tape.storages.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def recorded(room: Room, product: Map, space: Space, same: Map | None = None, most: float = math.inf) -> Tape:
    """The tape of a product on one batch, of at most `most` bytes, compared with `same`, which is not recorded."""
    probe, other = (space.random(range(i, i + 1), 0) for i in range(2))
    # views of one vector, as the parameters are: where layouts differ forward mode copies tangents
    tape = room.record(product, columns(space, probe)[0], most)
    if same is not None:
        [v] = columns(space, other)
        t0 = _now(space.device)
        expected = [b.detach() for b in same(v)]
        t1 = _now(space.device)
        found = tape(v)
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
