"""Steps of a wide linearized problem from the eigenvalues of J J', where the damping hides the rounding of the squares.

With A = J D^-1 ``(m, n)``, m <= n / 2, and A A' = U S^2 U', the damped step is p = -D^-1 A'U (b / (S^2 + damping)),
b = U'r. Squaring loses the singular values below sqrt(eps) s_1, but a damping far above eps s_1^2 covers them: then the
step is that of the singular values, at a third of their cost. With a smaller damping the exact factorization is made,
once for each point, so that the last digits do not suffer.

**Cost.** m^2 n / 2 products of numbers and one symmetric eigenproblem of size m, beside 2 m^2 n and a singular value
decomposition for the exact factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frechet.optimize._least_squares.damped_step import Factor, factored
from frechet.optimize._least_squares.residual import SLIM, Linearization

WIDE = 1 << 20  # entries from which on squares save a part of a second
FEW = 16.0  # times eps s_1^2: eigenvalues of J J' below are rounding
HIDDEN = 2.0**20  # times eps s_1^2: the rounding of J J' then changes a damped step by some 1e-5 of it at most


@dataclass(frozen=True, eq=False)
class SquaredFactor(Factor):
    """The factors by J J'. `V` holds (J D^-1)'; the right singular vectors are V U / s."""

    def _unscaled(self, weights: Tensor) -> Tensor:
        p = torch.zeros_like(self.scale)
        safe = torch.where(self.s > 0, self.s, 1.0)
        p[self.free] = -(self.V @ (self.U @ (weights / safe).to(self.U.device))).cpu() / self.scale[self.free]
        return p


@dataclass(frozen=True, eq=False)
class GramFactor:
    """The linear model at a point: by J J' where the damping allows it, else by the singular values of J."""

    linear: Linearization
    scale: Tensor
    free: Tensor
    shift: Tensor | None = None  # added to r

    @cached_property
    def squared(self) -> Factor:
        """The factors by J J'."""
        J, r = self.linear.J, self.linear.r if self.shift is None else self.linear.r + self.shift
        A = J[:, self.free.to(J.device)] / self.scale[self.free].to(J.device)
        values, U = torch.linalg.eigh(A @ A.T)
        least = torch.finfo(values.dtype).eps * values[-1:].clamp_min(0)  # less is rounding, and may be negative
        s, U = values.flip(0).maximum(least).sqrt(), U.flip(1)
        s, b = s.cpu(), (U.T @ r).cpu()
        rank = int((s.square() > FEW * torch.finfo(s.dtype).eps * s[:1].square()).sum())
        return SquaredFactor(U, s, A.T, b, self.scale, self.free, rank)

    @cached_property
    def exact(self) -> Factor:
        """The singular values of J."""
        return factored(self.linear, self.scale, self.free, self.shift)

    @property
    def in_hand(self) -> Factor | None:
        """The exact factors, if a step has needed them."""
        return self.__dict__.get("exact")

    def step(self, damping: float) -> Tensor:
        """The damped step ``(n,)``."""
        return (self.squared if self._hides(damping) else self.exact).step(damping)

    def within(self, radius: float, guess: float = 0.0) -> tuple[Tensor, float]:
        """The step within `radius`, and its damping."""
        if self.in_hand is None:
            p, damping = self.squared.within(radius, guess)
            if self._hides(damping):
                return p, damping
        return self.exact.within(radius, guess)

    def holding(self, linear: Linearization, held: Tensor, free: Tensor) -> GramFactor:
        """This model where the entries that are not `free` move by `held`."""
        return GramFactor(linear, self.scale, free, linear.J @ held.to(linear.J.device))

    def predicted(self, linear: Linearization, p: Tensor) -> float:
        """What p takes off r'r / 2."""
        return self.squared.predicted(linear, p)

    @property
    def reduction(self) -> float:
        """What the undamped step takes off r'r / 2 in the linear model."""
        return self.exact.reduction

    def _hides(self, damping: float) -> bool:
        s = self.squared.s
        return len(s) > 0 and damping >= HIDDEN * torch.finfo(s.dtype).eps * float(s[0]) ** 2


def is_wide(J: Tensor) -> bool:
    """Whether the squares of J pay."""
    return len(J) * SLIM <= J.shape[1] and J.numel() >= WIDE
