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

from frechet.objective._torch_internals import vmap_without_loops

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
        kept = [(y, u) for y, u in zip(outs, units, strict=True) if y.requires_grad]
        k = len(units[0]) if len(units) else 0
        if not kept or not k:
            return [x.new_zeros(k, *x.shape) for x in xs]
        ys = [y for y, _ in kept]
        parts = []
        for begin in range(0, k, COLUMNS):
            us = [u[begin : begin + COLUMNS] for _, u in kept]
            found = self._batched(kind, ys, xs, us) if len(us[0]) > 1 and kind not in self.refused else None
            parts.append(_one_by_one(ys, xs, us) if found is None else found)
        return parts[0] if len(parts) == 1 else [torch.cat(blocks) for blocks in zip(*parts, strict=True)]

    def _batched(self, kind: Kind, ys: list[Tensor], xs: Sequence[Tensor], us: list[Tensor]) -> list[Tensor] | None:
        try:
            with vmap_without_loops():
                found = torch.autograd.grad(ys, xs, us, retain_graph=True, allow_unused=True, is_grads_batched=True)
        except (
            RuntimeError,
            NotImplementedError,
        ) as reason:  # told in the result; what is no fault of batches is raised again
            self.refused[kind] = str(reason).splitlines()[0][:200] if str(reason) else type(reason).__name__
            return None
        k = len(us[0])
        return [x.new_zeros(k, *x.shape) if g is None else _strided(g) for g, x in zip(found, xs, strict=True)]


def _one_by_one(ys: list[Tensor], xs: Sequence[Tensor], us: list[Tensor]) -> list[Tensor]:
    each = [
        torch.autograd.grad(ys, xs, row, retain_graph=True, allow_unused=True, materialize_grads=True)
        for row in zip(*us, strict=True)
    ]
    return [torch.stack([_strided(g) for g in blocks]) for blocks in zip(*each, strict=True)]


def _strided(g: Tensor) -> Tensor:
    return g if g.layout is torch.strided else g.to_dense()
