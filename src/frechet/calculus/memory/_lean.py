"""Models whose graphs hold only what the requested derivatives need.

While a module of the model runs, torch's functions are taken over by the ones of `_functions.py`, wherever the model
calls them: in layers, in functions, in the second run of an activation checkpoint. Which derivatives are requested is
what `requires_grad` says at that moment: of parameters, of inputs, or of the parameters that a product installs.

Forward mode, `torch.func`, `torch.autocast` and `torch.compile` see torch's own functions: forward mode keeps no graph,
and a compiler chooses itself what it keeps.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frechet.calculus.memory import _functions as lean
from frechet.objective._torch_internals import function_modes, in_forward_mode, in_transform


def memory_lean(model: nn.Module) -> nn.Module:
    """Return the model with the same parameters and buffers, whose graphs keep only what derivatives need.

    Values and gradients are the same; memory falls where parameters are frozen, and for activations, dropout and
    pooling. It may be trained, checkpointed, saved and given to an `Objective` like the model.

    Example:
        >>> import torch
        >>> from frechet.calculus.memory import memory_lean, saved_bytes
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3))
        >>> _ = net[0].requires_grad_(False), net[2].requires_grad_(False)
        >>> x = torch.ones(1, 1, 32, 32, requires_grad=True)
        >>> saved_bytes(net, x) > 20 * saved_bytes(memory_lean(net), x)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"memory_lean: model must be a torch.nn.Module, got {type(model).__name__}")
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        if "forward" in module.__dict__:
            raise TypeError(
                f"memory_lean: model must have its forward methods in its classes, got a {type(module).__name__} whose "
                "forward was replaced; apply memory_lean first"
            )
        module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]
    return copied


def saved_bytes(model: Callable[..., Any], *inputs: Tensor) -> int:
    """Return the bytes that the graph of model(*inputs) keeps for its backward pass, parameters and inputs left out.

    Args:
        model: a module or a function.
        inputs: its arguments.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    known = {t.untyped_storage().data_ptr() for t in (*parameters, *inputs)}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = model(*inputs)
    del y
    return sum(kept.values())


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = type(module).forward
    if torch.compiler.is_compiling() or in_transform() or in_forward_mode() or _entered():
        return run(module, *args, **kwargs)
    with _Lean():
        return run(module, *args, **kwargs)


def _entered() -> bool:
    """Whether a module around this one has taken over already."""
    return any(isinstance(mode, _Lean) for mode in function_modes())


class _Lean(TorchFunctionMode):
    """Takes over torch's functions where a gradient is wanted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        # under autocast the inputs that are kept would have another type than the outputs
        if not any(t.requires_grad for t in tensors) or torch.is_autocast_enabled(tensors[0].device.type):
            return func(*args, **kwargs)
        found = rule(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found


# Each rule returns None for what it leaves to torch.


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and type(x) in (Tensor, nn.Parameter) and x.is_floating_point()


def _convolution(axes: int, transposed: bool) -> Callable[..., Tensor | None]:
    def many(v: Any) -> list[int]:
        return [v] * axes if isinstance(v, int) else list(v)

    def plain(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or not _is_plain(x) or x.ndim != axes + 2 or x.dtype != weight.dtype:
            return None
        settings = many(stride), many(padding), many(dilation), False, [0] * axes, groups
        return lean.Convolution.apply(x, weight, bias, *settings)  # type: ignore[return-value]

    def transpose(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor | None:
        if not _is_plain(x) or x.ndim != axes + 2 or x.dtype != weight.dtype:
            return None
        settings = many(stride), many(padding), many(dilation), True, many(output_padding), groups
        return lean.Convolution.apply(x, weight, bias, *settings)  # type: ignore[return-value]

    return transpose if transposed else plain


def _normalization(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or mean is None or variance is None or not _is_plain(x) or x.dtype != mean.dtype:
        return None
    return lean.Normalization.apply(x, weight, bias, mean, variance, eps)  # type: ignore[return-value]


def _masked(x: Tensor, compute: lean.Compute, scale: float, other: float, inplace: bool = False) -> Tensor | None:
    return lean.Masked.apply(x, compute, scale, other, inplace) if _is_plain(x) else None  # type: ignore[return-value]


def _relu(x: Tensor, inplace: bool = False) -> Tensor | None:
    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x)
        return y, y > 0

    return _masked(x, compute, 1.0, 0.0, inplace)


def _leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    return _masked(x, lambda x: (F.leaky_relu(x, negative_slope), x > 0), 1.0, negative_slope, inplace)


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | None:
    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.hardtanh(x, min_val, max_val), (x > min_val) & (x < max_val)

    return _masked(x, compute, 1.0, 0.0, inplace)


def _relu6(x: Tensor, inplace: bool = False) -> Tensor | None:
    return _hardtanh(x, 0.0, 6.0, inplace)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    if inplace or not training or not 0 < p < 1:
        return None

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        # torch draws as it would for x: the same mask, from the same state of the generator
        noise = F.dropout(torch.ones_like(x), p, True)
        return noise * x, noise != 0

    return _masked(x, compute, 1 / (1 - p), 0.0)


def _max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    kernel, stride, padding, dilation = (
        [v, v] if isinstance(v, int) else list(v) for v in (kernel_size, stride or kernel_size, padding, dilation)
    )
    if return_indices or dilation != [1, 1] or kernel[0] * kernel[1] > 256 or not _is_plain(x):
        return None
    return lean.MaximumPool.apply(x, kernel, stride, padding, ceil_mode)  # type: ignore[return-value]


def _avg_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    if not _is_plain(x):
        return None
    kernel, stride, padding = (
        [v, v] if isinstance(v, int) else list(v) for v in (kernel_size, stride or kernel_size, padding)
    )
    settings = kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
    return lean.AveragePool.apply(x, *settings)  # type: ignore[return-value]


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: _convolution(1, False),
    torch.conv2d: _convolution(2, False),
    torch.conv3d: _convolution(3, False),
    torch.conv_transpose1d: _convolution(1, True),
    torch.conv_transpose2d: _convolution(2, True),
    torch.conv_transpose3d: _convolution(3, True),
    F.batch_norm: _normalization,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    F.dropout: _dropout,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
}
