"""Whether a function maps each point alone, which every sum of derivatives over many points at once takes for granted.

All points move along the same directions at once. Where the value at one point depends on another (a mean over the
points, batch statistics), the derivatives are those of another function. So f is evaluated at the first point alone,
and at the last: its values must be those among the others. An f that takes no single point gets copies of that point.

**Cost.** Two evaluations of f at one point, without a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import in_dispatch_mode, in_transform, tree_leaves


def require_alone(name: str, f: Callable[[Tensor], Any], x: Tensor, values: Sequence[Tensor | None]) -> None:
    """Raise unless f has one value for each point of x ``(..., d)``, which no other point changes.

    `values` are what f returned at x. Nothing is done for a single point, and where numbers cannot be read: inside of
    transforms of `torch.func`, of another series, and while operations are recorded.
    """
    lead = x.shape[:-1]
    if math.prod(lead) < 2 or type(x) not in (Tensor, torch.nn.Parameter) or in_transform() or in_dispatch_mode():
        return
    for at in ((0,) * len(lead), (-1,) * len(lead)):
        again = _at(f, x.detach()[at], x)
        for before, after in zip(values, again, strict=True):
            if before is not None and isinstance(after, Tensor):
                _compare(name, before.detach(), after, lead, at)


@torch.no_grad()
def _at(f: Callable[[Tensor], Any], point: Tensor, x: Tensor) -> list[Any]:
    """The values of f at one point, alone or among copies of itself."""
    one = (1,) * (x.ndim - 1)
    try:
        found = tree_leaves(f(point.reshape(*one, -1)))
    except (RuntimeError, TypeError, ValueError, IndexError):  # a fixed number of points, or statistics of them
        found = None
    if found is None or any(isinstance(y, Tensor) and y.shape[: len(one)] != one for y in found):
        found = tree_leaves(f(point.expand_as(x)))
    return found


def _compare(name: str, before: Tensor, after: Tensor, lead: torch.Size, at: tuple[int, ...]) -> None:
    if before.shape[: len(lead)] != lead:
        raise ValueError(
            f"{name}: f must return one value for each point, of shape {tuple(lead)} or {(*lead, 'm')}, got "
            f"{tuple(before.shape)}; leave sums over points to what comes after"
        )
    size = max(float(before.abs().max()), float(after[at].abs().max()))
    off = float((before[at] - after[at]).abs().max())
    if math.isfinite(size) and off > torch.finfo(after.dtype).eps ** 0.5 * size:
        raise NotDifferentiable(
            f"{name}: f must map each point alone, but its value at one point changes when the others do, or from one "
            "evaluation to the next; put batch normalization into evaluation mode, leave out dropout, or call it on "
            "one point at a time"
        )
