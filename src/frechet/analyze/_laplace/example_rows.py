"""Gradients of single examples along given cotangents in the outputs, as rows: J_i'u_i for each example i of a batch.

They come by `vmap`, or one example after the other where that cannot go through the model (`_single_examples.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._single_examples import ExampleRoute, check_alone, chunk_gradients, rows_at_once
from frechet.objective import Batch, Snapshot
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """The model of a snapshot at its point, differentiated in the blocks of `space`, one example at a time."""

    what: str  # the public function that asks
    snapshot: Snapshot
    space: Space
    route: ExampleRoute
    leaves: list[Tensor]
    blocks: dict[str, Tensor]

    @classmethod
    def of(cls, what: str, snapshot: Snapshot, space: Space, route: ExampleRoute) -> ExampleRows:
        leaves, blocks = snapshot.leaves(space)
        return cls(what, snapshot, space, route, leaves, blocks)

    def outputs(self, batch: Batch) -> Tensor:
        """The outputs of a batch, without a graph."""
        with torch.no_grad():
            return self.snapshot.forward(self.blocks, batch).detach()

    def pulled(self, batch: Batch, y: Tensor, u: Tensor) -> Iterator[Tensor]:
        """The rows J_i'u_i ``(m, n)`` of all examples, as many at a time as memory allows."""
        step = rows_at_once(self.space)
        for a in range(0, len(y), step):
            yield self._rows(batch, y, u, a, min(a + step, len(y)))

    def jacobians(self, batch: Batch, y: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(a, b, J): the Jacobians ``(b - a, outputs, n)`` of the outputs of the examples a to b."""
        width = y[0].numel()
        step = max(1, rows_at_once(self.space) // width)
        units = torch.eye(width, dtype=y.dtype, device=y.device).unsqueeze(1).expand(-1, len(y), -1)
        for a in range(0, len(y), step):
            b = min(a + step, len(y))
            yield a, b, torch.stack([self._rows(batch, y, u.reshape(y.shape), a, b) for u in units], 1)

    def _rows(self, batch: Batch, y: Tensor, u: Tensor, a: int, b: int) -> Tensor:
        s = self.snapshot
        G, alone = chunk_gradients(s, self.space, self.leaves, self.blocks, batch, u, a, b, self.route)
        check_alone(self.what, alone, y[a:b], self.space.eps, batch.index, a)
        return G
