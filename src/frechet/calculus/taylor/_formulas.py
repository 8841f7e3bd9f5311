"""Operations written out in others: normalizations, softmax, norms, losses, products over an axis, attention.

They are plain PyTorch code, and go through the rules of what they consist of. What must not be differentiated, such as
the shift of a softmax, is taken from the value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import Rule, bound, by_position, words
from frechet.calculus.taylor._bilinear import divided
from frechet.calculus.taylor._series import Frame
from frechet.calculus.taylor._tensor import fixed, values
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import OpOverload


def _axes(dim: Any, rank: int) -> list[int]:
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(-rank, 0))
    return [dim] if isinstance(dim, int) else list(dim)


# --- softmax ----------------------------------------------------------------------------------------------------------


def _top(x: Tensor, dim: int) -> Tensor:
    """The largest entry along an axis, with its series: less of it, all series are small, and nothing cancels."""
    where = fixed(x).argmax(dim, keepdim=True)
    top = x.gather(dim, where)
    return torch.where(fixed(top).isfinite(), top, 0.0)


def _shifted(x: Tensor, dim: int) -> Tensor:
    return x - _top(x, dim)


def softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return x * 0 + 1
    e = torch.exp(_shifted(x, dim))
    return e / e.sum(dim, keepdim=True)


def _safe_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Rows of minus infinity give zeros."""
    e = torch.exp(_shifted(x, dim))
    total = e.sum(dim, keepdim=True)
    return e / torch.where(fixed(total) == 0, 1.0, total)


def log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return x * 0
    shifted = _shifted(x, dim)
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    if not x.ndim:
        return x * 1
    dims = sorted(d % x.ndim for d in _axes(dim, x.ndim))
    rest = [d for d in range(x.ndim) if d not in dims]
    flat = x.permute([*rest, *dims]).flatten(len(rest))
    top = _top(flat, -1)
    found = (torch.log(torch.exp(flat - top).sum(-1, keepdim=True)) + top).squeeze(-1)
    if not keepdim:
        return found
    return found.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    if not x.ndim:
        return x
    pieces = [x.select(dim, 0)]
    for i in range(1, x.shape[dim]):
        pieces.append(_log_add_exp(pieces[-1], x.select(dim, i)))
    return torch.stack(pieces, dim)


# --- normalizations ---------------------------------------------------------------------------------------------------


def _standardized(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    centered = x - mean
    rstd = torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)
    return centered * rstd, mean, rstd


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _standardized(x, list(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), mean, rstd


def _group_norm(
    x: Tensor, weight: Any, bias: Any, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _standardized(x.reshape(N, group, -1), [-1], eps)
    y = _per_channel(y.reshape(x.shape), weight, bias)
    return y, mean.reshape(N, group), rstd.reshape(N, group)


def _per_channel(y: Tensor, weight: Any, bias: Any) -> Tensor:
    shape = (1, -1, *(1 for _ in range(y.ndim - 2)))
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if training or mean is None:
        y, m, r = _standardized(x, [0, *range(2, x.ndim)], eps)
        return _per_channel(y, weight, bias), m.flatten(), r.flatten()
    shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
    y = (x - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    return _per_channel(y, weight, bias), fixed(x).new_empty(0), fixed(x).new_empty(0)


def _batch_norms(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    """All spellings. Running statistics were updated when the operation was recorded, and are not again."""
    given = bound(op, args, kwargs)
    name = op._schema.name
    training = given.get("training", "no_training" not in name)
    mean, var = given.get("running_mean"), given.get("running_var")
    found = _batch_norm(given["input"], given["weight"], given["bias"], mean, var, training, 0.0, given["eps"])
    more = len(op._schema.returns) - len(found)
    return (*found, *[None] * more)


def _noisy_relu(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    if given["training"]:
        raise NotDifferentiable("jet: rrelu in training draws its slopes inside; use model.eval()")
    return torch.nn.functional.leaky_relu(given["self"], (given["lower"] + given["upper"]) / 2)


def _scatter_reduced(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    x, dim, index, source = given["self"], given["dim"], given["index"], given["src"]
    if given["reduce"] not in ("sum", "mean"):
        raise NotDifferentiable(f"jet: {op} has a rule for sum and mean only, got {given['reduce']!r}")
    ones = torch.ones_like(fixed(source))
    hits = torch.zeros_like(fixed(x)).scatter_add(dim, index, ones)
    base = x if given["include_self"] else torch.where(hits > 0, 0.0, x)
    total = base.scatter_add(dim, index, source)
    if given["reduce"] == "sum":
        return total
    return total / (hits + 1 if given["include_self"] else hits.clamp(min=1))


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Any, eps: float | None) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    rstd = torch.rsqrt((x * x).mean(list(range(-len(shape), 0)), keepdim=True) + eps)
    y = x * rstd
    return (y if weight is None else y * weight), rstd


# --- moments and norms ------------------------------------------------------------------------------------------------


def _variance(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    dims = _axes(dim, x.ndim)
    n = math.prod(x.shape[d] for d in dims)
    centered = x - x.mean(dims, keepdim=True)
    return (centered * centered).sum(dims, keepdim=keepdim) / (n - (1 if correction is None else correction))


def _mean_too(x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    return x.mean(_axes(dim, x.ndim), keepdim=keepdim)


def _vector_norm(x: Tensor, p: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    dims = _axes(dim, x.ndim)
    if not x.ndim:
        return x.abs()
    if p == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    if p == -math.inf:
        return x.abs().amin(dims, keepdim=keepdim)
    if p == 0:
        return (fixed(x) != 0).to(x.dtype).sum(dims, keepdim=keepdim)
    if p == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    total = (x * x if p == 2 else x.abs() ** p).sum(dims, keepdim=keepdim)
    none = fixed(total) == 0  # torch's derivative of the norm of zero is zero
    safe = torch.where(none, 1.0, total)
    return torch.where(none, 0.0, torch.sqrt(safe) if p == 2 else safe ** (1 / p))


def _norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return _vector_norm(x, 2 if p is None else p, dim, keepdim, dtype)


def _product(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if dim is None:
        x, dim = x.flatten(), 0
    if not x.ndim:
        return x
    if x.shape[dim] == 0:
        return torch.ones_like(fixed(x).sum(dim, keepdim=keepdim))
    while x.shape[dim] > 1:  # halves, so that a product of n factors takes log n steps
        half = x.shape[dim] // 2
        x = torch.cat(
            [x.narrow(dim, 0, half) * x.narrow(dim, half, half), x.narrow(dim, 2 * half, x.shape[dim] % 2)], dim
        )
    return x if keepdim else x.squeeze(dim)


def _cumulative_product(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if not x.ndim:
        return x
    pieces = [x.select(dim, 0)]
    for i in range(1, x.shape[dim]):
        pieces.append(pieces[-1] * x.select(dim, i))
    return torch.stack(pieces, dim)


def _renormalized(x: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    others = [d for d in range(x.ndim) if d != dim % x.ndim]
    norm = _vector_norm(x, p, others, keepdim=True)
    return torch.where(fixed(norm) > maxnorm, x * (maxnorm / (norm + 1e-7)), x)


def _distances(x: Tensor, y: Tensor, p: float, mode: Any = None) -> Tensor:
    return _vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)


def _euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    return _distances(x, y, 2.0)


def _own_distances(x: Tensor, p: float) -> Tensor:
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return _vector_norm(x[i] - x[j], p, -1)


# --- two tensors ------------------------------------------------------------------------------------------------------


def _log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    top = torch.where(fixed(a) > fixed(b), a, b)
    top = torch.where(fixed(top).isfinite(), top, 0.0)
    total = torch.exp(a - top) + torch.exp(b - top)
    empty = fixed(total) == 0
    return torch.where(empty, -math.inf, torch.log(torch.where(empty, 1.0, total)) + top)


def _log_add_exp2(a: Tensor, b: Tensor) -> Tensor:
    return _log_add_exp(a * math.log(2), b * math.log(2)) / math.log(2)


def _xlogy(x: Any, y: Any) -> Any:
    return x * (torch.log(y) if isinstance(y, Tensor) else math.log(y))


def _xlog1py(x: Any, y: Any) -> Any:
    return x * (torch.log1p(y) if isinstance(y, Tensor) else math.log1p(y))


def _interpolated(a: Tensor, b: Tensor, weight: Any) -> Tensor:
    return a + weight * (b - a)


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    extra1: list[int],
    extra2: list[int],
    extra3: list[int],
    sums: list[int],
    unroll: int = 1,
) -> Tensor:
    """The product of three tensors with axes of length one added, summed over some axes."""
    for axes, which in ((extra1, 0), (extra2, 1), (extra3, 2)):
        for d in axes:
            a, b, c = (t.unsqueeze(d) if i == which else t for i, t in enumerate((a, b, c)))
    found = a * b * c
    return found.sum(sums) if sums else found


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(fixed(x) > 0, x, x * weight)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


# --- the table --------------------------------------------------------------------------------------------------------


def _divided(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    if bound(op, args, kwargs).get("rounding_mode") is not None:
        return op(*values(args, frame), **kwargs).detach()
    return divided(frame, args[0], args[1])


def _variances(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    if "unbiased" in given:
        given["correction"] = 1 if given["unbiased"] else 0
    dim, keepdim = given.get("dim"), given.get("keepdim", False)
    found = _variance(given["self"], dim, correction=given["correction"], keepdim=keepdim)
    name = op._schema.name.partition("::")[2]
    found = found if name.startswith("var") else torch.sqrt(found)
    return (found, _mean_too(given["self"], dim, keepdim)) if name.endswith("_mean") else found


def _from_frame(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    y, x = given["self"], given["other"]
    return _arc(frame, y, x)


def _arc(frame: Frame, y: Tensor, x: Tensor) -> Any:
    """atan2: beyond the value by the arc tangent near zero. The value stays differentiable from outside."""
    y0, x0 = values((y, x), frame)
    found: Any = torch.atan((x0 * y - y0 * x) / (x0 * x + y0 * y))
    found.c[0] = torch.atan2(y0, x0)
    return found


FORMULAS: dict[str, Rule] = {
    **{
        name: by_position(formula)
        for name, formula in {
            "_softmax": softmax,
            "_log_softmax": log_softmax,
            "_safe_softmax": _safe_softmax,
            "logsumexp": logsumexp,
            "logcumsumexp": logcumsumexp,
            "native_layer_norm": _layer_norm,
            "native_group_norm": _group_norm,
            "_fused_rms_norm": _rms_norm,
            "linalg_vector_norm": _vector_norm,
            "norm": _norm,
            "prod": _product,
            "cumprod": lambda x, dim, dtype=None: _cumulative_product(x, dim, dtype=dtype),
            "renorm": _renormalized,
            "polar": lambda r, phi: torch.complex(r * torch.cos(phi), r * torch.sin(phi)),
            "_trilinear": _trilinear,
            "_cdist_forward": _distances,
            "_euclidean_dist": _euclidean_distances,
            "_pdist_forward": _own_distances,
            "hypot": lambda a, b: torch.sqrt(a * a + b * b),
            "logaddexp": _log_add_exp,
            "logaddexp2": _log_add_exp2,
            "xlogy": _xlogy,
            "special_xlog1py": _xlog1py,
            "lerp": _interpolated,
            "addcmul": lambda x, a, b, value=1: x + value * (a * b),
            "addcdiv": lambda x, a, b, value=1: x + value * (a / b),
            "rsub": lambda a, b, alpha=1: b - alpha * a,
            "_prelu_kernel": _prelu,
            "glu": _glu,
        }.items()
    },
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _variances),
    **dict.fromkeys(
        words(
            "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
            "_native_batch_norm_legit_functional _batch_norm_with_update_functional _batch_norm_no_update"
        ),
        _batch_norms,
    ),
    "rrelu_with_noise": _noisy_relu,
    "scatter_reduce": _scatter_reduced,
    "div": _divided,
    "true_divide": _divided,
    "atan2": _from_frame,
}
