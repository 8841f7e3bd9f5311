"""Bounds on every vector of a graph over a region of inputs, by intervals and by linear functions.

**Intervals.** Each node's interval follows from its parents' intervals.

**Linear functions.** An upper bound of a linear function of a node, w' z, is carried back to the input: through an
affine map by its transpose, through an elementwise function by the upper line where the coefficient is positive and by
the lower line where it is negative. At last it is a linear function of the input, whose maximum over the region is
closed. The two lines need the interval of the function's argument, which is found in the same way first. Whatever is
smaller counts, the interval or the linear bound.

**Source.** Zhang, Weng, Chen, Hsieh and Daniel, "Efficient neural network robustness certification with general
activation functions" (2018); Xu et al., "Automatic perturbation analysis for scalable certified robustness" (2020).
**Differs from the source:** each step's rounding error is bounded by the magnitudes that the intervals give, and added
to the constant: with |fl(w' W) - w' W| <= gamma |w|' |W|, the error of w' W z is at most gamma |w|' (|W| m), m >= |z|.
**Cost:** for a node with n numbers, n rows through all nodes before it; rows of functions that are linear on their
interval are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.bounds._elementwise import Lines
from frechet.calculus.bounds._graph import Graph
from frechet.calculus.bounds._rounding import TINY, UNIT, above, gamma
from frechet.space import euclidean

AT_ONCE = 1 << 23  # numbers of a block of rows: 64 MiB
Clips = Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Region:
    """Boxes (batch, n), each cut with one ball |x - centre|_2 <= radius where there is one."""

    low: Tensor
    high: Tensor
    centre: Tensor | None = None  # (n,)
    radius: float = 0.0


class Propagation:
    """Bounds `low[i]`, `high[i]` (batch, n) of every node i; `empty` says of which regions no point is left."""

    def __init__(self, graph: Graph, region: Region, clips: Clips, *, linear: bool) -> None:
        self.graph, self.region, self.linear = graph, region, linear
        self.low: dict[int, Tensor] = {}
        self.high: dict[int, Tensor] = {}
        self.lines: dict[int, Lines] = {}
        self._sizes: dict[int, Tensor] = {}
        self.empty = torch.zeros(len(region.low), dtype=torch.bool)
        for i in range(graph.output + 1):
            self._bound(i, clips)

    def size(self, i: int) -> Tensor:
        """The largest magnitude of each number of a node."""
        return torch.maximum(self.low[i].abs(), self.high[i].abs())

    # --- node by node -------------------------------------------------------------------------------------------------

    def _bound(self, i: int, clips: Clips) -> None:
        node = self.graph.nodes[i]
        if node.affine is not None:
            self.low[i], self.high[i] = self._of_map(i)
        elif node.function is not None:
            p = node.parents[0]
            if self.linear:
                self._refine(p, self._bent(i))
            if i in clips:
                self._set(p, *clips[i])
            low, high = self.low[p], self.high[p]
            self.lines[i] = node.function.lines(low, high)
            self.low[i], self.high[i] = node.function.range(low, high)
        elif node.parents:
            ends = [
                (self.low[p], self.high[p]) if sign > 0 else (-self.high[p], -self.low[p])
                for p, sign in zip(node.parents, node.signs, strict=True)
            ]
            pad = sum(self.size(p) for p in node.parents) * (len(ends) * 2 * UNIT)
            lows, highs = torch.stack([a for a, _ in ends]), torch.stack([b for _, b in ends])
            self.low[i] = _not_below_zero(lows.sum(0) - pad, (lows >= 0).all(0))
            self.high[i] = -_not_below_zero(-(highs.sum(0) + pad), (highs <= 0).all(0))
        else:
            self.low[i], self.high[i] = self.region.low, self.region.high

    def _of_map(self, i: int) -> tuple[Tensor, Tensor]:
        map, p = self.graph.nodes[i].affine, self.graph.nodes[i].parents[0]
        assert map is not None
        low, high = self.low[p], self.high[p]
        centre = (low + high) / 2
        radius = above(torch.maximum(high - centre, centre - low))
        reach = self._sizes[i] = map.apply(self.size(p), "size")
        bias = map.shift()
        pad = reach * (4 * gamma(map.terms) + 4 * map.uncertain) + abs(bias) * (8 * UNIT + 4 * map.uncertain) + TINY
        middle, half = map.apply(centre) + bias, map.apply(radius, "size") + pad
        # a sum without a negative term is not negative, however it is rounded: signs of derivatives hang on that
        below, above_zero = (-low).clamp(min=0.0), high.clamp(min=0.0)
        negative = map.apply(below, "positive") + map.apply(above_zero, "negative")
        positive = map.apply(above_zero, "positive") + map.apply(below, "negative")
        shift = middle * 0.0 + bias
        lower = _not_below_zero(middle - half, (negative == 0) & (shift >= 0))
        return lower, -_not_below_zero(-(middle + half), (positive == 0) & (shift <= 0))

    def _bent(self, i: int) -> Tensor:
        """The numbers of an elementwise node's argument that are worth a linear bound: where it is not linear."""
        function, p = self.graph.nodes[i].function, self.graph.nodes[i].parents[0]
        assert function is not None
        least, most = function.slopes(self.low[p], self.high[p])
        return (least < most).any(0).nonzero().squeeze(1)

    def tighten(self, i: int) -> None:
        """Linear bounds for all numbers of a node."""
        self._refine(i, torch.arange(self.graph.nodes[i].size))

    def _refine(self, i: int, where: Tensor) -> None:
        if i == 0 or len(where) == 0:
            return
        n, batch = self.graph.nodes[i].size, len(self.empty)
        space = euclidean(n, torch.float64)
        low, high = self.low[i].clone(), self.high[i].clone()
        step = max(1, AT_ONCE // (2 * batch * max(self.graph.nodes[j].size for j in range(i + 1))))
        for part in where.split(step):
            rows = space.zeros(len(part)).T
            rows[torch.arange(len(part)), part] = 1.0
            ends, _ = self.upper(i, torch.cat([rows, -rows]).expand(batch, -1, -1))
            high[:, part] = torch.minimum(high[:, part], ends[:, : len(part)])
            low[:, part] = torch.maximum(low[:, part], -ends[:, len(part) :])
        self._set(i, low, high)

    def _set(self, i: int, low: Tensor, high: Tensor) -> None:
        """Cut the interval of a node. Where nothing is left, the region is empty, and any number stands for it."""
        low, high = torch.maximum(self.low[i], low), torch.minimum(self.high[i], high)
        self.empty = self.empty | (low > high).any(1)
        self.low[i], self.high[i] = low, torch.maximum(low, high)

    # --- linear functions ---------------------------------------------------------------------------------------------

    def upper(self, target: int, L: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Upper bounds of L z for rows L (batch, rows, n) on node `target`; and the coefficients of each function."""
        total = _Sum(L)
        arriving, met = {target: L}, {}
        for i in range(target, -1, -1):
            L = arriving.pop(i, None)  # type: ignore[assignment]
            if L is None:
                continue
            node = self.graph.nodes[i]
            if node.affine is not None:
                p, map = node.parents[0], node.affine
                total.error(L.abs(), self._sizes[i], 2 * gamma(map.terms_back) + 2 * map.uncertain)
                if map.bias is not None:
                    total.add(L, map.bias.expand(len(L), -1), map.uncertain)
                self._arrive(arriving, p, map.back(L), total)
            elif node.function is not None:
                p, lines = node.parents[0], self.lines[i]
                met[i] = L
                positive = L > 0
                total.add(L, torch.where(positive, lines.upper_shift.unsqueeze(1), lines.lower_shift.unsqueeze(1)))
                L = L * torch.where(positive, lines.upper.unsqueeze(1), lines.lower.unsqueeze(1))
                total.error(L.abs(), self.size(p), 4 * UNIT)
                self._arrive(arriving, p, L, total)
            elif node.parents:
                for p, sign in zip(node.parents, node.signs, strict=True):
                    self._arrive(arriving, p, L if sign > 0 else -L, total)
            else:
                total.close(L, self.region)
        return total.value(), met

    def _arrive(self, arriving: dict[int, Tensor], p: int, L: Tensor, total: _Sum) -> None:
        if p in arriving:
            total.error(arriving[p].abs() + L.abs(), self.size(p), 4 * UNIT)
            L = arriving[p] + L
        arriving[p] = L


def _not_below_zero(low: Tensor, sure: Tensor) -> Tensor:
    return torch.where(sure, low.clamp(min=0.0), low)


class _Sum:
    """The constant of a linear bound (batch, rows), with a bound on its own rounding error."""

    def __init__(self, L: Tensor) -> None:
        self.total, self.size, self.slack = (L.new_zeros(L.shape[:2]) for _ in range(3))
        self.terms = 0

    def add(self, L: Tensor, by: Tensor, uncertain: float = 0.0) -> None:
        """Adds L by, for vectors `by` (batch, n) or one for each row (batch, rows, n)."""
        by = by.unsqueeze(1) if by.ndim == 2 else by
        terms = L * by
        self.total = self.total + terms.sum(-1)
        size = terms.abs().sum(-1)
        self.size = self.size + size
        self.slack = self.slack + 2 * uncertain * size
        self.terms += L.shape[-1] + 2

    def error(self, size: Tensor, m: Tensor, relative: float) -> None:
        """An error of at most `relative` size m."""
        self.slack = self.slack + 2 * relative * (size @ m.unsqueeze(-1)).squeeze(-1)

    def close(self, L: Tensor, region: Region) -> None:
        """The largest value of L x over the region."""
        corner = torch.where(L > 0, region.high.unsqueeze(1), region.low.unsqueeze(1))
        if region.centre is None:
            self.add(L, corner)
            return
        box = (L * corner).sum(-1)
        length = above(L.square().sum(-1).sqrt(), L.shape[-1] + 8) * region.radius
        ball = (L * region.centre).sum(-1) + length
        self.total = self.total + torch.minimum(box, ball)
        self.size = self.size + (L * corner).abs().sum(-1) + (L * region.centre).abs().sum(-1) + length
        self.terms += L.shape[-1] + 4

    def value(self) -> Tensor:
        return self.total + (2 * self.slack + 2 * gamma(self.terms) * self.size + TINY)
