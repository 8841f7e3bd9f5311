"""How the product on each batch is served, decided one batch after another.

In this order, and each proved on the batch itself (`_proof.py`):

1. by a recording of a batch that looks the same, as far as those before were right so,
2. by a recording of its own that computes its constants from the batch and the parameters,
3. by a recording of its own whose constants are those of the product that was watched: where random numbers are drawn,
   or inputs are prepared by NumPy, and where memory holds them.

The constants are kept where they fit, else made anew at each product. Where none of these is right, plain products
serve the batch, and `Plain.why` says so. After `TRIES` batches for which one of the ways was in vain it is not tried
again.

**Cost:** of a batch that looks like one before, a product and two playbacks; else a product more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frechet.operators.derivatives._products import Sums
from frechet.recording._batch import Look, begun_anew, own, seen
from frechet.recording._budget import Budget
from frechet.recording._program import Untraceable, is_ordinary
from frechet.recording._proof import PROBE, RECORDED, difference, finite, goes_in_blocks, probe, timed
from frechet.recording._replay import Replay, record
from frechet.recording._uninitialized import FilledWithNaN
from frechet.recording._watch import Map
from frechet.space import Space

SMALL = 1 << 24  # bytes: a recording of at most this size spends its time in calls rather than in arithmetic
TOGETHER = 8  # vectors that go through such a recording at once: more would leave the caches
TRIES = 3  # batches for which a way may be in vain


@dataclass(eq=False)
class Recorded:
    """A batch that a recording serves: with its constants, or with those that are made of it at each product."""

    replay: Replay
    look: Look
    blocks: bool | None = None  # whether it takes several vectors at once; proved when asked

    @property
    def kept(self) -> bool:
        return self.replay.before is None


@dataclass(frozen=True, eq=False)
class Plain:
    """A batch that plain products serve, and why."""

    why: str


Served = Recorded | Plain


@dataclass(frozen=True, eq=False)
class Product:
    """The product on one batch, whose tree of tensors is `batch`: how it is recorded, and a plain one.

    `part` is what no two products share a recording across. `other` is the same map in another mode, for recordings
    larger than SMALL. Where not `anew`, only constants that are kept may serve.
    """

    part: Any
    batch: Any
    of: Callable[[Any], Map]
    plain: Map
    other: Callable[[Any], Map] | None = None
    anew: bool = True


@dataclass(eq=False)
class Recordings:
    """The recordings of one operator's products, with vectors of `space`."""

    budget: Budget
    space: Space
    programs: list[tuple[Any, Look, Replay]] = field(default_factory=list)
    vain: Counter[str] = field(default_factory=Counter)
    other: bool | None = None  # whether products are recorded in their other mode
    full: bool = False
    why: str = ""  # of the last batch that plain products serve

    def serve(self, product: Product) -> Served:
        """How the product on a batch is to be computed from now on."""
        ways = [way for way in self._ways(product) if self.vain[way] < TRIES]
        if not ways:
            return Plain(self.why)
        v, device = probe(self.space, PROBE), self.space.device
        # whatever this raises the operator itself raises
        expected, seconds = timed(lambda: [b.detach() for b in product.plain(v)], device)
        if product.anew and not self.budget.plain:  # the first also loads and allocates
            seconds = min(seconds, timed(lambda: product.plain(v), device)[1])
        served = self._tried(product, ways, expected, seconds)
        if isinstance(served, Plain):
            self.why = served.why
        return served

    def _ways(self, product: Product) -> list[str]:
        kept = [] if self.full else ["as it was"]
        return ["shared", "own", *kept] if product.anew else kept or ["as it was"]

    def _tried(self, product: Product, ways: Sequence[str], expected: list[Tensor], seconds: float) -> Served:
        if not all(map(is_ordinary, expected)):
            return Plain("its product is no strided tensor")
        if not finite(expected):
            return Plain("its product holds a NaN or an infinity")
        try:
            look, _ = seen(product.batch)
        except Untraceable as error:
            return Plain(str(error))
        batch, tensors = own(product.batch)
        reasons = []
        for way in ways:
            for found in self._recordings(way, product, look, batch, tensors):
                reason = found if isinstance(found, str) else self._proved(found, tensors, expected, seconds)
                if not isinstance(reason, str):
                    self.vain[way] = 0
                    if way == "own" and isinstance(found, Replay) and self.budget.fits(found):
                        self.programs.append((product.part, look, self.budget.hold(found)))
                    return Recorded(reason, look)
                self.vain[way] += 1
                reasons.append(reason)
        return Plain("; ".join(dict.fromkeys(reasons)))

    def _recordings(
        self, way: str, product: Product, look: Look, batch: Any, tensors: list[Tensor]
    ) -> Iterator[Replay | str]:
        """The recordings to try, or why there is none."""
        if way == "shared":
            found = (r for part, other, r in reversed(self.programs) if part == product.part and other.same(look))
            yield from list(found)[:1]
            return
        try:
            replay = self._own(product, batch, tensors) if way == "own" else self._as_it_was(product, batch)
            yield replay.compiled() if self.budget.compile else replay
        except MemoryError:
            self.full = True
            yield self._too_large()
        except Exception as error:  # the plain product works: it serves, and says why
            yield str(error).split("\n")[0] or type(error).__name__

    def _vector(self) -> list[Tensor]:
        return probe(self.space, RECORDED)

    def _as_it_was(self, product: Product, batch: Any) -> Replay:
        left = self.budget.most - self.budget.bytes
        return record(self._map(product, batch), self._vector(), left, self.budget.apart)

    def _too_large(self) -> str:
        return f"its constants do not fit into {self.budget.most:.3g} bytes"

    def _map(self, product: Product, batch: Any) -> Map:
        return (product.other if self.other and product.other is not None else product.of)(batch)

    def _own(self, product: Product, batch: Any, tensors: list[Tensor]) -> Replay:
        apart = self.budget.apart
        replay = record(self._map(product, batch), self._vector(), math.inf, apart, tensors)
        if self.other is None and product.other is not None:
            self.other = False
            if replay.at(tensors).bytes > SMALL:
                try:
                    replay = record(product.other(batch), self._vector(), math.inf, apart, tensors)
                    self.other = True
                except Exception:  # an operation without this mode; the numbers are the same, and `route` says which
                    self.other = False
        return replay

    def _proved(self, replay: Replay, tensors: list[Tensor], expected: list[Tensor], seconds: float) -> Replay | str:
        """A recording with its constants where they are kept, without where they are not; or why it does not serve."""
        v = probe(self.space, PROBE)
        try:
            with FilledWithNaN():
                filled, first = timed(lambda: replay.at(tensors), self.space.device)
            found, played = timed(lambda: filled(v), self.space.device)
        except Exception as error:  # other shapes than those of the batch with which it was recorded
            return str(error).split("\n")[0] or type(error).__name__
        reason = difference(expected, found, self.space.eps)
        if reason:
            return reason
        if not self.budget.played:  # the first also loads and allocates
            first = min(first, timed(lambda: replay.at(tensors), self.space.device)[1])
            played = min(played, timed(lambda: filled(v), self.space.device)[1])
        if not self.full and self.budget.fits(filled, replay):
            self.budget.note(seconds, played)
            return self.budget.hold(filled)
        self.full = True
        if replay.before is None or not self.budget.fits(replay):
            return self._too_large()
        self.budget.note(seconds, first + played)
        return self.budget.hold(replay)


def play(served: Recorded, tensors: list[Tensor], vectors: list[list[Tensor]], space: Space, sums: Sums) -> None:
    """Add the product with each vector, given by its blocks, on a batch of these tensors."""
    replay = served.replay if served.kept else served.replay.at(begun_anew(tensors))
    k = len(vectors)
    if k > 1 and served.blocks is None:
        served.blocks = replay.bytes <= SMALL and goes_in_blocks(replay, space)
    if k == 1 or not served.blocks:
        for i, v in enumerate(vectors):
            sums.add(i, replay(v))
        return
    for a in range(0, k, TOGETHER):
        some = vectors[a : a + TOGETHER]
        together = replay.block([torch.stack(blocks) for blocks in zip(*some, strict=True)])
        for i in range(len(some)):
            sums.add(a + i, [t[i] for t in together])
