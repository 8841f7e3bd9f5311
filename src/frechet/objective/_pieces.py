"""Batches cut into smaller ones: the same sum over examples at a smaller peak of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from frechet.objective._data import Split
from frechet.objective._structure import examples_of, rows_of


@dataclass(frozen=True, eq=False)
class Pieces:
    """The batches of `data`, split into (inputs, targets) and cut into at most `examples` examples each."""

    data: Iterable[Any]
    split: Split
    examples: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for raw in self.data:
            inputs, targets = self.split(raw)
            size = examples_of(inputs, targets)
            for a in range(0, size, self.examples):
                rows = slice(a, min(a + self.examples, size))
                yield rows_of(inputs, rows, size), rows_of(targets, rows, size)


def as_it_is(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """The split of what is split already."""
    return batch
