"""A density L(x, u, Du, D^2u) at points, its partial derivatives, and total derivatives along coordinates.

At a point, z = (x, u, Du, D^2u) are independent variables. The total derivative of g(z(x)) along x_i is the product of
dg/dz with z_i = (e_i, u_i, Du_i, D^2u_i), whose entries are derivatives of u by Taylor mode. Two of them are two nested
products. So u is differentiated once, by one pass, and the density alone is differentiated by nested products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.taylor import differential_operator

Function = Callable[[Tensor], Tensor]
Density = Callable[..., Tensor]
State = tuple[Tensor, ...]  # x, u, and as many derivatives as the density takes


@dataclass(frozen=True)
class Derivatives:
    """All derivatives of u at points up to an order."""

    x: Tensor
    values: dict[tuple[int, ...], Tensor]  # multi-index -> (N,), or (N, m) for m components

    @classmethod
    def of(cls, name: str, u: Function, x: Tensor, order: int) -> Derivatives:
        """Return the derivatives of a function of points, in one pass."""
        d = x.shape[-1]
        indices = [a for a in itertools.product(range(order + 1), repeat=d) if sum(a) <= order]
        found = differential_operator(u, [{a: 1.0} for a in indices])(x)
        for value in found:
            if not isinstance(value, Tensor) or value.shape[:1] != x.shape[:1] or value.ndim not in (1, 2):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name}: u must map points (N, {d}) to values (N,), or (N, m) for m components, got {got}"
                )
        return cls(x, dict(zip(indices, found, strict=True)))

    def state(self, order: int, along: tuple[int, ...] = ()) -> State:
        """z, or its total derivative along coordinates; the part x of a second derivative is zero."""
        d = self.x.shape[-1]
        x = self.x if not along else torch.zeros_like(self.x)
        if len(along) == 1:
            x = x.clone()
            x[..., along[0]] = 1.0
        parts = [x, self._at(along)]
        if order >= 1:
            parts.append(torch.stack([self._at((*along, i)) for i in range(d)], -1))
        if order >= 2:
            rows = [torch.stack([self._at((*along, i, j)) for j in range(d)], -1) for i in range(d)]
            parts.append(torch.stack(rows, -2))
        return tuple(parts)

    def _at(self, along: tuple[int, ...]) -> Tensor:
        d = self.x.shape[-1]
        return self.values[tuple(along.count(i) for i in range(d))]


def variation(h: Derivatives, order: int) -> State:
    """The change of z when u changes by h: that of x is zero."""
    x, *rest = h.state(order)
    return (torch.zeros_like(x), *rest)


def partial(density: Density, which: int) -> Callable[[State], Tensor]:
    """Return z -> dL/dz_which at each point."""

    def at(z: State) -> Tensor:
        def total(part: Tensor) -> Tensor:
            return density(*z[:which], part, *z[which + 1 :]).sum()

        return torch.func.grad(total)(z[which])

    return at


def total_derivative(g: Callable[[State], Tensor], z: State, zi: State) -> Tensor:
    """D_i g."""
    return torch.func.jvp(lambda *z: g(z), z, zi)[1]


def second_total_derivative(g: Callable[[State], Tensor], z: State, zi: State, zj: State, zij: State) -> Tensor:
    """D_i D_j g."""
    k = len(z)
    return torch.func.jvp(lambda *both: total_derivative(g, both[:k], both[k:]), (*z, *zj), (*zi, *zij))[1]
