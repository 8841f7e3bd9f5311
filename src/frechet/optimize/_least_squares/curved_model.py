"""Steps of the second-order model: min g'p + p'(J'J + S) p / 2 within a radius, S = sum_i r_i (d^2 r_i / dx^2).

Where the residual stays large or bends strongly, J'J alone is a poor Hessian of the cost: steps of the linear model
overshoot or creep, and converge linearly at best. With S, from second derivatives, the model is Newton's; the matrix
may be indefinite, which the radius takes care of. It is formed as a matrix, in columns of equal norm, so it is for
problems where the linear model fails and not for the last digits of badly conditioned ones.

**Source.** J. J. More and D. C. Sorensen (1983), Computing a trust region step, doi 10.1137/0904038. **Differs from the
source:** by eigenvalues instead of Cholesky factors; J. E. Dennis, D. M. Gay and R. E. Welsch (1981), An adaptive
nonlinear least-squares algorithm, doi 10.1145/355958.355965, for the idea of two models, there with a secant S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.optimize._least_squares.damped_step import NEAR
from frechet.optimize._least_squares.residual import Linearization, length


@dataclass(frozen=True, eq=False)
class Curved:
    """D^-1 (J'J + S) D^-1 = Q diag(values) Q' on the free entries, and c = Q'D^-1 g."""

    values: Tensor  # (f,), rising
    Q: Tensor  # (f, f)
    c: Tensor  # (f,)
    scale: Tensor  # (n,)
    free: Tensor  # (n,) bool
    hessian: Tensor  # (n, n), J'J + S

    def step(self, damping: float) -> Tensor:
        """The step with `damping` added to all eigenvalues, and to small or negative ones what makes them positive."""
        floor = torch.finfo(torch.float64).eps * len(self.values) * float(self.values.abs().max())
        return self._unscaled(self.c / (self.values.abs() + damping).clamp(min=floor))

    def within(self, radius: float, guess: float = 0.0) -> tuple[Tensor, float]:
        """The minimizer within norm(D p) <= radius, its length near `radius` where that is active; and its damping."""
        values, c = self.values, self.c
        lowest = float(values[0])
        floor = torch.finfo(torch.float64).eps * len(values) * float(values.abs().max())
        if lowest > floor:
            weights = c / values
            if length(weights) <= (1 + NEAR) * radius:
                return self._unscaled(weights), 0.0
        low = max(0.0, -lowest)
        if not length(c) > 0 or not radius > 0:  # stationary: along the lowest direction, if the cost falls there
            weights = torch.zeros_like(c)
            weights[0] = radius if lowest < -floor else 0.0
            return self._unscaled(weights), low
        high = low + length(c) / radius
        damping = guess
        for _ in range(60):
            if not low < damping < high:
                damping = low + max(1e-3 * (high - low), math.sqrt(max(low, 1e-300) * high) - low)
                damping = min(max(damping, low + 1e-15 * (high - low)), high)
            shifted = values + damping
            weights = c / shifted
            size = length(weights)
            miss = size - radius
            if abs(miss) <= NEAR * radius or high - low <= 1e-14 * high:
                break
            if miss < 0:
                high = damping
            else:
                low = max(low, damping)
            slope = -float((weights.square() / shifted).sum()) / size
            if not -math.inf < slope < 0:
                break
            damping -= size / radius * (miss / slope)
        weights = c / (values + damping)
        missing = radius * radius - float(weights.square().sum())
        if lowest <= floor and missing > 0.5 * radius * radius:  # g has no part in the lowest direction
            weights = weights.clone()
            weights[0] += math.copysign(math.sqrt(missing), float(c[0]))
        return self._unscaled(weights), damping

    @property
    def reduction(self) -> float:
        """What an undamped step takes off the cost in this model; infinite where the model has no minimum."""
        floor = torch.finfo(torch.float64).eps * len(self.values) * float(self.values.abs().max())
        if len(self.values) and not float(self.values[0]) > floor:
            return math.inf
        return 0.5 * float((self.c.square() / self.values).sum())

    @property
    def descends(self) -> bool:
        """Whether the cost curves downwards in some direction."""
        if not len(self.values):
            return False
        return float(self.values[0]) < -1e-8 * max(1.0, float(self.values.abs().max()))

    def holding(self, linear: Linearization, held: Tensor, free: Tensor) -> Curved:
        """This model where the entries that are not `free` move by `held`."""
        return _curved(linear.gradient + self.hessian @ held, self.hessian, self.scale, free)

    def predicted(self, linear: Linearization, p: Tensor) -> float:
        """What p takes off the cost."""
        return -float(linear.gradient @ p) - 0.5 * float(p @ self.hessian @ p)

    def _unscaled(self, weights: Tensor) -> Tensor:
        p = torch.zeros_like(self.scale)
        p[self.free] = -(self.Q @ weights) / self.scale[self.free]
        return p


def curved(linear: Linearization, curvature: Tensor, scale: Tensor, free: Tensor) -> Curved:
    """The second-order model at a point, from S `curvature` ``(n, n)``."""
    return _curved(linear.gradient, (linear.J.T @ linear.J).cpu() + curvature, scale, free)


def _curved(gradient: Tensor, hessian: Tensor, scale: Tensor, free: Tensor) -> Curved:
    D = scale[free]
    values, Q = torch.linalg.eigh(hessian[free][:, free] / D / D[:, None])
    return Curved(values, Q, Q.T @ (gradient[free] / D), scale, free, hessian)
