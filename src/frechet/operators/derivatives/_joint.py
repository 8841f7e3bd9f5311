"""Products where the criterion reads parameters of the model itself: a learnt noise, learnt weights of tasks.

The loss is then c(f(x), x), and both arguments move. With y = f(x), J its Jacobian and v_x the vector's blocks,

    Gauss-Newton    [J; I]' (Hessian of c in (y, x)) [J; I] v
    second moment   sum_i g_i (g_i'v),    g_i = the gradient of example i's terms in x through y and by itself

are the curvature and the gradients of the whole, with the model alone made linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.objective import Batch, Part, Snapshot
from frechet.objective.criteria._custom import Custom
from frechet.operators.derivatives._products import Leaves, Sums, grads

Push = Callable[[int], Tensor]  # i -> J v_i


@dataclass(frozen=True, eq=False)
class AtOutputs:
    """The criterion on one batch as a function of the outputs `y`, which carry their graph, and of the parameters."""

    snapshot: Snapshot
    part: Part
    batch: Batch
    leaves: Leaves
    y: Tensor

    def terms(self, y: Tensor) -> Tensor:
        """The terms of the examples, of given outputs."""
        return self.snapshot.terms_of(self.part, self.leaves[1], self.batch, y)

    @property
    def reads_parameters(self) -> bool:
        """Whether the criterion reads parameters that are differentiated, beside the outputs."""
        if not isinstance(self.part.criterion, Custom) or self.snapshot.functions is None:
            return False
        with torch.enable_grad():
            return self.terms(self.y.detach()).requires_grad

    def along(self, pushed: Tensor, v: list[Tensor]) -> Tensor:
        """g_j'v of every example j, from J v."""
        with torch.enable_grad():
            at = self.y.detach().requires_grad_()
            terms = self.terms(at)
            weights = torch.zeros_like(terms).requires_grad_()
            slopes = grads(terms, [at, *self.leaves[0]], [weights], create_graph=True)
            return grads(slopes, [weights], [pushed, *v])[0]

    def product(self, push: Push, vectors: list[list[Tensor]], sums: Sums) -> None:
        """Add [J; I]' H [J; I] v_i to row i of `sums`."""
        for i, v in enumerate(vectors):
            with torch.enable_grad():
                at = self.y.detach().requires_grad_()
                slopes = grads(self.terms(at).sum(), [at, *self.leaves[0]], None, create_graph=True)
                u, *own = grads(slopes, [at, *self.leaves[0]], [push(i), *v])
            self._add(i, u.detach(), own, sums)

    def second_moment(self, push: Push, vectors: list[list[Tensor]], sums: Sums) -> None:
        """Add sum_j g_j (g_j'v_i) over the examples j to row i of `sums`."""
        for i, v in enumerate(vectors):
            along = self.along(push(i), v)
            with torch.enable_grad():
                at = self.y.detach().requires_grad_()
                u, *own = grads(self.terms(at), [at, *self.leaves[0]], [along])
            self._add(i, u, own, sums)

    def second_moment_by_term(self, push: Push, vectors: list[list[Tensor]], sums: Sums) -> None:
        """As `second_moment`, of terms: a custom criterion has one for each example, or does not say."""
        criterion = self.snapshot.criterion(self.part, self.batch)
        criterion.project(self.y.detach(), self.y.detach())  # raises where it does not say which outputs make a term
        self.second_moment(push, vectors, sums)

    def _add(self, i: int, u: Tensor, own: list[Tensor], sums: Sums) -> None:
        sums.add(i, grads(self.y, self.leaves[0], [u], retain_graph=True))
        sums.add(i, own)
