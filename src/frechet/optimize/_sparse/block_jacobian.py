"""A sparse Jacobian as blocks of values, one for each group of rows of its structure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.optimize._sparse.structure import Structure


@dataclass(frozen=True, eq=False)
class BlockJacobian:
    """J ``(m, n)`` in float64: for each group of rows of the structure its values ``(G, d, w)``."""

    structure: Structure
    values: tuple[Tensor, ...]

    def times(self, v: Tensor) -> Tensor:
        """J v ``(m,)`` for v ``(n,)`` on the device of J."""
        found = v.new_zeros(self.structure.m)
        for group, values in zip(self.structure.groups, self.values, strict=True):
            found[group.rows] = (values * v[group.columns][:, None, :]).sum(2)  # values of column -1 are zero
        return found

    def transposed_times(self, u: Tensor) -> Tensor:
        """J'u ``(n,)``."""
        found = u.new_zeros(self.structure.n)
        for group, values in zip(self.structure.groups, self.values, strict=True):
            terms = (u[group.rows][:, :, None] * values).sum(1)
            found.index_add_(0, group.columns.clamp(min=0).reshape(-1), terms.reshape(-1))
        return found

    def squares(self) -> Tensor:
        """The squares of the norms of the columns ``(n,)``."""
        found = torch.zeros(self.structure.n, dtype=torch.float64, device=self.structure.colors.device)
        for group, values in zip(self.structure.groups, self.values, strict=True):
            found.index_add_(0, group.columns.clamp(min=0).reshape(-1), values.square().sum(1).reshape(-1))
        return found

    def absolute(self) -> BlockJacobian:
        return replace(self, values=tuple(values.abs() for values in self.values))

    def finite(self) -> bool:
        return all(bool(values.isfinite().all()) for values in self.values)

    def scaled(self, factors: Tensor) -> BlockJacobian:
        """J diag(factors)."""
        groups = self.structure.groups
        return replace(
            self, values=tuple(v * factors[g.columns][:, None, :] for g, v in zip(groups, self.values, strict=True))
        )

    def weighted(self, rows: Tensor) -> BlockJacobian:
        """diag(rows) J."""
        groups = self.structure.groups
        return replace(
            self, values=tuple(v * rows[g.rows][:, :, None] for g, v in zip(groups, self.values, strict=True))
        )
