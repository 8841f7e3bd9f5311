"""f and c at a point with their graphs kept, in the units of the caller; matrices are made when they are asked for.

A small problem is asked at one point by many: by the algorithm, in its units, and by the measures of the result, in
those of the caller. Each derivative is taken once.
**Cost**: one gradient, min(m, n + 1) further backward passes for the Jacobian, n + 1 for a Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective._kernels import ordinary
from frechet.operators._constructors import from_matrix
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import grads, second_order
from frechet.space import Space

KEPT = 3  # points


@dataclass(frozen=True, eq=False)
class DenseRows:
    """A matrix ``(m, n)`` that answers as an operator does."""

    matrix: Tensor
    domain: Space
    codomain: Space

    @property
    def shape(self) -> tuple[int, int]:
        return self.codomain.dim, self.domain.dim

    @property
    def T(self) -> DenseRows:
        return DenseRows(self.matrix.T, self.codomain, self.domain)

    def __matmul__(self, V: Tensor) -> Tensor:
        return self.matrix @ V


def as_operator(J: LinearOperator | DenseRows) -> LinearOperator:
    """Return J as an operator."""
    return from_matrix(J.matrix, domain=J.domain, codomain=J.codomain) if isinstance(J, DenseRows) else J


@dataclass(frozen=True, eq=False)
class Functions:
    """f, the constraints, and the points at which they were asked last."""

    f: Callable[..., Tensor] | Objective
    constraints: tuple[Callable[..., Tensor], ...]
    space: Space
    single: bool
    kept: dict[bytes, Raw] = field(default_factory=dict)
    proved: set[str] = field(default_factory=set)  # whose second derivatives were seen to be there

    def differentiating(self) -> ExitStack:
        """Where the functions run, and where graphs of derivatives are made."""
        stack = ExitStack()
        stack.enter_context(second_order("minimize", self.space.device))
        stack.enter_context(torch.enable_grad())
        return stack

    def at(self, x: Tensor) -> tuple[Raw, bool]:
        """The values at `x` ``(n,)``, in the dtype of the parameters, and whether they are new."""
        key = x.cpu().numpy().tobytes()
        found = self.kept.get(key)
        if found is not None:
            return found, False
        while len(self.kept) >= KEPT:
            del self.kept[next(iter(self.kept))]
        found = self.kept[key] = self._evaluated(x)
        return found, True

    def _evaluated(self, x: Tensor) -> Raw:
        with self.differentiating():
            leaves = [b.clone().requires_grad_() for b in self.space.split(ordinary(x))]
            at: Tensor | Mapping[str, Tensor] = (
                leaves[0] if self.single else dict(zip(self.space.names, leaves, strict=True))
            )
            if isinstance(self.f, Objective):
                value, f = None, _objective_value(self.f, x)
            else:
                value = self.f(at)
                f = float(value.detach())
            parts = [c(at).reshape(-1) for c in self.constraints] if math.isfinite(f) else []
            nothing = torch.zeros(0, dtype=self.space.dtype, device=self.space.device)
            rows = torch.cat(parts) if parts else nothing
        cut = any(not c.requires_grad for c in parts) or (value is not None and not value.requires_grad)
        return Raw(self, x, f, rows, leaves, value, cut)


@dataclass(frozen=True, eq=False)
class Raw:
    """The values at x. c is empty where f is not finite."""

    functions: Functions
    x: Tensor
    f: float
    rows: Tensor
    leaves: list[Tensor]
    value: Tensor | None  # None where f is an objective
    cut: bool = False  # whether a value has no graph

    @cached_property
    def c(self) -> Tensor:
        return _wide(self.rows)

    @cached_property
    def g(self) -> Tensor:
        """The gradient of f ``(n,)``."""
        f = self.functions.f
        if self.value is not None:
            return self._flat(grads(self.value, self.leaves, None, retain_graph=True))
        assert isinstance(f, Objective)
        try:
            return _wide(f.gradient(self.x))
        except NonFinite:
            return torch.full_like(_wide(self.x), math.nan)

    @cached_property
    def J(self) -> Tensor:
        """The Jacobian of c ``(m, n)``."""
        m, n, rows = len(self.rows), len(self.x), self.rows
        if not m:
            return torch.zeros(0, n, dtype=torch.float64)
        if m <= n + 1:
            units = torch.eye(m, dtype=rows.dtype, device=rows.device)
            return torch.stack([self._pulled([rows], [u]) for u in units])
        with self.functions.differentiating():
            u = torch.zeros_like(rows).requires_grad_()
            pulled = grads(rows, self.leaves, [u], create_graph=True)
        return torch.stack([_wide(grads(pulled, [u], b, retain_graph=True)[0]) for b in self._directions], 1)

    def bent(self, weight: float, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Products of the Hessian of weight f + y'c with columns ``(n, k)``."""
        functions, cotangents, f = [], [], self.functions.f
        if self.value is not None and weight and self.value.requires_grad:
            functions, cotangents = [self.value], [torch.full_like(self.value, weight)]
        if len(self.rows) and self.rows.requires_grad:
            functions.append(self.rows)
            cotangents.append(y.to(self.rows))
        total = self._graph(functions, cotangents, f"{bool(weight)}") if functions else []
        H = hessian(f, self.x) if isinstance(f, Objective) and weight else None
        curved = any(b.requires_grad for b in total)

        def product(V: Tensor) -> Tensor:
            V = V.to(self.x)
            out = torch.zeros(V.shape, dtype=torch.float64, device=_wide(V).device)
            if curved:
                split = self.functions.space.split
                columns = [self._pulled(total, split(v)) for v in V.T]
                out += torch.stack(columns, 1)
            return out if H is None else out + weight * _wide(H @ V)

        return product

    def hessian(self, weight: float, y: Tensor) -> Tensor:
        """The Hessian of weight f + y'c ``(n, n)``."""
        return self.bent(weight, y)(torch.eye(len(self.x), dtype=torch.float64))

    def _graph(self, functions: list[Tensor], cotangents: list[Tensor], what: str) -> list[Tensor]:
        """The gradient with its graph; that none of it is missing is looked at once, and not at every point."""
        with self.functions.differentiating():
            if what not in self.functions.proved:
                self.functions.proved.add(what)
                return grads(functions, self.leaves, cotangents, create_graph=True)
            return list(
                torch.autograd.grad(
                    functions, self.leaves, cotangents, create_graph=True, allow_unused=True, materialize_grads=True
                )
            )

    def _pulled(self, functions: list[Tensor], cotangents: list[Tensor]) -> Tensor:
        pairs = [(f, u) for f, u in zip(functions, cotangents, strict=True) if f.requires_grad]
        if not pairs:
            return torch.zeros(len(self.x), dtype=torch.float64, device=_wide(self.x).device)
        fs, us = zip(*pairs, strict=True)
        found = torch.autograd.grad(fs, self.leaves, us, retain_graph=True, allow_unused=True, materialize_grads=True)
        return self._flat([b if b.layout is torch.strided else b.to_dense() for b in found])

    @property
    def _directions(self) -> list[list[Tensor]]:
        units = torch.eye(len(self.x), dtype=self.x.dtype, device=self.x.device)
        return [self.functions.space.split(v) for v in units]

    def _flat(self, blocks: list[Tensor]) -> Tensor:
        single = self.functions.single
        return _wide(blocks[0].reshape(-1) if single else self.functions.space.join([b.detach() for b in blocks]))


def _wide(t: Tensor) -> Tensor:
    """In float64, on a device that has it."""
    t = t.detach()
    return t.to("cpu" if t.device.type == "mps" else t.device, torch.float64)


def _objective_value(f: Objective, x: Tensor) -> float:
    try:
        return float(f.value(x))
    except NonFinite:
        return math.nan
