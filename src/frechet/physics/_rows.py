"""Rows of the Jacobian of residuals at points, by one gradient for each point.

Residual i depends on the parameters through point i alone: row i is the gradient of f(parameters, x_i), and the rows of
many points are one `vmap` of it. The Jacobian of the whole residual vector would take a backward pass through all
points for each of its rows.

**Cost.** A few evaluations of the residual, whatever the number of points; J, and `CHUNK` bytes for its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from frechet.operators._operator import NONE, Fact, LinearOperator
from frechet.operators.derivatives._function import FunctionJacobian
from frechet.physics._conditions import Condition
from frechet.space import Point, Space, Variables, euclidean

CHUNK = 1 << 26  # bytes of rows that are computed together


def pieces(c: Condition, entries: int, itemsize: int, chunk: int | None) -> Iterator[slice]:
    """The points of a condition in chunks: as said, or as many as fill `CHUNK` with `entries` numbers each."""
    size = chunk or max(CHUNK // (itemsize * max(entries, 1)), 1)
    for start in range(0, len(c), size):
        yield slice(start, min(start + size, len(c)))


def rows_at(c: Condition, variables: Variables, parameters: Point, index: slice | Tensor) -> Tensor:
    """The rows ``(N k, n)`` of J at some points of a condition, columns in the order of the space."""
    names = variables.space.names

    def blocks(p: Any, like: tuple[int, ...]) -> Tensor:
        parts = [p] if variables.single else [p[name] for name in names]
        return torch.cat([b.reshape(*b.shape[: len(like)], -1) for b in parts], -1)

    def one(p: Point, *x: Tensor) -> Tensor:
        y = c.f(p, *x)
        if y.numel() == 1:
            return blocks(grad(lambda p: c.f(p, *x).sum())(p), ())[None]
        back = vjp(lambda p: c.f(p, *x).reshape(-1), p)[1]
        units = torch.eye(y.numel(), dtype=y.dtype, device=y.device)
        return blocks(vmap(back)(units)[0], (0,))

    found = vmap(one, c.axes)(parameters, *c.rows(index)) * c.factors[index, None, None]
    return found.reshape(-1, variables.space.dim)


@dataclass(frozen=True, eq=False, repr=False)
class PointJacobian(LinearOperator):
    """J of residuals at points by its products, a chunk of points at a time."""

    conditions: tuple[Condition, ...]
    variables: Variables
    x: list[Tensor]  # its blocks
    entries: tuple[int, ...]  # of r at a point, for each condition
    chunk: int | None
    codomain: Space

    @property
    def domain(self) -> Space:
        return self.variables.space

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _parts(self) -> Iterator[FunctionJacobian]:
        space = self.domain
        for c, k in zip(self.conditions, self.entries, strict=True):
            for index in pieces(c, k * _ACTIVATIONS, space.dtype.itemsize, self.chunk):
                image = euclidean((index.stop - index.start) * k, space.dtype, space.device)

                def values(p: Point, c: Condition = c, index: slice = index) -> Tensor:
                    return c.values(p, index).reshape(-1)

                yield FunctionJacobian(values, self.variables, self.x, "reverse", image)

    def _matmat(self, V: Tensor) -> Tensor:
        return torch.cat([part @ V for part in self._parts()])

    def _rmatmat(self, U: Tensor) -> Tensor:
        total, start = None, 0
        for part in self._parts():
            stop = start + part.codomain.dim
            found = part.T @ U[start:stop].contiguous()
            total, start = found if total is None else total + found, stop
        assert total is not None
        return total


_ACTIVATIONS = 1 << 12  # numbers that the graph of one point is taken to hold, where a user says nothing


def jacobian_matrix(
    conditions: Sequence[Condition], entries: Sequence[int], variables: Variables, parameters: Point, chunk: int | None
) -> Tensor:
    """J ``(m, n)``, written chunk by chunk into its own memory."""
    space = variables.space
    m = sum(len(c) * k for c, k in zip(conditions, entries, strict=True))
    J, at = torch.empty(m, space.dim, dtype=space.dtype, device=space.device), 0
    for c, k in zip(conditions, entries, strict=True):
        for index in pieces(c, k * space.dim, space.dtype.itemsize, chunk):
            stop = at + (index.stop - index.start) * k
            J[at:stop] = rows_at(c, variables, parameters, index)
            at = stop
    return J
