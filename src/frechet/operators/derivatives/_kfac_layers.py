"""The layers of a model whose gradients are products of what goes in and of slopes that come back.

    weight gradient of example n:   g_n = sum_t b_nt a_nt'     a: inputs (patches, one-hot tokens), b: slopes of outputs

for Linear, convolutions (with groups, strides, dilation, any padding) and Embedding, and g_n = sum_t b_nt * x_nt for
the scale of a normalization with the normalized input x. A bias is one more input that is 1. `Call` holds the inputs of
one call of a layer as rows ``(examples, t, groups, in)``, and turns slopes into rows ``(examples, t, groups, out)``.

**Source.** J. Martens, R. Grosse (2015), arXiv 1503.05671; R. Grosse, J. Martens (2016), arXiv 1602.01407, for patches.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.objective import Snapshot
from frechet.space import Space

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Kind = Literal["linear", "convolution", "embedding", "scale", "other"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A module and the names of those of its parameters that are in the space; `groups` blocks on the diagonal."""

    module: nn.Module
    kind: Kind
    weight: str | None
    bias: str | None
    groups: int = 1
    transposed: bool = False  # a weight (in, out)
    twins: tuple[nn.Module, ...] = ()  # modules with the same parameters, called for this layer too

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(n for n in (self.weight, self.bias) if n is not None)

    def order(self, space: Space) -> Tensor:
        """Where the entries of this layer's block stand in a vector of the space."""
        positions = torch.arange(space.dim, device=space.device)
        parts = []
        if self.weight is not None:
            at = positions[space.block(self.weight)]
            if self.kind in ("embedding", "scale", "other"):
                parts.append(at.view(self.groups, -1))
            else:
                out = space.shapes[space.names.index(self.weight)][0]
                parts.append(at.view(out, -1).T if self.transposed else at.view(out, -1))
        if self.bias is not None:
            at = positions[space.block(self.bias)]
            parts.append(at.view(1, -1) if self.kind == "scale" else at.view(-1, 1))
        # rows of a matrix layer are outputs, with the bias as the last column; a scale has its bias behind it
        return torch.cat(parts, 1).reshape(-1)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: what went in, and what came out with its graph."""

    layer: Layer
    given: Tensor
    output: Tensor

    @cached_property
    def inputs(self) -> Tensor:
        """Rows of inputs ``(examples, t, groups, in)``, with the column of ones; tokens ``(examples, t)``."""
        layer, a = self.layer, self.given.detach()
        match layer.kind:
            case "linear":
                rows = a.reshape(len(a), -1, 1, a.shape[-1])
            case "convolution":
                rows = patches(layer.module, a, layer.groups)
            case "embedding":
                return a.reshape(len(a), -1)
            case _:
                return self._normalized(a)
        if layer.weight is None:
            rows = rows[..., :0]
        return rows if layer.bias is None else torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)

    def slopes(self, b: Tensor) -> Tensor:
        """Slopes of the outputs as rows ``(examples, t, groups, out)``."""
        n, groups = len(b), self.layer.groups
        if self.layer.kind == "convolution":  # (n, channels, *places)
            return b.reshape(n, groups, b.shape[1] // groups, -1).permute(0, 3, 1, 2)
        if self.layer.kind == "scale":
            return b
        return b.reshape(n, -1, groups, b.shape[-1])

    def gradients(self, b: Tensor) -> Tensor:
        """Each example's gradient of a scale and its bias ``(examples, size)``."""
        assert self.layer.kind == "scale"
        x, module = self.inputs, self.layer.module
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            last = len(module.normalized_shape)
            lead = tuple(range(1, b.ndim - last))
            parts = [b * x, b]
            parts = [p.sum(lead) if lead else p for p in parts]
        else:  # channels on axis 1
            rest = tuple(range(2, b.ndim))
            parts = [p.sum(rest) if rest else p for p in (b * x, b)]
        kept = [p.reshape(len(b), -1) for p, n in zip(parts, (self.layer.weight, self.layer.bias), strict=True) if n]
        return torch.cat(kept, 1)

    def _normalized(self, a: Tensor) -> Tensor:
        """What the module scales."""
        m: Any = self.layer.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(a, m.normalized_shape, None, None, m.eps)
        if isinstance(m, nn.RMSNorm):
            return F.rms_norm(a, list(m.normalized_shape), None, m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(a, m.num_groups, None, None, m.eps)
        return F.batch_norm(a, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)


def patches(module: Any, a: Tensor, groups: int) -> Tensor:
    """What a convolution multiplies by its weight, as rows ``(examples, places, groups, in per group)``."""
    dims = len(module.kernel_size)
    a = a if a.ndim == dims + 2 else a.unsqueeze(0)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    else:
        a = F.pad(a, [p for size in reversed(module.padding) for p in (size, size)])
    for axis in range(dims):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        a = a.unfold(2 + axis, (size - 1) * dilation + 1, module.stride[axis])[..., ::dilation]
    # (n, channels, *places, *kernel) -> (n, places, groups, channels per group * kernel)
    n, channels = a.shape[:2]
    places = a.shape[2 : 2 + dims].numel()
    a = a.reshape(n, groups, channels // groups, places, -1).permute(0, 3, 1, 2, 4)
    return a.reshape(n, places, groups, -1)


def layers_of(snapshot: Snapshot, space: Space, elsewhere: Container[str]) -> tuple[list[Layer], list[str]]:
    """The layers that hold parameters of the space, and the parameters that are in none of a known kind.

    Parameters in two layers of different kinds, and those that are `elsewhere`, are in none.
    """
    known = known_layers(snapshot.model, snapshot.modules, space.names)
    held: dict[str, Layer] = {}
    mixed: set[str] = set()
    for layer in known:
        for key in layer.names:
            if key in held and _shared(held[key], layer):
                mixed.update((*layer.names, *held[key].names))
            held[key] = layer
    kept = [la for la in known if not any(n in mixed or n in elsewhere for n in la.names)]
    covered = {n for layer in kept for n in layer.names}
    return _without_twins(kept), [n for n in space.names if n not in covered]


def known_layers(model: nn.Module, modules: Iterable[nn.Module], wanted: Sequence[str]) -> list[Layer]:
    """The modules of known kinds that hold a parameter of these names."""
    names = {id(t): key for key, t in model.named_parameters()}
    found = []
    for m in modules:
        kind = _kind(m)
        if kind is None:
            continue
        own = [
            None if t is None else names.get(id(t)) for t in (m._parameters.get("weight"), m._parameters.get("bias"))
        ]
        weight, bias = (n if n in wanted else None for n in own)
        if weight is not None or bias is not None:
            groups: Any = m.groups if kind == "convolution" else 1
            found.append(Layer(m, kind, weight, bias, groups, is_transposed(m)))
    return found


def _kind(m: nn.Module) -> Kind | None:
    """How a module uses its weight, where that is known and nobody changed it."""
    if "forward" in m.__dict__:
        return None
    if is_transposed(m):
        return "linear"
    for base, kind in ((nn.Linear, "linear"), (nn.Embedding, "embedding")):
        if isinstance(m, base):
            return kind if type(m).forward is base.forward and _plain(m) else None  # type: ignore[return-value]
    if isinstance(m, CONVOLUTIONS):
        return "convolution" if any(type(m).forward is base.forward for base in CONVOLUTIONS) else None
    if isinstance(m, NORMS):
        known = any(type(m).forward is base.forward for base in NORMS)
        return "scale" if known and not (m.training and getattr(m, "running_mean", None) is not None) else None
    return None


def is_transposed(m: nn.Module) -> bool:
    """Whether this is the linear layer of GPT-2 in transformers, whose weight is (in, out)."""
    return (type(m).__module__, type(m).__name__) == ("transformers.pytorch_utils", "Conv1D")


def _plain(m: Any) -> bool:
    """Whether an embedding returns the rows of its weight as they are."""
    return not isinstance(m, nn.Embedding) or (m.max_norm is None and not m.scale_grad_by_freq)


def _shared(first: Layer, second: Layer) -> bool:
    """Whether two modules use a parameter in different ways."""
    return (first.kind, first.weight, first.bias, first.groups) != (
        second.kind,
        second.weight,
        second.bias,
        second.groups,
    )


def _without_twins(layers: Sequence[Layer]) -> list[Layer]:
    """One layer for each set of names: modules that share their parameters are one layer, called more often."""
    kept: dict[tuple[str, ...], Layer] = {}
    for layer in layers:
        first = kept.get(layer.names)
        kept[layer.names] = layer if first is None else replace(first, twins=(*first.twins, layer.module))
    return list(kept.values())


@contextmanager
def recorded(layers: Sequence[Layer]) -> Iterator[list[Call]]:
    """The calls of the layers inside. Copies go in and out, so that nothing overwrites what is kept."""
    calls: list[Call] = []
    changed: list[nn.Module] = []

    def act(layer: Layer, module: nn.Module, given: Tensor, *rest: Any) -> Tensor:
        out = type(module).forward(module, given, *rest)
        if not out.requires_grad:
            return out
        calls.append(Call(layer, given.clone(), out))
        return out.clone()

    try:
        for layer in layers:
            for m in (layer.module, *layer.twins):
                m.__dict__["forward"] = partial(act, layer, m)
                changed.append(m)
        yield calls
    finally:
        for m in changed:
            del m.__dict__["forward"]
