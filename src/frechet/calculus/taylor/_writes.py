"""Functions that write into a tensor, and functions that a power series cannot pass through.

Coefficients are never written to. The tensor gets new ones, which is right as long as no other tensor shares its
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import words
from frechet.calculus.taylor._series import Coefficients, Frame, lead, lifted, padded
from frechet.calculus.taylor._tensor import SeriesTensor, series
from frechet.errors import NotDifferentiable


def _siblings() -> dict[Any, Callable[..., Any]]:
    """Functions that write into their first argument, and the function that returns a new tensor instead."""
    found: dict[Any, Callable[..., Any]] = {}
    for name in dir(Tensor):
        if name.startswith("__i") and name.endswith("__"):
            plain = getattr(Tensor, f"__{name[3:]}", None)
        elif name.endswith("_") and not name.startswith("_"):
            plain = getattr(Tensor, name[:-1], None)
        else:
            continue
        if plain is not None:
            found[getattr(Tensor, name)] = plain
    for holder in (torch, torch.nn.functional):
        for name in dir(holder):
            if name.endswith("_") and not name.startswith("_") and callable(getattr(holder, name)):
                plain = getattr(holder, name[:-1], None)
                if plain is not None:
                    found[getattr(holder, name)] = plain
    return found


_SIBLINGS = _siblings()
for _name in words("nvert nt ndex"):
    _SIBLINGS.pop(getattr(Tensor, f"__i{_name}__", None), None)
_SHAPES = {getattr(Tensor, n) for n in words("squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_ resize_ set_")}
_CONSTANT = {
    getattr(Tensor, n) for n in words("normal_ uniform_ exponential_ random_ bernoulli_ cauchy_ log_normal_ geometric_")
}

IN_PLACE: set[Any] = {
    *_SIBLINGS,
    *_CONSTANT,
    *_SHAPES,
    Tensor.__setitem__,
    Tensor.copy_,
    Tensor.zero_,
    Tensor.fill_,
} - {
    Tensor.requires_grad_,
    Tensor.detach_,
}

_NO_GRAPH = (
    "which needs a graph of autograd inside the function; write derivatives inside f by jet, laplacian or "
    "differential_operator"
)
REFUSED: dict[Any, str] = {
    torch.autograd.grad: _NO_GRAPH,
    torch.autograd.backward: _NO_GRAPH,
    Tensor.backward: _NO_GRAPH,
    Tensor.register_hook: _NO_GRAPH,
    Tensor.retain_grad: _NO_GRAPH,
    Tensor.detach_: "which writes into its tensor; use detach()",
    Tensor.numpy: "which leaves PyTorch; use detach().numpy() for a constant",
    Tensor.__array__: "which leaves PyTorch; use detach().numpy() for a constant",
}


def write_in_place(frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target = args[0]
    name = func.__name__
    c = series(target, frame)
    if c is None:
        raise NotDifferentiable(
            f"jet: {name} writes values that depend on x into a tensor that does not; make that tensor with "
            "torch.zeros_like(x) or x.new_zeros(...), or build the result with torch.stack or torch.cat"
        )
    if func in _SHAPES:
        raise NotDifferentiable(f"jet: {name} changes the shape of its tensor in place; use {name.rstrip('_')}")
    _alone(name, target)
    if func is Tensor.__setitem__:
        target.c = _assigned(frame, target, args[1], args[2])
        return None
    return replace_series(frame, name, target, _new_value(frame, func, target, args, kwargs))


def replace_series(frame: Frame, name: str, target: Any, new: Any) -> Any:
    """Give `target` the series of `new`, as `name` would by writing into it."""
    if series(target, frame) is None:
        raise NotDifferentiable(
            f"jet: {name} writes into a tensor that does not depend on x; write it in functions that return new tensors"
        )
    _alone(name, target)
    c = series(new, frame)
    target.c = list(c) if c is not None else frame.empty(new.expand(target.shape).to(target.dtype))
    return target


def _alone(name: str, target: SeriesTensor) -> None:
    if not target.memory.alone(target):
        raise NotDifferentiable(
            f"jet: {name} writes into a tensor that shares its memory with another one, such as a view; clone it first"
        )


def _new_value(frame: Frame, func: Any, target: SeriesTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in _CONSTANT:
        return func(target.value.detach().clone(), *args[1:], **kwargs)
    if func is Tensor.zero_:
        return torch.zeros_like(target.value)
    if func is Tensor.fill_:
        return torch.as_tensor(args[1], dtype=target.dtype, device=target.device)
    if func is Tensor.copy_:
        source = args[1] if len(args) > 1 else kwargs["src"]
        return source.to(target.dtype).expand(target.shape)
    found = _SIBLINGS[func](*args, **kwargs)
    if found.dtype != target.dtype:
        raise NotDifferentiable(f"jet: {func.__name__} changes the dtype of its tensor; convert it first")
    return found


def _assigned(frame: Frame, target: SeriesTensor, index: Any, source: Any) -> Coefficients:
    """The coefficients after target[index] = source."""
    s = series(source, frame)
    plain = source if s is None else s[0]
    found: Coefficients = []
    for k, t in enumerate(target.c):
        new = plain if k == 0 else (s[k] if s is not None else None)
        if t is None and new is None:
            found.append(None)
            continue
        value = frame.zeros(target.value, k) if t is None else t
        found.append(_written(value, index, 0 if new is None else new, lead(k), new is not None))
    return found


def _written(t: Tensor, index: Any, source: Any, lead: int, moving: bool) -> Tensor:
    if lead and not _basic(index):

        def one(a: Tensor, b: Any) -> Tensor:
            a = a.clone()
            a[index] = b
            return a

        return lifted(lambda a: one(a, source))(t, 1) if not moving else torch.func.vmap(one)(t, source)
    t = t.clone()
    where = index if isinstance(index, tuple) else (index,)
    if lead and moving:
        where = (slice(None), *where)
        source = padded(source, 1, t[where].ndim - 1)
        t[where] = source
    elif lead:
        t[(slice(None), *where)] = source
    else:
        t[index] = source
    return t


def _basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, int | slice | type(None) | type(Ellipsis)) and not isinstance(p, bool) for p in parts)
