"""Derivatives of any order along curves, by propagation of power series.

For x(t) = x + x_1 t + x_2 t^2/2! + ... + x_K t^K/K! the derivatives of y(t) = f(x(t)) at t = 0 are found in one pass
through f. Each operation maps the coefficients of its arguments to those of its result: linear ones map each
coefficient alone, products convolve, elementwise functions compose with their Taylor series.

**Source.** Griewank and Walther, "Evaluating derivatives" (2008), chapter 13; Bettencourt, Johnson and Duvenaud,
"Taylor-mode automatic differentiation for higher-order derivatives in JAX" (2019), for the interface.
**Differs from the source:** 1. many curves from one point share the value. 2. Elementwise functions compose with their
Taylor coefficients at the value, which do not depend on the curve. 3. The last coefficient may be summed over curves
(`_series.py`).
**Cost** for R curves: 1 + K R tensors of memory, O(R K^2) elementwise and R K linear operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from frechet.calculus.taylor._series import Coefficients, Frame
from frechet.calculus.taylor._tensor import SeriesTensor
from frechet.objective._torch_internals import tree_flatten, tree_map, tree_unflatten


def propagated(
    f: Callable[[Tensor], Any], x: Tensor, coefficients: Sequence[Tensor | None], frame: Frame
) -> tuple[list[Coefficients], Any]:
    """Return the coefficients of every tensor that f returns, and the structure that they are in.

    `coefficients` are normalized, each of shape (R, *x.shape), the first being that of order one.
    """
    c: Coefficients = [x, *coefficients, *[None] * (frame.order - len(coefficients))]
    y = f(SeriesTensor.make(frame, c))
    leaves, structure = tree_flatten(y)
    return [_unwrapped(t, frame) for t in leaves], structure


def _unwrapped(t: Any, frame: Frame) -> Coefficients:
    if not isinstance(t, Tensor):
        raise TypeError(f"jet: f must return tensors, got {type(t).__name__}; return numbers beside them elsewhere")
    return list(t.c) if type(t) is SeriesTensor and t.frame is frame else frame.empty(t)


def jet(
    f: Callable[[Tensor], Any],
    x: Tensor,
    coefficients: Tensor | Sequence[Tensor],
    order: int | None = None,
) -> tuple[Any, list[Any]]:
    """Return f(x) and the derivatives d^k/dt^k f(x(t)) at t = 0 for k = 1..order, in one pass through f.

    The curve is x(t) = x + x_1 t + x_2 t^2/2! + ... The result is differentiable in x, in the coefficients, and in
    whatever f reads, to any order.

    Args:
        f: a function of one tensor, made of torch functions; it returns a tensor, or a tuple, list or dict of tensors.
        x: the point, or a batch of points if f maps each row alone.
        coefficients: x_1, x_2, ..., each of the shape of x; with one more axis in front, one curve for each entry of
            it. A single tensor is x_1, a straight line.
        order: highest derivative, >= 1. Default: the number of coefficients.

    Returns:
        The value, and a list of the derivatives. With an axis of curves, it is the first axis of every derivative.

    Example:
        >>> import torch
        >>> from frechet.calculus.taylor import jet
        >>> x = torch.tensor(0.0, dtype=torch.float64)
        >>> value, derivatives = jet(torch.sin, x, torch.ones_like(x), order=5)
        >>> [float(d) for d in derivatives]
        [1.0, -0.0, -1.0, 0.0, 1.0]
    """
    given = [coefficients] if isinstance(coefficients, Tensor) else list(coefficients)
    order = _checked(x, given, order)
    many = given[0].ndim == x.ndim + 1
    curves = len(given[0]) if many else 1
    frame = Frame(order, curves)
    scaled = [(t if many else t.unsqueeze(0)) / float(math.factorial(k)) for k, t in enumerate(given[:order], 1)]
    found, structure = propagated(f, x, scaled, frame)
    values = [c[0] for c in found]
    derivatives = []
    for k in range(1, order + 1):
        row = [_derivative(c, k, frame, many) for c in found]
        derivatives.append(tree_unflatten(row, structure))
    return tree_unflatten(values, structure), derivatives


def _derivative(c: Coefficients, k: int, frame: Frame, many: bool) -> Tensor:
    value, t = c[0], c[k]
    assert value is not None
    if t is None:
        t = frame.zeros(value, k)
    t = t * float(math.factorial(k))
    return t if many else t.squeeze(0)


def _checked(x: Any, given: list[Any], order: Any) -> int:
    """The order, with every argument looked at."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"jet: x must be a tensor of real numbers, got {kind}; convert it with torch.as_tensor(x).double()"
        )
    if not given:
        raise ValueError("jet: coefficients must hold at least x_1, got none; pass a direction of the shape of x")
    for k, t in enumerate(given, 1):
        if not isinstance(t, Tensor):
            raise TypeError(f"jet: coefficient {k} must be a tensor, got {type(t).__name__}; pass zeros for none")
        if t.dtype != x.dtype or t.device != x.device:
            raise TypeError(
                f"jet: coefficient {k} must be {x.dtype} on {x.device} as x, got {t.dtype} on {t.device}; convert it"
            )
        if t.shape != given[0].shape or t.shape not in (x.shape, t.shape[:1] + x.shape):
            raise ValueError(
                f"jet: coefficient {k} must have the shape {tuple(x.shape)} of x, or (curves, *x.shape) as all "
                f"others, got "
                f"{tuple(t.shape)}"
            )
    order = len(given) if order is None else order
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"jet: order must be an integer >= 1, got {order!r}")
    if order < len(given):
        raise ValueError(
            f"jet: order must be at least the number of coefficients {len(given)}, got {order}; leave out the last"
        )
    return order


__all__ = ["jet", "propagated", "tree_map"]
