"""The domain of a differential equation: a box or a function, and whether points lie in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from frechet.physics._conditions import Condition

Side = float | Sequence[float] | Tensor
Domain = tuple[Side, Side] | Callable[[Tensor], Tensor]


def inside(domain: Domain | None, conditions: Sequence[Condition]) -> None:
    """Raise where a point lies outside of the domain."""
    if domain is None:
        return
    for c in conditions:
        x = c.columns[0]
        out = ~_holds(domain, x)
        bad = out.nonzero()
        if len(bad):
            raise ValueError(
                f"collocation: points of '{c.name}' must lie in the domain, got {len(bad)} of {len(x)} outside, the "
                f"first of them {x[int(bad[0])].tolist()}"
            )


def _holds(domain: Any, x: Tensor) -> Tensor:
    if callable(domain):
        found = domain(x)
        if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != x.shape[:1]:
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"collocation: domain must return booleans ({len(x)},) for points {tuple(x.shape)}, got {got}"
            )
        return found
    if not isinstance(domain, tuple) or len(domain) != 2:
        raise TypeError(
            f"collocation: domain must be a pair of lower and upper limits or a function, got {type(domain).__name__}"
        )
    low, high = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in domain)
    return ((x >= low) & (x <= high)).reshape(len(x), -1).all(1)
