"""Bounds of every entry of a Jacobian over a box, and certificates of monotonicity.

A function increases with an input on a box where no derivative by it is negative. The certificate is a bound on the
sign of one entry of the Clarke Jacobian, by branch and bound; two points with derivatives of both signs refute it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from frechet.calculus.bounds._branch import Part, Search, enclosed
from frechet.calculus.bounds._goals import Entry
from frechet.calculus.bounds._graph import Graph
from frechet.calculus.bounds._lipschitz import ball, checked_examples, rows_of
from frechet.calculus.bounds._propagate import Region
from frechet.calculus.bounds._rounding import above, below
from frechet.calculus.bounds._search import best_point, drawn, point_of
from frechet.linalg._shown import Result

POINTS = 128


@dataclass(frozen=True, eq=False)
class JacobianBounds(Result):
    """Every entry of the Jacobian lies between `low` and `high`, at all points of the ball: (N, *output, *input)."""

    low: Tensor
    high: Tensor

    def signs(self) -> Tensor:
        """1 where an entry cannot be negative, -1 where it cannot be positive, 0 where neither is known."""
        return (self.low >= 0).double() - ((self.high <= 0) & (self.low < 0)).double()

    def _line(self) -> str:
        known = int((self.signs() != 0).sum())
        width = float((self.high - self.low).max())
        return f"{tuple(self.low.shape)} entries, widest {width:.4g}, sign known of {known}"


def jacobian_bounds(
    model: nn.Module, x: Tensor, radius: float, *, norm: float = math.inf, linear: bool = True
) -> JacobianBounds:
    """Return certified bounds of every entry of a network's Clarke Jacobian on a ball around each example.

    Args:
        model: maps each example alone to one tensor, of the layers that `local_lipschitz` knows.
        x: examples, (N, ...).
        radius: of the ball, > 0.
        norm: of the ball, 2 or `math.inf`.
        linear: False takes intervals instead of linear bounds: cheaper, and much wider.

    Example:
        >>> import torch
        >>> from frechet.calculus.bounds import jacobian_bounds
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(2.0), net[0].bias.fill_(0.0)
        >>> found = jacobian_bounds(net, torch.tensor([[0.0], [3.0]]), 1.0)
        >>> found.low.flatten(), found.high.flatten()
        (tensor([0.0000, 2.0000], dtype=torch.float64), tensor([2.0000, 2.0000], dtype=torch.float64))
    """
    checked_examples("jacobian_bounds", x)
    if not 0 < radius < math.inf or norm not in (2, math.inf):
        raise ValueError(f"jacobian_bounds: radius must be positive and norm 2 or math.inf, got {radius}, {norm}")
    network, rows, shape = rows_of("jacobian_bounds", model, x, None)
    lows, highs = [], []
    for example in x.detach().double().cpu():
        J = enclosed(network, ball(example.reshape(-1), radius, norm), {}, rows[None], linear=linear)
        lows.append(J.low[0].reshape(*shape[1:], *x.shape[1:]))
        highs.append(J.high[0].reshape(*shape[1:], *x.shape[1:]))
    return JacobianBounds(torch.stack(lows), torch.stack(highs))


class Direction(StrEnum):
    """What is known of a function along one input."""

    INCREASING = "increasing"  # no derivative is negative
    DECREASING = "decreasing"
    CONSTANT = "constant"
    NEITHER = "neither"  # two points refute both
    UNDECIDED = "undecided"  # the search ended first


@dataclass(frozen=True, eq=False)
class Monotonicity(Result):
    """The direction in which an output goes with an input on a box, proven, refuted by two points, or undecided.

    The derivative lies between `low` and `high` everywhere; it is `least` at `points[0]` and `most` at `points[1]`.
    """

    direction: Direction
    low: float
    high: float
    least: float
    most: float
    points: Tensor  # (2, ...)
    domains: int

    def _line(self) -> str:
        inner = f"reached [{self.least:.4g}, {self.most:.4g}]"
        return f"{self.direction}, derivative in [{self.low:.4g}, {self.high:.4g}], {inner}, {self.domains} domains"


def monotonicity(
    model: nn.Module,
    low: Tensor,
    high: Tensor,
    *,
    input: int,
    output: int = 0,
    seed: int,
    max_domains: int = 500,
) -> Monotonicity:
    """Return a certificate that one output of a network goes up, or down, with one input on a whole box.

    Args:
        model: maps each example alone to one tensor, of the layers that `local_lipschitz` knows.
        low: the lower corner of the box, an example without its batch axis.
        high: the upper corner, the same shape.
        input: which input, as its place in the flattened example.
        output: which of the flattened outputs. Default: 0.
        seed: of the search for points that refute.
        max_domains: how many parts of the box may be bounded for each end. Default: 500.

    Example:
        >>> import torch
        >>> from frechet.calculus.bounds import monotonicity
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh())
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        >>> monotonicity(net, -torch.ones(2), torch.ones(2), input=1, seed=0).direction
        <Direction.DECREASING: 'decreasing'>
    """
    low, high = (torch.as_tensor(t).detach().double().cpu() for t in (low, high))
    if low.ndim == 0 or low.shape != high.shape or not bool((low < high).all()):
        raise ValueError("monotonicity: low must be below high in every number, two tensors of an example's shape")
    network, rows, shape = rows_of("monotonicity", model, low[None], None)
    if not 0 <= input < low.numel() or not 0 <= output < shape.numel():
        raise ValueError(
            f"monotonicity: input must lie in 0..{low.numel() - 1} and output in 0..{shape.numel() - 1}, got {input}, "
            f"{output}"
        )
    row = rows[output][None]
    least = _extreme(network, row, low, high, input, -1, seed, max_domains)
    most = _extreme(network, row, low, high, input, 1, seed, max_domains)
    ends, inner = (-least.bound, most.bound), (-least.value, most.value)
    points = torch.stack([e.point.reshape(low.shape) for e in (least, most)])
    return Monotonicity(_direction(*ends, *inner), *ends, *inner, points, least.domains + most.domains)


@dataclass(frozen=True, eq=False)
class _Extreme:
    """An upper bound of a derivative times a sign, a point where that is large, and its value there."""

    bound: float
    point: Tensor
    value: float
    domains: int


def _direction(low: float, high: float, least: float, most: float) -> Direction:
    match low >= 0, high <= 0:
        case True, True:
            return Direction.CONSTANT
        case True, False:
            return Direction.INCREASING
        case False, True:
            return Direction.DECREASING
    return Direction.NEITHER if least < 0 < most else Direction.UNDECIDED


def _extreme(
    network: Graph, row: Tensor, low: Tensor, high: Tensor, input: int, sign: int, seed: int, most: int
) -> _Extreme:
    box = Region(low.reshape(1, -1), high.reshape(1, -1))
    at = best_point(network, box, row, lambda J: sign * J[:, 0, input], POINTS, seed)
    value = _below(network, row, at, input, sign)

    def look(part: Part) -> float:
        nonlocal at, value
        region = Region(part.low[None], part.high[None])
        found = point_of(network, region, part.clips, torch.cat([at[None], drawn(region, 7, seed)]))
        if found is not None and (new := _below(network, row, found, input, sign)) > value:
            at, value = found, new
        return value

    part = Part(row, box.low[0], box.high[0], {}, math.inf)
    search = Search(network, Entry(input, sign, True), None, 0.0, True, [part])
    # a sign is decided where the bound is below zero, or a value is above it
    search.run_until(lambda upper: upper <= 0 or value > 0, most, look)
    return _Extreme(max(search.upper(), value), at, value, search.bounded)


def _below(network: Graph, row: Tensor, at: Tensor, input: int, sign: int) -> float:
    J = enclosed(network, Region(at[None], at[None]), {}, row[None], linear=False)
    return float(below(J.low[0, 0, input], 1) if sign > 0 else -above(J.high[0, 0, input], 1))
