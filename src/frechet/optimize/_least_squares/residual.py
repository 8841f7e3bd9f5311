"""A residual with its derivatives: what least squares evaluates, counted, in the form that the algorithms use.

The algorithms for dense Jacobians work on the host in float64 with vectors of n entries: x, gradients, steps. A point
is rounded to the dtype of the parameters before it is evaluated, and stays so. r and J are kept on their device in
float64.

The Jacobian ``(m, n)`` comes, by what `jacobian` says, from

    columns     J = d(J'u)/du, all n columns in one backward pass over the graph of J'u (second derivatives of torch);
                the function itself runs as plain Python: branches and assignments into tensors are no obstacle
    rows        m backward passes in one: where n > m, or where an operation has no second derivative
    2-point     differences, one or two evaluations of the residual for each column; never outside of the bounds
    3-point
    a function  which returns the matrix, a dict of blocks (m, *shape), or a LinearOperator

**Source** of the columns: J. Townsend (2017), A new trick for calculating Jacobian vector products. **Cost** of
columns: about 3 evaluations of the residual and n times the memory of one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions
from frechet.objective._kernels import refuse_once_differentiable
from frechet.objective._torch_internals import unchecked_batched_grad, unchecked_grad
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._function import FunctionJacobian
from frechet.operators.derivatives._products import grads, second_order
from frechet.optimize._least_squares.robust import robust_cost, row_scales
from frechet.space import Space, Variables, euclidean

Differences = Literal["2-point", "3-point"]
Route = Literal["columns", "rows", "2-point", "3-point", "function"]
Parameters = Tensor | Mapping[str, Tensor]

SLIM, LARGE = 2, 1 << 14  # sides and entries of a matrix from which on QR before singular values saves time
MOST_CURVED = 512  # parameters with second derivatives
WITHOUT_GRAPH = (
    "least_squares: residual must depend on x through torch operations, got a result without a graph; give "
    "jacobian='3-point' for differences, or a function"
)


@dataclass
class Ledger:
    """What has been spent; the one thing here that changes."""

    residuals: int = 0
    jacobians: int = 0
    products: int = 0
    batched: bool = True  # whether the backward passes of this function can be batched
    constant: bool = False  # whether the last residual had no graph


@dataclass(frozen=True, eq=False)
class Point:
    """The residual at x. `x` ``(n,)`` lies on the host, both are float64; `cost` is r'r / 2 or robust."""

    x: Tensor
    r: Tensor
    cost: float


@dataclass(frozen=True, eq=False)
class Linearization:
    """r and J at a point, with the rows of a robust loss scaled; gradient and column norms ``(n,)`` on the host."""

    point: Point
    r: Tensor
    J: Tensor
    rows: Tensor | None  # the scales of the rows of J, of a robust loss
    gradient: Tensor
    columns: Tensor
    noise: float  # of r: rounding error of an evaluation, as a norm
    factors: dict[bytes, Any] = field(default_factory=dict)  # of J, small ones, by scale and free columns

    @property
    def x(self) -> Tensor:
        return self.point.x

    @property
    def cost(self) -> float:
        return self.point.cost

    @cached_property
    def triangle(self) -> tuple[Tensor, Tensor] | None:
        """Q ``(m, n)`` and R of J where it is large and tall: all factors at this point begin with them."""
        m, n = self.J.shape
        if m < SLIM * n or m * n < LARGE:
            return None
        Q, R = torch.linalg.qr(self.J)
        return Q, R

    @cached_property
    def size(self) -> float:
        """norm(r)."""
        return length(self.r)


def length(v: Tensor) -> float:
    """The Euclidean norm of a small vector in float64."""
    largest = float(v.abs().max()) if v.numel() else 0.0
    if not 0 < largest < math.inf:
        return largest
    return largest * math.sqrt(float((v / largest).square().sum()))  # squares of 1e200 would overflow


@dataclass(frozen=True, eq=False)
class Residual:
    """A function of parameters in `space`, bounded by `lower` and `upper` ``(n,)`` on the host."""

    function: Callable[..., object]
    space: Space
    single: bool
    lower: Tensor
    upper: Tensor
    typical: Tensor  # sizes of the parameters, for differences
    rho: Callable[[Tensor], Tensor] | None = None
    rho_scale: float = 1.0
    jacobian: Callable[..., object] | None = None
    route: Route = "columns"
    eps: float = 0.0  # unit roundoff of the coarser of x and r
    unit: float = 1.0  # of r: a power of two, where squares would overflow or vanish
    ledger: Ledger = field(default_factory=Ledger)
    mode: Functions = field(default_factory=lambda: Functions(nested=True))  # made once, entered many times

    @property
    def square(self) -> float:
        """The unit of the cost."""
        return min(self.unit * self.unit, sys.float_info.max)

    def rounded(self, x: Tensor) -> Tensor:
        """`x` as the parameters' dtype holds it, inside the bounds."""
        if self.space.dtype != torch.float64:
            x = x.to(self.space.dtype).double()
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def structured(self, x: Tensor) -> Parameters:
        """`x` ``(n,)`` as the tensor or dict that the user's functions take."""
        return self._arguments(x.to(self.space.device, self.space.dtype))

    def _arguments(self, v: Tensor) -> Parameters:
        return v.view(self.space.held[0]) if self.single else self._variables.unflatten(v)

    @cached_property
    def open(self) -> bool:
        """Whether no parameter has a bound."""
        return bool((self.lower == -math.inf).all() and (self.upper == math.inf).all())

    @property
    def _variables(self) -> Variables:
        return Variables(self.space, self.single)

    def flat(self, y: object) -> Tensor:
        """What the function returned as a vector ``(m,)``, on its graph."""
        if isinstance(y, np.ndarray | float | int | list):
            y = torch.as_tensor(np.asarray(y, dtype=np.float64))
        blocks = [y] if isinstance(y, Tensor) else list(y.values()) if isinstance(y, Mapping) else [None]
        parts = []
        for block in blocks:
            if not isinstance(block, Tensor):
                raise TypeError(
                    f"least_squares: residual must return a tensor or a dict of tensors, got {type(y).__name__}"
                )
            if block.is_complex():
                raise TypeError(
                    "least_squares: residual must be real, got a complex tensor; return torch.view_as_real(r)"
                )
            parts.append(block.reshape(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def values(self, x: Tensor) -> Tensor:
        """r(x) ``(m,)`` in float64 and its unit."""
        self.ledger.residuals += 1
        with torch.no_grad():
            r = doubled(self.flat(self.function(self.structured(x))))
            return r if self.unit == 1 else r / self.unit

    def cost(self, r: Tensor) -> float:
        if self.rho is not None:
            return robust_cost(self.rho, r, self.rho_scale)
        return 0.5 * float(r.square().sum())

    def at(self, x: Tensor) -> Point | None:
        """The residual at `x` rounded into the box; None where it is not finite."""
        x = self.rounded(x)
        r = self.values(x)
        cost = self.cost(r)
        return Point(x, r, cost) if math.isfinite(cost) else None

    def linearized(self, point: Point) -> Linearization | None:
        """r and J at `point`; None where J is not finite."""
        self.ledger.jacobians += 1
        J = doubled(self._matrix(point))
        if J.shape != (point.r.numel(), self.space.dim):
            wanted = (point.r.numel(), self.space.dim)
            raise ValueError(f"least_squares: jacobian must have shape {wanted}, got {tuple(J.shape)}")
        if not bool(J.isfinite().all()):
            return None
        r, rows = point.r, None
        if self.rho is not None:
            factors, rows = row_scales(self.rho, r, self.rho_scale)
            r, J = factors * r, rows[:, None] * J
        # a sum of terms of size |J_ij x_j| is rounded by eps times their sum, whatever is left after cancellation
        terms = J.abs() @ point.x.abs().to(J.device)
        noise = self.eps * (length(terms) + length(r))
        gradient = (J.T @ r).cpu()
        return Linearization(point, r, J, rows, gradient, column_norms(J), noise)

    def curvature(self, linear: Linearization) -> Tensor | None:
        """S ``(n, n)``, the Hessian of the cost less J'J of the weighted rows, on the host.

        None without autodiff, and beyond `MOST_CURVED` parameters: it takes a backward pass for each.
        """
        if self.route not in ("columns", "rows") or len(linear.x) > MOST_CURVED:
            return None
        self.ledger.jacobians += 1
        try:
            with second_order("least_squares", self.space.device), torch.enable_grad():
                S = self._second_derivatives(linear)
        except NotDifferentiable:  # rows need first derivatives only
            return None
        if S is None:
            return None
        if self.rho is not None:
            S = S - (linear.J.T @ linear.J).cpu()
        return (S + S.T) / 2 if bool(S.isfinite().all()) else None

    def _second_derivatives(self, linear: Linearization) -> Tensor | None:
        """The Hessian of the robust cost, or of r'r(x) / 2 with the first r held, by backward passes."""
        leaf, r = self._graph(linear.point)
        if not r.requires_grad:
            return None
        if self.rho is None:
            u = linear.r.to(r.device, r.dtype)
            gradient = grads(r, [leaf], [u], create_graph=True)[0]
        else:
            cost = 0.5 * self.rho_scale**2 * self.rho((r / self.rho_scale) ** 2).sum()
            gradient = grads(cost, [leaf], None, create_graph=True)[0]
        if not gradient.requires_grad:  # a linear residual
            return torch.zeros(len(leaf), len(leaf), dtype=torch.float64)
        return doubled(self._backward(gradient, leaf)).cpu()

    def _graph(self, point: Point) -> tuple[Tensor, Tensor]:
        """x as a leaf, and r on its graph."""
        leaf = point.x.to(self.space.device, self.space.dtype, copy=True).requires_grad_()
        r = self.flat(self.function(self._arguments(leaf)))
        self.ledger.constant = not r.requires_grad
        return leaf, r if self.unit == 1 else r / self.unit

    def operator(self, point: Point) -> LinearOperator:
        """J at `point` by its products."""
        if self.jacobian is not None:
            J = self.jacobian(self.structured(point.x))
            if not isinstance(J, LinearOperator):
                raise TypeError(
                    "least_squares: jacobian must return a LinearOperator where products are asked for, got "
                    f"{type(J).__name__}; wrap a matrix with from_matrix"
                )
            return J if self.unit == 1 else J * (1 / self.unit)
        blocks = self.space.split(point.x.to(self.space.device, self.space.dtype))
        image = euclidean(point.r.numel(), self.space.dtype, self.space.device)
        return FunctionJacobian(self._vector, self._variables, blocks, "reverse", image)

    def gives_operator(self, x: Tensor) -> bool:
        """Whether the caller's function returns the Jacobian as an operator, and not as a matrix."""
        assert self.jacobian is not None  # by construction
        self.ledger.jacobians += 1
        return isinstance(self.jacobian(self.structured(x)), LinearOperator)

    def _vector(self, x: Parameters) -> Tensor:
        return self.flat(self.function(x)) / self.unit

    # --- matrices -------------------------------------------------------------------------------------------------

    def _matrix(self, point: Point) -> Tensor:
        m, n = point.r.numel(), self.space.dim
        if self.route == "function":
            assert self.jacobian is not None  # by construction
            return self._given(self.jacobian(self.structured(point.x))) / self.unit
        if not n:
            return torch.zeros(m, 0, dtype=torch.float64, device=point.r.device)
        if self.route in ("2-point", "3-point"):
            return self._differences(point)
        with second_order("least_squares", self.space.device, self.mode), torch.enable_grad():
            leaf, r = self._graph(point)
            if not r.requires_grad:  # constant on this branch
                return torch.zeros(m, n, dtype=torch.float64, device=r.device)
            if self.route == "rows":
                return self._backward(r, leaf)
            refuse_once_differentiable([r])
            u = torch.zeros_like(r).requires_grad_()
            (transposed,) = unchecked_grad([r], [leaf], [u], create_graph=True)
            if transposed is None:  # r has a graph, of other tensors alone
                raise NotDifferentiable(WITHOUT_GRAPH)
            if not transposed.requires_grad:
                return torch.zeros(m, n, dtype=torch.float64, device=r.device)
            return self._backward(transposed, u).T

    def _backward(self, y: Tensor, x: Tensor) -> Tensor:
        """dy/dx as a matrix, all rows in one batched pass where the operations allow one."""
        cotangents = torch.eye(y.numel(), dtype=y.dtype, device=y.device)
        if self.ledger.batched:
            try:
                (found,) = unchecked_batched_grad([y], [x], [cotangents])
                return torch.zeros(y.numel(), x.numel(), dtype=x.dtype, device=x.device) if found is None else found
            except RuntimeError:  # an operation that has no rule for batches
                self.ledger.batched = False
        rows = [unchecked_grad([y], [x], [u])[0] for u in cotangents]
        return torch.stack([torch.zeros_like(x) if row is None else row for row in rows])

    def _given(self, J: object) -> Tensor:
        if isinstance(J, LinearOperator):
            return J.dense()
        if isinstance(J, np.ndarray):
            return torch.as_tensor(J)
        if isinstance(J, Mapping):
            return torch.cat(
                [J[name].reshape(-1, size) for name, size in zip(self.space.names, self.space.sizes, strict=True)], 1
            )
        if not isinstance(J, Tensor):
            raise TypeError(
                f"least_squares: jacobian must return a matrix, a dict of blocks or an operator, got {type(J).__name__}"
            )
        return J.reshape(-1, self.space.dim)

    def _differences(self, point: Point) -> Tensor:
        x, eps, columns = point.x, self.eps, []
        central = self.route == "3-point"
        for j, (value, size) in enumerate(zip(x.tolist(), self.typical.tolist(), strict=True)):
            h = eps ** (1 / 3 if central else 1 / 2) * max(abs(value), size)
            below, above = value - float(self.lower[j]), float(self.upper[j]) - value
            if central and min(below, above) >= h:
                columns.append(self._secant(point, j, (h, -h), (0.5, -0.5)))
            elif central:  # one-sided, of second order
                side = min(h, max(below, above) / 2) * (1 if above >= below else -1)
                columns.append(self._secant(point, j, (side, 2 * side), (2.0, -0.5)))
            else:
                side = min(h, max(below, above)) * (1 if above >= below or above >= h else -1)
                columns.append(self._secant(point, j, (side,), (1.0,)))
        return torch.stack(columns, 1)

    def _secant(self, point: Point, j: int, shifts: tuple[float, ...], weights: tuple[float, ...]) -> Tensor:
        """sum_i weights_i (r(x + shifts_i e_j) - r(x)) / shifts_0, with shifts as the dtype holds them."""
        total, unit = torch.zeros_like(point.r), 0.0
        for shift, weight in zip(shifts, weights, strict=True):
            y = point.x.clone()
            y[j] += shift
            y = self.rounded(y)
            moved = float(y[j] - point.x[j])
            unit = unit or moved
            if moved == 0:
                return total  # a box without width
            total = total + weight * (self.values(y) - point.r)
        return total / unit


def column_norms(J: Tensor) -> Tensor:
    """The norms ``(n,)`` of the columns, on the host, also where squares of entries are no numbers."""
    largest = J.abs().amax(0) if J.shape[0] else J.new_zeros(J.shape[1])
    unit = torch.where(largest > 0, largest, 1.0)
    return (unit * (J / unit).square().sum(0).sqrt()).cpu()


def doubled(t: Tensor) -> Tensor:
    """`t` in float64, on the host where the device has no float64."""
    return t.detach().cpu().double() if t.device.type == "mps" else t.detach().double()
