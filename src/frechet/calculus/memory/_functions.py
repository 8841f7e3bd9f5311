"""Layers that keep for their backward pass what the requested derivatives need, and nothing else.

Each is a formula of torch with its own choice of what is kept:

    layer                          torch keeps              here
    convolution                    input, weight            input if the weight's derivative is wanted; weight if the
                                                            input's is
    batch norm in evaluation       input                    input if the weight's derivative is wanted
    relu, leaky relu, hardtanh     input or output          a bit for each number
    dropout                        noise                    a bit for each number
    maximum pooling                input, 8 byte indices    the place in its window, 1 byte for each output
    average pooling                input                    nothing

The backward passes are differentiable, so Hessian products pass. Values are those of torch bit for bit, gradients to
rounding: convolution and average pooling call torch's backward pass with a stand-in for what it does not read.

**Source.** Bhatia and Dangel, "Lowering PyTorch's memory consumption for selective differentiation" (2024), arXiv
2404.12406.
**Differs from the source:** 1. functions are taken over wherever a model calls them, not layer by layer. 2. Masks are
bits. 3. Pooling and dropout as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
Compute = Callable[[Tensor], tuple[Tensor, Tensor]]  # the values, and where the slope is `scale`
GATHER, ONES = 0x0102040810204080, 0x0101010101010101
DIAGONAL = 0x8040201008040201 - (1 << 64)  # bit i of byte i, as a signed number


def packed(mask: Tensor) -> Tensor:
    """A tensor of bool in an eighth of its bytes.

    Eight bytes of zeros and ones are one number; its product with GATHER has byte i as bit i of its highest byte.
    """
    flat = mask.reshape(-1)
    if flat.numel() % 8:
        flat = F.pad(flat, (0, -flat.numel() % 8))
    return (flat.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask that was packed: a byte is repeated eight times, and bit i of copy i is kept."""
    eight = bits.to(torch.int64).mul_(ONES).bitwise_and_(DIAGONAL)
    return eight.view(torch.uint8).ne(0)[: shape.numel()].view(shape)


def stand_in(like: Tensor, shape: torch.Size) -> Tensor:
    """A tensor of this shape that needs no memory."""
    return like.new_zeros(()).expand(shape)


class Convolution(torch.autograd.Function):
    """torch.convolution, of any dimension, transposed or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.settings, ctx.shape = settings, x.shape
        ctx.biases = None if bias is None else list(bias.shape)
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight if wanted[0] else None)
        ctx.weight_shape, ctx.kind = weight.shape, x.new_empty(0)
        return torch.convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biases is not None and ctx.needs_input_grad[2]]
        x = stand_in(g, ctx.shape) if x is None else x
        weight = stand_in(g, ctx.weight_shape) if weight is None else weight
        found = aten.convolution_backward(g, x, weight, ctx.biases, *ctx.settings, mask)
        return (*found, *(None for _ in ctx.settings))


class Normalization(torch.autograd.Function):
    """Batch normalization with given mean and variance: an affine map of each channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.shape, ctx.eps = x.shape, eps
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight, mean.clone(), variance.clone())
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, weight, mean, variance = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        along = [1, -1, *(1 for _ in ctx.shape[2:])]
        scale = (variance + ctx.eps).rsqrt()
        gx = g * (scale if weight is None else scale * weight).view(along) if wanted[0] else None
        axes = [i for i in range(len(ctx.shape)) if i != 1]
        gw = None if x is None else ((x - mean.view(along)) * g).sum(axes) * scale
        gb = g.sum(axes) if wanted[2] else None
        return gx, gw, gb, None, None, None


class Masked(torch.autograd.Function):
    """A piecewise linear function whose slope is `scale` where the mask is set and `other` elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Compute, scale: float, other: float, inplace: bool) -> Tensor:
        y, mask = compute(x)
        ctx.save_for_backward(packed(mask))
        ctx.shape, ctx.slopes = x.shape, (scale, other)
        if inplace:
            x.copy_(y)
            ctx.mark_dirty(x)
            return x
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        (bits,) = ctx.saved_tensors
        scale, other = ctx.slopes
        on = g if scale == 1.0 else g * scale
        off = g * other if other else g.new_zeros(())
        return torch.where(unpacked(bits, ctx.shape), on, off), None, None, None, None


class MaximumPool(torch.autograd.Function):
    """max_pool2d without dilation: the place of each maximum in its window is a byte."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Tensor:
        y, index = aten.max_pool2d_with_indices(x, kernel, stride, padding, [1, 1], ceil)
        ctx.shape, ctx.settings = x.shape, (kernel, stride, padding)
        rows, columns = _corners(y, kernel, stride, padding)
        width = x.shape[-1]
        inside = (index // width - rows) * kernel[1] + (index % width - columns)
        ctx.save_for_backward(inside.to(torch.uint8))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        kernel, stride, padding = ctx.settings
        rows, columns = _corners(g, kernel, stride, padding)
        inside = inside.long()
        index = (inside // kernel[1] + rows) * ctx.shape[-1] + (inside % kernel[1] + columns)
        flat = g.new_zeros(*ctx.shape[:-2], ctx.shape[-2] * ctx.shape[-1])
        found = flat.scatter_add(-1, index.flatten(-2), g.flatten(-2))
        return found.view(ctx.shape), None, None, None, None


def _corners(y: Tensor, kernel: Any, stride: Any, padding: Any) -> tuple[Tensor, Tensor]:
    """Where the windows begin: rows (height, 1) and columns (width,)."""
    rows, columns = (
        torch.arange(n, device=y.device) * s - p for n, s, p in zip(y.shape[-2:], stride, padding, strict=True)
    )
    return rows.unsqueeze(1), columns


class AveragePool(torch.autograd.Function):
    """avg_pool2d, whose backward pass reads the shape of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *settings: Any) -> Tensor:
        ctx.shape, ctx.settings = x.shape, settings
        return aten.avg_pool2d(x, *settings)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        found = aten.avg_pool2d_backward(g, stand_in(g, ctx.shape), *ctx.settings)
        return found, *(None for _ in ctx.settings)
