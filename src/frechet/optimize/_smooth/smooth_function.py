"""A function to minimize: its value, its gradient and products with its Hessian at flat points, counted.

A trial costs one evaluation. The graph of that evaluation is kept, so that an accepted trial gets its gradient by one
backward pass and its Hessian products by one more each, from the graph of the gradient. For an `Objective` each of the
three is a pass over the data. The graphs are freed with the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.operators._metric import Metric
from frechet.operators._operator import SYMMETRIC, Fact, LinearOperator
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import columns, grads, second_order
from frechet.optimize._counts import Counts
from frechet.space import Space, Variables

Parameters = Tensor | Mapping[str, Tensor]
Curvature = Callable[..., LinearOperator]


@dataclass(frozen=True, eq=False)
class Trial:
    """f at x ``(n,)``; the value may be infinite or NaN. `leaves` and `output` hold the graph."""

    x: Tensor
    value: float
    leaves: list[Tensor]
    output: Tensor | None


@dataclass(frozen=True, eq=False)
class Point:
    """f and its gradient ``(n,)`` at x, both finite. `leaves` and `slopes` hold the graph of the gradient."""

    x: Tensor
    value: float
    gradient: Tensor
    leaves: list[Tensor]
    slopes: list[Tensor]
    metric: Metric | None = None

    @property
    def largest(self) -> float:
        """The size of the gradient."""
        return self.sized(self.gradient)

    def sized(self, gradient: Tensor) -> float:
        """The largest entry of a gradient; its dual norm in a metric, where entries depend on the grid."""
        if self.metric is not None:
            return float(self.metric.dual_norm(gradient))
        return float(gradient.abs().max()) if gradient.numel() else 0.0

    @property
    def measure(self) -> str:
        """What `largest` is."""
        return "largest entry of the gradient" if self.metric is None else "dual norm of the gradient"


@dataclass(frozen=True, eq=False)
class SmoothFunction:
    """f on the flat vectors of `space`; `curvature` is what the caller gave in place of the Hessian."""

    f: Callable[..., Tensor] | Objective
    space: Space
    single: bool
    curvature: Curvature | None
    counts: Counts
    unit: float = 1.0  # of f: a power of two, where squares of its gradient would overflow or vanish
    metric: Metric | None = None  # of x, where the size of a gradient is its dual norm

    def structured(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """A flat point in the form of x0."""
        return x if self.single and isinstance(self.f, Objective) else self._variables.unflatten(x)

    @property
    def _variables(self) -> Variables:
        return Variables(self.space, self.single)

    def at(self, x: Tensor) -> Trial:
        """f at x."""
        self.counts.evaluations += 1
        if isinstance(self.f, Objective):
            try:
                return Trial(x, float(self.f.value(x)) / self.unit, [], None)
            except NonFinite:
                return Trial(x, math.nan, [], None)
        with second_order("minimize", self.space.device), torch.enable_grad():
            leaves, argument = self._variables.leaves(self.space.split(x))
            value = self.f(argument)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"minimize: f must return a scalar tensor, got {got}; reduce it, for example with .sum()")
        if self.unit != 1:
            with torch.enable_grad():
                value = value / self.unit
        return Trial(x, float(value.detach()), leaves, value)

    def differentiated(self, trial: Trial) -> Point | None:
        """The trial with its gradient; None where that, or f, is not finite."""
        if not math.isfinite(trial.value):
            return None
        self.counts.gradients += 1
        slopes: list[Tensor] = []
        if isinstance(self.f, Objective):
            try:
                gradient = self.f.gradient(trial.x) / self.unit
            except NonFinite:
                return None
        else:
            assert trial.output is not None  # only of objectives there is no graph
            with second_order("minimize", self.space.device), torch.enable_grad():
                slopes = grads(trial.output, trial.leaves, None, create_graph=self.curvature is None)
            gradient = self.space.join([s.detach() for s in slopes])
        if not self.space.finite(gradient):
            return None
        return Point(trial.x, trial.value, gradient, trial.leaves, slopes, self.metric)

    def hessian(self, point: Point) -> LinearOperator:
        """What bends the model at a point, its products counted."""
        if self.curvature is not None:
            return Counted(self._in_units(self._given(point.x)), self.space, self.counts)
        if isinstance(self.f, Objective):
            return Counted(self._in_units(hessian(self.f, point.x)), self.space, self.counts)
        return Counted(_GradientGraph(self.space, point.leaves, point.slopes), self.space, self.counts)

    def _in_units(self, H: LinearOperator) -> LinearOperator:
        return H if self.unit == 1 else H * (1 / self.unit)

    def _given(self, x: Tensor) -> LinearOperator:
        assert self.curvature is not None
        H = self.curvature(self.structured(x.clone()))
        if not isinstance(H, LinearOperator):
            raise TypeError(
                f"minimize: hessian must return a LinearOperator, got {type(H).__name__}; wrap a matrix "
                "with from_matrix"
            )
        n = self.space.dim
        if H.shape != (n, n) or H.domain.dtype != self.space.dtype:
            raise ValueError(f"minimize: hessian must return an operator on {self.space!r}, got {H!r}")
        if Fact.SYMMETRIC not in H.facts:
            raise ValueError(
                f"minimize: hessian must return a symmetric operator, got {H!r} without that fact; declare "
                "facts='symmetric' where it is made"
            )
        return H


@dataclass(frozen=True, eq=False, repr=False)
class Counted(LinearOperator):
    """An operator whose products are counted."""

    operator: LinearOperator
    domain: Space
    counts: Counts

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    def _matmat(self, V: Tensor) -> Tensor:
        self.counts.products += V.shape[1]
        return self.operator._matmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


@dataclass(frozen=True, eq=False, repr=False)
class _GradientGraph(LinearOperator):
    """The Hessian from the graph of a gradient."""

    domain: Space
    leaves: list[Tensor]
    slopes: list[Tensor]

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return SYMMETRIC

    def _matmat(self, V: Tensor) -> Tensor:
        with second_order("minimize", self.domain.device), torch.enable_grad():
            rows = [
                self.domain.join(grads(self.slopes, self.leaves, v, retain_graph=True)) for v in columns(self.domain, V)
            ]
        return torch.stack(rows).detach().T

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)
