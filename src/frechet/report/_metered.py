"""Operators whose products are counted and timed, and that multiply fewer vectors at once where memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.operators._structured import FromCallable
from frechet.recording import ran_out

SLOWER = 1.25  # blocks save passes; a vector in one may cost little more than alone before they are given up
RECENT = 6  # passes whose times count: a machine that becomes busy, or quiet, shows within so many


@dataclass
class Meter:
    """Products and passes over the data, counted as they happen; the most vectors at once, once memory has run out.

    `times` holds the last passes of each operator as (vectors, seconds). The first pass of an operator is not among
    them: it loads, compiles and allocates what later ones reuse.
    """

    products: int = 0
    passes: int = 0
    at_once: int | None = None
    times: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    singly: set[str] = field(default_factory=set)  # operators whose blocks were seen to be slower than single vectors

    def note(self, name: str, vectors: int, seconds: float) -> None:
        """Remember a pass, unless it is the operator's first."""
        if name not in self.times:
            self.times[name] = []
            return
        single = [t for k, t in self.times[name] if k == 1]
        if vectors > 1 and len(single) >= 2 and seconds / vectors > SLOWER * sum(single) / len(single):
            self.singly.add(name)
        self.times[name] = [*self.times[name], (vectors, seconds)][-RECENT:]

    def forget(self, name: str) -> None:
        """The operator is computed in another way from now on."""
        self.times.pop(name, None)
        self.singly.discard(name)

    def rate(self, name: str) -> float | None:
        """Seconds per vector of the operator's last passes; None where there was none after the first."""
        recent = self.times.get(name, [])
        vectors = sum(k for k, _ in recent)
        return sum(t for _, t in recent) / vectors if vectors else None


def metered(A: LinearOperator, meter: Meter, alone: bool = True, name: str = "") -> LinearOperator:
    """Return A with its products counted and timed under `name`; a block is one pass over the data.

    Where a block runs out of memory it is halved, and so are those after it; a single vector's error is the caller's.
    Blocks that were slower than single vectors are taken apart. On several processes (not `alone`) neither is done: one
    rank's memory and time are not the others'.
    """

    def in_blocks(product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        found, done, k = [], 0, V.shape[1]
        while done < k:
            size = 1 if alone and name in meter.singly else min(k - done, meter.at_once or k)
            start = time.perf_counter()
            try:
                found.append(product(V[:, done : done + size]).T)
            except (RuntimeError, MemoryError) as error:
                if not alone or size == 1 or not ran_out(error):
                    raise
                meter.at_once = size // 2
                continue
            if V.is_cuda:
                torch.cuda.synchronize(V.device)
            meter.note(name, size, time.perf_counter() - start)
            meter.products += size
            meter.passes += 1
            done += size
        return found[0].T if len(found) == 1 else torch.cat(found).T

    return FromCallable(
        lambda V: in_blocks(A._matmat, V), lambda U: in_blocks(A._rmatmat, U), A.domain, A.codomain, A.facts
    )
