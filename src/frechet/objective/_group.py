"""One objective whose data lie on several processes: totals and counts are added up in one exchange per data term.

Each rank sends the flat sums of its own batches and, behind them, a row of a small table that only it writes. So adding
up the ranks' messages delivers every rank's row as it is: how many terms and examples it has counted, whether and in
which batch it failed, and a number by which vectors that differ between the ranks are seen. A row holds float64 numbers
as three float32 ones, whatever the sums' type, so counts stay exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frechet.objective._data import Subsample, rows_of
from frechet.objective._structure import examples_of
from frechet.space import Group

Deal = Literal["batch", "example"]

WORDS = 3  # float32 numbers that hold a float64 one
FIELDS = 5  # count, examples, failed, batch, sketch


@dataclass(frozen=True)
class Tally:
    """What one rank has counted in one data term; `batch` is the one after the last that was added."""

    count: float
    examples: int
    batch: int
    failure: Exception | None = None
    sketch: float = 0.0  # of the vectors that are multiplied


def room(group: Group | None) -> int:
    """Entries that a message needs behind the sums."""
    return 0 if group is None else group.size * FIELDS * WORDS


def combined(group: Group, flat: Tensor, size: int, tally: Tally, what: str) -> tuple[Tensor, float, int]:
    """The sums (the first `size` entries), terms and examples of all ranks; raises on all where one has failed.

    `flat` may have `room` behind the sums, which saves a copy of them; it is overwritten then. Collective.
    """
    row = _words(tally).to(flat.device, flat.dtype)
    table = torch.zeros(group.size, FIELDS * WORDS, dtype=flat.dtype, device=flat.device)
    table[group.rank] = row
    if flat.requires_grad:
        flat = group.summed(torch.cat([flat[:size], table.reshape(-1)]))
    elif flat.numel() == size:
        flat = group.add(torch.cat([flat, table.reshape(-1)]))
    else:
        flat[size:] = table.reshape(-1)
        group.add(flat)
    rows = flat[size:].detach().cpu().double().view(group.size, FIELDS, WORDS).sum(2)
    counts, examples, failed, _, sketches = rows.T.tolist()
    if any(failed):
        group.fail(tally.failure, f", batch {tally.batch}", f"{what}: ")
    first = sketches[0]
    for rank, other in enumerate(sketches):
        alike = abs(other - first) <= torch.finfo(flat.dtype).eps ** 0.5 * max(abs(first), abs(other))
        if not alike and other == other and first == first:  # NaN is told of with its cause, later
            raise ValueError(
                f"{what}: the vectors must be the same on all ranks, but those of ranks 0 and {rank} differ; draw them "
                "with space.random(probe, seed), or broadcast rank 0's"
            )
    return flat[:size], sum(counts), int(sum(examples))


def _words(tally: Tally) -> Tensor:
    """A row of the table: each number as three float32 ones that add up to it."""
    failed = tally.failure is not None
    numbers = np.array([tally.count, tally.examples, failed, tally.batch, tally.sketch], dtype=np.float64)
    words = np.empty((FIELDS, WORDS), dtype=np.float32)
    for j in range(WORDS):
        with np.errstate(over="ignore", invalid="ignore"):
            words[:, j] = numbers
            numbers = numbers - words[:, j]
    return torch.from_numpy(words.reshape(-1))


def one_population(group: Group, share: tuple[int, int] | None, what: str) -> int | None:
    """The examples that all ranks' data were drawn from, given (drawn, population) of this rank's. Collective.

    Every rank must have drawn the same share of its own, or its examples would count for too much.
    """
    rows = group.exchange([0, share is not None, *(share or (0, 0))])
    drawn, population = sum(row[2] for row in rows), sum(row[3] for row in rows)
    if not any(row[1] for row in rows):
        return None
    for rank, (_, _, here, of) in enumerate(rows):
        if abs(here * population - drawn * of) >= population:  # by one example or more
            raise ValueError(
                f"{what}: each rank must hold the same share of its population, but rank {rank} has {here} of {of} and "
                f"all together {drawn} of {population}; draw in proportion to the ranks' data"
            )
    return population


@dataclass(frozen=True, eq=False)
class Dealt:
    """One rank's share of data that every rank can read: every size-th batch, or every size-th row of each batch."""

    data: Iterable[Any]
    rank: int
    size: int
    by: Deal

    def __iter__(self) -> Iterator[Any]:
        if self.by == "batch":
            yield from islice(self.data, self.rank, None, self.size)
            return
        for batch in self.data:
            rows = torch.arange(self.rank, examples_of(batch), self.size)
            if len(rows):
                yield rows_of(batch, rows)


def dealt(data: Iterable[Any], group: Group, by: Deal) -> Iterable[Any]:
    """This rank's share of `data`; batches in memory stay there."""
    if isinstance(data, Subsample):
        return Subsample(dealt(data.data, group, by), data.examples, data.population, data.seed)
    share = Dealt(data, group.rank, group.size, by)
    return list(share) if isinstance(data, list | tuple) else share
