"""The conditions of a problem: a function of one point each, the points, and the weights of their residuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.space import Point

AtPoint = Callable[..., Any]
Points = Tensor | tuple[Tensor, ...]
Weight = float | Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """The residuals factor_i f(parameters, *point_i), i = 1..N; point i is row i of each of `columns` ``(N, ...)``."""

    name: str
    f: AtPoint
    columns: tuple[Tensor, ...]
    weight: Weight  # a number, or one for each point (N,)
    factors: Tensor  # (N,), the weight with the convention for the number of points

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The axes for `vmap`: parameters are shared, points are not."""
        return (None, *(0 for _ in self.columns))

    def rows(self, index: slice | Tensor) -> tuple[Tensor, ...]:
        """Some of the points."""
        return tuple(c[index] for c in self.columns)

    def values(self, parameters: Point, index: slice | Tensor = slice(None)) -> Tensor:
        """The residuals at some points, ``(N, k)`` with k entries a point."""
        found = torch.vmap(self.f, self.axes)(parameters, *self.rows(index))
        return found.reshape(len(found), -1) * self.factors[index, None]


def conditions_of(
    residual_at: AtPoint | Mapping[str, AtPoint],
    points: Points | Mapping[str, Points],
    weights: Mapping[str, Weight] | Weight | None,
    mean: bool,
) -> tuple[Condition, ...]:
    """Every argument of `collocation` looked at, as conditions."""
    named = points if isinstance(points, Mapping) else {"points": points}
    if not named:
        raise ValueError("collocation: points must hold at least one condition, got an empty dict")
    given: dict[str, Any] = _of_each("residual_at", residual_at, named)
    weighed = {} if weights is None else _of_each("weights", weights, named, partial=True)
    found = []
    for name, p in named.items():
        f = given[name]
        if not callable(f):
            raise TypeError(
                f"collocation: residual_at of condition '{name}' must be a function of parameters and a point, got "
                f"{type(f).__name__}"
            )
        columns = _columns(name, p)
        weight = weighed.get(name, 1.0)
        factors = _factors(name, weight, columns[0])
        found.append(Condition(name, f, columns, weight, factors / math.sqrt(len(factors)) if mean else factors))
    _same_kind(found)
    return tuple(found)


def _of_each(what: str, given: Any, points: Mapping[str, Points], partial: bool = False) -> dict[str, Any]:
    """One value for each condition, from a dict or from one value for all."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(points, given)
    strange, missing = sorted(set(given) - set(points)), sorted(set(points) - set(given))
    if strange or (missing and not partial):
        raise ValueError(
            f"collocation: {what} must have the names of points, {sorted(points)}, got {sorted(given)}; name each "
            "condition in both"
        )
    return dict(given)


def _columns(name: str, points: Any) -> tuple[Tensor, ...]:
    columns: tuple[Any, ...] = tuple(points) if isinstance(points, tuple | list) else (points,)
    for c in columns:
        if not isinstance(c, Tensor) or c.ndim < 1:
            raise TypeError(
                f"collocation: points of '{name}' must be a tensor with one point in each row, or a tuple of such, got "
                f"{type(c).__name__}"
            )
        if len(c) != len(columns[0]) or not len(c):
            sizes = [len(t) for t in columns if isinstance(t, Tensor) and t.ndim]
            raise ValueError(f"collocation: points of '{name}' must have equally many rows, at least one, got {sizes}")
        bad = c.isfinite().logical_not().flatten(1).any(1).nonzero() if c.ndim > 1 else (~c.isfinite()).nonzero()
        if len(bad):
            raise ValueError(f"collocation: points of '{name}' must be finite, got {c[int(bad[0])].tolist()}")
        if c.requires_grad:
            raise ValueError(
                f"collocation: points of '{name}' must not require grad; residual_at takes derivatives in x itself, by "
                "frechet.calculus.taylor or torch.func"
            )
    return columns


def _factors(name: str, weight: object, first: Tensor) -> Tensor:
    dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
    found = torch.as_tensor(weight, dtype=dtype, device=first.device)
    if found.shape not in ((), (len(first),)) or not bool((found.isfinite() & (found >= 0)).all()):
        told = tuple(found.shape) if found.ndim else float(found)
        raise ValueError(
            f"collocation: weights of '{name}' must be a finite number >= 0, or one for each of its {len(first)} "
            f"points, got {told}"
        )
    return found.expand(len(first)).clone()


def _same_kind(conditions: list[Condition]) -> None:
    """All points on one device and of one precision."""
    kinds = {c.name: (t.dtype, t.device) for c in conditions for t in c.columns if t.is_floating_point()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"'{n}' {k[0]} on {k[1]}" for n, k in kinds.items())
        raise TypeError(f"collocation: all points must have one dtype and one device, got {told}; convert them")
