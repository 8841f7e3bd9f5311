"""Layers whose kernels in torch have too few right derivatives, written out in operations that have all of them.

1. Embedding bags and hard sigmoids have first derivatives only.
2. The derivative of the fused weight normalization has a wrong derivative: asymmetric Hessians.
3. Layer norm, instance norm and batch norm by batch statistics have silently wrong third derivatives: the double
   backward of their kernels takes mean and deviation for constants. Products of an ordinary model use at most second
   derivatives and keep the kernels; differentiable products, and all derivatives of a function that takes derivatives
   itself, need the formulas. `_functions.py` says which is which.

Measured against finite differences with torch 2.13. **Cost:** a formula takes two to four times a kernel's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import weight_norm


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """F.embedding_bag, but for what changes or scales gradients: max_norm, sparse and scale_grad_by_freq."""
    if max_norm is not None or sparse or scale_grad_by_freq:
        raise NotDifferentiable(
            "an embedding bag with max_norm, sparse or scale_grad_by_freq has gradients of another kind; leave them out"
        )
    index = input.reshape(-1).long()
    if offsets is None:
        bags = torch.arange(len(input), device=input.device).repeat_interleave(input.shape[1])
        size = len(input)
    else:
        starts = offsets[:-1] if include_last_offset else offsets
        size = len(starts)
        bags = torch.searchsorted(starts.contiguous(), torch.arange(len(index), device=input.device), right=True) - 1
    rows = weight[index] if per_sample_weights is None else weight[index] * per_sample_weights.reshape(-1, 1)
    if padding_idx is not None:
        kept = index != padding_idx % len(weight)
        rows, bags = rows[kept], bags[kept]
    numbers = torch.bincount(bags, minlength=size)
    if mode == "max":
        slots = torch.arange(len(bags), device=input.device) - (numbers.cumsum(0) - numbers)[bags]
        longest = max(1, int(numbers.max()) if size else 1)
        filled = rows.new_full((size, longest, weight.shape[1]), -torch.inf).index_put((bags, slots), rows)
        return torch.where(numbers[:, None] > 0, filled.max(1).values, rows.new_zeros(()))
    sums = rows.new_zeros(size, weight.shape[1]).index_add(0, bags, rows)
    return sums if mode == "sum" else sums / numbers.clamp(min=1).to(rows.dtype)[:, None]


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.hardtanh(input, -3.0, 3.0) / 6 + 0.5


def _standardized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    return centered * torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    y = _standardized(input, list(range(-len(normalized_shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _per_channel(_standardized(input, list(range(2, input.ndim)), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _per_channel(_standardized(input, [0, *range(2, input.ndim)], eps), weight, bias)


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _native_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


# in every pass: kernels with too few or with wrong second derivatives
LAYERS: dict[Any, Callable[..., Tensor]] = {
    F.embedding_bag: _embedding_bag,
    F.hardsigmoid: _hardsigmoid,
    weight_norm: _weight_norm,
    torch.ops.aten._weight_norm: _weight_norm,
    torch.ops.aten._weight_norm.default: _weight_norm,
}
# where a third derivative is taken
NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    torch.ops.aten.layer_norm: _layer_norm,
    torch.ops.aten.layer_norm.default: _layer_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _native_instance_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _native_batch_norm,
}
