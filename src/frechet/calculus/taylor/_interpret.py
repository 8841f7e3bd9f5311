"""What a torch function does to tensors with a power series: see `_tensor.py` for the order of the attempts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import words
from frechet.calculus.taylor._frequent import FREQUENT
from frechet.calculus.taylor._record import Call, Recording, record
from frechet.calculus.taylor._rules import RULES
from frechet.calculus.taylor._series import Frame
from frechet.calculus.taylor._tensor import SeriesTensor, tensors_of, with_each, youngest
from frechet.calculus.taylor._writes import IN_PLACE, REFUSED, replace_series, write_in_place
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import OpOverload, OpOverloadPacket, decomposition_of, tree_leaves, tree_map


def interpret(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    frame = youngest(args, kwargs)
    if frame.differentiable and not torch.is_grad_enabled() and func not in _CONSTANT:
        raise NotDifferentiable(
            f"jet: the function calls {getattr(func, '__name__', func)} on x under torch.no_grad or in a custom "
            "torch.autograd.Function, where autograd does not follow it; use detach() for what is constant, and write "
            "custom functions in plain operations"
        )
    rule = FREQUENT.get(func)
    if rule is not None:
        found = rule(frame, *args, **kwargs)
        if found is not NotImplemented:
            return found
    if isinstance(func, OpOverload):
        return applied(frame, func, args, kwargs)
    if func in REFUSED:
        raise NotDifferentiable(f"jet: the function calls {func.__name__}, {REFUSED[func]}")
    if func in IN_PLACE:
        return write_in_place(frame, func, args, kwargs)
    return _replayed(frame, record(func, args, kwargs))


_CONSTANT = {torch.detach, Tensor.detach, Tensor.item, Tensor.__bool__, Tensor.__format__}


def applied(frame: Frame, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation of ATen makes of its arguments, at least one of which has a series in this frame."""
    rule = RULES.get(_name(op))
    if rule is not None:
        return rule(frame, op, args, kwargs)
    decomposition = decomposition_of(op)
    if decomposition is None:
        raise NotDifferentiable(
            f"jet: {op} has no rule for power series; write it in operations that have one, or use nested "
            f"torch.func.jvp"
        )
    return decomposition(*args, **kwargs)


def _replayed(frame: Frame, recording: Recording) -> Any:
    """Carry the recorded operations out on what the plain values represented."""
    now = dict(recording.stands_for)
    seen: list[Tensor] = [t for t in recording.kept if isinstance(t, Tensor)]

    def current(t: Any) -> Any:
        return now.get(id(t), t) if isinstance(t, Tensor) else t

    for i, call in enumerate(recording.calls):
        op: Any = call.op
        if op._schema.is_mutable and _name(op) not in RULES:
            op = functional_of(call, seen, recording, i)
        args, kwargs = with_each(current, call.args), with_each(current, call.kwargs)
        moving = any(t.frame is frame for t in tensors_of((args, kwargs)))
        if moving and (call.drawn is None or _name(op) in _DRAWS_ALONE):
            found = applied(frame, op, args, kwargs)
        elif call.drawn is not None:
            found = call.drawn
            _refuse_draws(frame, call, args, kwargs)
        else:
            found = op(*args, **kwargs)
        _note(now, seen, call, found)
    for old, t in recording.stands_for.items():
        new = now[old]
        if new is not t:  # the function wrote into its argument
            now[old] = replace_series(frame, "the function", t, new)
    return tree_map(current, recording.returned)


def _refuse_draws(frame: Frame, call: Call, args: Any, kwargs: Any) -> None:
    """Random numbers whose law depends on the series have no derivative; those of the same shape have the value "
    "zero."""
    if call.op._schema.name in _BY_SHAPE:
        return
    if any(t.frame is frame for t in tensors_of((args, kwargs))):
        raise NotDifferentiable(
            f"jet: {call.op} draws random numbers that depend on x, which have no derivative; draw them outside"
        )


_BY_SHAPE = {
    f"aten::{n}"
    for n in words("rand_like randn_like randint_like bernoulli_ uniform_ normal_ exponential_ random_ cauchy_")
}


_DRAWS_ALONE = {
    "rrelu_with_noise",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
}  # their rules decide


def _name(op: OpOverload) -> str:
    return op._schema.name.partition("::")[2]


def _note(now: dict[int, Any], seen: list[Tensor], call: Call, found: Any) -> None:
    returned = call.returned if isinstance(call.returned, tuple | list) else [call.returned]
    made = found if isinstance(found, tuple | list) else [found]
    for old, new in zip(returned, made, strict=True):
        if isinstance(old, Tensor):
            now[id(old)] = new
            seen.append(old)


def functional_of(call: Call, seen: list[Tensor], recording: Recording, position: int) -> Any:
    """The operation without writing, where what is written to is read by no other name afterwards."""
    op: OpOverload = call.op
    namespace, _, name = op._schema.name.partition("::")
    target = call.args[0] if call.args else None
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    written = [a for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    known = name.endswith("_") and len(written) == 1 and isinstance(packet, OpOverloadPacket)
    if not known or not isinstance(target, Tensor) or _read_again(target, seen, recording, position):
        raise NotDifferentiable(
            f"jet: {op} writes into memory that other tensors share, which has no rule; write the function in "
            "operations that return new tensors"
        )
    if call.drawn is not None:
        return op
    assert packet is not None
    overloads = packet.overloads()
    found = next((n for n in (op._overloadname, "default") if n in overloads), overloads[0])
    return getattr(packet, found)


def _read_again(target: Tensor, seen: list[Tensor], recording: Recording, position: int) -> bool:
    """Whether another tensor in the same memory is read after the call at `position`."""
    storage = target.untyped_storage()._cdata
    others = [t for t in seen if t is not target and t.untyped_storage()._cdata == storage and _overlap(t, target)]
    if not others:
        return False
    later = [(c.args, c.kwargs) for c in recording.calls[position + 1 :]]
    read = {id(t) for t in tree_leaves((later, recording.returned)) if isinstance(t, Tensor)}
    return any(id(t) in read or id(t) in recording.stands_for for t in others)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in the same memory have an element in common."""
    places = torch.arange(a.untyped_storage().nbytes() // a.element_size())
    ours, theirs = (places.as_strided(t.shape, t.stride(), t.storage_offset()).flatten() for t in (a, b))
    return bool(torch.isin(ours, theirs).any())


__all__ = ["SeriesTensor", "applied", "interpret"]
