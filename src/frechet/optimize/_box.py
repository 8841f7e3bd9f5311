"""Simple bounds l <= x <= u on the vectors of a space, and the projection on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frechet.space import Space

Bound = float | Tensor | Mapping[str, float | Tensor]


@dataclass(frozen=True, eq=False)
class Box:
    """The sides as vectors ``(n,)``, infinite where open."""

    lower: Tensor
    upper: Tensor

    def project(self, x: Tensor) -> Tensor:
        """The nearest point between the bounds."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def held(self, x: Tensor, gradient: Tensor) -> Tensor:
        """-1 where a lower bound holds x against the gradient, 1 where an upper one does, 0 elsewhere; int8."""
        low = (x <= self.lower) & (gradient >= 0)
        high = (x >= self.upper) & (gradient <= 0)
        return high.to(torch.int8) - (low & ~high).to(torch.int8)


def box(method: str, space: Space, bounds: tuple[Bound, Bound]) -> Box:
    """The box of a pair of bounds: each a number, a tensor shaped like x, or a dict by block (missing ones are open).

    Sides that the dtype of x cannot hold are rounded inwards.
    """
    check_pair(method, bounds)
    lower, upper = side(method, space, bounds[0], "lower"), side(method, space, bounds[1], "upper")
    empty = (lower > upper).nonzero()
    if empty.numel():
        i = int(empty[0])
        raise ValueError(
            f"{method}: bounds must leave a point between them, got lower {float(lower[i]):.6g} > upper "
            f"{float(upper[i]):.6g} in entry {i}"
        )
    return Box(lower.to(space.device, space.dtype), upper.to(space.device, space.dtype))


def check_pair(method: str, bounds: object) -> None:
    """Bounds must be a pair; a list of numbers may be one side or one variable's pair, and is not guessed."""
    if isinstance(bounds, tuple | list) and len(bounds) == 2:
        plain = next((b for b in bounds if isinstance(b, tuple | list)), None)
        if plain is None:
            return
        got = f"a {type(plain).__name__} in the pair; write (torch.tensor(lower), torch.tensor(upper))"
    else:
        got = type(bounds).__name__ + (f" of {len(bounds)}" if isinstance(bounds, tuple | list) else "")
    raise TypeError(f"{method}: bounds must be a pair (lower, upper), each a number, a tensor or a dict, got {got}")


def side(method: str, space: Space, bound: Bound, name: str) -> Tensor:
    """The "lower" or "upper" side ``(n,)`` in float64 on the host, as the dtype of x holds it, on the inner side."""
    default = -math.inf if name == "lower" else math.inf
    if isinstance(bound, Mapping) and (unknown := set(bound) - set(space.names)):
        raise ValueError(f"{method}: {name} bounds must name blocks of x0, got {sorted(unknown)[:3]}")
    parts = []
    for block, shape in zip(space.names, space.shapes, strict=True):
        value = bound.get(block, default) if isinstance(bound, Mapping) else bound
        if not isinstance(value, float | int | Tensor | np.ndarray | np.generic) or torch.as_tensor(value).is_complex():
            got = value.dtype if isinstance(value, Tensor | np.ndarray | np.generic) else type(value).__name__
            raise TypeError(
                f"{method}: {name} bounds must be real numbers or tensors of them, got {got}; leave a side open with "
                f"{default}"
            )
        part = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        if part.ndim and part.shape != shape:
            raise ValueError(
                f"{method}: {name} bounds must be numbers or have the shape of x0 {shape}, got {tuple(part.shape)}"
            )
        parts.append(part.expand(shape).reshape(-1))
    found = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    if bool(found.isnan().any()):
        raise ValueError(f"{method}: {name} bounds must be numbers, got NaN; leave a side open with infinity")
    near = found.to(space.dtype)
    inwards = torch.nextafter(near, torch.full_like(near, -default)).double()
    outside = near.double() < found if name == "lower" else near.double() > found
    return torch.where(outside, inwards, near.double())
