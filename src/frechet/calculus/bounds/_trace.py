"""A model as a graph of affine maps and elementwise functions, by torch.fx; what is neither is refused by name.

Known: linear and convolution layers, batch normalization in evaluation mode, activations, average and maximum pooling,
sums, differences and multiples, constants, and whatever only moves numbers (reshape, transpose, slices, padding with
zeros, concatenation). A maximum is written with rectifiers, max(a, b) = b + relu(a - b), which is exact.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from frechet.calculus.bounds import _activations as activations
from frechet.calculus.bounds._elementwise import Elementwise
from frechet.calculus.bounds._graph import Graph, Node
from frechet.calculus.bounds._layers import Builder, Traced
from frechet.calculus.bounds._point import values_at

LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d)
SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
MOVES = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)


FUNCTIONS: dict[Any, Elementwise] = {
    torch.relu: activations.RECTIFIER,
    F.relu: activations.RECTIFIER,
    "relu": activations.RECTIFIER,
    torch.abs: activations.ABSOLUTE,
    operator.abs: activations.ABSOLUTE,
    "abs": activations.ABSOLUTE,
    torch.tanh: activations.TANH,
    F.tanh: activations.TANH,
    "tanh": activations.TANH,
    torch.sigmoid: activations.SIGMOID,
    F.sigmoid: activations.SIGMOID,
    "sigmoid": activations.SIGMOID,
    F.silu: activations.SILU,
    torch.sin: activations.SINE,
    torch.cos: activations.COSINE,
    torch.atan: activations.ARCTAN,
    F.relu6: activations.clipped(0.0, 6.0),
    F.hardsigmoid: activations.HARD_SIGMOID,
}
MOVING = (
    *(torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze, torch.movedim),
    *(operator.getitem, torch.narrow, torch.roll, torch.flip, F.pixel_shuffle),
)
MOVING_METHODS = ("flatten", "reshape", "view", "transpose", "permute", "squeeze", "unsqueeze", "movedim", "contiguous")
MOVING_METHODS += ("narrow", "roll", "flip", "expand", "repeat", "unflatten", "clone", "chunk", "split")


def _leaky(self: Builder, x: Traced, negative_slope: float = 0.01, inplace: bool = False) -> Traced:
    return self.elementwise(x, activations.leaky(negative_slope))


def _gelu(self: Builder, x: Traced, approximate: str = "none") -> Traced:
    return self.elementwise(x, activations.GELU if approximate == "none" else activations.GELU_TANH)


def _softplus(self: Builder, x: Traced, beta: float = 1.0, threshold: float = 20.0) -> Traced:
    return self.elementwise(x, activations.softplus(beta))


def _rectified(self: Builder, x: Traced, inplace: bool = False) -> Traced:
    return self.elementwise(x, activations.RECTIFIER)


def _clamped(self: Builder, x: Traced, min: float | None = None, max: float | None = None) -> Traced:
    if isinstance(min, float | int) and isinstance(max, float | int):
        return self.elementwise(x, activations.clipped(float(min), float(max)))
    if isinstance(min, float | int):
        return self.shifted(_rectified(self, self.shifted(x, -min)), min)
    if isinstance(max, float | int):
        flipped = _rectified(self, self.plus(max, x, -1))
        return self.plus(max, flipped, -1)
    return self.refuse("clamp with bounds that are no numbers")


def _dropout(self: Builder, x: Traced, p: float = 0.5, training: bool = True, inplace: bool = False) -> Traced:
    if training and p:
        self.refuse("dropout in training mode")
    return x


def _max_pool(
    self: Builder,
    x: Traced,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Traced:
    return self.maxima(x, kernel_size, stride, padding, dilation, ceil_mode)


def _average_pool(function: Callable[..., Tensor]) -> Callable[..., Traced]:
    return lambda self, x, *args, **kwargs: self.mean_like(x, lambda t: function(t, *args, **kwargs))


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: Builder.linear,
    F.leaky_relu: _leaky,
    F.gelu: _gelu,
    F.softplus: _softplus,
    F.relu: _rectified,
    torch.clamp: _clamped,
    F.dropout: _dropout,
    F.max_pool2d: _max_pool,
    F.max_pool1d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool(F.avg_pool2d),
    F.adaptive_avg_pool2d: _average_pool(F.adaptive_avg_pool2d),
    F.pad: Builder.padded,
    torch.cat: Builder.joined,
    torch.maximum: Builder.larger,
    torch.minimum: lambda self, a, b: self.plus(a, self.elementwise(self.plus(a, b, -1), activations.RECTIFIER), -1),
    torch.mean: Builder.mean,
    torch.sum: Builder.total,
    **dict.fromkeys((operator.add, torch.add, operator.iadd), lambda self, a, b: self.plus(a, b)),
    **dict.fromkeys((operator.sub, torch.sub, operator.isub), lambda self, a, b: self.plus(a, b, -1)),
    **dict.fromkeys((operator.mul, torch.mul, operator.imul), lambda self, a, b: self.times(a, b)),
    **dict.fromkeys((operator.truediv, torch.div), lambda self, a, b: self.over(a, b)),
    operator.neg: lambda self, a: self.times(a, -1.0),
    torch.neg: lambda self, a: self.times(a, -1.0),
    operator.matmul: Builder.matrix,
    torch.matmul: Builder.matrix,
}
_METHODS: dict[str, Callable[..., Any]] = {
    "mean": Builder.mean,
    "sum": Builder.total,
    "clamp": _clamped,
    "add": lambda self, a, b: self.plus(a, b),
    "sub": lambda self, a, b: self.plus(a, b, -1),
    "mul": lambda self, a, b: self.times(a, b),
    "div": lambda self, a, b: self.over(a, b),
    "relu_": _rectified,
    "neg": lambda self, a: self.times(a, -1.0),
    "add_": lambda self, a, b: self.plus(a, b),
}


def _any_traced(tree: Any) -> bool:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return any(map(_any_traced, tree)) if isinstance(tree, tuple | list) else isinstance(tree, Traced)


class Reader(torch.fx.Interpreter):
    """Runs the traced program on vectors of the graph."""

    def __init__(self, program: torch.fx.GraphModule, to: Builder) -> None:
        super().__init__(program, garbage_collect_values=False)
        self.to, self.extra_traceback = to, False

    # --- what the program calls ---------------------------------------------------------------------------------------

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        m, x = self.fetch_attr(target), args[0]
        if not isinstance(x, Traced):
            return super().call_module(target, args, kwargs)
        function = activations.of_module(m)
        if function is not None:
            return self.to.elementwise(x, function)
        for kinds, rule in (
            (LINEAR, lambda: self.to.linear(x, m.weight, m.bias)),
            (CONVOLUTIONS, lambda: self.to.convolution(x, m)),
            (NORMS, lambda: self.to.normalization(x, m)),
            (AVERAGES, lambda: self.to.averages(x, m)),
            (MAXIMA, lambda: self.to.maxima(x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)),
            (SAME, lambda: self.to.same(x, m)),
            (MOVES, lambda: self.to.moved(m, (x,), {})),
        ):
            if type(m) in kinds:
                return rule()
        raise self.to.unknown(type(m).__name__)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _any_traced((args, kwargs)):
            return super().call_function(target, args, kwargs)
        if target is getattr:
            return getattr(args[0], args[1]) if args[1] == "shape" else self.to.refuse(f"the attribute {args[1]}")
        rule = _RULES.get(target)
        if rule is not None:
            return rule(self.to, *args, **kwargs)
        if target in FUNCTIONS:
            return self.to.elementwise(args[0], FUNCTIONS[target])
        if target in MOVING:
            return self.to.moved(target, args, kwargs)
        return self.to.refuse(getattr(target, "__name__", str(target)))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _any_traced((args, kwargs)):
            return super().call_method(target, args, kwargs)
        if target in ("size", "dim"):
            shape = args[0].shape
            return len(shape) if target == "dim" else shape[args[1]] if len(args) > 1 else shape
        if target in FUNCTIONS:
            return self.to.elementwise(args[0], FUNCTIONS[target])
        if target in MOVING_METHODS:
            return self.to.moved(lambda x, *a, **k: getattr(x, target)(*a, **k), args, kwargs)
        rule = _METHODS.get(target)
        return self.to.refuse(target) if rule is None else rule(self.to, *args, **kwargs)


def network_of(name: str, model: nn.Module, x: Tensor) -> tuple[Graph, torch.Size]:
    """The graph of a model on examples like x (1, ...), in float64, and the shape of its output."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: model must be a torch.nn.Module, got {type(model).__name__}")
    copied = copy.deepcopy(model).requires_grad_(False)
    if any(t.is_complex() for t in (*copied.parameters(), *copied.buffers())):
        raise TypeError(f"{name}: model must be real, got complex parameters")
    try:
        program = torch.fx.symbolic_trace(copied.double().cpu())
    except TraceError as error:
        raise TypeError(
            f"{name}: model must be one program whatever its input is, which torch.fx can trace: {error}; write it "
            "without branches on values"
        ) from error
    to = Builder(name)
    with torch.no_grad():
        out = Reader(program, to).run(Traced(to.network.add(Node(x[0].numel())), torch.Size((1, *x.shape[1:]))))
    if not isinstance(out, Traced):
        raise TypeError(f"{name}: model must return one tensor that depends on its input, got {type(out).__name__}")
    to.network.output = out.node
    _agree(name, to.network, copied, x)
    return to.network, out.shape


def _agree(name: str, network: Graph, model: nn.Module, x: Tensor) -> None:
    """The graph is the model at a few points: a change in place, or a branch, would make it another function."""
    t = torch.linspace(-1.0, 1.0, x[0].numel(), dtype=torch.float64).reshape(x[:1].shape)
    for point in (x[:1].double(), x[:1].double() + t, x[:1].double() - 3 * t.cos()):
        with torch.no_grad():
            expected = model(point).reshape(1, -1)
            found = values_at(network, point.reshape(1, -1))[network.output]
        size = 1 + float(expected.abs().max())
        if not float((found - expected).abs().max()) <= 1e-9 * size:
            raise TypeError(
                f"{name}: model must be one function of torch.nn layers without changes in place that are read later, "
                f"got values that differ from those of its layers by {float((found - expected).abs().max()):.1e}; set "
                "inplace=False, and write branches as layers"
            )
