"""Linear operations: each coefficient is mapped alone.

Operations of one tensor know how to leave the axis of directions in front alone: their axes are counted from the last
one, or it is written into their shapes. The others go through `vmap`. Operations that are linear in several tensors
together (concatenation, writing at indices, choice by a mask) take zeros for what is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound, from_last, words
from frechet.calculus.taylor._series import Coefficients, Frame, lead, lifted, mapped, padded
from frechet.calculus.taylor._tensor import SeriesTensor, series, tensors_of
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import OpOverload

aten = torch.ops.aten


def wrapped(frame: Frame, c: Coefficients, source: Any = None) -> SeriesTensor:
    """A tensor with these coefficients; a view of `source` shares its memory."""
    return SeriesTensor.make(frame, c, source.memory if isinstance(source, SeriesTensor) else None)


def transformed(
    frame: Frame, x: SeriesTensor, f: Callable[[Tensor, int], Any], *, view: bool = False
) -> SeriesTensor | list[SeriesTensor]:
    """Apply the linear map `f(t, lead)`, which may return several tensors, to every coefficient."""
    images = [None if t is None else f(t, lead(k)) for k, t in enumerate(x.c)]
    source = x if view else None
    if isinstance(images[0], Tensor):
        return wrapped(frame, images, source)
    assert images[0] is not None
    return [wrapped(frame, [None if y is None else y[i] for y in images], source) for i in range(len(images[0]))]


# --- one tensor -------------------------------------------------------------------------------------------------------


def by_axes(frame: Frame, op: OpOverload, args: Any, kwargs: Any, *, extra: int = 0) -> Any:
    """Operations whose axes can be counted from the last one; `extra` axes more in the result."""
    given = bound(op, args, kwargs)
    x = given.pop("self")
    if x.ndim == 0 and not extra:
        return by_vmap(frame, op, args, kwargs)
    given = from_last(given, x.ndim + extra)
    return transformed(frame, x, lambda t, lead: op(t, **given), view=op.is_view)


def by_vmap(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """Operations that are linear in their first argument, whatever the others."""
    given = bound(op, args, kwargs)
    x = given.pop(op._schema.arguments[0].name)
    constants_only(frame, op, given)
    return transformed(frame, x, lifted(lambda t: op(t, **given)), view=op.is_view)


def constants_only(frame: Frame, op: OpOverload, given: dict[str, Any]) -> None:
    for name, a in given.items():
        if any(t.frame is frame for t in tensors_of([a])):
            raise NotDifferentiable(
                f"jet: {op} has a rule for constant {name} only, and {name} depends on x; write it in other operations"
            )


def _plain(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """Operations without axes: on every element, or on the last axes."""
    return transformed(frame, args[0], lambda t, lead: op(t, *args[1:], **kwargs), view=op.is_view)


def _reduction(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    x: SeriesTensor = given.pop("self")
    dims = given.pop("dim", None)
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        dims = list(range(x.ndim))
    dims = from_last({"dim": [dims] if isinstance(dims, int) else dims}, x.ndim)["dim"]
    if not dims:
        return wrapped(frame, list(x.c))
    by_dims = getattr(aten, op._schema.name.partition("::")[2]).dim_IntList if "sum" in str(op) else aten.mean.dim
    return transformed(frame, x, lambda t, lead: by_dims(t, dims, given.get("keepdim", False), dtype=given["dtype"]))


def _viewed(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x, size = args[0], list(args[1] if len(args) > 1 else kwargs["size"])

    def view(t: Tensor, lead: int) -> Tensor:
        return t.reshape([*t.shape[:lead], *size])

    if -1 in size:
        known = -math.prod(size)
        size[size.index(-1)] = x.numel() // known if known else 0
    return transformed(frame, x, view, view=True)


def _expanded(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x, size = args[0], list(args[1])

    def expand(t: Tensor, lead: int) -> Tensor:
        return padded(t, lead, len(size)).expand([*t.shape[:lead], *size])

    return transformed(frame, x, expand, view=True)


def _repeated(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x, repeats = args[0], list(args[1])
    return transformed(frame, x, lambda t, lead: padded(t, lead, len(repeats)).repeat([1] * lead + repeats), view=False)


def _permuted(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x, axes = args[0], [d % args[0].ndim for d in args[1]]
    return transformed(frame, x, lambda t, lead: t.permute([*range(lead), *(d + lead for d in axes)]), view=True)


def _transposed(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    x = args[0]
    if x.ndim < 2:
        return x
    return transformed(frame, x, lambda t, lead: t.transpose(-2, -1), view=True)


def _squeezed(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    x = given["self"]
    dims = given.get("dim", list(range(x.ndim)))
    dims = [dims] if isinstance(dims, int) else dims
    kept = [d for d in (a % max(x.ndim, 1) for a in dims) if x.ndim and x.shape[d] == 1]
    axes = tuple(d - x.ndim for d in kept)
    return transformed(frame, x, lambda t, lead: t.squeeze(axes), view=True)


def _rolled(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    return by_axes(frame, op, args, kwargs) if given["dims"] else by_vmap(frame, op, args, kwargs)


def _padded_with(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    c = mapped(frame, given["self"].c, lambda t, lead: aten.constant_pad_nd(t, given["pad"], 0))
    c[0] = aten.constant_pad_nd(given["self"].value, given["pad"], given["value"])
    return wrapped(frame, c)


def _converted(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    value = op(args[0].value, *args[1:], **kwargs)
    if not (value.is_floating_point() or value.is_complex()):
        return value
    dtype = value.dtype
    found = mapped(frame, args[0].c, lambda t, lead: t.to(dtype))
    found[0] = value
    return wrapped(frame, found)


def _copied(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    return transformed(frame, args[0], lambda t, lead: t.clone())


def as_integers(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks among indices, as the positions of what they choose."""
    found: list[Tensor | None] = []
    for i in indices:
        if i is not None and i.dtype in (torch.bool, torch.uint8):
            found += list(i.nonzero().unbind(1))
        else:
            found.append(i)
    return found


def _indexed(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    indices = as_integers(args[1])
    return transformed(frame, args[0], lifted(lambda t: aten.index.Tensor(t, indices)))


# --- several tensors --------------------------------------------------------------------------------------------------


def jointly(frame: Frame, op: Callable[..., Tensor], given: dict[str, Any], linear: set[str]) -> Any:
    """Operations that are linear in the arguments named in `linear` together."""
    parts = {name: given[name] for name in linear if given[name] is not None}
    rest = {name: a for name, a in given.items() if name not in parts}
    flat = [t for a in parts.values() for t in (a if isinstance(a, list | tuple) else [a])]

    def call(pieces: Sequence[Any]) -> Tensor:
        left = iter(pieces)
        named = {n: [next(left) for _ in a] if isinstance(a, list | tuple) else next(left) for n, a in parts.items()}
        return op(**rest, **named)

    def values(t: Any) -> Any:
        return t.value if series(t, frame) is not None else t

    found: Coefficients = [call([values(t) for t in flat])]
    for k in range(1, frame.order + 1):
        moving = [c[k] if (c := series(t, frame)) is not None else None for t in flat]
        if all(m is None for m in moving):
            found.append(None)
            continue
        pieces = [_zero(values(t)) if m is None else m for t, m in zip(flat, moving, strict=True)]
        found.append(_by_vmap(call, pieces, [m is not None for m in moving]))
    return wrapped(frame, found)


def _by_vmap(call: Callable[[Sequence[Any]], Tensor], pieces: list[Any], batched: list[bool]) -> Tensor:
    moving = [p for p, b in zip(pieces, batched, strict=True) if b]

    def run(*now: Tensor) -> Tensor:
        left = iter(now)
        return call([next(left) if b else p for p, b in zip(pieces, batched, strict=True)])

    return torch.func.vmap(run)(*moving)


def _zero(t: Any) -> Any:
    return torch.zeros_like(t) if isinstance(t, Tensor) else 0


def _joint(linear: str) -> Rule:
    names = set(linear.split())

    def rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
        given = bound(op, args, kwargs)
        for name in ("indices",):
            if name in given:
                given[name] = as_integers(given[name])
        constants_only(frame, op, {k: v for k, v in given.items() if k not in names})

        def positional(**arguments: Any) -> Tensor:
            schema = op._schema.arguments
            ordered = [arguments[a.name] for a in schema if not a.kwarg_only]
            return op(*ordered, **{a.name: arguments[a.name] for a in schema if a.kwarg_only})

        return jointly(frame, positional, given, names & set(given))

    return rule


def _copied_into(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    if series(source, frame) is None:
        return op(target.value, source)
    dtype = target.dtype

    def fit(t: Tensor, lead: int) -> Tensor:
        return padded(t, lead, target.ndim).expand([*t.shape[:lead], *target.shape]).to(dtype, copy=True)

    return wrapped(frame, mapped(frame, source.c, fit))


def added(frame: Frame, a: Any, b: Any, factor: Any = 1) -> SeriesTensor:
    """Return a + factor b."""
    x, y = series(a, frame), series(b, frame)
    value = torch.add(a.value if x is not None else a, b.value if y is not None else b, alpha=factor)
    rank, shape = value.ndim, value.shape
    found: Coefficients = [value]
    for k in range(1, frame.order + 1):
        s, t = x[k] if x is not None else None, y[k] if y is not None else None
        s, t = (None if p is None else padded(p, 1, rank) for p in (s, t))
        if t is None and s is None:
            found.append(None)
        elif t is None or s is None:
            one = s if t is None else (t if factor == 1 else t * factor)
            assert one is not None
            found.append(one if one.shape[1:] == shape else one.expand([one.shape[0], *shape]))
        else:
            found.append(torch.add(s, t, alpha=factor))
    return wrapped(frame, found)


def _chosen(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    return chosen(frame, given["condition"], given["self"], given["other"])


def chosen(frame: Frame, condition: Tensor, a: Any, b: Any) -> SeriesTensor:
    """Return a where `condition`, and b elsewhere."""
    x, y = series(a, frame), series(b, frame)
    value = torch.where(condition, a.value if x is not None else a, b.value if y is not None else b)
    found: Coefficients = [value]
    for k in range(1, frame.order + 1):
        s, t = x[k] if x is not None else None, y[k] if y is not None else None
        if s is None and t is None:
            found.append(None)
            continue
        s, t = (0 if p is None else padded(p, 1, value.ndim) for p in (s, t))
        found.append(torch.where(condition, s, t).to(value.dtype))
    return wrapped(frame, found)


_BY_AXES = words(
    "cumsum flip select slice narrow diagonal index_select unfold unbind split split_with_sizes transpose split_copy "
    "unbind_copy tril triu"
)
_PLAIN = words(
    "neg alias view_as_real view_as_complex real imag conj _conj conj_physical _conj_physical resolve_conj resolve_neg "
    "lift_fresh positive _neg_view deg2rad rad2deg"
)
_BY_VMAP = words(
    "trace gather take embedding reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa im2col col2im _fft_r2c _fft_c2c _fft_c2r "
    "pixel_shuffle pixel_unshuffle channel_shuffle grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback "
    "max_unpool2d max_unpool3d masked_select rot90 native_channel_shuffle linalg_diagonal affine_grid_generator "
    "unfold_copy"
)
_JOINT = {
    "cat": "tensors",
    "stack": "tensors",
    "scatter_add": "self src",
    "index_add": "self source",
    "index_copy": "self source",
    "index_put": "self values",
    "_unsafe_index_put": "self values",
    "slice_scatter": "self src",
    "select_scatter": "self src",
    "diagonal_scatter": "self src",
    "masked_scatter": "self source",
    "masked_fill": "self value",
    "index_fill": "self value",
    "scatter": "self src value",
    "put": "self source",
    "block_diag": "tensors",
    "complex": "real imag",
}

LINEAR: dict[str, Rule] = {
    **dict.fromkeys(_BY_AXES, by_axes),
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_BY_VMAP, by_vmap),
    **{name: _joint(linear) for name, linear in _JOINT.items()},
    "unsqueeze": lambda frame, op, args, kwargs: by_axes(frame, op, args, kwargs, extra=1),
    "diag_embed": lambda frame, op, args, kwargs: by_axes(frame, op, args, kwargs, extra=1),
    "sum": _reduction,
    "mean": _reduction,
    "view": _viewed,
    "_unsafe_view": _viewed,
    "reshape": _viewed,
    "expand": _expanded,
    "repeat": _repeated,
    "permute": _permuted,
    "t": _transposed,
    "squeeze": _squeezed,
    "roll": _rolled,
    "constant_pad_nd": _padded_with,
    "_to_copy": _converted,
    "to": _converted,
    "clone": _copied,
    "contiguous": _copied,
    "index": _indexed,
    "_unsafe_index": _indexed,
    "copy": _copied_into,
    "add": lambda frame, op, args, kwargs: added(frame, args[0], args[1], kwargs.get("alpha", 1)),
    "sub": lambda frame, op, args, kwargs: added(frame, args[0], args[1], -kwargs.get("alpha", 1)),
    "where": _chosen,
}
