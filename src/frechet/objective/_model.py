"""A model as a pure function of its parameters: unwrapping, what cannot be differentiated, and the state it runs in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm

from frechet.errors import UnusableObjective
from frechet.objective._attributes import Attributes, Left, is_users, put_back
from frechet.objective._fully_shard import without_gathering
from frechet.objective._functions import Functions, Place
from frechet.objective._kernels import (
    has_weight_norm,
    ordinary_mode,
    recurrence_without_cudnn,
    unfused_attention,
)
from frechet.objective._structure import fresh, is_distribution, is_record, tensors_of
from frechet.objective._torch_internals import (
    AnyDropout,
    AnyInstanceNorm,
    AnyNorm,
    ParametrizedSpectralNorm,
    autocast_left_out,
)
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


def parameter_space(model: nn.Module, dtype: torch.dtype | None = None) -> Space:
    """The space of the trainable parameters, tied ones once, in `dtype`; raises for what cannot be differentiated."""
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UnusableObjective(f"Objective: lazy parameter '{name}' has no shape yet; run one forward pass first")
        if p.is_complex():
            raise TypeError(f"Objective: parameter '{name}' must be real, got {p.dtype}; use torch.view_as_real")
        if not p.is_floating_point():
            raise TypeError(
                f"Objective: parameter '{name}' must be floating point, got {p.dtype}; dequantize it, "
                "or register it as a buffer"
            )
        if p.device.type == "meta":
            raise UnusableObjective(
                f"Objective: parameter '{name}' is on the meta device and has no numbers; load weights, or call "
                "model.to_empty(device=...) and initialize it"
            )
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UnusableObjective(
            f"Objective: {type(model).__name__} must have a trainable parameter, got none; set "
            "p.requires_grad_(True) on those to study"
        )
    first = {p.dtype: name for name, p in reversed(trainable.items())}
    if dtype is None and len(first) > 1:
        listed = ", ".join(f"'{name}' is {str(d).removeprefix('torch.')}" for d, name in reversed(first.items()))
        raise TypeError(
            f"Objective: the parameters must have one dtype, got {listed}; pass dtype=torch.float32 to compute in it, "
            "or convert the model"
        )
    if dtype is None and first.keys() & {torch.float16, torch.bfloat16}:
        raise TypeError(
            f"Objective: the model must be float32 or float64, got {next(iter(first))}; half precision has no room for "
            "second derivatives: pass dtype=torch.float32 to compute in it at the same point"
        )
    # entries without memory: a model in half precision is not copied for its shapes
    wanted = {
        name: torch.empty((), dtype=dtype or p.dtype, device=p.device).expand(p.shape) for name, p in trainable.items()
    }
    return Space.of(wanted)


def flat_point(space: Space, x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A copy of the point `x` as a flat vector of `space`; raises where it is none."""
    flat = space.flatten(x) if isinstance(x, Mapping) else x
    if not isinstance(flat, Tensor):
        raise TypeError(f"Objective: x must be a tensor or a dict of tensors, got {type(flat).__name__}")
    if flat.shape != (space.length,) or flat.dtype != space.dtype:
        raise ValueError(
            f"Objective: x must be {space.dtype} of shape ({space.length},), got {flat.dtype} of shape "
            f"{tuple(flat.shape)}"
        )
    if flat.device != space.device:
        raise ValueError(f"Objective: x must be on {space.device}, got {flat.device}; move it with x.to(...)")
    with ordinary_mode(space.device):
        return flat.detach().clone()


# name -> every dict and key under which a module keeps that parameter or buffer
Places = dict[str, list[Place]]


def training_flags(model: nn.Module) -> tuple[bool, ...]:
    return tuple(m.training for m in model.modules())


def refuse_unusable(model: nn.Module, seeded: bool) -> None:
    """Raise, without a pass, for modules that are random, unless their draws are `seeded`, or change their state."""
    for name, m in model.named_modules():
        where = f"module '{name}' ({type(m).__name__})"
        drops = (isinstance(m, AnyDropout) and m.p > 0) or (
            isinstance(m, nn.MultiheadAttention | nn.RNNBase) and float(m.dropout) > 0
        )
        if m.training and drops and not seeded:
            raise UnusableObjective(
                f"Objective: {where} drops units at random in training mode, so there is no one function to "
                "differentiate; call model.eval(), or fix the masks with Objective(..., dropout_seed=0)"
            )
        if m.training and isinstance(m, nn.RReLU) and not seeded:
            raise UnusableObjective(
                f"Objective: {where} draws its slopes at random in training mode; call model.eval(), or fix them with "
                "Objective(..., dropout_seed=0)"
            )
        if m.training and _iterates_spectral_norm(m):
            raise UnusableObjective(
                f"Objective: {where} has a spectral norm that moves its buffers at each call in training mode; call "
                "model.eval()"
            )
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None:
            raise UnusableObjective(f"Objective: {where} changes its weights at each call; set max_norm=None")
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse and m.weight.requires_grad:
            raise UnusableObjective(f"Objective: {where} gives sparse gradients; set sparse=False")
        if isinstance(m, nn.SyncBatchNorm) and _by_the_batch(m, m.training):
            raise UnusableObjective(
                f"Objective: {where} normalizes over the batches of all processes; call model.eval(), or use "
                "BatchNorm, which normalizes each process's batch"
            )


def _by_the_batch(m: nn.Module, training: bool) -> bool:
    """Whether a module normalizes by the statistics of the batch."""
    return isinstance(m, AnyNorm) and not isinstance(m, AnyInstanceNorm) and (training or m.running_mean is None)


def couplings(model: nn.Module, flags: tuple[bool, ...]) -> tuple[str, ...]:
    """The modules that, with these training flags, make an example's output depend on the rest of its batch."""
    named = zip(model.named_modules(), flags, strict=True)
    return tuple(f"'{name}' ({type(m).__name__})" for (name, m), training in named if _by_the_batch(m, training))


def refuse_coupled(model: nn.Module, flags: tuple[bool, ...], what: str) -> None:
    """Raise where a module makes an example's output depend on the rest of its batch."""
    coupled = couplings(model, flags)
    if coupled:
        raise UnusableObjective(
            f"{what}: module {coupled[0]} normalizes by the statistics of the batch, so no example has outputs of its "
            "own; call model.eval()"
        )


def moving_buffers(model: nn.Module, places: Places) -> tuple[str, ...]:
    """The names of the buffers into which a forward pass may write: in training mode, and in modules of somebody's."""
    holders = {id(m._buffers) for m in model.modules() if m.training or is_users(m)}
    return tuple(name for name, kept in places.items() if any(id(holder) in holders for holder, _ in kept))


def _iterates_spectral_norm(m: nn.Module) -> bool:
    hooked = any(isinstance(h, SpectralNorm) for h in m._forward_pre_hooks.values())
    return hooked or isinstance(m, ParametrizedSpectralNorm)


def _runs_users_code(m: nn.Module) -> bool:
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    return is_users(m) or any(hooks) or "forward" in m.__dict__


def needs_functions(modules: tuple[nn.Module, ...]) -> bool:
    """Whether a model may call functions that must be seen, or has layers whose kernels are replaced."""
    replaced = (nn.GELU, nn.SiLU, nn.EmbeddingBag, nn.Hardsigmoid)
    return any(_runs_users_code(m) or isinstance(m, replaced) or has_weight_norm(m) for m in modules)


def writes_inputs(modules: tuple[nn.Module, ...]) -> bool:
    """Whether a model may write into the tensors that it is given."""
    return any(_runs_users_code(m) or bool(getattr(m, "inplace", False)) for m in modules)


def backward_hooks(model: nn.Module) -> str | None:
    """The first module with backward hooks, named; None where there is none."""
    for name, m in model.named_modules():
        if m._backward_hooks or m._backward_pre_hooks:
            return f"'{name}' ({type(m).__name__})"
    return None


@contextmanager
def exact_math(
    modules: tuple[nn.Module, ...], flags: tuple[bool, ...], device: torch.device, functions: Functions | None = None
) -> Iterator[None]:
    """Run a model with the recorded training flags, in full precision, by kernels that have second derivatives.

    `modules` are those of the model when the flags were recorded, the model itself first; its `functions` run as such.
    """
    if tuple(modules[0].modules()) != modules:
        raise RuntimeError(
            f"Objective: the modules of {type(modules[0]).__name__} were exchanged after the operator was made; make "
            "the operator again"
        )
    changed = [(m, m.training) for m, flag in zip(modules, flags, strict=True) if m.training != flag]
    with ExitStack() as stack:
        stack.enter_context(ordinary_mode(device))
        stack.enter_context(unfused_attention())
        stack.enter_context(without_gathering(modules))
        if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # no double backward through compiled code
        if functions is not None:
            stack.enter_context(autocast_left_out())
            stack.enter_context(functions)
        if any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(recurrence_without_cudnn())
        for m, flag in changed:
            m.training = not flag
        try:
            yield
        finally:
            for m, flag in changed:
                m.training = flag


def outputs_of(returned: Any) -> Any:
    """What a criterion takes of a model's return value: its logits, where they are what it has, or all of it.

    The logits are the `.logits` of an output of transformers, or of a dict or record that has no other tensor.
    """
    if isinstance(returned, Tensor) or is_distribution(returned):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if not isinstance(logits, Tensor):
        return returned
    of_transformers = any(c.__name__ == "ModelOutput" for c in type(returned).__mro__)
    fields = returned if isinstance(returned, Mapping) else getattr(returned, "__dict__", {})
    alone = all(t is logits for name, value in fields.items() if name != "loss" for t in tensors_of(value))
    return (
        logits if of_transformers or alone or not (isinstance(returned, Mapping) or is_record(returned)) else returned
    )


def places_of(model: nn.Module) -> Places:
    """Where each parameter and buffer is kept, by its first name; tied ones are kept in several places."""
    places: Places = {}
    names: dict[int, str] = {}
    for prefix, m in model.named_modules():
        for holder in (m._parameters, m._buffers):
            for key, t in holder.items():
                if t is not None:
                    name = names.setdefault(id(t), f"{prefix}.{key}" if prefix else key)
                    places.setdefault(name, []).append((holder, key))
    return places


@contextmanager
def installed(places: Places, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The model of `places` with `state` as its parameters and buffers.

    What torch.func.functional_call does, with the places looked up beforehand: on small models that is a tenth of a
    gradient.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, t in state.items():
            for holder, key in places[name]:
                kept.append((holder, key, holder[key]))
                holder[key] = t = _like(holder[key], t)
        yield
    finally:
        for holder, key, t in reversed(kept):
            holder[key] = t


def _like(kept: Tensor, t: Tensor) -> Tensor:
    """`t`, that stands in the place of `kept`, with what the model's code may ask of it: class and attributes."""
    kind = type(kept)
    if kind is not Tensor and type(t) is Tensor and kind not in (nn.Parameter, nn.Buffer) and _is_plain(kind):
        t = t.as_subclass(kind)  # type: ignore[arg-type]
    for name, value in kept.__dict__.items():
        if not name.startswith("_frechet_") and name not in t.__dict__:
            setattr(t, name, value)
    if isinstance(kept, nn.Parameter):
        t._is_param = True  # type: ignore[attr-defined]  # isinstance(t, nn.Parameter)
    t._frechet_installed = True  # type: ignore[attr-defined]
    return t


def _is_plain(kind: type) -> bool:
    """Whether a class of tensors is one of parameters that adds methods, and changes no operation."""
    names = ("__torch_function__", "__torch_dispatch__")
    return issubclass(kind, nn.Parameter) and all(getattr(kind, n) == getattr(nn.Parameter, n) for n in names)


def is_installed(t: Tensor) -> bool:
    """Whether a tensor in a module is one that a pass put there."""
    return getattr(t, "_frechet_installed", False)


def arguments_of(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of model(...): a dict holds keyword arguments, a tuple or list positional ones, all else is one.

    Each of these is one argument where the model's forward cannot take what it holds and does take one argument. A
    named tuple is one wherever it can be.
    """
    if isinstance(inputs, Mapping):
        given = dict(inputs)
        return ((given,), {}) if not _binds(model, (), given) and _binds(model, (given,), {}) else ((), given)
    if not isinstance(inputs, tuple | list) or isinstance(inputs, PackedSequence):
        return (inputs,), {}
    if type(inputs) in (tuple, list):
        spread = _binds(model, tuple(inputs), {}) or not _binds(model, (inputs,), {})
    else:
        spread = len(inputs) > 1 and _binds(model, tuple(inputs), {})
    return (tuple(inputs), {}) if spread else ((inputs,), {})


def _binds(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether the signature of a model's forward takes these arguments."""
    try:
        inspect.signature(model.forward).bind(*args, **keywords)
    except TypeError:
        return False
    except ValueError:  # of what has no signature
        return True
    return True


def call(
    model: nn.Module,
    places: Places,
    state: Mapping[str, Tensor],
    inputs: Any,
    attributes: Attributes,
    modules: tuple[nn.Module, ...],
    written: bool,
    left: Left | None = None,
) -> Any:
    """model(inputs) with `state` and `attributes` inside; with `written` it may write into its inputs.

    `left` is told what it leaves in its attributes.
    """
    args, keywords = arguments_of(model, fresh(inputs) if written else inputs)
    with installed(places, state), put_back(attributes, modules, left):
        return model(*args, **keywords)
