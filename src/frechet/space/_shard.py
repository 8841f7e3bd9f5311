"""Which part of a vector this process holds, where the processes of a group hold each vector together.

Every block is cut along its rows (axis 0), so that a piece is one contiguous stretch of the block's entries. A process
keeps its pieces of all blocks one after the other, in the blocks' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.space._group import Group

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shard:
    """This process's rows of every block: `rows` holds the first one's number, and how many there are."""

    group: Group
    rows: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple((int(first), int(count)) for first, count in self.rows))

    def held(self, shapes: Shapes) -> Shapes:
        """The shapes of the pieces of blocks of these shapes."""
        if len(shapes) != len(self.rows):
            raise ValueError(f"Space: shard must have rows for {len(shapes)} blocks, got {len(self.rows)}")
        for shape, (first, count) in zip(shapes, self.rows, strict=True):
            if not shape or first < 0 or count < 0 or first + count > shape[0]:
                raise ValueError(f"Space: shard must have rows of a block {shape}, got {count} from row {first} on")
        return tuple((count, *shape[1:]) for shape, (_, count) in zip(shapes, self.rows, strict=True))

    def pieces(self, whole: Tensor, sizes: Sequence[int], shapes: Shapes) -> list[Tensor]:
        """Views of this process's pieces of `whole`, flat along the last axis."""
        found = []
        for block, shape, (first, count) in zip(whole.split(list(sizes), -1), shapes, self.rows, strict=True):
            width = block.shape[-1] // shape[0] if shape[0] else 0
            found.append(block[..., first * width : (first + count) * width])
        return found

    def stacked(self, R: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's rows of Q, and R, in the QR factorization of all ranks' `R` ``(r, k)``, r <= k. Collective."""
        r, k = R.shape
        table = R.new_zeros(self.group.size, k, k)
        table[self.group.rank, :r] = R
        Q, R = torch.linalg.qr(self.group.sum(table).view(-1, k))
        return Q[self.group.rank * k : self.group.rank * k + r], R
