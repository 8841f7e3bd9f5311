"""Operators whose products are counted, and that multiply fewer vectors at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators.memory import ran_out
from frechet.operators.operator import Fact, LinearOperator
from frechet.space import Space


@dataclass
class Meter:
    """Products and passes over the data, counted as they happen; the most vectors at once, once memory has run out."""

    products: int = 0
    passes: int = 0
    at_once: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Metered(LinearOperator):
    """An operator whose products are counted; a block is one pass over the data.

    Where a block runs out of memory it is halved, and so are those after it; a single vector's error is the caller's.
    On several processes nothing is halved: one rank's memory is not the others'.
    """

    operator: LinearOperator
    meter: Meter
    alone: bool = True

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    def _matmat(self, V: Tensor) -> Tensor:
        return self._in_blocks(self.operator._matmat, V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._in_blocks(self.operator._rmatmat, U)

    def _in_blocks(self, product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        meter, k, found = self.meter, V.shape[1], []
        done = 0
        while done < k:
            size = min(k - done, meter.at_once or k)
            try:
                found.append(product(V[:, done : done + size]).T)
            except (RuntimeError, MemoryError) as error:
                if not self.alone or size == 1 or not ran_out(error):
                    raise
                meter.at_once = size // 2
                continue
            meter.products += size
            meter.passes += 1
            done += size
        return found[0].T if len(found) == 1 else torch.cat(found).T
