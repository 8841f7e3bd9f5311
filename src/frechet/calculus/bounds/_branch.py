"""Branch and bound over the intervals of activations, for an upper bound of a function of the Jacobian.

A part of the region is given by intervals of arguments of activations, and by a box of inputs. Its bound comes from
two propagations: through the network, for the range of each activation's slope, and through the graph of the Jacobian,
whose factors these are. The part with the largest bound is cut in two: where a slope has the largest influence on the
bound, at a kink or in the middle; and along an input where all slopes are known. A part without a point is dropped.

A kink on the border of two parts is in both, with the slope of each. The function is convex in the Jacobian, and the
Jacobian affine in each slope, so slopes between them give no more.

**Source.** Shi, Wang, Zhang, Kolter and Hsieh (2022), sections 3.3 and 3.4; Wang et al., "Beta-CROWN" (2021).
**Differs from the source:** 1. smooth activations are cut as well. 2. The relaxation lines are not optimized.
3. The part to cut and the activation are the ones with the largest bound and the largest term in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from frechet.calculus.bounds._graph import Graph, JacobianGraph, jacobian_graph
from frechet.calculus.bounds._propagate import Propagation, Region

TOGETHER = 16  # parts that are bounded at once


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of the region for some rows of the Jacobian, its upper bound, and where to cut it next."""

    rows: Tensor  # (r, outputs)
    low: Tensor  # (n,), of inputs
    high: Tensor
    clips: Mapping[int, tuple[Tensor, Tensor]]  # of the arguments of elementwise nodes
    upper: float
    cut: tuple[int, int, float] | None = None  # node (0: the input), number, place


@dataclass(frozen=True, eq=False)
class Enclosed:
    """Bounds of rows of the Jacobian, (parts, r, n), and the propagation that can bound linear functions of them."""

    low: Tensor
    high: Tensor
    graph: JacobianGraph
    propagation: Propagation
    network: Propagation

    def linear(self, C: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Upper bounds of sum_j C_j J_j, (parts, r), and each factor's coefficients (parts, r, n)."""
        parts, r, n = C.shape
        found, met = self.propagation.upper(self.graph.graph.output, C.reshape(parts * r, 1, n))
        return found.reshape(parts, r), {i: L.reshape(parts, r, -1) for i, L in met.items()}


class Goal(Protocol):
    """Upper bounds (parts,) of a function of rows of the Jacobian, and the factors' coefficients in them."""

    def __call__(self, J: Enclosed) -> tuple[Tensor, dict[int, Tensor]]: ...


def enclosed(network: Graph, region: Region, clips: Mapping, rows: Tensor, *, linear: bool) -> Enclosed:
    """Bounds of rows (parts, r, outputs) of the Jacobian over each region."""
    parts, r, _ = rows.shape
    inside = Propagation(network, region, clips, linear=linear)
    slopes = {}
    for i in network.functions():
        if i <= network.output:
            function, p = network.nodes[i].function, network.nodes[i].parents[0]
            assert function is not None
            least, most = function.slopes(inside.low[p], inside.high[p])
            slopes[i] = least.repeat_interleave(r, 0), most.repeat_interleave(r, 0)
    back = jacobian_graph(network, slopes)
    seeds = rows.reshape(parts * r, -1)
    outside = Propagation(back.graph, Region(seeds, seeds), {}, linear=linear)
    if linear:
        outside.tighten(back.graph.output)
    low, high = (side[back.graph.output].reshape(parts, r, -1) for side in (outside.low, outside.high))
    return Enclosed(low, high, back, outside, inside)


@dataclass(eq=False)
class Search:
    """The problem, and how far the search has come."""

    network: Graph
    goal: Goal
    centre: Tensor | None
    radius: float
    linear: bool
    parts: list[Part]
    bounded: int = 0

    def region(self, parts: list[Part]) -> Region:
        low, high = (torch.stack([getattr(p, side) for p in parts]) for side in ("low", "high"))
        return Region(low, high, self.centre, self.radius)

    def upper(self) -> float:
        return max((p.upper for p in self.parts), default=0.0)

    def run(self, lower: float, rtol: float, most: int, reach: Callable[[Part], float]) -> None:
        """Cut parts until the bound is at most (1 + rtol) lower, or `most` parts have been bounded.

        `reach` looks for a point of a part and returns the function there, or less.
        """
        best = lower

        def look(part: Part) -> float:
            nonlocal best
            best = max(best, reach(part))
            return best

        self.run_until(lambda upper: upper <= (1 + rtol) * best, most, look)

    def run_until(self, enough: Callable[[float], bool], most: int, reach: Callable[[Part], float]) -> None:
        """Cut parts whose bound is not yet `enough`, until there is none or `most` parts have been bounded."""
        self.parts = self.bound(self.parts)
        while self.bounded < most and self.parts:
            self.parts.sort(key=lambda p: -p.upper)
            if not enough(self.parts[0].upper):
                reach(self.parts[0])
            count = min(TOGETHER, (most - self.bounded + 1) // 2)
            chosen = [p for p in self.parts[:count] if not enough(p.upper) and p.cut is not None]
            if not chosen:
                return
            ids = set(map(id, chosen))
            kept = [p for p in self.parts if id(p) not in ids]
            self.parts = kept + self.bound([half for p in chosen for half in self.halves(p)])

    def bound(self, parts: list[Part]) -> list[Part]:
        """The parts with their bounds; those without a point are left out."""
        found: list[Part] = []
        for start in range(0, len(parts), TOGETHER):
            found += self._bound(parts[start : start + TOGETHER])
        return found

    def _bound(self, parts: list[Part]) -> list[Part]:
        self.bounded += len(parts)
        clips = {}
        for i in {i for p in parts for i in p.clips}:
            n = self.network.nodes[i].size
            free = torch.full((n,), -torch.inf, dtype=torch.float64), torch.full((n,), torch.inf, dtype=torch.float64)
            pairs = [p.clips.get(i, free) for p in parts]
            clips[i] = torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
        rows = torch.stack([p.rows for p in parts])
        J = enclosed(self.network, self.region(parts), clips, rows, linear=self.linear)
        upper, met = self.goal(J)
        cuts = self._cuts(J, met)
        found = []
        for k, p in enumerate(parts):
            if not J.network.empty[k]:
                bound = min(p.upper, float(upper[k]))
                cut = cuts[k] or self._input_cut(p)
                found.append(Part(p.rows, p.low, p.high, p.clips, bound, cut))
        return found

    def _cuts(self, J: Enclosed, met: dict[int, Tensor]) -> list[tuple[int, int, float] | None]:
        """For each part the activation whose slope's range weighs most in the bound."""
        parts = len(J.low)
        best = torch.zeros(parts, dtype=torch.float64)
        cuts: list[tuple[int, int, float] | None] = [None] * parts
        for i, node in J.graph.scaled.items():
            factor = J.graph.graph.nodes[node]
            if node not in met or factor.function is None:
                continue
            p = factor.parents[0]
            least, most = factor.function.slopes(J.propagation.low[p], J.propagation.high[p])
            weight = met[node].abs() * ((most - least) * J.propagation.size(p)).reshape(met[node].shape)
            score, where = weight.sum(1).max(1)
            argument = self.network.nodes[i].parents[0]
            low, high = J.network.low[argument], J.network.high[argument]
            function = self.network.nodes[i].function
            assert function is not None
            places = function.split(low, high)
            for k in range(parts):
                if score[k] > best[k]:
                    j = int(where[k])
                    best[k], cuts[k] = score[k], (i, j, float(places[k, j]))
        return cuts

    def _input_cut(self, p: Part) -> tuple[int, int, float] | None:
        width = p.high - p.low
        j = int(width.argmax())
        return (0, j, float((p.low[j] + p.high[j]) / 2)) if width[j] > 1e-12 * (1 + p.high[j].abs()) else None

    def halves(self, p: Part) -> list[Part]:
        """The two parts of a part."""
        assert p.cut is not None
        i, j, place = p.cut
        found = []
        for side in (0, 1):
            if i == 0:
                low, high = p.low.clone(), p.high.clone()
                (high if side == 0 else low)[j] = place
                found.append(Part(p.rows, low, high, p.clips, p.upper))
                continue
            n = self.network.nodes[i].size
            free = torch.full((n,), -torch.inf, dtype=torch.float64), torch.full((n,), torch.inf, dtype=torch.float64)
            low, high = (t.clone() for t in p.clips.get(i, free))
            (high if side == 0 else low)[j] = place
            found.append(Part(p.rows, p.low, p.high, {**p.clips, i: (low, high)}, p.upper))
        return found
