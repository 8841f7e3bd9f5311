"""A model as a pure function of its parameters: unwrapping, what cannot be differentiated, and the state it runs in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from frechet.errors import UnusableObjective
from frechet.space import Space


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DistributedDataParallel, DataParallel and their like, whose names it takes."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def parameter_space(model: nn.Module) -> Space:
    """The space of the trainable parameters, tied ones once; raises for what cannot be differentiated."""
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UnusableObjective(
                f"Objective: lazy parameter '{name}' has no shape yet; run a forward pass"
            )
        if p.is_complex():
            raise TypeError(f"Objective: parameter '{name}' must be real, got {p.dtype}; use torch.view_as_real")
        if not p.is_floating_point():
            raise TypeError(
                f"Objective: parameter '{name}' must be floating point, got {p.dtype}; dequantize it, "
                "or register it as a buffer"
            )
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UnusableObjective(
            f"Objective: {type(model).__name__} must have a trainable parameter, got none; set "
            "p.requires_grad_(True) on those to study"
        )
    space = Space.of({name: p.detach() for name, p in trainable.items()})
    if space.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"Objective: the model must be float32 or float64, got {space.dtype}; half precision has no room for second "
            "derivatives: use copy.deepcopy(model).float()"
        )
    return space


def training_flags(model: nn.Module) -> tuple[bool, ...]:
    return tuple(m.training for m in model.modules())


def refuse_random_or_coupled(model: nn.Module) -> None:
    """Raise, without a pass, for modules that are random or that couple the examples of a batch."""
    for name, m in model.named_modules():
        where = f"module '{name}' ({type(m).__name__})"
        drops = (isinstance(m, _DropoutNd) and m.p > 0) or (
            isinstance(m, nn.MultiheadAttention | nn.RNNBase) and float(m.dropout) > 0
        )
        if m.training and drops:
            raise UnusableObjective(
                f"Objective: {where} drops units at random in training mode, so there is no one function to "
                "differentiate; call model.eval()"
            )
        instance = isinstance(m, nn.modules.instancenorm._InstanceNorm)
        if m.training and isinstance(m, _NormBase) and (not instance or m.track_running_stats):
            raise UnusableObjective(
                f"Objective: {where} normalizes by the statistics of the batch in training mode, so the loss is not a "
                "sum over examples and its buffers would move; call model.eval()"
            )
        if isinstance(m, _NormBase) and not instance and m.running_mean is None:
            raise UnusableObjective(
                f"Objective: {where} has no running statistics, so it normalizes by the batch even in evaluation mode; "
                "set track_running_stats=True or use GroupNorm"
            )


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


@contextmanager
def exact_math(model: nn.Module, flags: tuple[bool, ...], device: torch.device) -> Iterator[None]:
    """Run `model` with the recorded training flags, in full precision, by kernels that have second derivatives."""
    changed = [(m, m.training) for m, flag in zip(model.modules(), flags, strict=True) if m.training != flag]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode turns gradients on
        stack.enter_context(unfused_attention())
        for kind in {"cpu", device.type} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for m, flag in changed:
            m.training = not flag
        try:
            yield
        finally:
            for m, flag in changed:
                m.training = flag


def outputs_of(returned: Any) -> Tensor:
    """The output tensor of a model's return value: itself, its `.logits`, or its ``["logits"]``."""
    if isinstance(returned, Tensor):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"Objective: the model must return a tensor or something with .logits, got {type(returned).__name__}; wrap it "
        "in a module whose forward returns the one tensor that the criterion takes"
    )


def call(model: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> Any:
    """model(inputs) with `state` as its parameters and buffers; a dict holds keyword arguments, a tuple positional."""
    args, keywords = (), {}
    if isinstance(inputs, Mapping):
        keywords = dict(inputs)
    elif isinstance(inputs, tuple | list):
        args = tuple(inputs)
    else:
        args = (inputs,)
    return torch.func.functional_call(model, dict(state), args, keywords)
