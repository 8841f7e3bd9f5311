"""Steps of the linearized problem: min norm(r + J p)^2 with damping, within a radius, and within bounds.

The factorization of J D^-1 (columns scaled by D, fixed columns left out) serves all dampings and radii at one point:
with J D^-1 = U S V' and b = U'r, the damped step is p = -D^-1 V (S b / (S^2 + damping)). The damping that gives a step
of a wanted length is found by a safeguarded Newton iteration on the secular equation. Where J is large and tall, J =
Q R comes first, once per point, and the singular values are those of R D^-1; where it is large and wide, D^-1 J' = Q R.

**Source.** J. J. More (1978), The Levenberg-Marquardt algorithm: implementation and theory, sections 3-5,
doi 10.1007/BFb0067700. **Differs from the source:** singular values instead of QR, so that the rank is known and a
change of the damping costs n^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from frechet.optimize._least_squares.residual import LARGE, SLIM, Linearization, length

NEAR = 0.1  # a step may miss the radius by this much


@dataclass(frozen=True, eq=False)
class Factor:
    """J D^-1 = U S V' on the free columns; everything of n entries lies on the host."""

    U: Tensor  # (m, k) on the device of J, or (n, k) where Q stands before it
    s: Tensor  # (k,)
    V: Tensor  # (f, k)
    b: Tensor  # U'r (k,)
    scale: Tensor  # D (n,)
    free: Tensor  # (n,) bool
    rank: int
    Q: Tensor | None = None  # (m, n), where J = Q R

    def step(self, damping: float) -> Tensor:
        """The damped step ``(n,)``; zero damping gives the shortest of the minimizers."""
        if damping > 0:
            weights = self.s * self.b / (self.s.square() + damping)
        else:
            weights = torch.zeros_like(self.b)
            weights[: self.rank] = self.b[: self.rank] / self.s[: self.rank]
        return self._unscaled(weights)

    def truncated(self, cut: float) -> Tensor:
        """The undamped step ``(n,)`` in the directions whose singular value is above `cut` times the largest."""
        kept = self.s > cut * self.s[:1]
        return self._unscaled(torch.where(kept, self.b / torch.where(kept, self.s, 1.0), 0.0))

    def within(self, radius: float, guess: float = 0.0) -> tuple[Tensor, float]:
        """The step with norm(D p) near `radius` where the undamped one is longer, and its damping; 0 for radius 0."""
        rank = self.rank
        sb = self.s * self.b
        low, high = 0.0, length(sb) / radius if radius > 0 else math.inf
        if not rank or high == math.inf:
            return self._unscaled(torch.zeros_like(self.b)), 0.0
        plain = self.b[:rank] / self.s[:rank]
        if length(plain) <= (1 + NEAR) * radius:
            return self.step(0.0), 0.0
        s2, damping = self.s.square(), guess
        for _ in range(30):
            if not low < damping < high:
                damping = max(1e-3 * high, math.sqrt(low * high))
            w = sb / (s2 + damping)
            size = length(w)
            miss = size - radius
            if abs(miss) <= NEAR * radius or size == 0:
                break
            rate = float(((w / size).square() / (s2 + damping)).sum())  # at which the length falls, relative to it
            if miss < 0:
                high = damping
            if rate == 0:
                break
            low = max(low, damping + miss / size / rate)
            damping += miss / radius / rate
        damping = min(max(damping, low), high)
        return self.step(damping), damping

    def correction(self, second: Tensor, damping: float) -> Tensor:
        """The damped step for the residual `second` ``(m,)``: what a second derivative of r adds."""
        c = (self.U.T @ (second if self.Q is None else self.Q.T @ second)).cpu()
        return self._unscaled(self.s * c / (self.s.square() + damping))

    @cached_property
    def reduction(self) -> float:
        """What the undamped step takes off r'r / 2 in the linear model."""
        return 0.5 * float(self.b[: self.rank].square().sum())

    def holding(self, linear: Linearization, held: Tensor, free: Tensor) -> Factor:
        """This model where the entries that are not `free` move by `held`."""
        return factored(linear, self.scale, free, linear.J @ held.to(linear.J.device))

    def predicted(self, linear: Linearization, p: Tensor) -> float:
        """What p takes off r'r / 2."""
        Jp = linear.J @ p.to(linear.J.device)
        return -float(linear.gradient @ p) - 0.5 * float(Jp.square().sum())

    def _unscaled(self, weights: Tensor) -> Tensor:
        p = torch.zeros_like(self.scale)
        p[self.free] = -(self.V @ weights) / self.scale[self.free]
        return p


def factored(linear: Linearization, scale: Tensor, free: Tensor, shift: Tensor | None = None) -> Factor:
    """The factorization at a point; `shift` ``(m,)`` is added to r. A small one is kept with the point."""
    if shift is not None or linear.J.numel() >= LARGE:
        return _factored(linear, scale, free, shift)
    key = scale.numpy().tobytes() + free.numpy().tobytes()
    found = linear.factors.get(key)
    if found is None:
        found = linear.factors[key] = _factored(linear, scale, free, None)
    return found


def _factored(linear: Linearization, scale: Tensor, free: Tensor, shift: Tensor | None) -> Factor:
    J, r = linear.J, linear.r if shift is None else linear.r + shift
    device, triangle = J.device, linear.triangle
    Q, A = (None, J) if triangle is None else triangle
    A = A[:, free.to(device)] / scale[free].to(device)
    if len(A) * SLIM <= A.shape[1] and A.numel() >= LARGE:
        W, R = torch.linalg.qr(A.T)
        U, s, Vh = torch.linalg.svd(R.T)
        V = (W @ Vh.T).cpu()
    else:
        U, s, Vh = torch.linalg.svd(A, full_matrices=False)
        V = Vh.T.cpu()
    s, b = s.cpu(), (U.T @ (r if Q is None else Q.T @ r)).cpu()
    largest = max(len(J), A.shape[1])
    rank = int((s > largest * torch.finfo(s.dtype).eps * s[:1]).sum()) if s.numel() else 0
    return Factor(U, s, V, b, scale, free, rank, Q)


def column_scale(columns: Tensor) -> Tensor:
    """D: the column norms, one where a column is zero."""
    return torch.where(columns > 0, columns, 1.0)


def blocked(x: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The entries that lie on a bound and that the gradient pushes against it, or that have no room."""
    return ((x <= lower) & (gradient >= 0)) | ((x >= upper) & (gradient <= 0)) | (lower >= upper)


class Model(Protocol):
    """A model of the cost around a point: linear in r (`Factor`), or of second order."""

    @property
    def free(self) -> Tensor: ...
    def step(self, damping: float) -> Tensor: ...
    def within(self, radius: float, guess: float = 0.0) -> tuple[Tensor, float]: ...
    def holding(self, linear: Linearization, held: Tensor, free: Tensor) -> Model: ...
    def predicted(self, linear: Linearization, p: Tensor) -> float: ...
    @property
    def reduction(self) -> float: ...


def boxed(linear: Linearization, model: Model, p: Tensor, damping: float, lower: Tensor, upper: Tensor) -> Tensor:
    """`p` made feasible: entries that leave the box stop at its side, and the others are solved for again."""
    x, free = linear.x, model.free
    low, high = lower - x, upper - x
    for _ in range(len(x)):
        out = free & ((p < low) | (p > high))
        if not bool(out.any()):
            break
        free = free & ~out
        held = torch.where(free, 0.0, torch.minimum(torch.maximum(p, low), high))
        p = held
        if not bool(free.any()):
            break
        p = held + model.holding(linear, held, free).step(damping)
    return torch.minimum(torch.maximum(p, low), high)
