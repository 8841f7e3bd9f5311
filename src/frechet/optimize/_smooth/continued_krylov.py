"""A Krylov space beyond the vectors that are kept: conjugate gradients from where its basis is full.

With the basis V of m vectors, V'HV = T tridiagonal and the step s = V y, y = -(T + sigma)^-1 V'g, the residual is
r = beta_m y_m u_(m+1), and the next conjugate direction is

    p = -B^-1 r + V w,   (T + sigma) w = beta_m^2 y_m e_m     (so that V'(H + sigma B) p = 0).

From there on the steps are those of conjugate gradients for (H + sigma B) t = -r, which need no basis: s + t is what
a longer basis would give, up to the loss of orthogonality. At a radius, or where a direction bends downwards, the step
ends on the boundary. Lengths grow along the way (Steihaug, theorem 2.1), and along the straight line from s to s + t
the model falls, so a smaller radius costs no products.

**Source.** T. Steihaug (1983), The conjugate gradient method and trust regions in large scale optimization,
doi 10.1137/0720042; C. Paige, M. Saunders (1975), doi 10.1137/0712047, for the connection of the two recurrences.

**Cost.** One product per dimension, and seven vectors whatever their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from frechet.errors import NonFinite
from frechet.operators._operator import LinearOperator
from frechet.space import Space

TINY, HUGE = 1e-280, 1e280  # squares beyond these are no numbers


@dataclass(frozen=True, eq=False)
class Tail:
    """What is added to s: t, by how much the model falls, the length of s + t, and what is left over."""

    t: Tensor
    fall: float
    length: float
    residual: float
    bounded: bool
    indefinite: bool


@dataclass(eq=False)
class Continuation:
    """Conjugate gradients as far as they have come. All but `slope` and `start` change with the steps.

    `slope` is the gradient of the model at s, `start` and `start_image` are s and B s; `p` and `Bp` the direction.
    """

    space: Space
    H: LinearOperator
    preconditioner: LinearOperator | None
    sigma: float
    slope: Tensor
    start: Tensor
    start_image: Tensor
    r: Tensor
    p: Tensor
    Bp: Tensor
    rz: float  # r'B^-1 r
    steps: int  # dimensions so far
    most: int
    t: Tensor = field(init=False)
    Ht: Tensor = field(init=False)
    Bt: Tensor = field(init=False)
    Hp: Tensor | None = None

    def __post_init__(self) -> None:
        self.t, self.Ht, self.Bt = self.space.zeros(), self.space.zeros(), self.space.zeros()

    def within(self, accuracy: float, radius: float) -> Tail:
        """The end of the way: the residual is at most `accuracy`, or the length is the radius."""
        while True:
            if self._length(self.t, self.Bt) > radius:
                tau = self._reach(self.start, self.start_image, self.t, self.Bt, radius)
                return self._end(tau * self.t, tau * self.Ht, tau * self.Bt, bounded=True)
            if not math.sqrt(max(self.rz, 0.0)) > accuracy or self.steps >= self.most or not TINY < self.rz < HUGE:
                return self._end(self.t, self.Ht, self.Bt)
            if self.Hp is None:
                self.Hp = self.H @ self.p
            bend = self._inner(self.p, self.Hp) + self.sigma * self._inner(self.p, self.Bp)
            if not math.isfinite(bend):
                raise NonFinite("minimize: a product with the Hessian holds a NaN or an infinity")
            downwards = bend <= 0
            alpha = math.inf if downwards else self.rz / bend
            if downwards and radius == math.inf:
                return self._end(self.t, self.Ht, self.Bt, indefinite=True)
            if downwards or self._length(self.t + alpha * self.p, self.Bt + alpha * self.Bp) > radius:
                s, Bs = self.start + self.t, self.start_image + self.Bt
                tau = self._reach(s, Bs, self.p, self.Bp, radius)
                t, Ht, Bt = self.t + tau * self.p, self.Ht + tau * self.Hp, self.Bt + tau * self.Bp
                return self._end(t, Ht, Bt, bounded=True, indefinite=downwards)
            self._advance(alpha)

    def _advance(self, alpha: float) -> None:
        assert self.Hp is not None
        self.t, self.Bt = self.t + alpha * self.p, self.Bt + alpha * self.Bp
        self.Ht = self.Ht + alpha * self.Hp
        self.r = self.r + alpha * (self.Hp + self.sigma * self.Bp)
        self.steps += 1
        z = self.r if self.preconditioner is None else self.preconditioner @ self.r
        before, self.rz = self.rz, self._inner(self.r, z)
        beta = self.rz / before if before > 0 else 0.0
        self.p, self.Bp, self.Hp = beta * self.p - z, beta * self.Bp - self.r, None

    def _end(self, t: Tensor, Ht: Tensor, Bt: Tensor, *, bounded: bool = False, indefinite: bool = False) -> Tail:
        fall = -self._inner(self.slope, t) - 0.5 * self._inner(t, Ht)
        residual = math.inf if bounded else math.sqrt(max(self.rz, 0.0))
        return Tail(t, fall, self._length(t, Bt), residual, bounded, indefinite)

    def _length(self, t: Tensor, Bt: Tensor) -> float:
        square = self._inner(self.start + t, self.start_image + Bt)
        return math.sqrt(max(square, 0.0))

    def _reach(self, s: Tensor, Bs: Tensor, d: Tensor, Bd: Tensor, radius: float) -> float:
        """The tau >= 0 for which s + tau d has the length of the radius."""
        a, b = self._inner(d, Bd), self._inner(s, Bd)
        c = self._inner(s, Bs) - radius * radius
        root = math.sqrt(max(b * b - a * c, 0.0))
        if b > 0:
            return max(-c / (b + root), 0.0)
        return max((root - b) / a, 0.0) if a > 0 else 0.0

    def _inner(self, a: Tensor, b: Tensor) -> float:
        return float(self.space.inner(a, b))
