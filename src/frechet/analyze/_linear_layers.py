"""Gradients of single examples in linear layers, kept as factors.

Let a linear layer see one vector a_i of example i, and let b_i be the slope of f_i in the layer's output. Then the
gradient of f_i in the weight is b_i a_i' and in the bias b_i. So in this layer

    <g_i, g_j> = (a_i'a_j + 1) (b_i'b_j),    <(V, v), g_i> = b_i'(V a_i + v)

and in + out numbers stand for in x out. Both factors come from single examples under vmap, so the layout of the model's
tensors does not matter. A layer is taken if it is a plain `torch.nn.Linear`, called once per example with one vector,
whose parameters the model uses nowhere else: with the layer's own use cut off, no gradient reaches them. This is looked
at on one example of every batch.

**Source.** Goodfellow, "Efficient per-example gradient computations" (2015), arXiv 1510.01799.
**Differs from the source.** (1) Inner products between examples and with vectors, for several functions of an example.
(2) Layers that see many vectors of an example (tokens) are left to gradients written out, which cost less there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.analyze._single_examples import batching, one_by_one
from frechet.objective import Batch, Snapshot
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer, and the names of those of its parameters that are in the space."""

    module: nn.Linear
    weight: str | None
    bias: str | None

    @property
    def names(self) -> list[str]:
        return [n for n in (self.weight, self.bias) if n is not None]


@dataclass(frozen=True, eq=False)
class Factors:
    """Of m examples with k functions each in one layer: inputs a ``(m, in)`` and slopes b ``(m, k, out)``."""

    layer: Layer
    a: Tensor
    b: Tensor

    def gram(self, other: Factors) -> Tensor:
        """<g_ik, g_jl> as ``(m k, m' k')``."""
        inputs = self.a.new_zeros(len(self.a), len(other.a))
        if self.layer.weight is not None:
            inputs = self.a @ other.a.T
        if self.layer.bias is not None:
            inputs = inputs + 1
        (m, k, out), (n, l, _) = self.b.shape, other.b.shape
        slopes = self.b.view(m * k, out) @ other.b.view(n * l, out).T
        return (slopes.view(m, k, n, l) * inputs[:, None, :, None]).view(m * k, n * l)

    def squared_norms(self) -> Tensor:
        """|g_ik|^2 as ``(m, k)``."""
        size = float(self.layer.bias is not None)
        if self.layer.weight is not None:
            size = size + self.a.square().sum(1, keepdim=True)
        return self.b.square().sum(2) * size

    def slopes(self, v: Mapping[str, Tensor]) -> Tensor:
        """<v, g_ik> as ``(m, k)``, for v by names of parameters."""
        image = self.b.new_zeros(len(self.a), self.b.shape[2])
        if self.layer.weight is not None:
            image = self.a @ v[self.layer.weight].T
        if self.layer.bias is not None:
            image = image + v[self.layer.bias]
        return torch.einsum("mko,mo->mk", self.b, image)


def inner_of(u: Mapping[str, Tensor], v: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """The inner product of the blocks called `names`."""
    return sum(float((u[n] * v[n]).sum(dtype=torch.float64)) for n in names)


def candidates(snapshot: Snapshot, space: Space) -> list[Layer]:
    """The plain linear layers of a model whose parameters are in `space` and in no other layer."""
    names = {id(t): name for name, t in snapshot.model.named_parameters()}
    layers = []
    for m in snapshot.modules:
        if not isinstance(m, nn.Linear) or type(m).forward is not nn.Linear.forward or "forward" in m.__dict__:
            continue
        weight, bias = (None if t is None else names.get(id(t)) for t in (m._parameters.get("weight"), m.bias))
        own = [n for n in (weight, bias) if n is not None]
        if weight is None or any(len(snapshot.places[n]) != 1 for n in own):
            continue
        layer = Layer(m, *(n if n in space.names else None for n in (weight, bias)))
        if layer.names:
            layers.append(layer)
    return layers


def still_factored(
    snapshot: Snapshot, blocks: dict[str, Tensor], batch: Batch, layers: Sequence[Layer], size: int
) -> list[Layer]:
    """Those of the layers that see one vector of this batch's first example, and whose parameters nothing else uses.

    A batch of `size` 0 says nothing.
    """
    if not layers or not size:
        return list(layers)
    alone, rows = one_by_one(snapshot, blocks, batch, size)
    calls: list[tuple[int, bool]] = []

    def cut(i: int, a: Tensor) -> Tensor:
        m = layers[i].module
        calls.append((i, a.numel() == m.in_features))
        return F.linear(a, m.weight.detach(), None if m.bias is None else m.bias.detach())

    with torch.enable_grad(), batching(), _linear(layers, cut):
        y = alone({}, [r[0] for r in rows])
        own = [blocks[n] for layer in layers for n in layer.names]
        found = torch.autograd.grad(y.sum(), own, allow_unused=True) if y.requires_grad else [None] * len(own)
    elsewhere = {n for (n, g) in zip((n for layer in layers for n in layer.names), found, strict=True) if g is not None}
    return [
        layer
        for i, layer in enumerate(layers)
        if [c for c in calls if c[0] == i] == [(i, True)] and not elsewhere & set(layer.names)
    ]


def rest_of(space: Space, layers: Sequence[Layer]) -> Space:
    """The parameters of `space` that are in none of the layers."""
    taken = {n for layer in layers for n in layer.names}
    kept = [i for i, n in enumerate(space.names) if n not in taken]
    return Space(tuple(space.names[i] for i in kept), tuple(space.shapes[i] for i in kept), space.dtype, space.device)


def factors_of(
    snapshot: Snapshot,
    blocks: dict[str, Tensor],
    batch: Batch,
    layers: Sequence[Layer],
    cotangents: Tensor,
    size: int,
    each: bool,
) -> tuple[list[Factors], Tensor]:
    """The factors of all `size` examples of a batch, and the outputs of each alone.

    The functions of an example are <u, its outputs ``(1, ...)``> for u in `cotangents` ``(k, 1, ...)``, or ``(examples,
    k, 1, ...)`` where `each` example has its own.
    """
    alone, rows = one_by_one(snapshot, blocks, batch, size)

    def single(rows: list[Tensor], u: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        def shifted(shifts: list[Tensor]) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
            seen: dict[int, Tensor] = {}

            def add(i: int, a: Tensor) -> Tensor:
                seen[i] = a.reshape(-1)
                m = layers[i].module
                z = F.linear(a, m.weight, m.bias)
                return z + shifts[i].view(z.shape)

            with _linear(layers, add):
                y = alone({}, rows)
            return y, ([seen[i] for i in range(len(layers))], y)

        zeros = [rows[0].new_zeros(layer.module.out_features, dtype=snapshot.x.dtype) for layer in layers]
        found: Any = torch.func.vjp(shifted, zeros, has_aux=True)
        inputs, y = found[2]
        return inputs, torch.func.vmap(found[1])(u)[0], y

    with torch.no_grad(), batching():
        inputs, slopes, y = torch.func.vmap(single, in_dims=(0, 0 if each else None))(rows, cotangents)
    return [Factors(layer, a, b) for layer, a, b in zip(layers, inputs, slopes, strict=True)], y.squeeze(1)


@contextmanager
def _linear(layers: Sequence[Layer], act: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Layer i returns act(i, its input) inside."""
    changed: list[nn.Linear] = []
    try:
        for i, layer in enumerate(layers):
            layer.module.__dict__["forward"] = partial(act, i)
            changed.append(layer.module)
        yield
    finally:
        for m in changed:
            del m.__dict__["forward"]
