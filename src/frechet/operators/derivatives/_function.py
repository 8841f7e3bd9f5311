"""The Jacobian and the Hessian of a function at a point, as operators.

The point is a tensor of any shape (one block named "") or a dict of tensors; it is copied when the operator is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.errors import NonFinite, NotDifferentiable
from frechet.objective._functions import Functions
from frechet.objective._kernels import ordinary, ordinary_mode
from frechet.objective._torch_internals import in_dispatch_mode, nodes_of
from frechet.operators._operator import NONE, SYMMETRIC, Fact, LinearOperator, SymmetricOperator
from frechet.operators.derivatives._custom_functions import (
    refuse_changed,
    refuse_forgotten,
    refuse_nonadjoint,
    refuse_nonlinear,
    users_nodes,
)
from frechet.operators.derivatives._graphs import beside, refuse_cut
from frechet.operators.derivatives._modes import Route, refuse_padded_embedding
from frechet.operators.derivatives._products import columns, dual_numbers, grads, second_order
from frechet.space import Point, Space, Variables, named


def frozen_point(what: str, x: Point) -> tuple[Variables, list[Tensor]]:
    """The variables of a function of `x`, and a copy of the blocks of `x`."""
    if not isinstance(x, Tensor | Mapping):
        raise TypeError(f"{what}: x must be a tensor or a dict of tensors, got {type(x).__name__}")
    for name, b in named(x).items():
        if isinstance(b, Tensor) and b.requires_grad:
            where = "" if isinstance(x, Tensor) else f" (block '{name}')"
            raise ValueError(
                f"{what}: x must not require grad{where}: an operator carries no graph, so it would be a constant in a "
                f"loss; use {what}_product(f, x, v), which autograd sees through, or pass x.detach()"
            )
    variables = Variables.of(x)
    with ordinary_mode(variables.space.device):
        return variables, [b.detach().clone() for b in named(x).values()]


def _nested() -> Functions:
    """How a function runs of which nothing is known: it may take derivatives itself."""
    return Functions(nested=True)


def _outputs(y: object) -> dict[str, Tensor]:
    if isinstance(y, Tensor):
        return {"": y}
    if isinstance(y, Mapping) and all(isinstance(t, Tensor) for t in y.values()):
        return dict(y)
    raise TypeError(f"jacobian: f must return a tensor or a dict of tensors, got {type(y).__name__}")


@dataclass(frozen=True, eq=False, repr=False)
class FunctionHessian(SymmetricOperator):
    """The Hessian of a scalar function."""

    f: Callable[..., Tensor]
    variables: Variables
    x: list[Tensor]  # its blocks
    route: Route
    functions: Functions = field(default_factory=_nested)

    @property
    def domain(self) -> Space:
        return self.variables.space

    @property
    def facts(self) -> frozenset[Fact]:
        return SYMMETRIC

    def _value(self, x: Point) -> Tensor:
        value = self.functions.evaluate(lambda: self.f(x))
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"hessian: f must return a scalar tensor, got {got}; for more outputs use jacobian(f, x)")
        return value

    def _matmat(self, V: Tensor) -> Tensor:
        space = self.domain
        with second_order("hessian", space.device, self.functions), torch.enable_grad():
            (xs, point), vectors = self.variables.leaves(self.x), columns(space, V)
            if self.route == "forward":
                rows = [space.join(self._gradient_tangent(xs, v)) for v in vectors]
            else:
                value = self._value(point)
                self._refuse_cut(value)
                gradient = grads(value, xs, None, create_graph=True)
                if users_nodes(nodes_of([value])):
                    refuse_forgotten(lambda point: self._value(self.variables.structured(point)), xs)
                last = len(vectors) - 1
                rows = [space.join(grads(gradient, xs, v, retain_graph=i < last)) for i, v in enumerate(vectors)]
            self._prove()
        return finite("hessian", torch.stack(rows).detach(), V).T

    def _prove(self) -> None:
        """Once, where f has backward hooks: its products are derivatives of its gradient."""
        if self.functions.symmetric or in_dispatch_mode():
            return
        self.functions.symmetric = True
        if self.functions.hooked:
            space = self.domain
            refuse_changed(space, space.join(self.x), lambda v: self._matmat(v[:, None])[:, 0], self._gradient)

    def _refuse_cut(self, value: Tensor) -> None:
        if not value.requires_grad:
            refuse_cut("hessian", "f", value, self._value(self.variables.structured(beside(self.x))))

    def _gradient(self, x: Tensor) -> Tensor:
        xs, point = self.variables.leaves(self.domain.split(x))
        return self.domain.join(grads(self._value(point), xs, None))

    def _gradient_tangent(self, xs: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """The derivative of the gradient along v, by dual numbers."""
        with dual_numbers():
            # with create_graph torch takes backward formulas that have a forward mode (silu, mish)
            value = self._value(self.variables.structured(_duals(xs, v)))
            refuse_padded_embedding(value, "hessian")
            self._refuse_cut(value)
            gradient = grads(value, xs, None, create_graph=True)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradient]
            return [torch.zeros_like(g) if t is None else t for g, t in zip(gradient, tangents, strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class FunctionJacobian(LinearOperator):
    """The Jacobian of a function to a tensor or a dict of tensors."""

    f: Callable[..., object]
    variables: Variables
    x: list[Tensor]  # its blocks
    route: Route
    codomain: Space
    functions: Functions = field(default_factory=_nested)

    @property
    def domain(self) -> Space:
        return self.variables.space

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _flat(self, x: Point) -> Tensor:
        return self.codomain.join(_outputs(self.functions.evaluate(lambda: self.f(x))).values())

    def _matmat(self, V: Tensor) -> Tensor:
        with second_order("jacobian", self.domain.device, self.functions), torch.enable_grad():
            (xs, point), vectors = self.variables.leaves(self.x), columns(self.domain, V)
            if self.route == "forward":
                rows = [self._tangent(v) for v in vectors]
            else:
                y = self._flat(point)
                self._refuse_cut(y)
                u = torch.zeros_like(y).requires_grad_()
                transposed = grads(y, xs, [u], create_graph=True)
                self._prove_adjoint(y, xs, u, transposed)
                rows = [grads(transposed, [u], v, retain_graph=True)[0] for v in vectors]
            if self.route == "forward" and self.functions.hooked:
                raise NotDifferentiable(
                    "jacobian: f registers backward hooks, which forward mode does not see; use route='reverse'"
                )
        return torch.stack(rows).detach().T

    def _tangent(self, v: list[Tensor]) -> Tensor:
        """J v by dual numbers."""
        with torch.no_grad(), dual_numbers():
            y, tangent = forward_ad.unpack_dual(self._flat(self.variables.structured(_duals(self.x, v))))
            if tangent is not None:
                return tangent
        self._refuse_cut(y)
        return torch.zeros_like(y)

    def _refuse_cut(self, y: Tensor) -> None:
        if not y.requires_grad:
            refuse_cut("jacobian", "f", y, self._flat(self.variables.structured(beside(self.x))))

    def _prove_adjoint(self, y: Tensor, xs: list[Tensor], u: Tensor, transposed: list[Tensor]) -> None:
        """Once, where f has hooks or functions with a backward of its own: J v is the adjoint of J'u."""
        if self.functions.adjoint or in_dispatch_mode():
            return
        if self.functions.hooked or users_nodes(nodes_of([y])):
            refuse_nonadjoint("jacobian", y, xs, u, transposed)
        self.functions.adjoint = True

    def _rmatmat(self, U: Tensor) -> Tensor:
        space = self.domain
        with second_order("jacobian", space.device, self.functions), torch.enable_grad():
            xs, point = self.variables.leaves(self.x)
            y, last = self._flat(point), U.shape[1] - 1
            self._refuse_cut(y)
            if not (self.functions.adjoint or self.functions.linear or in_dispatch_mode()):
                if y.requires_grad and (self.functions.hooked or users_nodes(nodes_of([y]))):
                    refuse_nonlinear("jacobian", y, xs)
                self.functions.linear = True
            rows = [space.join(grads(y, xs, [u], retain_graph=i < last)) for i, u in enumerate(ordinary(U).T)]
        return torch.stack(rows).T


def finite(what: str, product: Tensor, vectors: Tensor) -> Tensor:
    """`product`; raises where it holds a NaN or an infinity though the vectors do not."""
    if in_dispatch_mode():  # a recorded product is looked at by whoever plays it back
        return product
    if not bool(torch.isfinite(product).all()) and bool(torch.isfinite(vectors).all()):
        raise NonFinite(
            f"{what}: the product with a finite vector holds NaN or infinity, so f has no such derivative in this "
            "arithmetic at x (a norm or a square root at 0, an overflow); write it by functions that are smooth there, "
            "such as sums of squares"
        )
    return product


def _duals(x: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    return [forward_ad.make_dual(b, t) for b, t in zip(x, v, strict=True)]


def function_jacobian(f: Callable[..., object], x: Point, route: Route | None) -> FunctionJacobian:
    """The Jacobian operator of `f` at `x`; one evaluation of `f` finds the codomain."""
    variables, blocks = frozen_point("jacobian", x)
    if route not in (None, "reverse", "forward"):
        raise ValueError(f"jacobian: route must be 'reverse' or 'forward', got {route!r}")
    forward = route == "forward"  # what it cannot do is seen in the graph
    functions = _nested()
    with torch.set_grad_enabled(forward), second_order("jacobian", variables.space.device, functions):
        point = variables.leaves(blocks)[1] if forward else variables.structured(blocks)
        outputs = _outputs(functions.evaluate(lambda: f(point)))
        for y in outputs.values():
            refuse_padded_embedding(y, "jacobian")
        codomain = Space.of({n: y.detach() for n, y in outputs.items()})
    return FunctionJacobian(f, variables, blocks, route or "reverse", codomain, functions)
