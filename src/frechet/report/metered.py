"""Operators whose products are counted, and that multiply fewer vectors at once where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators.operator import LinearOperator
from frechet.operators.structured import FromCallable
from frechet.recording import ran_out


@dataclass
class Meter:
    """Products and passes over the data, counted as they happen; the most vectors at once, once memory has run out."""

    products: int = 0
    passes: int = 0
    at_once: int | None = None


def metered(A: LinearOperator, meter: Meter, alone: bool = True) -> LinearOperator:
    """A with its products counted; a block is one pass over the data.

    Where a block runs out of memory it is halved, and so are those after it; a single vector's error is the caller's.
    On several processes (not `alone`) nothing is halved: one rank's memory is not the others'.
    """

    def in_blocks(product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        found, done, k = [], 0, V.shape[1]
        while done < k:
            size = min(k - done, meter.at_once or k)
            try:
                found.append(product(V[:, done : done + size]).T)
            except (RuntimeError, MemoryError) as error:
                if not alone or size == 1 or not ran_out(error):
                    raise
                meter.at_once = size // 2
                continue
            meter.products += size
            meter.passes += 1
            done += size
        return found[0].T if len(found) == 1 else torch.cat(found).T

    return FromCallable(
        lambda V: in_blocks(A._matmat, V), lambda U: in_blocks(A._rmatmat, U), A.domain, A.codomain, A.facts
    )
