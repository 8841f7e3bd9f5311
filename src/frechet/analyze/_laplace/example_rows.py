"""Gradients of single examples along given cotangents in the outputs, as rows: J_i'u_i for each example i of a batch.

Where all parameters belong to layers of known kinds, one backward pass to the layers' outputs gives the slopes b of all
examples, and an example's gradient is the sum of b a' over its positions, see `derivatives/_kfac_layers.py`. On every
batch that sum is compared with the gradient of the parameters, and one example alone with its output in the batch. Else
rows come by `vmap`, or one example after the other where that cannot go through the model (`_single_examples.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._single_examples import (
    ExampleRoute,
    check_alone,
    chunk_gradients,
    example,
    rows_at_once,
    taken_alone,
)
from frechet.objective import Batch, Snapshot
from frechet.operators.derivatives._kfac_layers import Call, Layer, layers_of, recorded
from frechet.operators.derivatives._kfac_proof import Elsewhere, prove, prove_rows
from frechet.operators.derivatives._kfac_sums import example_gradients
from frechet.operators.derivatives._products import grads
from frechet.space import Space, euclidean


class OnBatch(ABC):
    """The outputs y of a batch, and the rows of its examples."""

    y: Tensor
    space: Space

    @abstractmethod
    def rows(self, cotangents: Sequence[Tensor]) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(a, b, [G, ...]): for each cotangent the rows ``(b - a, n)`` of the examples a to b."""

    def jacobians(self) -> Iterator[tuple[int, int, Tensor]]:
        """(a, b, J): the Jacobians ``(b - a, outputs, n)`` of the outputs of the examples a to b."""
        width = self.y[0].numel()
        units = torch.eye(width, dtype=self.y.dtype, device=self.y.device).unsqueeze(1).expand(-1, len(self.y), -1)
        for a, b, found in self.rows([u.reshape(self.y.shape) for u in units]):
            yield a, b, torch.stack(found, 1)

    def squares(self, u: Tensor) -> Tensor:
        """The sum over the examples of the squares of the entries of their rows, ``(n,)`` float64."""
        return torch.stack([G.double().square().sum(0) for _, _, (G,) in self.rows([u])]).sum(0)


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """The model of a snapshot at its point, differentiated in the blocks of `space`, one example at a time."""

    what: str  # the public function that asks
    snapshot: Snapshot
    space: Space
    route: ExampleRoute
    leaves: list[Tensor]
    blocks: dict[str, Tensor]
    layers: list[Layer]  # empty: some parameter is in none of a known kind

    @classmethod
    def of(cls, what: str, snapshot: Snapshot, space: Space, route: ExampleRoute) -> ExampleRows:
        leaves, blocks = snapshot.leaves(space)
        layers, rest = layers_of(snapshot, space, ())
        return cls(what, snapshot, space, route, leaves, blocks, [] if rest else layers)

    def on(self, batch: Batch) -> OnBatch:
        """The rows of a batch, while `blocks` are installed."""
        if self.layers:
            try:
                return _by_layers(self, batch)
            except Elsewhere:
                self.layers.clear()
        with torch.no_grad():
            return _Alone(self.snapshot.forward(self.blocks, batch).detach(), self.space, self, batch)


@dataclass(frozen=True, eq=False)
class _Alone(OnBatch):
    """Each example is differentiated by itself."""

    y: Tensor
    space: Space
    of: ExampleRows
    batch: Batch

    def rows(self, cotangents: Sequence[Tensor]) -> Iterator[tuple[int, int, list[Tensor]]]:
        step = max(1, rows_at_once(self.space) // len(cotangents))
        for a in range(0, len(self.y), step):
            b = min(a + step, len(self.y))
            yield a, b, [self._rows(u, a, b) for u in cotangents]

    def _rows(self, u: Tensor, a: int, b: int) -> Tensor:
        o = self.of
        G, alone = chunk_gradients(o.snapshot, o.space, o.leaves, o.blocks, self.batch, u, a, b, o.route)
        check_alone(o.what, alone, self.y[a:b], o.space.eps, self.batch.index, a)
        return G


@dataclass(frozen=True, eq=False)
class _ByLayers(OnBatch):
    """Rows are products of the layers' inputs and slopes."""

    y: Tensor
    space: Space
    layers: list[Layer]
    calls: list[Call]
    graph: Tensor  # y with its graph

    def rows(self, cotangents: Sequence[Tensor]) -> Iterator[tuple[int, int, list[Tensor]]]:
        step = max(1, rows_at_once(self.space) // len(cotangents))
        slopes = [self._slopes(u) for u in cotangents]
        for a in range(0, len(self.y), step):
            b = min(a + step, len(self.y))
            yield a, b, [self._rows(s, slice(a, b)) for s in slopes]

    def squares(self, u: Tensor) -> Tensor:
        slopes = self._slopes(u)
        if any(len(self._own(layer, slopes)) != 1 for layer in self.layers) or not all(map(_one_vector, self.calls)):
            return super().squares(u)
        out = self.space.zeros().double()
        for layer in self.layers:
            ((call, b),) = self._own(layer, slopes)
            a, rows = call.inputs[:, 0].square(), call.slopes(b)[:, 0].square()
            out[layer.order(self.space)] = torch.einsum("ngo,ngi->goi", rows, a).double().reshape(-1)
        return out

    def _slopes(self, u: Tensor) -> list[Tensor]:
        return grads(self.graph, [c.output for c in self.calls], [u], retain_graph=True) if self.calls else []

    def _own(self, layer: Layer, slopes: list[Tensor]) -> list[tuple[Call, Tensor]]:
        return [(c, b) for c, b in zip(self.calls, slopes, strict=True) if c.layer is layer]

    def _rows(self, slopes: list[Tensor], at: slice) -> Tensor:
        G = self.y.new_zeros(len(self.y[at]), self.space.dim)
        for layer in self.layers:
            for call, b in self._own(layer, slopes):
                found = example_gradients(call, b, at)
                order = layer.order(self.space)
                G[:, order] = found if call is self._first(layer) else G[:, order] + found
        return G

    def _first(self, layer: Layer) -> Call | None:
        return next((c for c in self.calls if c.layer is layer), None)


def _one_vector(call: Call) -> bool:
    """Whether a layer saw one vector of each example."""
    return call.layer.kind in ("linear", "convolution") and call.inputs.shape[1] == 1


def _by_layers(of: ExampleRows, batch: Batch) -> _ByLayers:
    s, space = of.snapshot, of.space
    with torch.enable_grad(), recorded(of.layers) as calls:
        y = s.forward(of.blocks, batch)
    prove_rows(calls, len(y))
    found = _ByLayers(y.detach(), space, of.layers, list(calls), y)
    if not y.requires_grad or not len(y):
        return found
    u = euclidean(y.numel(), y.dtype, y.device).random(0, 0, "gaussian").view(y.shape)
    both = grads(y, [*of.leaves, *(c.output for c in calls)], [u], retain_graph=True)
    n = len(of.leaves)
    prove(space, both[:n], calls, both[n:], of.layers)
    with torch.no_grad(), taken_alone(batch.index, len(y) - 1):
        alone = s.forward(of.blocks, example(batch, len(y) - 1, len(y)))
    check_alone(of.what, alone, found.y[-1:], space.eps, batch.index, len(y) - 1)
    return found
