"""A small constrained problem as NumPy arrays: values, the gradient, the Jacobian and the Hessian of the Lagrangian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frechet.optimize._constrained.program import Program
from frechet.optimize._constrained.raw import Raw

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class Trial(Protocol):
    """f and c ``(m,)`` at x ``(n,)``, and their derivatives there when they are asked for."""

    x: Array
    f: float
    c: Array

    def first(self, y: Array | None = None, weight: float = 1.0) -> tuple[Array, Array] | None:
        """The gradient ``(n,)`` and the Jacobian ``(m, n)``; None where they are not finite.

        Where `y` is given, the Hessian of weight f + y'c will be asked for, and comes with them.
        """
        ...

    def second(self, y: Array, weight: float = 1.0) -> Array:
        """The Hessian of weight f + y'c ``(n, n)``."""
        ...


class Dense(Protocol):
    """min f(x) with low <= c(x) <= high and lower <= x <= upper, as arrays."""

    lower: Array
    upper: Array
    low: Array
    high: Array
    eps: float  # unit roundoff of f and c

    def trial(self, x: Array) -> Trial | None:
        """The values at x; None where they are not finite."""
        ...


def host(t: Tensor) -> Array:
    t = t.detach()
    return t.numpy() if t.dtype == torch.float64 and t.device.type == "cpu" else t.cpu().to(torch.float64).numpy()


class ProgramAsDense:
    """`Dense` for the functions of a program."""

    def __init__(self, program: Program) -> None:
        self.program, self.eps = program, program.eps
        self.lower, self.upper = host(program.lower), host(program.upper)
        self.low, self.high = host(program.low), host(program.high)
        self.lengths = np.broadcast_to(host(torch.as_tensor(program.lengths)), self.lower.shape)
        self.units = np.broadcast_to(host(torch.as_tensor(program.units)), self.low.shape)
        self.plain = bool((self.lengths == 1.0).all())  # products with lengths of one change nothing
        self.bare = bool((self.units == 1.0).all())
        measures = np.broadcast_to(host(torch.as_tensor(program.measures)), self.low.shape)
        self.past, self.of_f = self.units / measures, program.unit / program.measure
        self.needs_low = np.isinf(self.high) & (self.low != self.high)  # rows whose multipliers have one sign
        self.one_sided = bool(((np.isinf(self.low) | np.isinf(self.high)) & (self.low != self.high)).any())
        self.sided = bool((self.low != self.high).any())
        self.bounded = bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())
        self.needs_high = np.isinf(self.low) & (self.low != self.high)

    def trial(self, x: Array) -> ScaledTrial | None:
        p = self.program
        raw = p.raw_at(p.narrow(torch.from_numpy(x if self.plain else x * self.lengths)))
        if not math.isfinite(raw.f):
            return None
        c = raw.rows if self.bare else raw.rows / self.units
        return ScaledTrial(self, x, raw.f / p.unit, c, raw) if np.isfinite(c).all() else None


@dataclass(eq=False)
class ScaledTrial:
    """A trial in the units of the program."""

    problem: ProgramAsDense
    x: Array
    f: float
    c: Array
    raw: Raw
    last: tuple[float, Array, Array] | None = None  # a weight, multipliers, and their Hessian

    def first(self, y: Array | None = None, weight: float = 1.0) -> tuple[Array, Array] | None:
        problem, p = self.problem, self.problem.program
        new = self.raw.first is None
        if new and y is not None:
            self.second(y, weight)
        p.counted_first(self.raw, new)
        g, J = (host(t) for t in self.raw.first_derivatives())
        if not problem.plain:
            g, J = g * problem.lengths, J * problem.lengths
        g, J = g / p.unit, J if problem.bare else J / problem.units[:, None]
        return (g, J) if np.isfinite(g).all() and np.isfinite(J).all() else None

    def second(self, y: Array, weight: float = 1.0) -> Array:
        problem, p = self.problem, self.problem.program
        p.ledger.products += len(self.x)
        if self.last is not None and self.last[0] == weight and np.array_equal(self.last[1], y):
            return self.last[2]
        H = host(self.raw.hessian(weight / p.unit, torch.from_numpy(y if problem.bare else y / problem.units)))
        if not problem.plain:
            H = H * problem.lengths[:, None] * problem.lengths
        H = 0.5 * (H + H.T)
        self.last = weight, y.copy(), H
        return H
