"""The rows of J by reverse mode, where the residual takes the declared rows of its parameters by the declared index.

A residual that reads ``x["cameras"][camera]`` with the declared index is a function of the gathered rows, of which each
group of residuals has its own. One backward pass to the gathered rows, from the k-th residual of every group at once,
gives row k of all groups: d passes for groups of d residuals, where colors need as many as a residual reads columns.

Where a parameter is read in another way the residual depends on it past the gathered rows; autograd sees that, and the
Jacobian comes by colors. Where a group reads the rows of another one, the gradient by one more pass tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frechet.operators.derivatives._products import second_order
from frechet.optimize._least_squares.residual import Point, Residual
from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.structure import Structure
from frechet.space import Variables

TAKES = (Tensor.__getitem__, torch.index_select, Tensor.index_select)


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of a parameter that were taken by a declared index, as a leaf of the graph."""

    slot: int
    rows: Tensor


@dataclass(eq=False)
class Gathering(TorchFunctionMode):
    """Hands out leaves in place of rows that are taken by a declared index; they are collected here."""

    leaves: list[Tensor]
    indices: list[tuple[int, Tensor]]  # of each slot: the number of its parameter, and the index (G,)
    found: list[Gathered] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in TAKES and not kwargs and args and isinstance(args[0], Tensor):
            number = next((i for i, leaf in enumerate(self.leaves) if leaf is args[0]), None)
            asked = _rows(func, args)
            if number is not None and asked is not None:
                taken = self._taken(number, asked[0])
                if taken is not None:
                    return taken[(slice(None), *asked[1])] if asked[1] else taken.clone()
        return func(*args, **(kwargs or {}))

    def _taken(self, number: int, index: Tensor) -> Tensor | None:
        for slot, (of, declared) in enumerate(self.indices):
            if of == number and index.shape == declared.shape and bool((index == declared).all()):
                known = next((g.rows for g in self.found if g.slot == slot), None)
                if known is None:
                    known = self.leaves[number].detach()[declared].requires_grad_()
                    self.found.append(Gathered(slot, known))
                return known
        return None


def _rows(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]] | None:
    """The index of rows in a call that takes rows, and what follows it."""
    if func is not Tensor.__getitem__:
        return (args[2], ()) if len(args) == 3 and args[1] == 0 and isinstance(args[2], Tensor) else None
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    plain = all(isinstance(i, int | slice) and not isinstance(i, bool) for i in index[1:])
    if not index or not plain or not isinstance(index[0], Tensor) or index[0].dtype != torch.int64:
        return None
    return index[0], index[1:]


@dataclass(frozen=True, eq=False)
class RowGraph:
    """The graph of the residual from its gathered rows, and J from it."""

    problem: Residual
    structure: Structure
    y: Tensor
    found: list[Gathered]
    J: BlockJacobian

    def blocks(self) -> BlockJacobian:
        return self.J

    def along(self, v: Tensor) -> Tensor:
        raise NotImplementedError  # what has gradients is not asked

    def gradient(self, u: Tensor) -> Tensor:
        """J'u: the gradients of all gathered rows, added up where they were taken from."""
        group, total = self.structure.groups[0], torch.zeros(self.structure.n, dtype=torch.float64, device=u.device)
        with second_order("least_squares", u.device):
            grads = torch.autograd.grad(self.y, [g.rows for g in self.found], u.to(self.y), retain_graph=True)
        for g, gradient in zip(self.found, grads, strict=True):
            number, at = group.slots[g.slot]
            columns = group.columns[:, at : at + self.structure.blocks[number].width]
            total.index_add_(0, columns.reshape(-1), gradient.detach().double().reshape(-1))
        return total


def row_graph(problem: Residual, point: Point, structure: Structure) -> RowGraph | None:
    """J by one backward pass for each row of a group; None where the residual reads parameters in another way."""
    if len(structure.groups) != 1 or not structure.groups[0].rows.shape[1] < structure.count:
        return None
    space, group = problem.space, structure.groups[0]
    parts = space.split(point.x.to(space.device, space.dtype))
    indices = []
    for number, at in group.slots:
        b = structure.blocks[number]
        indices.append((number, (group.columns[:, at] - b.start).div(max(b.width, 1), rounding_mode="floor")))
    with second_order("least_squares", space.device), torch.enable_grad():
        leaves = [b.clone().requires_grad_() for b in parts]
        x = Variables(space, problem.single).structured(leaves)
        with (gathering := Gathering(leaves, indices)):
            y = problem.flat(problem.function(x)) / problem.unit
        if not gathering.found or not y.requires_grad:
            return None
        J = _swept(structure, y, leaves, gathering.found)
        return None if J is None else RowGraph(problem, structure, y, gathering.found, J)


def _swept(structure: Structure, y: Tensor, leaves: list[Tensor], found: list[Gathered]) -> BlockJacobian | None:
    """One pass for each row; None where a parameter is read past its gathered rows."""
    group = structure.groups[0]
    count, depth = group.rows.shape
    values = torch.zeros(count, depth, group.columns.shape[1], dtype=torch.float64, device=y.device)
    for k in range(depth):
        u = torch.zeros_like(y)
        u[group.rows[:, k]] = 1
        targets = [*(g.rows for g in found), *leaves]
        grads = torch.autograd.grad(y, targets, u, retain_graph=True, allow_unused=True)
        if any(g is not None for g in grads[len(found) :]):
            return None
        for g, gradient in zip(found, grads, strict=False):
            number, at = group.slots[g.slot]
            if gradient is not None:
                values[:, k, at : at + structure.blocks[number].width] = gradient.detach().reshape(count, -1)
    return BlockJacobian(structure, (values,))
