"""Problems of the CUTEst collection as functions that remember and count, for solvers of constrained minimization.

`Functions` are NumPy functions; `ValueOf` and `RowsOf` are the same to autograd, with their derivatives. What runs in
any of them, or in the callbacks of a peer, is counted as time inside of the functions: a solver's own time is the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

import s2mpj

Array = np.ndarray


@dataclass
class Functions:
    """One problem, min f with low <= c(x) <= high and lower <= x <= upper; counts, and the seconds inside."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0  # inside of the functions
    entered: bool = False
    memory: dict[tuple[str, bytes], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        p = s2mpj.problem(self.name)
        self.raw, self.x0 = p.raw, p.x0.numpy().copy()
        self.lower, self.upper, self.bounded = p.lower.numpy(), p.upper.numpy(), p.bounded
        n, r = len(self.x0), p.raw

        def flat(a: object, *shape: int) -> Array:
            return np.array(a, dtype=float).reshape(*shape) if np.size(a) else np.zeros((0, *shape[1:]))

        self.A = np.concatenate([flat(r.aeq, -1, n), flat(r.aub, -1, n)])
        self.b = np.concatenate([flat(r.beq, -1), flat(r.bub, -1)])
        self.sizes = [int(m) for m in (r.m_linear_eq, r.m_linear_ub, r.m_nonlinear_eq, r.m_nonlinear_ub)]
        equal = np.repeat([True, False, True, False], self.sizes)
        self.low, self.high = np.where(equal, 0.0, -math.inf), np.zeros(len(equal))
        self.linear = len(self.b)

    def _told(self, what: str, x: Array, function: Callable[[], Any]) -> Any:
        key = (what, x.tobytes())
        if key in self.memory:
            return self.memory[key]
        found = self.memory[key] = function()
        self.counts[what] = self.counts.get(what, 0) + 1
        return found

    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what `function` returns, with the processor's time that it takes counted once."""
        if self.entered:
            return function(*args)
        self.entered, begin = True, time.process_time()
        try:
            return function(*args)
        finally:
            self.seconds += time.process_time() - begin
            self.entered = False

    def value(self, x: Array) -> float:
        return self._told("value", x, lambda: float(self.raw.fun(x)))

    def gradient(self, x: Array) -> Array:
        return self._told("gradient", x, lambda: np.array(self.raw.grad(x), dtype=float).reshape(-1))

    def rows(self, x: Array) -> Array:
        def found() -> Array:
            r, parts = self.raw, [self.A @ x - self.b]
            parts += [np.array(r.ceq(x), dtype=float).reshape(-1)] if self.sizes[2] else []
            parts += [np.array(r.cub(x), dtype=float).reshape(-1)] if self.sizes[3] else []
            return np.concatenate(parts)

        return self._told("rows", x, found)

    def jacobian(self, x: Array) -> Array:
        def found() -> Array:
            r, parts = self.raw, [self.A]
            parts += [np.array(r.jceq(x), dtype=float).reshape(-1, len(x))] if self.sizes[2] else []
            parts += [np.array(r.jcub(x), dtype=float).reshape(-1, len(x))] if self.sizes[3] else []
            return np.concatenate(parts)

        return self._told("jacobian", x, found)

    def curvature(self, x: Array) -> Array:
        """The Hessian of f."""
        n = len(x)
        return self._told("hessian", x, lambda: np.array(self.raw.hess(x), dtype=float).reshape(n, n))

    def bent(self, x: Array) -> Array:
        """The Hessians of the nonlinear rows ``(m, n, n)``."""

        def found() -> Array:
            n, r = len(x), self.raw
            each = [*(r.hceq(x) if self.sizes[2] else []), *(r.hcub(x) if self.sizes[3] else [])]
            return np.array([np.array(H, dtype=float) for H in each]).reshape(-1, n, n)

        return self._told("hessians of rows", x, found)

    def lagrangian(self, x: Array, weight: float, y: Array) -> Array:
        found = weight * self.curvature(x)
        return found + np.tensordot(y[self.linear :], self.bent(x), 1) if len(y) > self.linear else found


class ValueOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Functions) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p = p
        return p.inside(lambda: torch.tensor(p.value(x.detach().numpy()), dtype=torch.float64))

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.p.inside(lambda: us[0] * GradientOf.apply(x, ctx.p)), None


class GradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Functions) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p = p
        return p.inside(lambda: torch.from_numpy(p.gradient(x.detach().numpy())))

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.p.inside(lambda: us[0] @ torch.from_numpy(ctx.p.curvature(x.detach().numpy()))), None


class RowsOf(torch.autograd.Function):
    """The nonlinear rows. Backward passes through their pullback can be batched: these are products with matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Functions) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p = p
        return p.inside(lambda: torch.from_numpy(p.rows(x.detach().numpy())[p.linear :]))

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.p.inside(lambda: PulledOf.apply(x, us[0], ctx.p)), None


class PulledOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, p: Functions) -> Tensor:
        ctx.save_for_backward(x, u)
        ctx.p = p
        return p.inside(lambda: torch.from_numpy(p.jacobian(x.detach().numpy())[p.linear :].T) @ u.detach())

    @staticmethod
    def backward(ctx: Any, *ws: Tensor) -> tuple[Tensor, Tensor, None]:
        x, u = ctx.saved_tensors
        p, w = ctx.p, ws[0]

        def products() -> tuple[Tensor, Tensor]:
            at = x.detach().numpy()
            curved = torch.from_numpy(np.tensordot(u.detach().numpy(), p.bent(at), 1))
            return w @ curved, w @ torch.from_numpy(p.jacobian(at)[p.linear :].T)

        return *p.inside(products), None


def sized(side: Array) -> Array:
    return np.maximum(1.0, np.where(np.isfinite(side), np.abs(side), 1.0))


def judged(p: Functions, x: Array) -> tuple[float, float, float]:
    """f, the violation and the first-order residual.

    Rows count by max(1, largest entry of their gradient at x), bounds by max(1, |bound|). The residual: with
    multipliers of the right sign that minimize norm(grad f + J'y)^2 + norm(y distance)^2, the largest entry of both,
    over max(1, |grad f|).
    """
    f, g, c, J = p.value(x), p.gradient(x), p.rows(x), p.jacobian(x)
    if not (math.isfinite(f) and np.isfinite(g).all() and np.isfinite(c).all() and np.isfinite(J).all()):
        return f, math.inf, math.inf
    sizes = np.maximum(1.0, np.abs(J).max(1, initial=0.0))
    past = np.maximum(np.maximum(p.low - c, c - p.high), 0.0) / sizes
    outside = np.maximum((p.lower - x) / sized(p.lower), (x - p.upper) / sized(p.upper)).clip(0.0)
    equal = p.low == p.high
    normals, distances, signed = (
        [J[equal] / sizes[equal, None]],
        [np.zeros(equal.sum())],
        [np.full(equal.sum(), -np.inf)],
    )
    eye = np.eye(len(x))
    for sign, normal, distance in (
        *((1.0, J / sizes[:, None], (p.high - c) / sizes), (-1.0, J / sizes[:, None], (c - p.low) / sizes)),
        *((1.0, eye, p.upper - x), (-1.0, eye, x - p.lower)),
    ):
        keep = np.isfinite(distance) & ~(
            equal if len(normal) == len(c) and normal is not eye else np.zeros(len(normal), bool)
        )
        normals.append(sign * normal[keep])
        distances.append(np.maximum(distance[keep], 0.0))
        signed.append(np.zeros(keep.sum()))
    A, d, low = np.concatenate(normals), np.concatenate(distances), np.concatenate(signed)
    residual, held = g, np.zeros(1)
    scale = max(1.0, float(np.abs(g).max()))
    if len(A):
        matrix = np.concatenate([A.T, np.diag(d)])
        goal = np.concatenate([-g, np.zeros(len(d))]) / scale
        y = optimize.lsq_linear(matrix, goal, (low, np.inf), method="bvls", tol=1e-15, max_iter=1000).x * scale
        residual, held = g + A.T @ y, d * y
    kkt = max(float(np.abs(residual).max()), float(np.abs(held).max())) / scale
    return f, max(float(past.max(initial=0.0)), float(outside.max(initial=0.0))), kkt
