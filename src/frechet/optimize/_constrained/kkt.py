"""How far a point with multipliers is from satisfying the first-order conditions, from their definition.

With r = grad f + J'y, a bound multiplier z_i of the sign that r_i calls for leaves |r_i + z_i| as residual and |z_i|
times the distance to that side as complementarity. z_i = -r_i / (1 + distance) makes both equal: neither is bought by
the other. Multipliers of rows whose sign belongs to an open side are set to zero before anything is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.optimize._constrained.program import Point, Program

STATIONARY = 1e-6  # of the violation: the length of its gradient, in units of the Jacobian


@dataclass(frozen=True, eq=False)
class Conditions:
    """The three measures, the multipliers y ``(m,)`` and z ``(n,)`` that they belong to, and the size of grad f.

    The residual is not compared with J'y: where the multipliers grow without bound, that would call anything solved.
    """

    residual: float
    infeasibility: float
    complementarity: float
    y: Tensor
    z: Tensor
    size: float
    scaled: float  # the residual, by the lengths of the parameters, as `size` is
    measure: float  # of f
    violated: float  # the infeasibility, each row by its measure

    @property
    def worst(self) -> float:
        size = max(1.0, self.size / self.measure)
        return max(self.scaled / self.measure / size, self.violated, self.complementarity / self.measure)

    def hold(self, gtol: float, ctol: float, *, strict: bool = False) -> bool:
        """Whether all three are within their tolerances; with `strict`, however large the gradients are."""
        size = 1.0 if strict else max(1.0, self.size / self.measure)
        small = self.scaled <= gtol * size * self.measure and self.complementarity <= gtol * self.measure
        return small and self.violated <= ctol


def largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def violation(program: Program, x: Tensor, c: Tensor) -> Tensor:
    """By how much each row ``(m,)`` is past its side: positive above the upper, negative below the lower one."""
    return torch.clamp_min(c - program.high, 0.0) - torch.clamp_min(program.low - c, 0.0)


def conditions(program: Program, point: Point, y: Tensor) -> Conditions:
    """The measures at a point of `program`, with these multipliers of its rows; all in the units of the caller."""
    x, c = point.x, point.c
    equal = program.low == program.high
    y = torch.where((program.high == math.inf) & ~equal, y.clamp_max(0.0), y)
    y = torch.where((program.low == -math.inf) & ~equal, y.clamp_min(0.0), y)
    pulled = point.J.T @ y if len(y) else torch.zeros_like(x)
    r = point.g + pulled
    distance = torch.where(r > 0, x - program.lower, program.upper - x).clamp_min(0.0)
    z = -r / (1 + distance)
    away = torch.where(y > 0, program.high - c, c - program.low).abs()
    slack = torch.where(equal | (y == 0), 0.0, y.abs() * torch.where(y == 0, 0.0, away))
    held = torch.where(z == 0, 0.0, z.abs() * torch.where(z == 0, 0.0, distance))
    outside = torch.maximum(program.lower - x, x - program.upper).clamp_min(0.0)
    unit, units = program.unit, program.units
    past = violation(program, x, c) * units
    return Conditions(
        largest((r + z) / program.lengths) * unit,
        max(largest(past), largest(outside * program.lengths)),
        max(largest(slack), largest(held)) * unit,
        y * unit / units,
        z / program.lengths * unit,
        largest(point.g) * unit,
        largest(r + z) * unit,
        program.measure,
        max(largest(past / program.measures), largest(outside)),
    )


def stationary_violation(program: Program, point: Point, rtol: float) -> bool:
    """Whether no direction inside the bounds reduces norm(violation) to first order, relative to `rtol`."""
    v = violation(program, point.x, point.c)
    if not len(v):
        return False
    gradient = point.J.T @ v
    moved = torch.minimum(torch.maximum(point.x - gradient, program.lower), program.upper)
    size = float(program.codomain.norm(v))
    # a unit step of the gradient, cut by the box: where it goes nowhere, the violation is stationary
    return float(program.domain.norm(moved - point.x)) <= rtol * max(1.0, _reach(program, point, v)) * size


def _reach(program: Program, point: Point, v: Tensor) -> float:
    """A lower bound of the norm of J, from one more product."""
    u = v / program.codomain.norm(v)
    pulled = point.J.T @ u
    length = float(program.domain.norm(pulled))
    return float(program.codomain.norm(point.J @ (pulled / length))) if length > 0 else 0.0
