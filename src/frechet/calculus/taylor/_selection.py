"""Operations that select entries by their values: extrema, sorting, clamping, pooling by maximum; and constants.

The entries that the value selects are those of all coefficients. Equal entries share as in torch: `amax` and `amin`
average them, `maximum` and `minimum` take the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound, words
from frechet.calculus.taylor._linear import added, chosen, transformed
from frechet.calculus.taylor._series import Frame, lifted
from frechet.calculus.taylor._tensor import series, values
from frechet.objective._torch_internals import OpOverload

aten = torch.ops.aten


def _constant(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    return op(*values(args, frame), **values(kwargs, frame))


def _flat(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """Piecewise constant operations."""
    return _constant(frame, op, args, kwargs).detach()


def _gathered(frame: Frame, x: Any, dim: int, indices: Tensor) -> Any:
    if x.ndim == 0:
        return transformed(frame, x, lambda t, lead: t.clone())
    return transformed(frame, x, lifted(lambda t: torch.gather(t, dim, indices)))


def _with_indices(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """Operations that return entries along an axis and where they were."""
    given = bound(op, args, kwargs)
    x, dim, keepdim = given["self"], given.get("dim"), given.get("keepdim", True)
    if dim is None:
        dim = -1
    found = _constant(frame, op, args, kwargs)
    if isinstance(found, Tensor):  # over all entries
        return _of_all(frame, x, found)
    indices = found[1]
    if x.ndim == 0:
        return transformed(frame, x, lambda t, lead: t.clone()), indices
    if not keepdim:
        return _gathered(frame, x, dim, indices.unsqueeze(dim)).squeeze(dim), indices
    return _gathered(frame, x, dim, indices), indices


def _of_all(frame: Frame, x: Any, value: Tensor) -> Any:
    """Entries equal to `value`, averaged."""
    hit = x.value.detach() == value.detach()
    weight = hit.to(x.dtype) / hit.sum()
    return transformed(frame, x, lambda t, lead: torch.where(hit, t, 0.0).mul(weight).sum(_last(x.ndim)))


def _last(n: int) -> list[int]:
    return list(range(-n, 0))


def _first_of_all(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """The middle of all entries: one of them, the one that torch's own derivative takes."""
    x = args[0]
    value = op(x.value)
    if op._schema.name.endswith(("max", "min")):
        return _of_all(frame, x, value)
    if x.ndim == 0:
        return transformed(frame, x, lambda t, lead: t.clone())
    position = (x.value.detach() == value.detach()).flatten().to(torch.int8).argmax()
    return transformed(frame, x, lambda t, lead: t.flatten(lead).select(lead, int(position)))


def _median(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    if len(bound(op, args, kwargs)) == 1:
        return _first_of_all(frame, op, args, kwargs)
    return _with_indices(frame, op, args, kwargs)


def _extremum(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    x, dims, keepdim = given["self"], given["dim"], given["keepdim"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    dims = [d if d < 0 else d - x.ndim for d in dims] or _last(x.ndim)
    if not dims:
        return transformed(frame, x, lambda t, lead: t.clone())
    value = getattr(torch, op._schema.name.partition("::")[2])(x.value.detach(), dims, keepdim=True)
    hit = x.value.detach() == value
    weight = hit.to(x.dtype) / hit.sum(dims, keepdim=True)
    return transformed(frame, x, lambda t, lead: torch.where(hit, t, 0.0).mul(weight).sum(dims, keepdim=keepdim))


def _larger(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    a, b = args[0], args[1]
    x, y = values((a, b), frame)
    maximum = op._schema.name.endswith("max") or op._schema.name.endswith("maximum")
    first = x > y if maximum else x < y
    if op._schema.name in ("aten::fmax", "aten::fmin"):
        first = first | y.isnan()
        return chosen(frame, first | (x == y), a, b)
    found = chosen(frame, first | x.isnan(), a, b)
    return chosen(frame, x == y, added(frame, a, b) * 0.5, found)


def _clamped(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    found = given["self"]
    for name, low in (("min", True), ("max", False)):
        limit = given.get(name)
        if limit is None:
            continue
        x, y = values((found, limit), frame)
        kept = (x >= y) if low else (x <= y)
        found = chosen(frame, kept | x.isnan(), found, limit)
    return found


def _pooled(axes: int) -> Rule:
    def rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
        given = bound(op, args, kwargs)
        x = given["self"]
        _, indices = _constant(frame, op, args, kwargs)
        flat = indices.flatten(-axes)

        def pool(t: Tensor) -> Tensor:
            return t.flatten(-axes).gather(-1, flat).reshape(indices.shape)

        return transformed(frame, x, lifted(pool)), indices

    return rule


def _cumulated(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    _, indices = _constant(frame, op, args, kwargs)
    return _gathered(frame, given["self"], given["dim"], indices), indices


def _remainder(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """x - n y with the whole number n of the values."""
    a, b = args[0], args[1]
    x, y = values((a, b), frame)
    rounding = "floor" if op._schema.name == "aten::remainder" else "trunc"
    whole = torch.div(x, y, rounding_mode=rounding).detach()
    return a - b * whole


def _mantissa(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    _, exponent = torch.frexp(args[0].value.detach())
    return args[0] * torch.ldexp(torch.ones_like(args[0].value.detach()), -exponent), exponent


def _with_sign(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    a, b = values((args[0], args[1]), frame)
    flip = torch.copysign(torch.ones_like(a), b) * torch.sign(a)
    return (args[0] * flip.detach()) if series(args[0], frame) is not None else torch.copysign(a, b)


_CONSTANTS = words(
    "eq ne lt le gt ge isnan isinf isfinite isposinf isneginf logical_and logical_or logical_xor logical_not signbit "
    "argmax argmin argsort any all count_nonzero nonzero searchsorted bucketize floor_divide equal is_nonzero isin "
    "_local_scalar_dense ones_like zeros_like full_like empty_like rand_like randn_like randint_like new_zeros "
    "new_ones "
    "new_full new_empty new_empty_strided isclose allclose histc bincount unique_dim _unique2 unique_consecutive "
    "is_same_size sym_size sym_stride sym_numel result_type tril_indices triu_indices nonzero_static scalar_tensor "
    "bitwise_and bitwise_or bitwise_xor bitwise_not _assert_async _assert_scalar bernoulli multinomial"
)
_FLAT = words("sign sgn floor ceil round trunc heaviside fix")

SELECTION: dict[str, Rule] = {
    **dict.fromkeys(_CONSTANTS, _constant),
    **dict.fromkeys(_FLAT, _flat),
    **dict.fromkeys(("sort", "topk", "kthvalue", "mode", "nanmedian"), _with_indices),
    **dict.fromkeys(("max", "min", "median", "nanmedian"), _median),
    **dict.fromkeys(("amax", "amin"), _extremum),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _larger),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamped),
    **dict.fromkeys(("cummax", "cummin"), _cumulated),
    **dict.fromkeys(("max_pool2d_with_indices", "adaptive_max_pool2d", "fractional_max_pool2d"), _pooled(2)),
    **dict.fromkeys(("max_pool3d_with_indices", "adaptive_max_pool3d", "fractional_max_pool3d"), _pooled(3)),
    **dict.fromkeys(("remainder", "fmod"), _remainder),
    "copysign": _with_sign,
    "frexp": _mantissa,
    "angle": _flat,
}

Choice = Callable[..., Any]
