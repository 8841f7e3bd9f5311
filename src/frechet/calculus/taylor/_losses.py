"""Losses and attention, written out in other operations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound, by_position
from frechet.calculus.taylor._formulas import softmax
from frechet.calculus.taylor._series import Frame
from frechet.calculus.taylor._tensor import fixed
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import OpOverload

# --- losses -----------------------------------------------------------------------------------------------------------


def _reduced(x: Tensor, reduction: int) -> Tensor:
    return x if reduction == 0 else x.mean() if reduction == 1 else x.sum()


def _squared_loss(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    d = x - y
    return _reduced(d * d, reduction)


def _smooth_l1(x: Tensor, y: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    d = (x - y).abs()
    if beta == 0:
        return _reduced(d, reduction)
    return _reduced(torch.where(fixed(d) < beta, 0.5 * d * d / beta, d - 0.5 * beta), reduction)


def _huber(x: Tensor, y: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    d = (x - y).abs()
    return _reduced(torch.where(fixed(d) <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction)


def _binary_cross_entropy(x: Tensor, y: Tensor, weight: Any = None, reduction: int = 1) -> Tensor:
    loss = -(y * torch.log(x).clamp_min(-100) + (1 - y) * torch.log1p(-x).clamp_min(-100))
    return _reduced(loss if weight is None else loss * weight, reduction)


def _negative_log_likelihood(
    x: Tensor, target: Tensor, weight: Any, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    axis = 1 if x.ndim > 1 else 0
    used = target != ignore_index
    safe = torch.where(used, target, 0)
    factors = used.to(x.dtype) if weight is None else torch.where(used, weight[safe], 0.0)
    loss = -x.gather(axis, safe.unsqueeze(axis)).squeeze(axis) * factors
    total = factors.sum()
    if reduction == 0:
        return loss, fixed(x).new_zeros(())
    return (loss.sum() / total if reduction == 1 else loss.sum()), total


# --- attention --------------------------------------------------------------------------------------------------------


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        scores = torch.where(allowed, scores, -math.inf)
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    return softmax(scores, -1) @ v


def _attention(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    if given.get("dropout_p"):
        raise NotDifferentiable(f"jet: {op} with dropout draws its mask inside; use model.eval()")
    mask = given.get("attn_mask", given.get("attn_bias"))
    found = attention(
        given["query"], given["key"], given["value"], mask, given.get("is_causal", False), given.get("scale")
    )
    return (found, *[None] * (len(op._schema.returns) - 1))


LOSSES: dict[str, Rule] = {
    **{
        name: by_position(formula)
        for name, formula in {
            "mse_loss": _squared_loss,
            "smooth_l1_loss": _smooth_l1,
            "huber_loss": _huber,
            "binary_cross_entropy": _binary_cross_entropy,
            "nll_loss_forward": _negative_log_likelihood,
            "nll_loss2d_forward": _negative_log_likelihood,
        }.items()
    },
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}
