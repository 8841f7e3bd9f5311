"""The sum over a data set that every product with a derivative of an objective is.

    A V = sum_j w_j s_j  sum over batches of A_batch V  +  A_penalties V

with s_j = 1 / count_j, or what `scale` says. The loop over parts and batches, the columns, the penalties, and the
vectors of sharded parameters are the same for all of them; an operator says what it adds for one batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.objective import Batch, Part, Snapshot
from frechet.operators._operator import Fact, SymmetricOperator
from frechet.operators.derivatives._products import Leaves, Sums, columns, differentiating, grads
from frechet.space import Space

# how a product with each vector on one batch is computed and added
Adding = Callable[[Leaves, Part, Batch, list[list[Tensor]], Sums], None]
Scale = Callable[[float, int], float]  # of the number of terms, and of examples


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SumOverData(SymmetricOperator):
    """A symmetric operator on the blocks of `domain` that is a sum over the data of an objective at one moment."""

    name: str
    snapshot: Snapshot
    domain: Space
    facts: frozenset[Fact]
    scale: Scale | None = None  # None: one over the number of terms
    squared: bool = False  # it is a second moment of gradients: a factor c on the objective is c^2
    penalties: Literal["all", "convex", "none"] = "none"  # those whose Hessian is added
    drawn: bool = False  # random numbers are drawn, batch after batch
    runs: bool = True  # the model, in a product

    @abstractmethod
    def adding(self) -> Adding:
        """How the unscaled product on a batch is computed, for one pass over the data."""

    def prove(self) -> None:
        """Raise, once for each operator and after a first product, where this is not what it says."""

    def _matmat(self, V: Tensor) -> Tensor:
        if self.domain.shard is not None:
            whole = replace(self, snapshot=self.snapshot.gathered(), domain=self.domain.unsharded)
            return self.domain.own(whole._matmat(self.domain.whole(V)))
        product = self._product(V)
        self.prove()
        return product

    def _product(self, V: Tensor) -> Tensor:
        """The product with whole vectors, in one pass over the data."""
        s, space = self.snapshot, self.domain
        with differentiating(self.name, space.device):
            leaves = s.leaves(space) if self.runs or s.penalties else ([], {})
            vectors, add = columns(space, V), self.adding()

            def contribute(part: Part, batch: Batch, rows: list[list[Tensor]]) -> None:
                add(leaves, part, batch, vectors, Sums(rows))

            with s.installed(leaves[1]) if self.runs else nullcontext():
                mean = s.average_rows(contribute, space, len(vectors), self.name, self.scale, V, self.squared)
            if self.penalties != "none":
                mean = s.plus_penalty(self.name, mean, lambda: self._of_penalties(leaves, vectors))
            return mean.T

    def _of_penalties(self, leaves: Leaves, vectors: list[list[Tensor]]) -> Tensor:
        """The penalties' Hessian times each vector, as rows."""
        with torch.enable_grad():
            value = self.snapshot.penalty(leaves[1], convex_only=self.penalties == "convex")
            gradient = grads(value, leaves[0], None, create_graph=True)
            products = [grads(gradient, leaves[0], v, retain_graph=True) for v in vectors]
        return torch.stack([self.domain.join(p) for p in products])
