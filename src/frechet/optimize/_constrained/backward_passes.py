"""Many backward passes through one graph: batched where its operations allow it, else one by one.

A small problem is differentiated by a pass for each row of its Jacobian and each column of its Hessian, and a pass
through a graph of a few nodes costs as much as what calls it. A batch of passes costs little more than one.

**Cost.** `COLUMNS` times the memory of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from frechet.objective._torch_internals import unchecked_batched_grad, unchecked_grad

COLUMNS = 64  # passes in a batch: a bound on memory
Kind = Literal["rows", "columns"]


@dataclass
class Batches:
    """Which passes of these functions cannot be batched, with torch's reason; the one thing here that changes."""

    refused: dict[Kind, str] = field(default_factory=dict)

    def pulled(self, kind: Kind, outs: Sequence[Tensor], xs: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
        """Return products of the transposed Jacobian of `outs` with k cotangents, a block ``(k, *shape)`` for each x.

        `units` has a batch of k cotangents for each of `outs`. `kind` says whose passes these are: where one refuses to
        be batched, those to come of its kind are not tried again.
        """
        k = len(units[0]) if len(units) else 0
        ys = [y for y in outs if y.requires_grad]
        if not ys or not k:
            return [x.new_zeros(k, *x.shape) for x in xs]
        if len(ys) < len(outs):
            units = [u for y, u in zip(outs, units, strict=True) if y.requires_grad]
        if k <= COLUMNS:
            return self._pulled(kind, ys, xs, units)
        parts = [self._pulled(kind, ys, xs, list(us)) for us in zip(*(u.split(COLUMNS) for u in units), strict=True)]
        return [torch.cat(blocks) for blocks in zip(*parts, strict=True)]

    def _pulled(self, kind: Kind, ys: Sequence[Tensor], xs: Sequence[Tensor], us: Sequence[Tensor]) -> list[Tensor]:
        if len(us[0]) > 1 and kind not in self.refused:
            try:
                found = unchecked_batched_grad(ys, xs, us)
            except (
                RuntimeError,
                NotImplementedError,
            ) as reason:  # told in the result; what is no fault of batches is raised again
                self.refused[kind] = str(reason).splitlines()[0][:200] if str(reason) else type(reason).__name__
            else:
                k = len(us[0])
                return [x.new_zeros(k, *x.shape) if g is None else strided(g) for g, x in zip(found, xs, strict=True)]
        return _one_by_one(ys, xs, us)


def _one_by_one(ys: Sequence[Tensor], xs: Sequence[Tensor], us: Sequence[Tensor]) -> list[Tensor]:
    each = [unchecked_grad(ys, xs, row) for row in zip(*us, strict=True)]
    return [
        torch.stack([torch.zeros_like(x) if g is None else strided(g) for g in blocks])
        for x, blocks in zip(xs, zip(*each, strict=True), strict=True)
    ]


def strided(g: Tensor) -> Tensor:
    return g if g.layout is torch.strided else g.to_dense()
