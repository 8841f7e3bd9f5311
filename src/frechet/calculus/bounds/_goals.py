"""What is bounded over a part of the region: norms of the Jacobian, or one entry of it.

A convex function of an entry lies below its chord on [l, u]. So |J| <= c J + d with c = (u + l)/(u - l) and
d = -2 u l/(u - l) where the sign is open, and J^2 <= (l + u) J - l u; sums of these are linear functions of the
Jacobian, which are bounded together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.bounds import _norms as norms
from frechet.calculus.bounds._branch import Enclosed
from frechet.calculus.bounds._rounding import TINY, UNIT, above


def largest_magnitude(J: Enclosed) -> Tensor:
    """The largest |J| of each entry."""
    return torch.maximum(J.low.abs(), J.high.abs())


@dataclass(frozen=True, eq=False)
class RowSum:
    """sum_j |J_j| of one row: the gain from the largest input to one output."""

    linear: bool

    def __call__(self, J: Enclosed) -> tuple[Tensor, dict[int, Tensor]]:
        found = norms.row_sums(largest_magnitude(J))
        if not self.linear:
            return found.amax(1), {}
        low, high = J.low, J.high
        wide = high - low
        slope = torch.where(wide > 0, (high + low) / wide.where(wide > 0, 1.0), 0.0)
        slope = torch.where(low >= 0, 1.0, torch.where(high <= 0, -1.0, slope))
        bound, met = J.linear(slope)
        shift = torch.maximum(low.abs() - slope * low, high.abs() - slope * high)
        shift = shift + (low.abs() + high.abs()) * (8 * UNIT) + TINY
        return torch.minimum(found, above(bound + norms.row_sums(shift))).amax(1), met


@dataclass(frozen=True, eq=False)
class Spectral:
    """The largest singular value of all rows together; of one row its length."""

    linear: bool

    def __call__(self, J: Enclosed) -> tuple[Tensor, dict[int, Tensor]]:
        M = largest_magnitude(J)
        found = norms.length(norms.length(M))
        if J.low.shape[1] > 1:
            found = torch.minimum(found, norms.spectral_of_positive(M))
            centre = (J.low + J.high) / 2
            radius = above(torch.maximum(J.high - centre, centre - J.low))
            found = torch.minimum(found, above(norms.spectral(centre) + norms.spectral_of_positive(radius)))
        if not self.linear:
            return found, {}
        slope = J.low + J.high
        bound, met = J.linear(slope)
        shift = torch.maximum(J.low.square() - slope * J.low, J.high.square() - slope * J.high)
        shift = shift + M.square() * (16 * UNIT) + TINY
        squares = above(bound + shift.sum(-1), 2).clamp(min=0.0) + M.square().sum(-1) * (M.shape[-1] * 4 * UNIT)
        return torch.minimum(found, norms.length(above(squares.sqrt(), 8))), met


@dataclass(frozen=True, eq=False)
class Entry:
    """`sign` times the derivative of one row by one input."""

    input: int
    sign: int
    linear: bool

    def __call__(self, J: Enclosed) -> tuple[Tensor, dict[int, Tensor]]:
        found = (J.high if self.sign > 0 else -J.low)[:, 0, self.input]
        if not self.linear:
            return found, {}
        unit = torch.zeros_like(J.low)
        unit[..., self.input] = float(self.sign)
        bound, met = J.linear(unit)
        return torch.minimum(found, bound[:, 0]), met
