"""Boxes with Gauss-Legendre quadrature, inside and on their faces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A product of intervals with a quadrature rule.

    Attributes:
        low: the lower corner ``(d,)``.
        high: the upper corner ``(d,)``.
        points: the nodes ``(N, d)``.
        weights: their weights ``(N,)``, positive, with the volume as their sum.
        nodes: Gauss nodes of each piece of an axis.
        pieces: how many equal pieces each axis has.
    """

    low: Tensor
    high: Tensor
    points: Tensor
    weights: Tensor
    nodes: int
    pieces: int

    @property
    def dimension(self) -> int:
        """The number of coordinates."""
        return self.low.numel()

    def integral(self, values: Tensor) -> Tensor:
        """Return the integral of a function from its values ``(N, ...)`` at the nodes."""
        return torch.einsum("n,n...->...", self.weights, values)

    def faces(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return points ``(M, d)``, weights ``(M,)`` and outer normal ``(d,)`` of each of the 2 d faces."""
        found = []
        for i, side in itertools.product(range(self.dimension), (-1.0, 1.0)):
            rest = [j for j in range(self.dimension) if j != i]
            points, weights = _rule(self.low[rest], self.high[rest], self.nodes, self.pieces)
            full = torch.empty(len(points), self.dimension, dtype=points.dtype, device=points.device)
            full[:, rest] = points
            full[:, i] = self.high[i] if side > 0 else self.low[i]
            normal = torch.zeros_like(self.low)
            normal[i] = side
            found.append((full, weights, normal))
        return found


def box(
    low: float | Sequence[float],
    high: float | Sequence[float],
    *,
    nodes: int = 16,
    pieces: int = 4,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Box:
    """Return a product of intervals with Gauss-Legendre quadrature.

    Args:
        low: lower ends, a number for an interval.
        high: upper ends, above the lower ones.
        nodes: nodes of each piece of an axis, >= 1; polynomials of degree 2 nodes - 1 are exact.
        pieces: equal pieces of each axis, >= 1. There are (nodes * pieces)^d points.
        dtype: the dtype of points and weights.
        device: their device.

    Example:
        >>> from frechet.calculus.functionals import box
        >>> domain = box(0.0, 2.0)
        >>> domain.integral(domain.points[:, 0] ** 2)
        tensor(2.6667, dtype=torch.float64)
    """
    a = torch.as_tensor(low, dtype=dtype, device=device).reshape(-1)
    b = torch.as_tensor(high, dtype=dtype, device=device).reshape(-1)
    if a.shape != b.shape or not bool((a < b).all()) or not bool((a.isfinite() & b.isfinite()).all()):
        raise ValueError(f"box: low must lie below high in each coordinate, got {a.tolist()} and {b.tolist()}")
    if nodes < 1 or pieces < 1:
        raise ValueError(f"box: nodes and pieces must be at least 1, got {nodes} and {pieces}")
    points, weights = _rule(a, b, nodes, pieces)
    return Box(a, b, points, weights, nodes, pieces)


def _rule(low: Tensor, high: Tensor, nodes: int, pieces: int) -> tuple[Tensor, Tensor]:
    at, weight = np.polynomial.legendre.leggauss(nodes)
    unit = np.concatenate([(at + 1) / 2 / pieces + k / pieces for k in range(pieces)])
    u, w = low.new_tensor(unit), low.new_tensor(np.tile(weight / 2 / pieces, pieces))
    if not low.numel():
        return low.new_zeros(1, 0), low.new_ones(1)
    axes = [a + (b - a) * u for a, b in zip(low, high, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, low.numel())
    weights = torch.stack(torch.meshgrid(*[w] * low.numel(), indexing="ij"), -1).prod(-1).reshape(-1)
    return points, weights * math.prod((high - low).tolist())
