"""Products: of elements, of matrices, of convolutions; and quotients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor import _truncated as truncated
from frechet.calculus.taylor._arguments import Rule, bound
from frechet.calculus.taylor._linear import added, wrapped
from frechet.calculus.taylor._series import (
    Coefficients,
    Frame,
    Product,
    aligned,
    bilinear,
    composed,
    elementwise,
)
from frechet.calculus.taylor._tensor import SeriesTensor, coefficients, series
from frechet.objective._torch_internals import OpOverload

aten = torch.ops.aten


def scaled(frame: Frame, x: Any, c: Any) -> SeriesTensor:
    return wrapped(frame, [None if t is None else t * c for t in x.c])


def multiplied(frame: Frame, a: Any, b: Any) -> SeriesTensor:
    if not isinstance(b, Tensor):
        return scaled(frame, a, b)
    if not isinstance(a, Tensor):
        return scaled(frame, b, a)
    return product_of(frame, a, b, elementwise)


def inverted(frame: Frame, x: SeriesTensor) -> SeriesTensor:
    """Return 1 / x."""
    return wrapped(frame, composed(frame, truncated.reciprocal(truncated.variable(x.value, frame.order)), x.c))


def divided(frame: Frame, a: Any, b: Any) -> SeriesTensor:
    if series(b, frame) is None:
        if isinstance(b, Tensor):
            value = a.value / b
            c = bilinear(frame, a.c, frame.empty(1 / b.to(value.dtype)), elementwise)
            c[0] = value
            return wrapped(frame, c)
        return wrapped(frame, [None if t is None else t / b for t in a.c])
    x, y = coefficients(a, frame) if isinstance(a, Tensor) else None, b.c
    if x is None:
        return scaled(frame, inverted(frame, b), a)
    found = bilinear(frame, x, inverted(frame, b).c, elementwise)
    found[0] = torch.div(x[0], y[0])  # type: ignore[arg-type]
    return wrapped(frame, found)


# --- matrices ---------------------------------------------------------------------------------------------------------


def rows_times(x: Tensor, y: Tensor) -> Tensor:
    """Return x @ y for a matrix y; rows of x that are one row in memory are multiplied once."""
    repeated = [a for a in range(x.ndim - 1) if x.stride(a) == 0 and x.shape[a] > 1]
    if not repeated:
        return torch.matmul(x, y)
    for a in repeated:
        x = x.narrow(a, 0, 1)
    return torch.matmul(x, y)


def _matrix_product(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    """Matrices with the axis of directions in front, in one multiplication where one of them has none."""
    if of_x and not of_y and y.ndim == 2:
        shape = x.shape
        found = rows_times(x, y)
        return found.expand(*shape[:-1], found.shape[-1])
    if of_x and not of_y:
        R, b, m, n = x.shape
        folded = x.transpose(0, 1).reshape(b, R * m, n)
        return torch.bmm(folded, y).reshape(b, R, m, y.shape[-1]).transpose(0, 1)
    if of_y and not of_x:
        return _matrix_product(y.transpose(-2, -1), x.transpose(-2, -1), 1, 0).transpose(-2, -1)
    return torch.matmul(x, y)


def _matrix_vector(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    return torch.matmul(x, y.unsqueeze(-1)).squeeze(-1)


def _inner(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    return (x * y).sum(-1)


def last_axis_product(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    """Return sum over the last axis of x y; points that are one in memory are multiplied once."""
    x, y = aligned(x, y, of_x, of_y)
    if of_y and not of_x:
        x, y, of_x, of_y = y, x, of_y, of_x
    shared = of_x and x.ndim > 2 and all(x.stride(a) == 0 or x.shape[a] == 1 for a in range(1, x.ndim - 1))
    if not shared:
        return (x * y).sum(-1)
    shape = torch.broadcast_shapes(x.shape[1:], y.shape[of_y:])
    lines = x[(slice(None), *(0 for _ in range(x.ndim - 2)))]
    if not of_y:
        return torch.matmul(lines, y.reshape(-1, y.shape[-1]).T).reshape(len(lines), *y.shape[:-1])
    if all(y.stride(a) == 0 or y.shape[a] == 1 for a in range(1, y.ndim - 1)):
        found = (lines * y[(slice(None), *(0 for _ in range(y.ndim - 2)))]).sum(-1)
        return found.reshape(len(lines), *(1 for _ in shape[:-1])).expand(len(lines), *shape[:-1])
    return (x * y).sum(-1)


def _outer(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def product_of(frame: Frame, a: Any, b: Any, product: Product) -> SeriesTensor:
    return wrapped(frame, bilinear(frame, coefficients(a, frame), coefficients(b, frame), product))


def _by(product: Product) -> Rule:
    def rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
        return product_of(frame, args[0], args[1], product)

    return rule


def _added_product(names: str, product: Product, *, summed: bool = False) -> Rule:
    """Rule of beta self + alpha (a @ b)."""
    first, second = names.split()

    def rule(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
        given = bound(op, args, kwargs)
        a, b, c = given["self"], given[first], given[second]
        alpha, beta = given.get("alpha", 1), given.get("beta", 1)
        total: Any = b
        if series(b, frame) is None and series(c, frame) is None:
            total = product(b, c, 0, 0)
        else:
            total = product_of(frame, b, c, product)
        total = total if alpha == 1 else total * alpha
        total = total.sum(0) if summed else total
        if beta == 0:
            return total
        base = a if beta == 1 else a * beta
        return added(frame, base, total)

    return rule


def linear_map(frame: Frame, x: Any, weight: Any, bias: Any = None) -> SeriesTensor:
    """Return x W' + b."""
    c = series(x, frame)
    if c is None or any(series(t, frame) is not None for t in (weight, bias)):
        return NotImplemented
    found: Coefficients = [torch.nn.functional.linear(c[0], weight, bias)]  # type: ignore[arg-type]
    columns = weight.t()
    for t in c[1:]:
        if t is None or weight.ndim != 2:
            found.append(None if t is None else torch.nn.functional.linear(t, weight))
            continue
        y = rows_times(t, columns)
        found.append(y if y.shape[:-1] == t.shape[:-1] else y.expand(*t.shape[:-1], y.shape[-1]))
    return wrapped(frame, found)


def matrix_product(frame: Frame, a: Any, b: Any) -> Any:
    """Return a @ b where one of them is a constant matrix on the right; other cases are taken apart."""
    c = series(a, frame)
    if c is None or not isinstance(b, Tensor) or series(b, frame) is not None or b.ndim != 2 or a.ndim < 2:
        return NotImplemented
    return linear_map(frame, a, b.t())


# --- convolutions -----------------------------------------------------------------------------------------------------


def _convolution(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias")

    def convolve(t: Tensor, w: Tensor) -> Tensor:
        return op(t, w, None, *given.values())

    def product(t: Tensor, w: Tensor, of_t: int, of_w: int) -> Tensor:
        if of_t and not of_w:
            folded = convolve(t.flatten(0, 1), w)
            return folded.reshape(*t.shape[:2], *folded.shape[1:])
        if of_w:
            return torch.func.vmap(convolve, in_dims=(0 if of_t else None, 0))(t, w)
        return convolve(t, w)

    found = product_of(frame, x, weight, product)
    if bias is None:
        return found
    axes = (-1, *(1 for _ in range(found.ndim - 2)))
    return added(frame, found, bias.reshape(axes))


def _crossed(frame: Frame, op: OpOverload, args: Any, kwargs: Any) -> Any:
    given = bound(op, args, kwargs)
    a, b, dim = given["self"], given["other"], given["dim"]
    a, b = torch.broadcast_tensors(a, b)
    dim = dim if dim < 0 else dim - a.ndim

    def product(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        return torch.linalg.cross(x, y, dim=dim)

    return product_of(frame, a, b, product)


BILINEAR: dict[str, Rule] = {
    "mul": lambda frame, op, args, kwargs: multiplied(frame, args[0], args[1]),
    "mm": _by(_matrix_product),
    "bmm": _by(_matrix_product),
    "mv": _by(_matrix_vector),
    "dot": _by(_inner),
    "outer": _by(_outer),
    "ger": _by(_outer),
    "addmm": _added_product("mat1 mat2", _matrix_product),
    "baddbmm": _added_product("batch1 batch2", _matrix_product),
    "addbmm": _added_product("batch1 batch2", _matrix_product, summed=True),
    "addmv": _added_product("mat vec", _matrix_vector),
    "addr": _added_product("vec1 vec2", _outer),
    "convolution": _convolution,
    "convolution_overrideable": _convolution,
    "linalg_cross": _crossed,
}
