"""Sobolev and Besov metrics of functions on a uniform grid, and their Riesz maps, by fast transforms.

The derivative of F in the values at the nodes is a covector. Its Riesz representative g in a metric M solves M g = DF:
the gradient of F in that space of functions. For H^s, M = h^d (mass + length^2 A)^s with the difference Laplacian A of
the boundary condition: odd, even or periodic extension makes it diagonal under the Fourier transform. s = 0 is L2.
Besov weights B^s_22 are constant on dyadic shells: 4^(s j), j = floor(log2(1 + length^2 a) / 2); the norms are
equivalent.

**Source.** Evans, "Partial Differential Equations" (2010), chapter 5; Triebel, "Theory of Function Spaces" (1983).
**Cost:** n log n for each product, on the extended grid of 2^d n nodes. **When:** the metric must be that of the second
variation. F with |Du|^2 is well conditioned in H1, F of u alone in L2; H1 for the latter only smooths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from frechet.operators import LinearOperator, Metric, from_callable
from frechet.space import euclidean

Boundary = Literal["dirichlet", "neumann", "periodic"]
Weights = Literal["sobolev", "besov"]


def sobolev(
    shape: int | Sequence[int],
    spacing: float | Sequence[float],
    *,
    order: float = 1.0,
    boundary: Boundary = "dirichlet",
    length: float = 1.0,
    mass: float = 1.0,
    weights: Weights = "sobolev",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Metric:
    """Return the inner product of a Sobolev space on node values, with its Riesz map and its factor M^-1/2.

    ``mass`` of the result is the metric M, and u'M v is the inner product. ``inverse`` is the Riesz map M^-1, from
    derivatives in node values to gradients. As ``metric=`` of `minimize`, or its inverse as ``preconditioner=``, for a
    functional whose second variation is like the metric, it makes the number of iterations independent of the grid.

    Args:
        shape: nodes of each axis. The vectors are values at the nodes, flattened row by row.
        spacing: the distance of nodes, of each axis or of all, > 0.
        order: the order s of the space H^s, any real number; 0 is L2, negative ones are the dual spaces.
        boundary: ``"dirichlet"``, nodes strictly inside, values 0 outside; ``"neumann"``, nodes at the centers of
            cells; or ``"periodic"``.
        length: the length below which functions are smoothed, >= 0.
        mass: the weight of the function itself, >= 0; 0 is the seminorm, which under ``"dirichlet"`` is a norm.
        weights: ``"sobolev"``, or ``"besov"`` for the equivalent norm with dyadic weights.
        dtype: the dtype of vectors.
        device: their device.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import sobolev
        >>> H1 = sobolev(100, 0.01, boundary="neumann")
        >>> u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
        >>> H1.inner(u, u)  # 1/3 of u^2, and 1 of the slope
        tensor(1.3233, dtype=torch.float64)
    """
    M, inverse, factor = (
        _diagonal(power, shape, spacing, order, boundary, length, mass, weights, dtype, device)
        for power in (1.0, -1.0, -0.5)
    )
    return Metric(M, inverse, factor=factor)


def _diagonal(
    power: float,
    shape: int | Sequence[int],
    spacing: float | Sequence[float],
    order: float,
    boundary: Boundary,
    length: float,
    mass: float,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device | str,
) -> LinearOperator:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    steps = (float(spacing),) * len(sizes) if isinstance(spacing, int | float) else tuple(spacing)
    if not sizes or min(sizes) < 1 or len(steps) != len(sizes) or not min(steps) > 0:
        raise ValueError(f"sobolev: shape and spacing must be positive, one of each axis, got {sizes} and {steps}")
    if boundary not in ("dirichlet", "neumann", "periodic"):
        raise ValueError(f"sobolev: boundary must be 'dirichlet', 'neumann' or 'periodic', got {boundary!r}")
    if weights not in ("sobolev", "besov"):
        raise ValueError(f"sobolev: weights must be 'sobolev' or 'besov', got {weights!r}")
    if not (math.isfinite(order) and length >= 0 and mass >= 0):
        raise ValueError(f"sobolev: order must be finite, length and mass >= 0, got {order}, {length} and {mass}")
    if mass == 0 and (boundary != "dirichlet" or length == 0) and order != 0:
        raise ValueError("sobolev: mass must be > 0 where constants have no derivative (or length is 0), got 0")
    if weights == "besov" and mass != 1:
        raise ValueError(f"sobolev: mass must be 1 for Besov weights, got {mass}")
    multiplier = _multiplier(sizes, steps, boundary, order, length, mass, weights).to(dtype=dtype, device=device)
    multiplier = (multiplier * math.prod(steps)) ** power
    space = euclidean(math.prod(sizes), dtype, device)
    return from_callable(_product(sizes, boundary, multiplier), space, facts="positive_definite")


def _multiplier(
    sizes: tuple[int, ...],
    steps: tuple[float, ...],
    boundary: Boundary,
    order: float,
    length: float,
    mass: float,
    weights: Weights,
) -> Tensor:
    """The weight of each frequency of the extended grid."""
    total = torch.zeros((), dtype=torch.float64)
    for axis, (n, h) in enumerate(zip(sizes, steps, strict=True)):
        whole = {"dirichlet": 2 * (n + 1), "neumann": 2 * n, "periodic": n}[boundary]
        a = (2 / h * torch.sin(torch.pi * torch.arange(whole, dtype=torch.float64) / whole)) ** 2
        total = total.unsqueeze(-1) + a if axis else a
    if weights == "besov":
        return 4.0 ** (order * torch.floor(torch.log2(1 + length**2 * total) / 2))
    found = (mass + length**2 * total).clamp(min=torch.finfo(torch.float64).tiny) ** order
    if boundary == "dirichlet":  # odd functions have no constant part
        for axis in range(len(sizes)):
            found.select(axis, 0).fill_(1.0)
    return found


def _product(sizes: tuple[int, ...], boundary: Boundary, multiplier: Tensor) -> Callable[[Tensor], Tensor]:
    axes = tuple(range(1, len(sizes) + 1))

    def product(V: Tensor) -> Tensor:
        X = V.T.reshape(-1, *sizes)
        for axis in axes:
            X = _extended(X, axis, boundary)
        X = torch.fft.ifftn(torch.fft.fftn(X, dim=axes) * multiplier, dim=axes).real
        for axis, n in zip(axes, sizes, strict=True):
            X = X.narrow(axis, 1 if boundary == "dirichlet" else 0, n)
        return X.reshape(V.shape[1], -1).T

    return product


def _extended(X: Tensor, axis: int, boundary: Boundary) -> Tensor:
    """The values on one period: odd around nodes of value 0, even around the ends of cells, or as they are."""
    if boundary == "periodic":
        return X
    if boundary == "neumann":
        return torch.cat([X, X.flip(axis)], axis)
    zero = torch.zeros_like(X.narrow(axis, 0, 1))
    return torch.cat([zero, X, zero, -X.flip(axis)], axis)
