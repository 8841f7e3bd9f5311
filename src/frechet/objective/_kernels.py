"""Where torch's second derivatives are missing or silently wrong, and what makes them right.

1. Fused attention and the encoder layer's fast path have neither double backward nor forward mode: turned off.
2. Recurrent layers of cuDNN have no double backward: it is turned off.
3. Single functions and layers that need a formula: see `_formulas.py`.
4. A function marked `once_differentiable` counts as a constant in a second derivative where unused inputs are allowed:
   refused.
5. Activation checkpoints with use_reentrant=True refuse autograd.grad, and lose the gradient where no input of theirs
   has one: refused.
6. In inference mode derivatives vanish; autocast rounds them to bfloat16: both are left.

Each was measured against finite differences of gradients with torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.weight_norm import WeightNorm

from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import (
    ParametrizedWeightNorm,
    function_of,
    nodes_of,
    reentrant_checkpoints_call,
    set_cudnn,
)


@contextmanager
def ordinary_mode(device: torch.device) -> Iterator[None]:
    """Neither inference mode, in which derivatives silently vanish, nor autocast, which rounds them."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode turns gradients on
        for kind in {"cpu", device.type} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def ordinary(t: Tensor) -> Tensor:
    """`t`, copied where it was made in inference mode, since autograd refuses such tensors."""
    if not t.is_inference():
        return t
    with torch.inference_mode(False):
        return t.clone()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Attention by kernels with second derivatives: fused ones have neither double backward nor forward mode."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def has_weight_norm(m: nn.Module) -> bool:
    return isinstance(m, ParametrizedWeightNorm) or any(
        isinstance(h, WeightNorm) for h in m._forward_pre_hooks.values()
    )


@contextmanager
def recurrence_without_cudnn() -> Iterator[None]:
    """Recurrent layers by kernels with a double backward, which those of cuDNN lack."""
    enabled = set_cudnn(False)
    try:
        yield
    finally:
        set_cudnn(enabled)


def refused_reentrant_checkpoints() -> AbstractContextManager[None]:
    """Activation checkpoints with use_reentrant=True raise inside."""

    def refuse(inputs: Any) -> None:
        raise NotDifferentiable(
            "Objective: activation checkpoints with use_reentrant=True have no second derivatives, and lose gradients "
            "where their inputs have none; pass use_reentrant=False to torch.utils.checkpoint"
        )

    return reentrant_checkpoints_call(refuse)


@contextmanager
def refused_hooks(sentence: str) -> Iterator[None]:
    """Raise `sentence` where tensors are saved for a backward pass through hooks, as activation checkpoints do."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(sentence):
            yield
    except RuntimeError as error:
        if sentence not in str(error):
            raise
        raise NotDifferentiable(sentence) from None


_MARKED = once_differentiable(lambda ctx: None).__code__


def refuse_once_differentiable(ys: Sequence[Tensor]) -> list[Any]:
    """Raise where the graph of `ys` holds a custom function whose backward is marked `once_differentiable`.

    Returns the nodes of all other custom functions.
    """
    found = []
    for node in nodes_of(ys):
        made = function_of(node)
        if made is None:
            continue
        found.append(node)
        function: Callable[..., Any] | None = made.backward
        while function is not None:
            if getattr(function, "__code__", None) is _MARKED:
                raise NotDifferentiable(
                    f"the backward of {made.__name__} is marked once_differentiable, so its second "
                    "derivative would silently be left out; write a differentiable backward"
                )
            function = getattr(function, "__wrapped__", None)
    return found
