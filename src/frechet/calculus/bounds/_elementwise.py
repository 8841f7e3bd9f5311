"""Functions of one number between two lines: the relaxations of activations and of their slopes.

For x in [l, u] an elementwise function is enclosed by two lines,

    a_l x + b_l <= f(x) <= a_u x + b_u,

each of which may be used for its side alone. A slope a is chosen; its intercept is the largest value of f(x) - a x on
the interval, from its ends and kinks for piecewise linear functions. For smooth ones it is the largest value on a grid
of N points plus sup |f''| h^2 / 8, the error of interpolation, which is 1/N^2 of the gap between the lines. The slopes'
range is found in the same way, with f'''.

In the graph of the Jacobian a factor s in [s_l, s_u] multiplies g in [l, u]. With s from g's sign alone, y = s g lies
between a convex and a concave function of g with a kink at zero, and the same lines enclose it. For the rectifier,
s in [0, 1], these are the relaxations of the source.

**Source.** Shi, Wang, Zhang, Kolter and Hsieh, "Efficiently computing local Lipschitz constants of neural networks via
bound propagation" (2022), section 3.3; Zhang et al., "Efficient neural network robustness certification" (2018).
**Differs from the source:** 1. one rule for all smooth functions, rounding included. 2. Smooth activations have
factors in an interval that is found from the pre-activation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.bounds._rounding import ELEMENTARY, TINY, UNIT, above

GRID = 17  # points: the lines of a smooth function are 1/256 of their gap farther apart than they had to be


@dataclass(frozen=True, eq=False)
class Lines:
    """The two lines, (batch, n) each."""

    upper: Tensor
    upper_shift: Tensor
    lower: Tensor
    lower_shift: Tensor


class Elementwise(ABC):
    """A function of one number."""

    @abstractmethod
    def lines(self, l: Tensor, u: Tensor) -> Lines: ...

    @abstractmethod
    def range(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]: ...  # of the values

    @abstractmethod
    def slopes(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]: ...  # range of Clarke's derivative

    @abstractmethod
    def split(self, l: Tensor, u: Tensor) -> Tensor: ...  # where the interval is best cut in two

    @abstractmethod
    def values(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def slope_at(self, x: Tensor, width: float = 0.0) -> Tensor: ...  # with kinks rounded over `width`


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Elementwise):
    """Kinks t_1 < ... < t_m, slopes c_0, ..., c_m between them, and the value at the first kink."""

    kinks: tuple[float, ...]
    pieces: tuple[float, ...]
    first: float

    def values(self, x: Tensor) -> Tensor:
        """The function, to a few units in the last place."""
        y = self.first + self.pieces[0] * (x - self.kinks[0]).clamp(max=0.0)
        for i, t in enumerate(self.kinks):
            upper = self.kinks[i + 1] - t if i + 1 < len(self.kinks) else math.inf
            y = y + self.pieces[i + 1] * (x - t).clamp(0.0, upper)
        return y

    def _inside(self, l: Tensor, u: Tensor) -> list[Tensor]:
        """The ends and the kinks between them; a kink outside stands at the nearer end."""
        return [l, u, *(torch.minimum(torch.maximum(torch.full_like(l, t), l), u) for t in self.kinks)]

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        points = self._inside(l, u)
        values = [self.values(x) for x in points]
        wide = u - l
        chord = torch.where(wide > 0, (values[1] - values[0]) / wide.where(wide > 0, 1.0), 0.0)
        low, high = self.slopes(l, u)
        chord = torch.minimum(torch.maximum(chord, low), high)
        extra = self._rounding(l, u)
        up = _tightest(points, values, (chord, low, high), +1, extra)
        down = _tightest(points, values, (chord, low, high), -1, extra)
        return Lines(*up, *down)

    def range(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.stack([self.values(x) for x in self._inside(l, u)])
        pad = self._rounding(l, u)
        return values.amin(0) - pad, values.amax(0) + pad

    def _rounding(self, l: Tensor, u: Tensor) -> Tensor:
        """How far computed values may be off: not at all for the rectifier."""
        if self.kinks == (0.0,) and set(self.pieces) <= {0.0, 1.0, -1.0}:
            return torch.zeros_like(l)
        size = abs(self.first) + sum(map(abs, self.kinks)) * sum(map(abs, self.pieces))
        return (l.abs() + u.abs() + size) * (16 * UNIT)

    def slopes(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = [-math.inf, *self.kinks, math.inf]
        low, high = torch.full_like(l, math.inf), torch.full_like(l, -math.inf)
        for c, a, b in zip(self.pieces, ends[:-1], ends[1:], strict=True):
            # on [0, u] the rectifier is the identity, so a piece counts that shares more than an end
            meets = (l < b) & (u > a) | (l == u) & (l <= b) & (u >= a)
            low, high = low.where(~meets, low.clamp(max=c)), high.where(~meets, high.clamp(min=c))
        return low, high

    def slope_at(self, x: Tensor, width: float = 0.0) -> Tensor:
        found = torch.full_like(x, self.pieces[0])
        for t, before, after in zip(self.kinks, self.pieces, self.pieces[1:], strict=False):
            step = torch.sigmoid((x - t) / width) if width else (x > t).to(x.dtype)
            found = found + (after - before) * step
        return found

    def split(self, l: Tensor, u: Tensor) -> Tensor:
        """The kink that is nearest to the middle of those inside."""
        middle, best = (l + u) / 2, torch.full_like(l, math.nan)
        for t in self.kinks:
            better = (l < t) & (t < u) & ~((best - middle).abs() <= (t - middle).abs())
            best = torch.where(better, t, best)
        return torch.where(best.isnan(), middle, best)


def _tightest(
    points: list[Tensor], values: list[Tensor], slopes: tuple[Tensor, ...], sign: int, extra: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line above (sign 1) or below (-1) all points, lowest or highest in the middle."""
    X, Y = torch.stack(points), torch.stack(values)
    middle = (points[0] + points[1]) / 2
    size = Y.abs().amax(0)
    best_slope, best_shift, best = slopes[0], None, None
    for a in slopes:
        pad = (size + a.abs() * X.abs().amax(0)) * (32 * UNIT) + TINY + extra
        shift = (sign * (Y - a * X)).amax(0) + pad
        height = sign * a * middle + shift
        if best is None or best_shift is None:
            best_shift, best = shift, height
            continue
        better = height < best
        best_slope, best_shift, best = (
            torch.where(better, new, old) for new, old in ((a, best_slope), (shift, best_shift), (height, best))
        )
    assert best_shift is not None
    return best_slope, sign * best_shift


@dataclass(frozen=True, eq=False)
class Smooth(Elementwise):
    """A function with its derivative, and bounds on the second and third derivative everywhere."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    second: float
    third: float
    increasing: bool = False
    slope_increasing: bool = False  # a convex function whose f'' may jump

    def _grid(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Points (GRID, batch, n) with both ends, and h^2 / 8."""
        t = torch.linspace(0, 1, GRID, dtype=l.dtype, device=l.device).view(-1, *(1 for _ in l.shape))
        X = torch.lerp(l.expand(GRID, *l.shape), u.expand(GRID, *l.shape), t)
        X[0], X[-1] = l, u
        return X, above(((u - l) * (1.0 / (GRID - 1))).square() / 8, 8)

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        X, h2 = self._grid(l, u)
        Y, D = self.function(X), self.slope(X)
        wide = u - l
        chord = torch.where(wide > 0, (Y[-1] - Y[0]) / wide.where(wide > 0, 1.0), D[0])
        slopes = (chord, *(D[i] for i in (0, GRID // 4, GRID // 2, 3 * GRID // 4, GRID - 1)))
        extra = self.second * h2 + ELEMENTARY * (1 + Y.abs().amax(0))
        points, values = [X[0], X[-1], *X[1:-1]], [Y[0], Y[-1], *Y[1:-1]]
        return Lines(*_tightest(points, values, slopes, +1, extra), *_tightest(points, values, slopes, -1, extra))

    def range(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.increasing:
            low, high = self.function(l), self.function(u)
            return low - ELEMENTARY * (1 + low.abs()), high + ELEMENTARY * (1 + high.abs())
        X, h2 = self._grid(l, u)
        return _enclosed(self.function(X), self.second * h2)

    def slopes(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.slope_increasing:
            low, high = self.slope(l), self.slope(u)
            return low - ELEMENTARY * (1 + low.abs()), high + ELEMENTARY * (1 + high.abs())
        X, h2 = self._grid(l, u)
        return _enclosed(self.slope(X), self.third * h2)

    def split(self, l: Tensor, u: Tensor) -> Tensor:
        return (l + u) / 2

    def values(self, x: Tensor) -> Tensor:
        return self.function(x)

    def slope_at(self, x: Tensor, width: float = 0.0) -> Tensor:
        return self.slope(x)


def _enclosed(Y: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    pad = extra + ELEMENTARY * (1 + Y.abs().amax(0))
    return Y.amin(0) - pad, Y.amax(0) + pad


@dataclass(frozen=True, eq=False)
class Factor(Elementwise):
    """g -> s g with s anywhere in [low, high]: what an activation does in the graph of the Jacobian."""

    low: Tensor
    high: Tensor

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        zero = torch.minimum(torch.maximum(torch.zeros_like(l), l), u)
        points = [l, u, zero]
        top = [torch.maximum(self.low * x, self.high * x) for x in points]
        bottom = [torch.minimum(self.low * x, self.high * x) for x in points]
        wide = u - l
        inverse = 1 / wide.where(wide > 0, 1.0)
        rise = torch.where(wide > 0, (top[1] - top[0]) * inverse, self.high)
        fall = torch.where(wide > 0, (bottom[1] - bottom[0]) * inverse, self.low)
        # where g has one sign, the line through the origin is exact; the chord is the tightest elsewhere
        return Lines(
            *_tightest(points, top, (rise, self.low, self.high), +1),
            *_tightest(points, bottom, (fall, self.low, self.high), -1),
        )

    def range(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        corners = torch.stack([self.low * l, self.low * u, self.high * l, self.high * u])
        least, most = corners.amin(0), corners.amax(0)
        # relative to each end, so that zero stays zero
        return least - least.abs() * (4 * UNIT), most + most.abs() * (4 * UNIT)

    def slopes(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.low.expand_as(l), self.high.expand_as(l)

    def split(self, l: Tensor, u: Tensor) -> Tensor:
        return (l + u) / 2

    def values(self, x: Tensor) -> Tensor:
        return self.high * x

    def slope_at(self, x: Tensor, width: float = 0.0) -> Tensor:
        return self.high.expand_as(x)
