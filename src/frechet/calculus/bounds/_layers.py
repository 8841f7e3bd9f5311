"""The layers of a network as nodes of its graph.

A vector of the network stands for one example, with a batch axis of length one in its shape. What only moves numbers is
found by moving their places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.calculus.bounds import _activations as activations
from frechet.calculus.bounds._affine import Affine, Averages, Convolution, Dense, Diagonal, Selection
from frechet.calculus.bounds._elementwise import Elementwise
from frechet.calculus.bounds._graph import Graph

# the scale of batch normalization takes a sum, a root, a quotient and a product; its shift two more
NORMALIZATION = 16 * 2.0**-53


@dataclass(frozen=True, eq=False)
class Traced:
    """A vector of the network: its node, and the shape of one example with its batch axis of length one."""

    node: int
    shape: torch.Size

    @property
    def size(self) -> int:
        return self.shape.numel()


class Builder:
    """Adds layers to a graph; `name` is the public function, for its sentences."""

    def __init__(self, name: str) -> None:
        self.name, self.network = name, Graph()

    def refuse(self, what: str) -> NoReturn:
        raise self.unknown(what)

    def unknown(self, what: str) -> TypeError:
        return TypeError(
            f"{self.name}: model must consist of affine layers, known activations, pooling and sums, got {what}, for "
            "which there is no bound; write it with those, or bound the model up to there"
        )

    # --- the rules ----------------------------------------------------------------------------------------------------

    def map(self, x: Traced, map: Affine, shape: Sequence[int]) -> Traced:
        size = torch.Size(shape)
        return Traced(self.network.affine(x.node, map, size.numel()), size)

    def elementwise(self, x: Traced, function: Elementwise) -> Traced:
        return Traced(self.network.elementwise(x.node, function), x.shape)

    def linear(self, x: Traced, weight: Tensor, bias: Tensor | None = None) -> Traced:
        lead = x.size // x.shape[-1]
        return self.map(
            x, Dense(weight, None if bias is None else bias.repeat(lead), lead), (*x.shape[:-1], weight.shape[0])
        )

    def convolution(self, x: Traced, m: nn.Conv1d | nn.Conv2d) -> Traced:
        if m.padding_mode != "zeros" or isinstance(m.padding, str):
            self.refuse(f"{type(m).__name__} with padding {m.padding!r}, {m.padding_mode}")
        flat = isinstance(m, nn.Conv1d)
        out = m(torch.zeros(x.shape, dtype=torch.float64)).shape
        image, result = ((s[1], 1, s[2]) if flat else tuple(s[1:]) for s in (x.shape, out))
        weight = m.weight.unsqueeze(2) if flat else m.weight
        bias = None if m.bias is None else m.bias.repeat_interleave(out[2:].numel())
        stride, padding, dilation = (
            (d, *v) if flat else v for d, v in ((1, m.stride), (0, m.padding), (1, m.dilation))
        )
        found: Any = Convolution(weight, bias, image, result, stride, padding, dilation, m.groups)  # type: ignore[arg-type]
        return self.map(x, found, out)

    def normalization(self, x: Traced, m: Any) -> Traced:
        if m.training or m.running_var is None:
            raise ValueError(
                f"{self.name}: model must treat each example alone, got {type(m).__name__} in training mode; call "
                "model.eval()"
            )
        scale = 1 / (m.running_var + m.eps).sqrt() * (1.0 if m.weight is None else m.weight)
        each = x.shape[2:].numel()
        # (z - mean) scale + bias, with the mean subtracted first: its rounding is then relative to z and to the mean
        centred = self.shifted(x, -m.running_mean.reshape(-1, *(1 for _ in x.shape[2:])))
        bias = None if m.bias is None else m.bias.repeat_interleave(each)
        return self.map(centred, Diagonal(scale.repeat_interleave(each), bias, NORMALIZATION), x.shape)

    def averages(self, x: Traced, m: Any) -> Traced:
        if getattr(m, "divisor_override", None) is not None:
            self.refuse("pooling with divisor_override")
        return self.mean_like(x, m)

    def mean_like(self, x: Traced, function: Callable[[Tensor], Tensor]) -> Traced:
        out = function(torch.zeros(x.shape, dtype=torch.float64))
        n = max(x.size, out.numel())  # no mean has more terms
        return self.map(x, Averages(function, tuple(x.shape[1:]), n, n), out.shape)

    def maxima(self, x: Traced, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Traced:
        axes = len(x.shape) - 2
        kernel, stride, padding, dilation = (
            (v,) * axes if isinstance(v, int) else tuple(v) for v in (kernel, stride or kernel, padding, dilation)
        )
        if any(padding) or any(d != 1 for d in dilation) or ceil:
            self.refuse("maximum pooling with padding, dilation or ceil_mode")

        def windows(t: Tensor) -> Tensor:  # (1, channels, ..., numbers of a window)
            for axis in range(axes):
                t = t.unfold(2 + axis, kernel[axis], stride[axis])
            return t.flatten(2 + axes)

        shape = windows(torch.zeros(x.shape)).shape
        found = [self.moved(lambda t, k=k: windows(t)[..., k], (x,), {}) for k in range(shape[-1])]
        while len(found) > 1:
            pairs = [self.larger(a, b) for a, b in zip(found[::2], found[1::2], strict=False)]
            found = pairs + found[len(found) - len(found) % 2 :]
        return found[0]

    def larger(self, a: Traced, b: Traced) -> Traced:
        return self.plus(b, self.elementwise(self.plus(a, b, -1), activations.RECTIFIER))

    def same(self, x: Traced, m: Any) -> Traced:
        if m.training and getattr(m, "p", 0):
            raise ValueError(
                f"{self.name}: model must be one function, got dropout in training mode; call model.eval()"
            )
        return x

    def moved(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Whatever only moves numbers, found by moving their places."""
        x = args[0]
        if not isinstance(x, Traced):
            self.refuse("moved numbers of a constant")
        # float64 counts exactly to 2^53, and torch pads and shuffles no integers everywhere
        places = torch.arange(1, x.size + 1, dtype=torch.float64).reshape(x.shape)
        out = function(places, *args[1:], **kwargs)
        if isinstance(out, tuple | list):
            return [self.selected(x, part) for part in out]
        return self.selected(x, out)

    def selected(self, x: Traced, places: Tensor) -> Traced:
        index = places.reshape(-1).long()
        if len(index) == x.size and bool((index == torch.arange(1, x.size + 1)).all()):
            return Traced(x.node, places.shape)
        return self.map(x, Selection(index, x.size), places.shape)

    def padded(self, x: Traced, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Traced:
        if value:
            self.refuse("padding with a value that is not zero")
        return self.moved(lambda t: F.pad(t, list(pad), mode=mode), (x,), {})

    def joined(self, parts: Sequence[Any], dim: int = 0) -> Traced:
        if not all(isinstance(p, Traced) for p in parts):
            self.refuse("concatenation with a constant")
        shapes = [torch.zeros(p.shape) for p in parts]
        found: list[Traced] = []
        for k, part in enumerate(parts):
            places = torch.arange(1, part.size + 1, dtype=torch.float64).reshape(part.shape)
            blocks = [places if j == k else s.double() for j, s in enumerate(shapes)]
            found.append(self.selected(part, torch.cat(blocks, dim)))
        total = tuple(f.node for f in found)
        return Traced(self.network.sum(total, (1,) * len(total)), found[0].shape)

    def plus(self, a: Any, b: Any, sign: int = 1) -> Traced:
        if isinstance(a, Traced) and isinstance(b, Traced):
            shape = torch.broadcast_shapes(a.shape, b.shape)
            a, b = (self.moved(lambda t: t.expand(shape), (t,), {}) if t.shape != shape else t for t in (a, b))
            return Traced(self.network.sum((a.node, b.node), (1, sign)), shape)
        if isinstance(a, Traced):
            return self.shifted(a, b if sign == 1 else -b)
        x = b if sign == 1 else self.times(b, -1.0)
        return self.shifted(x, a)

    def shifted(self, x: Traced, by: Any) -> Traced:
        ones = torch.ones(x.size, dtype=torch.float64)
        return self.map(x, Diagonal(ones, self.constant(x, by)), x.shape)

    def times(self, a: Any, b: Any) -> Traced:
        if isinstance(a, Traced) and isinstance(b, Traced):
            self.refuse("a product of two vectors of the network")
        x, c = (a, b) if isinstance(a, Traced) else (b, a)
        return self.map(x, Diagonal(self.constant(x, c), None), x.shape)

    def over(self, a: Any, b: Any) -> Traced:
        if isinstance(b, Traced):
            self.refuse("a quotient with a vector of the network below")
        inverse = Diagonal(self.constant(a, 1 / torch.as_tensor(b, dtype=torch.float64)), None, NORMALIZATION)
        return self.map(a, inverse, a.shape)

    def constant(self, x: Traced, c: Any) -> Tensor:
        c = torch.as_tensor(c, dtype=torch.float64)
        ends = zip(reversed(c.shape), reversed(x.shape), strict=False)
        if c.ndim > len(x.shape) or not all(a in (1, b) for a, b in ends):
            self.refuse(f"a constant of shape {tuple(c.shape)} beside {tuple(x.shape)}")
        return c.expand(x.shape).reshape(-1)

    def mean(self, x: Traced, dim: Any = None, keepdim: bool = False) -> Traced:
        axes = (dim,) if isinstance(dim, int) else dim
        if axes is None or 0 in [d % len(x.shape) for d in axes]:
            self.refuse("a mean over the examples")
        return self.mean_like(x, lambda t: t.mean(axes, keepdim))

    def total(self, x: Traced, dim: Any = None, keepdim: bool = False) -> Traced:
        axes = (dim,) if isinstance(dim, int) else dim
        if axes is None or 0 in [d % len(x.shape) for d in axes]:
            self.refuse("a sum over the examples")
        return self.mean_like(x, lambda t: t.sum(axes, keepdim))

    def matrix(self, x: Any, W: Any) -> Traced:
        if not isinstance(x, Traced) or isinstance(W, Traced) or W.ndim != 2:
            self.refuse("a matrix product other than of a vector of the network with a constant matrix")
        return self.linear(x, W.T)
