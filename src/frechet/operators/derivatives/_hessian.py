"""The Hessian of an objective, or of any scalar function, as an operator.

    H V = sum_j w_j / count_j  sum over batches of  d/dx (V' grad total)  +  the penalties' Hessian

Reverse route: per batch one gradient with its graph kept, then one backward of it per column, then the graph is freed.
Forward route: per column the tangent of the gradient, by dual numbers under a plain backward.

**Source.** Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994).
**Cost** of one column in gradients: 1 + r for the first of a block and r for each further one, r between 0.8 (small
models) and 2.6 (convolutions); one pass over the data per block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.errors import NotDifferentiable
from frechet.objective import Batch, Objective, Part
from frechet.objective._model import backward_hooks
from frechet.operators._operator import SYMMETRIC, LinearOperator
from frechet.operators.derivatives._custom_functions import CHANGES, refuse_changed, refuse_forgotten
from frechet.operators.derivatives._function import FunctionHessian, frozen_point
from frechet.operators.derivatives._modes import Route, chosen, refuse_padded_embedding
from frechet.operators.derivatives._products import Leaves, Sums, dual_numbers, grads
from frechet.operators.derivatives._sum_over_data import Adding, SumOverData

OfBlocks = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ObjectiveHessian(SumOverData):
    """The Hessian of an objective at one moment, on the blocks of `domain`."""

    route: Route

    def prove(self) -> None:
        """Raise, once for each operator and after a first product, where its gradients are those of no function."""
        functions = self.snapshot.functions
        if functions is None or self.snapshot.group is not None or functions.symmetric:
            return
        if functions.custom:
            self._prove_symmetry()
        if functions.hooked or backward_hooks(self.snapshot.model) is not None:
            self._prove_derivative()
        functions.symmetric = True

    def _prove_symmetry(self) -> None:
        """Once for each operator whose model has custom functions: its gradients are those of a function."""
        space = self.domain
        V = space.random(range(2), 0)
        image = self._product(V)
        across, back = (float(space.inner(V[:, i], image[:, 1 - i])) for i in (0, 1))
        size = max(float(space.norm(V[:, i])) * float(space.norm(image[:, 1 - i])) for i in (0, 1))
        if abs(across - back) > 1e4 * space.eps * size:
            raise NotDifferentiable(
                f"hessian: second derivatives must be symmetric, got u'Hv = {across:.6g} and v'Hu = {back:.6g}: a "
                f"torch.autograd.Function {CHANGES}"
            )

    def _prove_derivative(self) -> None:
        """Once for each operator whose model has backward hooks, which act twice in a product."""
        s, space = self.snapshot, self.domain
        x = space.join([s.space.unflatten(s.x)[n] for n in space.names])
        refuse_changed(space, x, lambda v: self._product(v[:, None])[:, 0], self._gradient)

    def _gradient(self, x: Tensor) -> Tensor:
        """The gradient of the data terms in the blocks of `domain`, at x."""
        s, space = self.snapshot, self.domain
        moved = {**s.space.unflatten(s.x), **space.unflatten(x)}
        here = replace(s, x=s.space.join([moved[n] for n in s.space.names]))
        leaves, blocks = here.leaves(space)

        def contribute(part: Part, batch: Batch, rows: list[list[Tensor]]) -> None:
            with torch.enable_grad():
                Sums(rows).add(0, grads(here.total(part, blocks, batch), leaves, None))

        with here.installed(blocks):
            return here.average_rows(contribute, space, 1, self.name)[0]

    def adding(self) -> Adding:
        s, product = self.snapshot, _reverse if self.route == "reverse" else _forward

        def add(leaves: Leaves, part: Part, batch: Batch, vectors: list[list[Tensor]], sums: Sums) -> None:
            product(lambda blocks: s.total(part, blocks, batch), leaves, vectors, sums)
            if batch.index == 0 and s.functions is not None and s.functions.custom and not s.functions.proved:
                self._prove_functions(leaves, part, batch)

        return add

    def _prove_functions(self, leaves: Leaves, part: Part, batch: Batch) -> None:
        """Once for each operator: the custom functions of the model carry their derivatives."""
        s, names = self.snapshot, self.domain.names

        def total(point: list[Tensor]) -> Tensor:
            return s.total(part, {**leaves[1], **dict(zip(names, point, strict=True))}, batch)

        refuse_forgotten(total, leaves[0])
        assert s.functions is not None
        s.functions.proved = True


def _reverse(f: OfBlocks, leaves: Leaves, vectors: list[list[Tensor]], sums: Sums) -> None:
    """Add the Hessian of `f` times each vector."""
    xs, blocks = leaves
    with torch.enable_grad():
        gradient = grads(f(blocks), xs, None, create_graph=True)
        for i, v in enumerate(vectors):
            sums.add(i, grads(gradient, xs, v, retain_graph=i + 1 < len(vectors)))


def _forward(f: OfBlocks, leaves: Leaves, vectors: list[list[Tensor]], sums: Sums) -> None:
    """As `_reverse`, by dual numbers."""
    xs, blocks = leaves
    names = [name for name, block in blocks.items() if block.requires_grad]  # the leaves, in their order
    for i, v in enumerate(vectors):
        with torch.enable_grad(), dual_numbers():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(xs, v, strict=True)]
            value = f({**blocks, **dict(zip(names, duals, strict=True))})
            if v is vectors[0]:
                refuse_padded_embedding(value, "hessian")
            # with create_graph torch takes backward formulas that have a forward mode (silu, mish)
            gradient = grads(value, xs, None, create_graph=True)
            tangents = [forward_ad.unpack_dual(g).tangent for g in gradient]
            filled = [torch.zeros_like(p) if t is None else t.detach() for p, t in zip(xs, tangents, strict=True)]
        sums.add(i, filled)


def hessian(
    of: Objective | Callable[..., Tensor],
    x: Tensor | Mapping[str, Tensor] | None = None,
    *,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the Hessian of an objective, or of a scalar function, as an operator.

    Penalties are included. Where parameters are sharded, so are vectors: each product gathers the parameters and its
    vectors on every rank for as long as it takes.

    Args:
        of: the objective, or a scalar function.
        x: the point: ``(n,)`` or a dict of tensors for an objective, what the function takes for a function. Default
            for an objective: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that vary. The product is that of the submatrix, and
            costs nothing for other parameters. Default: all trainable ones.
        route: ``"reverse"`` or ``"forward"``. Default: reverse.

    Example:
        >>> import torch
        >>> from frechet import hessian
        >>> H = hessian(lambda x: x[0] ** 2 * x[1], torch.tensor([1.0, 3.0]))
        >>> H @ torch.tensor([1.0, 0.0])
        tensor([6., 2.])
    """
    if not isinstance(of, Objective):
        if x is None:
            raise TypeError("hessian: x must be given for a function, got None; write hessian(f, x)")
        if restrict is not None:
            raise TypeError(
                "hessian: restrict must be left out for a function; differentiate a function of fewer blocks"
            )
        return FunctionHessian(of, *frozen_point("hessian", x), _known(route))
    snapshot = of.snapshot(x, pieces=True)
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    way = chosen(route, snapshot.model, "hessian", gauss_newton=False)
    return ObjectiveHessian(
        name="hessian", snapshot=snapshot, domain=space, facts=SYMMETRIC, penalties="all", route=way
    )


def _known(route: Route | None) -> Route:
    if route not in (None, "reverse", "forward"):
        raise ValueError(f"hessian: route must be 'reverse' or 'forward', got {route!r}")
    return route or "reverse"
