"""A constrained problem as the algorithms see it: flat float64 vectors, all constraints as rows, everything counted.

    min f(x)  subject to  low <= c(x) <= high,  lower <= x <= upper

f and c run in the dtype of the parameters; vectors of the algorithms are float64. At a point the graphs of f and c are
kept, so that a product with the Jacobian, its transpose or a Hessian of the Lagrangian is one backward pass. Where f is
an `Objective`, its value, gradient and products are passes over its data.

`unit` divides f, `units` the rows and `lengths` the parameters, for the algorithms alone: what is reported is measured
without them. Lengths are powers of two: x is rounded as without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective._kernels import ordinary
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import grads, second_order
from frechet.optimize._constrained.constraint import Function
from frechet.optimize._constrained.raw import DenseRows, Functions, Raw
from frechet.optimize._counts import Counts
from frechet.space import Space, Variables, euclidean

SMALL = 300  # variables and equalities: matrices of this order are made and factored faster than products are
NUMBERS = 200_000  # of a Jacobian
Parameters = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Values:
    """f and c ``(m,)`` at x ``(n,)``."""

    x: Tensor
    f: float
    c: Tensor


@dataclass(frozen=True, eq=False)
class Point:
    """f, its gradient and c at x, with the graphs kept: `J` is the Jacobian of c, `H` the Hessian of an objective f."""

    x: Tensor
    f: float
    c: Tensor
    g: Tensor
    J: LinearOperator | DenseRows
    leaves: list[Tensor]
    graph_g: list[Tensor]  # none where f is an objective
    graph_c: Tensor
    program: Program
    H: LinearOperator | None = None
    raw: Raw | None = None  # where matrices are kept

    def hessian(self, y: Tensor) -> LinearOperator:
        """The Hessian of f + y'c ``(n, n)``."""
        p = self.program
        if self.raw is not None:
            bent = self.raw.bent(1 / p.unit, p.wide(p.outward(y)))

            def bend(V: Tensor) -> Tensor:
                p.ledger.products += V.shape[1]
                return p.inner(bent(p.outer(V)))

            return from_callable(bend, p.domain, facts="symmetric")
        with second_order("minimize", p.space.device), torch.enable_grad():
            u = p.outward(y)
            pulled = grads(self.graph_c, self.leaves, [u], create_graph=True)
            total = pulled if self.H is not None else [a + b for a, b in zip(self.graph_g, pulled, strict=True)]

        def product(V: Tensor) -> Tensor:
            p.ledger.products += V.shape[1]
            rows = [p.joined(grads(total, self.leaves, p.blocks(v), retain_graph=True)) for v in V.T]
            found = torch.stack(rows).T
            return found if self.H is None else found + p.inner(self.H @ p.outer(V)) / p.unit

        return from_callable(product, p.domain, facts="symmetric")


@dataclass(frozen=True, eq=False)
class Program:
    """The functions, the sides and the counts. `domain` is R^n and `codomain` R^m, both float64."""

    f: Function | Objective
    functions: tuple[Function, ...]
    space: Space
    single: bool
    lower: Tensor
    upper: Tensor
    low: Tensor
    high: Tensor
    unit: float = 1.0
    units: float | Tensor = 1.0
    lengths: float | Tensor = 1.0
    measure: float = 1.0  # the sizes of f and of the rows, to which tolerances are relative
    measures: float | Tensor = 1.0
    asked: Functions | None = None
    ledger: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        asked = self.asked
        if asked is None or asked.f is not self.f or asked.constraints is not self.functions:
            object.__setattr__(self, "asked", Functions(self.f, self.functions, self.space, self.single))

    @cached_property
    def small(self) -> bool:
        """Whether matrices are kept."""
        n, equal = self.space.dim, int((self.low == self.high).sum())
        return n + equal <= SMALL and n * len(self.low) <= NUMBERS and self.space.dtype == torch.float64

    @cached_property
    def domain(self) -> Space:
        return euclidean(self.space.dim, torch.float64, _wide(self.space.device))

    @cached_property
    def codomain(self) -> Space:
        return euclidean(len(self.low), torch.float64, _wide(self.space.device))

    @property
    def eps(self) -> float:
        """Unit roundoff of what f and c are computed in."""
        return self.space.eps

    def scaled(self, unit: float, units: Tensor) -> Program:
        """The same problem with f / unit and c / units."""
        return replace(self, unit=unit, units=units, low=self.low / units, high=self.high / units)

    def stretched(self, lengths: Tensor) -> Program:
        """The problem of the caller with x / lengths."""
        lower, upper = self.lower * self.lengths, self.upper * self.lengths
        return replace(self, lengths=lengths, lower=lower / lengths, upper=upper / lengths)

    def narrow(self, v: Tensor) -> Tensor:
        """Rows as f and c take them."""
        return v.to(self.space.device, self.space.dtype)

    def outer(self, v: Tensor) -> Tensor:
        """A point or a direction as f and c take it."""
        return self.narrow(v * self._lengths(v))

    def inner(self, v: Tensor) -> Tensor:
        """A gradient as the algorithms take it."""
        return self.wide(v) * self._lengths(v)

    def _lengths(self, v: Tensor) -> float | Tensor:
        return self.lengths[:, None] if v.ndim == 2 and isinstance(self.lengths, Tensor) else self.lengths

    def wide(self, v: Tensor) -> Tensor:
        """As the algorithms take it."""
        return v.detach().to(self.domain.device, torch.float64)

    def blocks(self, v: Tensor) -> list[Tensor]:
        return self.space.split(self.outer(v))

    def joined(self, blocks: list[Tensor]) -> Tensor:
        """The gradient blocks as a float64 vector, in the scale of this program."""
        return self.inner(self.space.join([b.detach() for b in blocks]))

    def outward(self, u: Tensor) -> Tensor:
        """A vector of the rows as a cotangent of the graph of c."""
        return self.narrow(u / self.units)

    def rounded(self, x: Tensor, strict: bool = False) -> Tensor:
        """`x` as the dtype of the parameters holds it, inside the bounds; strictly, where there is room."""
        x = torch.minimum(torch.maximum(x, self.lower), self.upper).to(self.space.dtype)
        if strict:
            low, high = self.lower.to(x.dtype), self.upper.to(x.dtype)
            inside = torch.minimum(torch.maximum(x, torch.nextafter(low, high)), torch.nextafter(high, low))
            x = torch.where(low < high, inside, low)
        return x.double()

    def structured(self, x: Tensor) -> Parameters:
        """`x` ``(n,)`` as the tensor or dict that the functions take."""
        v = (x * self.lengths).to(self.space.device, self.space.dtype, copy=True)
        return Variables(self.space, self.single).unflatten(v)

    def values(self, x: Tensor) -> Values | None:
        """f and c at a trial point; None where they are not finite."""
        if self.small:
            raw = self.raw(x)
            c = raw.c / self.units
            return Values(x, raw.f / self.unit, c) if math.isfinite(raw.f) and self.codomain.finite(c) else None
        self.ledger.evaluations += 1
        with torch.no_grad(), second_order("minimize", self.space.device):
            at = self.structured(x)
            f = (self._value(self.f, x) if isinstance(self.f, Objective) else float(self.f(at))) / self.unit
            if not math.isfinite(f):
                return None
            c = self.wide(self.joined_rows(at)) / self.units
        return Values(x, f, c) if self.codomain.finite(c) else None

    def point(self, x: Tensor) -> Point | None:
        """f, its gradient, c and J at x; None where they are not finite."""
        if self.small:
            return self._kept(x)
        self.ledger.evaluations += 1
        self.ledger.gradients += 1
        with second_order("minimize", self.space.device), torch.enable_grad():
            leaves = [ordinary(b).clone().requires_grad_() for b in self.blocks(x)]
            at = Variables(self.space, self.single).structured(leaves)
            value, rows = None if isinstance(self.f, Objective) else self.f(at), self.joined_rows(at)
            gradient = [] if value is None else [b / self.unit for b in grads(value, leaves, None, create_graph=True)]
            u = torch.zeros_like(rows).requires_grad_()
            pulled = grads(rows, leaves, [u], create_graph=True)
        c, H = self.wide(rows) / self.units, None
        if isinstance(self.f, Objective):
            f, v = self._value(self.f, x) / self.unit, self.outer(x)
            if not math.isfinite(f):
                return None
            g, H = self._slope(self.f, x) / self.unit, hessian(self.f, v)
        else:
            assert value is not None
            f, g = float(value.detach()) / self.unit, self.joined(gradient)
        if not (math.isfinite(f) and self.codomain.finite(c) and self.domain.finite(g)):
            return None

        def push(V: Tensor) -> Tensor:
            self.ledger.products += V.shape[1]
            columns = [grads(pulled, [u], self.blocks(v), retain_graph=True)[0] for v in V.T]
            return torch.stack([self.wide(b) / self.units for b in columns]).T

        def pull(U: Tensor) -> Tensor:
            self.ledger.products += U.shape[1]
            found = [self.joined(grads(rows, leaves, [self.outward(w)], retain_graph=True)) for w in U.T]
            return torch.stack(found).T

        J = from_callable(push, self.domain, self.codomain, rmatmat=pull)
        return Point(x, f, c, g, J, leaves, gradient, rows, self, H)

    def _kept(self, x: Tensor) -> Point | None:
        """The point with matrices, from what is kept."""
        raw = self.raw(x)
        c = raw.c / self.units
        if not (math.isfinite(raw.f) and self.codomain.finite(c)):
            return None
        self.counted_first(raw)
        g = raw.g * self.lengths / self.unit
        if not self.domain.finite(g):
            return None
        units = self.units[:, None] if isinstance(self.units, Tensor) else self.units
        J = DenseRows(raw.J * self.lengths / units, self.domain, self.codomain)
        return Point(x, raw.f / self.unit, c, g, J, raw.leaves, [], raw.c, self, raw=raw)

    def raw(self, x: Tensor) -> Raw:
        """What is kept at x."""
        return self.raw_at(self.outer(x))

    def raw_at(self, x: Tensor) -> Raw:
        """What is kept at x, which is as f and c take it."""
        assert self.asked is not None
        found, new = self.asked.at(x)
        self.ledger.evaluations += new
        return found

    def counted_first(self, raw: Raw, new: bool | None = None) -> None:
        """Count a gradient and a Jacobian that are about to be asked for; one that came with a Hessian is free."""
        self.ledger.gradients += raw.first is None if new is None else new
        if raw.first is None:
            self.ledger.products += min(len(raw.c), len(raw.x) + 1)

    def joined_rows(self, at: Parameters) -> Tensor:
        """c(x) flat, on its graph."""
        parts = [c(at).reshape(-1) for c in self.functions]
        nothing = torch.zeros(0, dtype=self.space.dtype, device=self.space.device)
        return torch.cat(parts) if parts else nothing

    def _value(self, f: Objective, x: Tensor) -> float:
        try:
            return float(f.value(self.outer(x)))
        except NonFinite:
            return math.nan

    def _slope(self, f: Objective, x: Tensor) -> Tensor:
        try:
            return self.inner(f.gradient(self.outer(x)))
        except NonFinite:
            return torch.full_like(x, math.nan)


def _wide(device: torch.device) -> torch.device:
    """A device that has float64."""
    return torch.device("cpu") if device.type == "mps" else device
