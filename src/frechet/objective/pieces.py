"""Batches cut into smaller ones: the same sum over examples at a smaller peak of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from frechet.objective.data import Split


@dataclass(frozen=True, eq=False)
class Pieces:
    """The batches of `data`, split into (inputs, targets) and cut into at most `examples` examples each."""

    data: Iterable[Any]
    split: Split
    examples: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for raw in self.data:
            inputs, targets = self.split(raw)
            size = len(targets)
            for a in range(0, size, self.examples):
                rows = slice(a, min(a + self.examples, size))
                yield rows_of(inputs, rows, size), rows_of(targets, rows, size)


def rows_of(tree: Any, rows: slice, size: int) -> Any:
    """The given rows of every tensor that has `size` of them; what belongs to no example stays whole."""
    if isinstance(tree, Mapping):  # tokenizers' batches are mappings that pytrees do not know
        return {k: rows_of(v, rows, size) for k, v in tree.items()}
    return tree_map(lambda t: t[rows] if isinstance(t, Tensor) and t.ndim and len(t) == size else t, tree)


def as_it_is(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """The split of what is split already."""
    return batch
