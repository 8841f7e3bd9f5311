"""Truncated power series of tensors along many directions at once, and sums of their last coefficients.

For curves x_r(t), r = 1..R, that start at one point x, the series of a tensor y(x_r(t)) holds its normalized
coefficients: c[0] has the shape S of y, and c[1], ..., c[K] have the shape (R, *S). None stands for zero.

**Collapsed.** The last coefficient enters every rule linearly, so sums over directions, sum_r W_mr y_{r,K}, are
carried in place of the R last coefficients: c[K] then has the shape (M, *S). That is 1 + (K-1) R + M tensors instead
of 1 + K R.

**Source.** Griewank and Walther (2008), chapter 13; Dangel, Siebert, Zeinhofer and Walther, "Collapsing Taylor mode
automatic differentiation" (2025), for the collapse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.calculus.taylor._truncated import Truncated, plus

Coefficients = list[Tensor | None]
_ages = itertools.count()


@dataclass(frozen=True, eq=False)
class Frame:
    """What all series of one propagation share: the order, the number of directions, and how the last one is summed."""

    order: int
    directions: int
    sums: Tensor | int | None = None  # (M, R), weights of the sums over directions; 1 for one plain sum; None for none
    differentiable: bool = field(default_factory=torch.is_grad_enabled)  # whether autograd was on where it began
    age: int = field(default_factory=lambda: next(_ages))  # an inner propagation is younger than those around it

    def collapsed(self, k: int) -> bool:
        return self.sums is not None and k == self.order

    def summed(self, t: Tensor) -> Tensor:
        """The sums over directions."""
        if isinstance(self.sums, Tensor):
            return torch.tensordot(self.sums.to(t.dtype), t, 1)
        return t.sum(0, keepdim=True)

    def rows(self, k: int) -> int:
        """The length of the axis in front of coefficient k >= 1."""
        if not self.collapsed(k):
            return self.directions
        return len(self.sums) if isinstance(self.sums, Tensor) else 1

    def zeros(self, like: Tensor, k: int) -> Tensor:
        return like.new_zeros((self.rows(k), *like.shape) if k else like.shape)

    def empty(self, value: Tensor) -> Coefficients:
        return [value, *[None] * self.order]


def lead(k: int) -> int:
    """How many axes of coefficient k come before those of the tensor."""
    return 1 if k else 0


def at(c: Sequence[Tensor | None], k: int) -> Tensor | None:
    return c[k] if k < len(c) else None


def mapped(frame: Frame, c: Coefficients, f: Callable[[Tensor, int], Tensor]) -> Coefficients:
    """Apply a linear map to each coefficient; `f(t, lead)`."""
    return [None if t is None else f(t, lead(k)) for k, t in enumerate(c)]


def lifted(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """The same map on tensors with `lead` more axes in front."""
    return lambda t, lead: torch.func.vmap(f)(t) if lead else f(t)


Product = Callable[[Tensor, Tensor, int, int], Tensor]


def bilinear(frame: Frame, a: Coefficients, b: Coefficients, product: Product) -> Coefficients:
    """Return the series of a bilinear map; `product(x, y, lead of x, lead of y)`."""
    K = frame.order
    first = a[0], b[0]
    assert first[0] is not None
    assert first[1] is not None
    found: Coefficients = [product(first[0], first[1], 0, 0)]
    for k in range(1, K + 1):
        outer = inner = None
        for i in range(k + 1):
            x, y = at(a, i), at(b, k - i)
            if x is None or y is None:
                continue
            term = product(x, y, lead(i), lead(k - i))
            if 0 < i < k:
                inner = plus(inner, term)
            else:
                outer = plus(outer, term)
        if inner is not None and frame.collapsed(k):
            inner = frame.summed(inner)
        found.append(plus(outer, inner))
    return found


def aligned(x: Tensor, y: Tensor, of_x: int, of_y: int) -> tuple[Tensor, Tensor]:
    """Both with as many axes after those in front, as broadcasting needs."""
    rank = max(x.ndim - of_x, y.ndim - of_y)
    return padded(x, of_x, rank), padded(y, of_y, rank)


def padded(x: Tensor, lead: int, rank: int) -> Tensor:
    missing = rank + lead - x.ndim
    if not lead or not missing:
        return x
    return x.reshape(x.shape[:1] + (1,) * missing + x.shape[1:])


def elementwise(x: Tensor, y: Tensor, of_x: int, of_y: int) -> Tensor:
    x, y = aligned(x, y, of_x, of_y)
    return x * y


def composed(frame: Frame, f: Truncated, c: Coefficients) -> Coefficients:
    """Return the series of f(c) for an elementwise f with Taylor coefficients `f` at c[0].

    With d = c - c[0] it is f_0 + f_1 d + f_2 d^2 + ...; powers of d are formed once and cut after order K.
    """
    K = frame.order
    found: Coefficients = frame.empty(f[0])
    power: Coefficients = [None, *c[1:]]
    for m in range(1, K + 1):
        if m > 1:
            power = [None] * (m) + [_next_power(frame, power, c, k, m) for k in range(m, K + 1)]
        if m < len(f) and f[m] is not None:
            for k in range(m, K + 1):
                p = power[k]
                if p is not None:
                    found[k] = plus(found[k], f[m] * p)
        if all(t is None for t in f[m + 1 :]):
            break
    return found


def _next_power(frame: Frame, power: Coefficients, c: Coefficients, k: int, m: int) -> Tensor | None:
    """Coefficient k of d^m, from those of d^(m-1)."""
    total = None
    for i in range(m - 1, k):
        p, d = power[i], c[k - i]
        if p is not None and d is not None:
            total = plus(total, p * d)
    return frame.summed(total) if total is not None and frame.collapsed(k) else total
