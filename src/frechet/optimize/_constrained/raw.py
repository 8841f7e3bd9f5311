"""f and c at a point with their graphs kept, in the units of the caller; matrices are made when they are asked for.

A small problem is asked at one point by many: by the algorithm, in its units, and by the measures of the result, in
those of the caller. Each derivative is taken once.

With w f + u'c pulled back to its gradient G(x, w, u), one more batch of passes, a column of G each, gives the Hessian
of the Lagrangian by x, and by (w, u) the gradient of f and the Jacobian: all derivatives at an iterate whose
multipliers are known. Alone, the Jacobian comes by columns or, where these are more than a batch, by rows.

**Cost**: one pass and a batch of n for all derivatives, or a batch of min(m, n) for the Jacobian alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.objective._functions import Functions as UserFunctions
from frechet.objective._kernels import ordinary, recurrence_without_cudnn, unfused_attention
from frechet.objective._torch_internals import autocast_left_out, unchecked_grad
from frechet.operators._constructors import from_matrix
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import differentiating, grads, second_order
from frechet.optimize._constrained.affine_rows import Affine, affine_rows
from frechet.optimize._constrained.backward_passes import COLUMNS, Batches, strided
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


@dataclass
class Seen:
    """What the evaluations have shown of the functions; it changes as they go on."""

    batches: Batches = field(default_factory=Batches)
    affine: dict[int, Affine] | None = None  # constraints by number, once looked at
    proved: set[str] = field(default_factory=set)  # whose second derivatives were seen to be there
    inside: bool = False  # `differentiating` is held open


@dataclass(frozen=True, eq=False)
class Functions:
    """f, the constraints, and the points at which they were asked last."""

    f: Callable[..., Tensor] | Objective
    constraints: tuple[Callable[..., Tensor], ...]
    space: Space
    single: bool
    kept: dict[bytes, Raw] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    mode: UserFunctions = field(default_factory=lambda: UserFunctions(nested=True))  # made once, entered many times

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """One entry into what `second_order` consists of, but for its mode that sees every operation."""
        if self.seen.inside:
            yield
            return
        device = self.space.device
        with differentiating("minimize", device), unfused_attention(), recurrence_without_cudnn(), autocast_left_out():
            self.seen.inside = True
            try:
                yield
            finally:
                self.seen.inside = False

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Where the functions run, and where graphs of derivatives are made."""
        if self.seen.inside:
            with self.mode, torch.enable_grad():
                yield
        else:
            with second_order("minimize", self.space.device, self.mode), torch.enable_grad():
                yield

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
        x, held = ordinary(x), self.space.held
        blocks = [x.clone().view(held[0])] if self.single else [b.clone() for b in self.space.split(x)]
        leaves = [b.requires_grad_() for b in blocks]
        at: Tensor | Mapping[str, Tensor] = (
            leaves[0] if self.single else dict(zip(self.space.names, leaves, strict=True))
        )
        values: list[Tensor] = []
        value = None
        with self.differentiating():
            if isinstance(self.f, Objective):
                f = _objective_value(self.f, x)
            else:
                value = scalar(self.f(at))
                f = value.item()
            if math.isfinite(f):
                values = [row_values(i, c(at)) for i, c in enumerate(self.constraints)]
        parts = values
        if any(v.ndim != 1 for v in values):
            with torch.enable_grad():
                parts = [v.reshape(-1) for v in values]
        cut = any(not c.requires_grad for c in parts) or (value is not None and not value.requires_grad)
        shapes = [tuple(v.shape) for v in values]
        return Raw(self, x, f, parts, leaves, value, shapes, cut, self._still_affine(x, parts))

    @cached_property
    def units(self) -> list[Tensor]:
        """The unit vectors, as batches of blocks."""
        n, space = self.space.dim, self.space
        eye = torch.eye(n, dtype=space.dtype, device=space.device)
        blocks = [eye] if self.single else eye.split(list(space.sizes), 1)
        return [b.reshape(n, *shape) for b, shape in zip(blocks, space.held, strict=True)]

    def _still_affine(self, x: Tensor, parts: list[Tensor]) -> dict[int, Affine]:
        """The affine constraints, without those whose values here are others."""
        affine = self.seen.affine
        if not affine or not parts:
            return {}
        at = x.detach().cpu().numpy()
        for i in [i for i, a in affine.items() if not a.explains(at, parts[i].detach().cpu().numpy(), self.space.eps)]:
            del affine[i]
        return dict(affine)


@dataclass(eq=False)
class Raw:
    """The values at x. `parts` is empty where f is not finite."""

    functions: Functions
    x: Tensor
    f: float
    parts: list[Tensor]
    leaves: list[Tensor]
    value: Tensor | None  # None where f is an objective
    shapes: list[tuple[int, ...]]  # of the constraints
    cut: bool = False  # whether a value has no graph
    affine: dict[int, Affine] = field(default_factory=dict)
    first: tuple[Tensor, Tensor] | None = None  # the gradient of f and the Jacobian, once they are there
    last: tuple[float, Tensor, Tensor] | None = None  # a weight of f, multipliers, and their Hessian

    @cached_property
    def c(self) -> Tensor:
        if not self.parts:
            return torch.zeros(0, dtype=torch.float64, device=_wide(self.x).device)
        return _wide(self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts))

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """c on the host."""
        return self.c.cpu().numpy()

    @property
    def g(self) -> Tensor:
        """The gradient of f ``(n,)``."""
        return self.first_derivatives()[0]

    @property
    def J(self) -> Tensor:
        """The Jacobian of c ``(m, n)``."""
        return self.first_derivatives()[1]

    def hessian(self, weight: float, y: Tensor) -> Tensor:
        """The Hessian of weight f + y'c ``(n, n)``; where the first derivatives are not there yet, with them."""
        if self.last is not None and self.last[0] == weight and torch.equal(self.last[1], y):
            return self.last[2]
        n, asked = len(self.x), self.first is None
        total, cotangents = self._lagrangian(weight, y, asked)
        if any(b.requires_grad for b in total):
            xs = [*self.leaves, *cotangents] if asked else self.leaves
            pulled = self._batches.pulled("columns", total, xs, self.functions.units)
            H = self._flat(pulled[: len(self.leaves)])
            if asked:
                self._take_first(pulled[len(self.leaves) :], weight)
        else:
            H = torch.zeros(n, n, dtype=torch.float64, device=_wide(self.x).device)
        f = self.functions.f
        if isinstance(f, Objective) and weight:
            eye = torch.eye(n, dtype=self.x.dtype, device=self.x.device)
            H = H + weight * _wide(hessian(f, self.x) @ eye)
        self.last = weight, y.clone(), H
        return H

    def bent(self, weight: float, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Products of the Hessian of weight f + y'c with columns ``(n, k)``."""
        f, total = self.functions.f, self._lagrangian(weight, y, False)[0]
        H = hessian(f, self.x) if isinstance(f, Objective) and weight else None
        curved = any(b.requires_grad for b in total)

        def product(V: Tensor) -> Tensor:
            V = V.to(self.x)
            out = torch.zeros(V.shape, dtype=torch.float64, device=_wide(V).device)
            if curved:
                units = [b.reshape(-1, *leaf.shape) for b, leaf in zip(self._blocks(V.T), self.leaves, strict=True)]
                out += self._flat(self._batches.pulled("columns", total, self.leaves, units)).T
            return out if H is None else out + weight * _wide(H @ V)

        return product

    # --- graphs ---------------------------------------------------------------------------------------------------

    @property
    def _batches(self) -> Batches:
        return self.functions.seen.batches

    def _curved(self) -> list[int]:
        """The numbers of the constraints that are not affine and have a graph."""
        return [i for i, p in enumerate(self.parts) if i not in self.affine and p.requires_grad and p.numel()]

    def _lagrangian(self, weight: float, y: Tensor, asked: bool) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient of weight f + y'c on its graph, and the weight and multipliers that it depends on, if asked."""
        outs, us = [], []
        if self.value is not None and weight and self.value.requires_grad:
            outs.append(self.value)
            us.append(torch.full_like(self.value, weight))
        curved = self._curved()
        rows = y.to(self.x.device, self.x.dtype) if curved else y
        rows = [rows] if len(self.parts) == 1 else rows.split([p.numel() for p in self.parts]) if curved else ()
        outs += [self.parts[i] for i in curved]
        us += [rows[i].clone() for i in curved]
        if asked:
            us = [u.requires_grad_() for u in us]
        if not outs:
            return [], []
        return self._graph(outs, us, f"{bool(weight)} {curved}"), us

    def _graph(self, functions: list[Tensor], cotangents: list[Tensor], what: str) -> list[Tensor]:
        """The gradient with its graph; that none of it is missing is looked at once, and not at every point."""
        proved = self.functions.seen.proved
        with self.functions.differentiating():
            if what not in proved:
                proved.add(what)
                return grads(functions, self.leaves, cotangents, create_graph=True)
            found = unchecked_grad(functions, self.leaves, cotangents, create_graph=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, self.leaves, strict=True)]

    # --- first derivatives ----------------------------------------------------------------------------------------

    def first_derivatives(self) -> tuple[Tensor, Tensor]:
        """The gradient of f ``(n,)`` and the Jacobian of c ``(m, n)``."""
        if self.first is None:
            self._look_for_affine()
            g = self._gradient() if self.value is None or not self.value.requires_grad else self._slope(self.value)
            self.first = g, self._rows(self._jacobians())
        return self.first

    def _look_for_affine(self) -> None:
        seen = self.functions.seen
        if seen.affine is None and self.parts:
            with self.functions.differentiating():
                seen.affine = affine_rows(self.parts, self.leaves, self.x, self._batches, self._flat)
            self.affine = dict(seen.affine)

    def _slope(self, value: Tensor) -> Tensor:
        found = unchecked_grad([value], self.leaves, [torch.ones_like(value)])
        blocks = [torch.zeros_like(x) if g is None else g for g, x in zip(found, self.leaves, strict=True)]
        return self._flat([strided(b).unsqueeze(0) for b in blocks])[0]

    def _gradient(self) -> Tensor:
        """Of an objective, or of a value without a graph."""
        f = self.functions.f
        if not isinstance(f, Objective):
            return torch.zeros_like(_wide(self.x))
        try:
            return _wide(f.gradient(self.x))
        except NonFinite:
            return torch.full_like(_wide(self.x), math.nan)

    def _take_first(self, pulled: list[Tensor], weight: float) -> None:
        """The first derivatives from columns of the gradient, pulled back to the weight of f and the multipliers."""
        with_f = self.value is not None and bool(weight) and self.value.requires_grad
        if self.value is not None and self.value.requires_grad and not with_f:
            return  # f is not in this Lagrangian
        g = _wide(pulled[0]) if with_f else self._gradient()
        columns = pulled[1:] if with_f else pulled
        self.first = g, self._rows({i: _wide(b).T for i, b in zip(self._curved(), columns, strict=True)})

    def _jacobians(self) -> dict[int, Tensor]:
        """The Jacobians of the curved constraints, by number."""
        curved, n = self._curved(), len(self.x)
        if not curved:
            return {}
        rows = [self.parts[i] for i in curved]
        sizes = [r.numel() for r in rows]
        m = sum(sizes)
        if n > COLUMNS and m <= n + 1:  # else the columns are one batch, of passes that the Hessian needs as well
            units = torch.eye(m, dtype=self.x.dtype, device=self.x.device).split(sizes, 1)
            J = self._flat(self._batches.pulled("rows", rows, self.leaves, units))
            return dict(zip(curved, J.split(sizes), strict=True))
        us = [torch.zeros_like(r).requires_grad_() for r in rows]
        pulled = self._graph(rows, us, f"rows {curved}")
        columns = self._batches.pulled("columns", pulled, us, self.functions.units)
        return {i: _wide(block).T for i, block in zip(curved, columns, strict=True)}

    def _rows(self, curved: Mapping[int, Tensor]) -> Tensor:
        """The Jacobian of all constraints, from those that are curved."""
        n, none = len(self.x), torch.zeros(0, len(self.x), dtype=torch.float64, device=_wide(self.x).device)
        blocks = []
        for i, p in enumerate(self.parts):
            known = curved.get(i)
            if known is None:
                known = self.affine[i].J if i in self.affine else none.new_zeros(p.numel(), n)
            blocks.append(known)
        return blocks[0] if len(blocks) == 1 else torch.cat([none, *blocks])

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _blocks(self, rows: Tensor) -> list[Tensor]:
        """Rows ``(k, n)`` as blocks ``(k, size)``."""
        return list(rows.split([leaf.numel() for leaf in self.leaves], 1)) if len(self.leaves) > 1 else [rows]

    def _flat(self, blocks: list[Tensor]) -> Tensor:
        """Batched blocks as rows ``(k, n)``."""
        flat = [b.reshape(len(b), -1) for b in blocks]
        return _wide(flat[0] if len(flat) == 1 else torch.cat(flat, 1))


def scalar(value: object) -> Tensor:
    """The value of f, seen to be a scalar tensor."""
    if not isinstance(value, Tensor) or value.ndim:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"minimize: f must return a scalar tensor, got {got}")
    return value


def row_values(i: int, value: object) -> Tensor:
    """The value of constraint i, seen to be a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"minimize: constraint {i} must return a tensor, got {type(value).__name__}")
    return value


def _wide(t: Tensor) -> Tensor:
    """In float64, on a device that has it."""
    t = t.detach()
    if t.dtype == torch.float64:
        return t
    return t.to("cpu" if t.device.type == "mps" else t.device, torch.float64)


def _objective_value(f: Objective, x: Tensor) -> float:
    try:
        return float(f.value(x))
    except NonFinite:
        return math.nan
