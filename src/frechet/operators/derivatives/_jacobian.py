"""The Jacobian of a function or of a model's outputs over a data set, and the neural tangent kernel.

Rows of an objective's Jacobian are (example, output) in data order, unscaled. The NTK is J J'.

**Source.** Jacot, Gabriel, Hongler, "Neural tangent kernel" (2018), arXiv 1806.07572.
**Cost:** J v and J'u about 2 gradients each and one pass over the data; the NTK needs both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._kernels import ordinary
from frechet.operators._operator import NONE, Fact, LinearOperator
from frechet.operators.derivatives._function import function_jacobian
from frechet.operators.derivatives._modes import Route, Way, chosen, refuse_padded_embedding
from frechet.operators.derivatives._on_batches import primal_and_tangent, prove_adjoint, prove_linear
from frechet.operators.derivatives._products import Leaves, Sums, columns, differentiating, grads
from frechet.space import Space


@dataclass(frozen=True, eq=False, repr=False)
class OutputJacobian(LinearOperator):
    """The Jacobian of the outputs on all data at one moment, in the blocks of `domain`."""

    snapshot: Snapshot
    domain: Space
    codomain: Space
    way: Way

    @property
    def route(self) -> Route:
        """The route that J v takes, which the first product may have changed where it was left open."""
        return self.way.route

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _matmat(self, V: Tensor) -> Tensor:
        return self.way.along(lambda: self._product(V))

    def _product(self, V: Tensor) -> Tensor:
        s, space = self.snapshot, self.domain
        row = 0

        def visit(part: Part, batch: Batch) -> None:
            nonlocal row
            pushed = self.push(leaves, batch, vectors)
            size = pushed[0].numel()
            for i, p in enumerate(pushed):
                out[row : row + size, i] = p.reshape(-1)
            if not bool(torch.isfinite(out[row : row + size]).all()):
                raise s.nonfinite("jacobian", part, batch)
            row += size

        with differentiating("jacobian", space.device):
            leaves = s.leaves(space)
            vectors, out = columns(space, V), self.codomain.zeros(V.shape[1])
            with s.installed(leaves[1]):
                s.sweep(visit)
        return out

    def _rmatmat(self, U: Tensor) -> Tensor:
        s, space = self.snapshot, self.domain
        row = 0

        def visit(part: Part, batch: Batch) -> None:
            nonlocal row
            row += self.pull(leaves, batch, [u[row:] for u in cotangents], Sums(rows))
            if not bool(torch.isfinite(out).all()):
                raise s.nonfinite("jacobian", part, batch)

        with differentiating("jacobian", space.device):
            leaves = s.leaves(space)
            cotangents, out = ordinary(U).T, space.zeros(U.shape[1])
            rows = [space.split(row) for row in out.T]
            with s.installed(leaves[1]):
                s.sweep(visit)
        return out

    def push(self, leaves: Leaves, batch: Batch, vectors: list[list[Tensor]]) -> list[Tensor]:
        """J v on one batch for each vector, shaped like the outputs."""
        if self.route == "forward":
            return [primal_and_tangent(self.snapshot, self.domain, leaves[1], v, batch)[1] for v in vectors]
        with torch.enable_grad():
            y = self.snapshot.forward(leaves[1], batch)
            u = torch.zeros_like(y).requires_grad_()
            transposed = grads(y, leaves[0], [u], create_graph=True)
            prove_adjoint("jacobian", self.snapshot, batch, y, leaves[0], u, transposed)
            return [grads(transposed, [u], v, retain_graph=True)[0] for v in vectors]

    def pull(self, leaves: Leaves, batch: Batch, cotangents: list[Tensor], sums: Sums) -> int:
        """Add J'u of one batch for each u, flat and no shorter than the batch's outputs, whose number it returns."""
        with torch.enable_grad():
            y = self.snapshot.forward(leaves[1], batch)
            prove_linear("jacobian", self.snapshot, batch, y, leaves[0])
            for i, u in enumerate(cotangents):
                piece = u[: y.numel()].view(y.shape)
                sums.add(i, grads(y, leaves[0], [piece], retain_graph=i + 1 < len(cotangents)))
        return y.numel()


def jacobian(
    of: Objective | Callable[..., object],
    x: Tensor | Mapping[str, Tensor] | None = None,
    *,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the Jacobian of a function, or of an objective's model outputs on all its data, as an operator.

    Args:
        of: the objective, or a function to a tensor or a dict of tensors.
        x: the point, as in `hessian`.
        restrict: a glob pattern, or several, of the parameters that vary. Default: all trainable ones.
        route: the mode of products with the Jacobian: ``"forward"`` or ``"reverse"``. Default: forward where the model
            has that mode.

    Example:
        >>> import torch
        >>> from frechet import jacobian
        >>> J = jacobian(lambda x: x[:2] * x[2], torch.tensor([1.0, 2.0, 3.0]))
        >>> J @ torch.tensor([0.0, 0.0, 1.0]), J.T @ torch.tensor([1.0, 0.0])
        (tensor([1., 2.]), tensor([3., 0., 1.]))
    """
    if not isinstance(of, Objective):
        if x is None:
            raise TypeError("jacobian: x must be given for a function, got None; write jacobian(f, x)")
        if restrict is not None:
            raise TypeError("jacobian: restrict must be left out for a function; differentiate in fewer blocks")
        return function_jacobian(of, x, route)
    if of.group is not None:
        raise ValueError(
            f"jacobian: its rows are the examples, and those of a group lie on {of.group.size} processes; make an "
            "objective without group on each rank, for its own rows"
        )
    snapshot = of.snapshot(x)
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    way = Way(chosen(route, snapshot.model, "jacobian", gauss_newton=True), route is not None)
    sizes: list[int] = []
    _, blocks = snapshot.leaves(space)

    def visit(_part: Part, batch: Batch) -> None:
        with torch.set_grad_enabled(way.route == "forward" and batch.index == 0):
            y = snapshot.forward(blocks, batch)
            try:
                refuse_padded_embedding(y, "jacobian")
            except NotDifferentiable as error:
                if not way.turns(error):
                    raise
        sizes.append(y.numel())

    with torch.no_grad(), snapshot.installed(blocks):
        snapshot.sweep(visit)
    outputs = Space(("outputs",), ((sum(sizes),),), space.dtype, space.device)
    return OutputJacobian(snapshot, space, outputs, way)


def ntk(
    objective: Objective,
    *,
    x: Tensor | Mapping[str, Tensor] | None = None,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the neural tangent kernel J J' over (example, output) pairs in data order, unscaled, as an operator.

    It is positive semidefinite.

    Args:
        objective: the objective. Its criterion and targets are not used.
        x: the point ``(n,)``, or a dict of tensors. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that vary. Default: all trainable ones.
        route: as in `jacobian`.

    Example:
        >>> import torch
        >>> from frechet import Objective, ntk, squared_error
        >>> X = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> ntk(Objective(torch.nn.Linear(2, 1, bias=False), squared_error(), [(X, torch.zeros(2, 1))])).dense()  # X X'
        tensor([[1., 1.],
                [1., 5.]])
    """
    J = jacobian(objective, x, restrict=restrict, route=route)
    if isinstance(J, OutputJacobian):
        J.snapshot.refuse_coupled("ntk")
    return J @ J.T
