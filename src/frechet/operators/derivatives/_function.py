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
from frechet.operators._operator import NONE, SYMMETRIC, Fact, LinearOperator
from frechet.operators.derivatives._custom_functions import (
    refuse_changed,
    refuse_forgotten,
    refuse_nonadjoint,
    refuse_nonlinear,
    users_nodes,
)
from frechet.operators.derivatives._modes import Route, refuse_padded_embedding
from frechet.operators.derivatives._products import columns, dual_numbers, grads, second_order
from frechet.space import Space


def frozen_point(what: str, x: Tensor | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """A copy of `x` as a dict of blocks, and whether it was a single tensor."""
    single = isinstance(x, Tensor)
    if not single and not isinstance(x, Mapping):
        raise TypeError(f"{what}: x must be a tensor or a dict of tensors, got {type(x).__name__}")
    blocks = {"": x} if isinstance(x, Tensor) else dict(x)
    for name, b in blocks.items():
        if isinstance(b, Tensor) and b.requires_grad:
            where = "" if single else f" (block '{name}')"
            raise ValueError(
                f"{what}: x must not require grad{where}: an operator carries no graph, so it would be a constant in a "
                f"loss; use {what}_product(f, x, v), which autograd sees through, or pass x.detach()"
            )
    with ordinary_mode(Space.of(blocks).device):
        return {name: b.detach().clone() for name, b in blocks.items()}, single


def _call(f: Callable[..., object], blocks: Mapping[str, Tensor], single: bool, functions: Functions) -> object:
    return functions.evaluate(lambda: f(blocks[""] if single else dict(blocks)))


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
class FunctionHessian(LinearOperator):
    """The Hessian of a scalar function."""

    f: Callable[..., Tensor]
    x: dict[str, Tensor]
    single: bool
    route: Route
    functions: Functions = field(default_factory=_nested)

    @property
    def domain(self) -> Space:
        return Space.of(self.x)

    @property
    def codomain(self) -> Space:
        return self.domain

    @property
    def facts(self) -> frozenset[Fact]:
        return SYMMETRIC

    def _value(self, blocks: Mapping[str, Tensor]) -> Tensor:
        value = _call(self.f, blocks, self.single, self.functions)
        if not isinstance(value, Tensor) or value.ndim:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"hessian: f must return a scalar tensor, got {got}; for more outputs use jacobian(f, x)")
        return value

    def _matmat(self, V: Tensor) -> Tensor:
        space = self.domain
        with second_order("hessian", space.device, self.functions), torch.enable_grad():
            leaves, vectors = _leaves(self.x), columns(space, V)
            xs = list(leaves.values())
            if self.route == "forward":
                rows = [space.join(_gradient_tangent(self._value, leaves, v)) for v in vectors]
            else:
                value = self._value(leaves)
                gradient = grads(value, xs, None, create_graph=True)
                if users_nodes(nodes_of([value])):
                    refuse_forgotten(lambda point: self._value(dict(zip(leaves, point, strict=True))), xs)
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
            refuse_changed(space, space.flatten(self.x), lambda v: self._matmat(v[:, None])[:, 0], self._gradient)

    def _gradient(self, x: Tensor) -> Tensor:
        leaves = _leaves(self.domain.unflatten(x))
        return self.domain.join(grads(self._value(leaves), list(leaves.values()), None))

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._matmat(U)


@dataclass(frozen=True, eq=False, repr=False)
class FunctionJacobian(LinearOperator):
    """The Jacobian of a function to a tensor or a dict of tensors."""

    f: Callable[..., object]
    x: dict[str, Tensor]
    single: bool
    route: Route
    codomain: Space
    functions: Functions = field(default_factory=_nested)

    @property
    def domain(self) -> Space:
        return Space.of(self.x)

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _flat(self, blocks: Mapping[str, Tensor]) -> Tensor:
        return self.codomain.join(_outputs(_call(self.f, blocks, self.single, self.functions)).values())

    def _matmat(self, V: Tensor) -> Tensor:
        with second_order("jacobian", self.domain.device, self.functions), torch.enable_grad():
            leaves, vectors = _leaves(self.x), columns(self.domain, V)
            if self.route == "forward":
                rows = [_tangent(self._flat, self.x, v) for v in vectors]
            else:
                y = self._flat(leaves)
                u = torch.zeros_like(y).requires_grad_()
                transposed = grads(y, list(leaves.values()), [u], create_graph=True)
                self._prove_adjoint(y, list(leaves.values()), u, transposed)
                rows = [grads(transposed, [u], v, retain_graph=True)[0] for v in vectors]
            if self.route == "forward" and self.functions.hooked:
                raise NotDifferentiable(
                    "jacobian: f registers backward hooks, which forward mode does not see; use route='reverse'"
                )
        return torch.stack(rows).detach().T

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
            leaves = _leaves(self.x)
            xs, y, last = list(leaves.values()), self._flat(leaves), U.shape[1] - 1
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


def _leaves(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: b.detach().requires_grad_() for name, b in x.items()}


def _duals(x: Mapping[str, Tensor], v: list[Tensor]) -> dict[str, Tensor]:
    return {name: forward_ad.make_dual(b, t) for (name, b), t in zip(x.items(), v, strict=True)}


def _tangent(f: Callable[[Mapping[str, Tensor]], Tensor], x: Mapping[str, Tensor], v: list[Tensor]) -> Tensor:
    with torch.no_grad(), dual_numbers():
        y, tangent = forward_ad.unpack_dual(f(_duals(x, v)))
        return torch.zeros_like(y) if tangent is None else tangent


def _gradient_tangent(
    f: Callable[[Mapping[str, Tensor]], Tensor], leaves: Mapping[str, Tensor], v: list[Tensor]
) -> list[Tensor]:
    with dual_numbers():
        # with create_graph torch takes backward formulas that have a forward mode (silu, mish)
        value = f(_duals(leaves, v))
        refuse_padded_embedding(value, "hessian")
        gradient = grads(value, list(leaves.values()), None, create_graph=True)
        tangents = [forward_ad.unpack_dual(g).tangent for g in gradient]
        return [torch.zeros_like(g) if t is None else t for g, t in zip(gradient, tangents, strict=True)]


def function_jacobian(
    f: Callable[..., object], x: Tensor | Mapping[str, Tensor], route: Route | None
) -> FunctionJacobian:
    """The Jacobian operator of `f` at `x`; one evaluation of `f` finds the codomain."""
    blocks, single = frozen_point("jacobian", x)
    if route not in (None, "reverse", "forward"):
        raise ValueError(f"jacobian: route must be 'reverse' or 'forward', got {route!r}")
    forward = route == "forward"  # what it cannot do is seen in the graph
    functions = _nested()
    with torch.set_grad_enabled(forward), second_order("jacobian", Space.of(blocks).device, functions):
        outputs = _outputs(_call(f, _leaves(blocks) if forward else blocks, single, functions))
        for y in outputs.values():
            refuse_padded_embedding(y, "jacobian")
        codomain = Space.of({n: y.detach() for n, y in outputs.items()})
    return FunctionJacobian(f, blocks, single, route or "reverse", codomain, functions)
