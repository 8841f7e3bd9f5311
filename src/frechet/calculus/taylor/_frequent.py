"""Rules of the torch functions that models call most, without recording. Each may decline by NotImplemented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frechet.calculus.taylor._arguments import words
from frechet.calculus.taylor._bilinear import (
    divided,
    last_axis_product,
    linear_map,
    matrix_product,
    multiplied,
    product_of,
)
from frechet.calculus.taylor._elementary import EXPANSIONS, Expansion, elementary, power
from frechet.calculus.taylor._linear import added, transformed, wrapped
from frechet.calculus.taylor._series import Frame
from frechet.calculus.taylor._tensor import SeriesTensor, constant, series
from frechet.calculus.taylor._writes import _basic
from frechet.objective._formulas import LAYERS

Frequent = Callable[..., Any]


def _of_one(expansion: Expansion) -> Frequent:
    def rule(frame: Frame, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return NotImplemented
        return elementary(frame, args[0], expansion)

    return rule


def _with_parameters(expansion: Expansion, *parameters: str) -> Frequent:
    """Activations with parameters by position or by name; those that write in place are left to the recorder."""

    def rule(frame: Frame, input: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | kwargs
        if given.pop("inplace", False) or series(input, frame) is None:
            return NotImplemented
        known = [n for n in parameters if n in given]
        if len(known) != len(given) or known != list(parameters[: len(known)]):
            return NotImplemented
        return elementary(frame, input, expansion, *given.values())

    return rule


def _reduced(by_axes: Any) -> Frequent:
    """Sums and means over all axes or some of them."""

    def rule(frame: Frame, x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        if kwargs or series(x, frame) is None or not isinstance(dim, int | tuple | list | None) or not x.ndim:
            return NotImplemented
        axes = range(x.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
        last = [d if d < 0 else d - x.ndim for d in axes]
        return transformed(frame, x, lambda t, lead: by_axes(t, last, keepdim))

    return rule


def _numeric(t: Any) -> bool:
    return isinstance(t, Tensor | float | int) and not isinstance(t, bool)


def _of_two(f: Callable[[Frame, Any, Any], Any]) -> Frequent:
    def rule(frame: Frame, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 2 or kwargs or not (_numeric(args[0]) and _numeric(args[1])):
            return NotImplemented
        return f(frame, *args)

    return rule


def _reversed(f: Callable[[Frame, Any, Any], Any]) -> Frequent:
    return _of_two(lambda frame, a, b: f(frame, b, a))


def _subtracted(frame: Frame, a: Any, b: Any) -> Any:
    return added(frame, a, b, -1)


def _negated(frame: Frame, x: SeriesTensor) -> Any:
    return wrapped(frame, [None if t is None else -t for t in x.c])


def _item(frame: Frame, x: SeriesTensor, index: Any) -> Any:
    if not isinstance(x, SeriesTensor) or x.frame is not frame or not _basic(index):
        return NotImplemented
    parts = index if isinstance(index, tuple) else (index,)
    return transformed(frame, x, lambda t, lead: t[(slice(None),) * lead + parts], view=True)


def _made_like(func: Any) -> Frequent:
    """New tensors of the same kind: constants that may be written to."""

    def rule(frame: Frame, x: SeriesTensor, *args: Any, **kwargs: Any) -> Any:
        if series(x, frame) is None:
            return NotImplemented
        value = func(x.value.detach(), *args, **kwargs)
        return wrapped(frame, frame.empty(value)) if value.is_floating_point() else value

    return rule


def _detached(frame: Frame, x: Any) -> Any:
    return constant(x).detach()


def _data(frame: Frame, x: Any, *owner: Any) -> Any:
    return constant(x).detach()


def _unchanged(frame: Frame, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def _padded(frame: Frame, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Circular padding, which torch writes into a new tensor piece by piece."""
    if mode != "circular":
        return NotImplemented
    for i in range(len(pad) // 2):
        axis, before, after = -1 - i, pad[2 * i], pad[2 * i + 1]
        n = x.shape[axis]
        pieces = [x.narrow(axis, n - before, before)] if before > 0 else []
        pieces.append(x.narrow(axis, max(-before, 0), n - max(-before, 0) - max(-after, 0)))
        pieces += [x.narrow(axis, 0, after)] if after > 0 else []
        x = torch.cat(pieces, axis)
    return x


def _vector_product(frame: Frame, a: Any, b: Any, *, dim: int = -1) -> Any:
    if a.shape != b.shape or a.ndim == 0 or dim not in (-1, a.ndim - 1):
        return NotImplemented
    return product_of(frame, a, b, last_axis_product)


def _read(func: Any) -> Frequent:
    def rule(frame: Frame, x: Any, *args: Any) -> Any:
        while type(x) is SeriesTensor:
            x = x.value
        return func(x, *args)

    return rule


FREQUENT: dict[Any, Frequent] = {}
for _holder in (torch, Tensor, torch.special, F):
    for _name, _expansion in EXPANSIONS.items():
        _function = getattr(_holder, _name.removeprefix("special_"), None)
        if _function is not None:
            FREQUENT[_function] = _of_one(_expansion)
for _names, _rule in (
    ("__add__ __radd__ add", _of_two(added)),
    ("__sub__ sub subtract", _of_two(_subtracted)),
    ("__rsub__", _reversed(_subtracted)),
    ("__mul__ __rmul__ mul multiply", _of_two(multiplied)),
    ("__truediv__ div divide true_divide", _of_two(divided)),
    ("__rtruediv__ __rdiv__", _reversed(divided)),
    ("__pow__ pow", _of_two(power)),
    ("__rpow__", _reversed(power)),
    ("matmul __matmul__", lambda frame, a, b: matrix_product(frame, a, b)),
):
    for _name in _names.split():
        for _holder in (torch, Tensor):
            _function = getattr(_holder, _name, None)
            if _function is not None:
                FREQUENT[_function] = _rule
for _name in words("zeros_like ones_like empty_like full_like"):
    FREQUENT[getattr(torch, _name)] = _made_like(getattr(torch, _name))
for _name in words("new_zeros new_ones new_empty new_full"):
    FREQUENT[getattr(Tensor, _name)] = _made_like(getattr(Tensor, _name))
for _name in words("item tolist __bool__ __float__ __int__ __index__ __complex__ __format__"):
    FREQUENT[getattr(Tensor, _name)] = _read(getattr(Tensor, _name))
FREQUENT |= {
    F.gelu: _with_parameters(EXPANSIONS["gelu"], "approximate"),
    F.softplus: _with_parameters(EXPANSIONS["softplus"], "beta", "threshold"),
    F.elu: _with_parameters(EXPANSIONS["elu"], "alpha"),
    F.leaky_relu: _with_parameters(EXPANSIONS["leaky_relu"], "negative_slope"),
    **{f: _with_parameters(EXPANSIONS[n]) for f, n in ((F.relu, "relu"), (F.silu, "silu"), (F.mish, "mish"))},
    **dict.fromkeys((torch.sum, Tensor.sum), _reduced(torch.sum)),
    **dict.fromkeys((torch.mean, Tensor.mean), _reduced(torch.mean)),
    F.embedding_bag: lambda frame, *args, **kwargs: LAYERS[F.embedding_bag](*args, **kwargs),
    Tensor.__neg__: _negated,
    torch.neg: _negated,
    Tensor.neg: _negated,
    F.linear: linear_map,
    torch.linalg.vecdot: _vector_product,
    F.pad: _padded,
    Tensor.__getitem__: _item,
    Tensor.detach: _detached,
    torch.detach: _detached,
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    Tensor.grad.__get__: lambda frame, x, *owner: None,  # type: ignore[attr-defined]
    Tensor.grad_fn.__get__: lambda frame, x, *owner: None,  # type: ignore[attr-defined]
    Tensor._version.__get__: lambda frame, x, *owner: 0,  # type: ignore[attr-defined]
    Tensor.requires_grad_: _unchanged,
}
