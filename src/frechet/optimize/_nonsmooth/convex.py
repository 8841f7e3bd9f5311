"""Convex functions of a vector, known by their value and their proximal map; what `prox_linear` puts outside.

    prox(z, s) = argmin_u h(u) + norm(u - z)^2 / (2 s)

From the proximal map follow subgradients, y = (z - p) / s at p = prox(z, s), and the conjugate there, h*(y) = y'p -
h(p): a pair of functions is all that a duality gap needs. Its derivative, by torch, is the symmetric matrix of the
semismooth Newton method.

**Source.** N. Parikh and S. Boyd (2014), Proximal algorithms, sections 2 and 6, doi 10.1561/2400000003; the projection
onto the simplex: M. Held, P. Wolfe and H. Crowder (1974), doi 10.1007/BF01580223.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Named = Literal["l1", "huber", "max"]


@dataclass(frozen=True, eq=False)
class Convex:
    """A convex function of a vector ``(m,)``: `value(z)` is a scalar tensor, `prox(z, s)` is ``(m,)``, s > 0 a number.

    `prox` is written in torch operations, piecewise differentiable; h must be finite everywhere.

    Example:
        >>> import torch
        >>> from frechet.optimize import Convex
        >>> half_square = Convex(lambda z: z.square().sum() / 2, lambda z, s: z / (1 + s))
        >>> half_square.prox(torch.tensor([3.0]), 2.0)
        tensor([1.])
    """

    value: Callable[[Tensor], Tensor]
    prox: Callable[[Tensor, float], Tensor]


def convex_function(h: Named | Convex) -> Convex:
    """The function of that name."""
    match h:
        case Convex():
            return h
        case "l1":
            return Convex(lambda z: z.abs().sum(), _shrunk)
        case "huber":
            return Convex(_huber, _huber_prox)
        case "max":
            return Convex(_largest, _largest_prox)
        case _:
            raise ValueError(f"prox_linear: h must be 'l1', 'huber', 'max' or a Convex, got {h!r}")


def _shrunk(z: Tensor, s: float) -> Tensor:
    return z - z.clamp(-s, s)


def _huber(z: Tensor) -> Tensor:
    inner = z.clamp(-1, 1)
    return (inner * (z - inner / 2)).sum()


def _huber_prox(z: Tensor, s: float) -> Tensor:
    return torch.where(z.abs() <= 1 + s, z / (1 + s), z - s * z.sign())


def _largest(z: Tensor) -> Tensor:
    return z.max()


def _largest_prox(z: Tensor, s: float) -> Tensor:
    # z less the projection of z onto s times the simplex, with the largest entry at 0 so that nothing cancels
    v = z - z.max().detach()
    ordered = v.sort(descending=True).values
    sums = ordered.cumsum(0) - s
    counts = torch.arange(1, len(v) + 1, device=v.device)
    support = int((ordered * counts > sums).sum())
    return z - (v - sums[support - 1] / support).clamp(min=0)
