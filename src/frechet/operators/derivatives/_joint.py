"""Products where the criterion reads parameters of the model itself: a learnt noise, learnt weights of tasks.

The loss is then c(f(x), x), and both arguments move. With y = f(x), J its Jacobian and v_x the vector's blocks,

    Gauss-Newton    [J; I]' (Hessian of c in (y, x)) [J; I] v
    second moment   sum_i g_i (g_i'v),    g_i = the gradient of example i's terms in x through y and by itself

are the curvature and the gradients of the whole, with the model alone made linear.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from frechet.objective import Batch, Part, Snapshot
from frechet.objective.criteria._custom import Custom
from frechet.operators.derivatives._products import Leaves, Sums, grads

OfCriterion = Callable[
    [Snapshot, Part, Batch, Leaves, Tensor, Callable[[int], Tensor], list[list[Tensor]], Sums],
    None,
]


def reads_parameters(s: Snapshot, part: Part, batch: Batch, y: Tensor, leaves: Leaves) -> bool:
    """Whether the criterion of outputs y reads parameters that are differentiated, beside the outputs."""
    if not isinstance(part.criterion, Custom) or s.functions is None:
        return False
    with torch.enable_grad():
        return s.terms_of(part, leaves[1], batch, y.detach()).requires_grad


def joint_product(
    s: Snapshot,
    part: Part,
    batch: Batch,
    leaves: Leaves,
    y: Tensor,
    push: Callable[[int], Tensor],
    vectors: list[list[Tensor]],
    sums: Sums,
) -> None:
    """Add [J; I]' H [J; I] v_i to row i of `sums`."""
    for i, v in enumerate(vectors):
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            total = s.terms_of(part, leaves[1], batch, at).sum()
            slopes = grads(total, [at, *leaves[0]], None, create_graph=True)
            u, *own = grads(slopes, [at, *leaves[0]], [push(i), *v])
        sums.add(i, grads(y, leaves[0], [u.detach()], retain_graph=True))
        sums.add(i, own)


def along_terms(
    s: Snapshot, part: Part, batch: Batch, leaves: Leaves, y: Tensor, pushed: Tensor, v: list[Tensor]
) -> Tensor:
    """g_j'v of every example j of a batch, from J v."""
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        terms = s.terms_of(part, leaves[1], batch, at)
        weights = torch.zeros_like(terms).requires_grad_()
        slopes = grads(terms, [at, *leaves[0]], [weights], create_graph=True)
        return grads(slopes, [weights], [pushed, *v])[0]


def joint_second_moment(
    s: Snapshot,
    part: Part,
    batch: Batch,
    leaves: Leaves,
    y: Tensor,
    push: Callable[[int], Tensor],
    vectors: list[list[Tensor]],
    sums: Sums,
) -> None:
    """Add sum_j g_j (g_j'v_i) over the examples j to row i of `sums`."""
    for i, v in enumerate(vectors):
        along = along_terms(s, part, batch, leaves, y, push(i), v)
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            u, *own = grads(s.terms_of(part, leaves[1], batch, at), [at, *leaves[0]], [along])
        sums.add(i, grads(y, leaves[0], [u], retain_graph=True))
        sums.add(i, own)


def joint_by_term(
    s: Snapshot,
    part: Part,
    batch: Batch,
    leaves: Leaves,
    y: Tensor,
    push: Callable[[int], Tensor],
    vectors: list[list[Tensor]],
    sums: Sums,
) -> None:
    """As `joint_second_moment`, of terms: a custom criterion has one for each example, or does not say."""
    criterion = s.criterion(part, batch)
    criterion.project(y.detach(), y.detach())  # raises where it does not say which outputs make a term
    joint_second_moment(s, part, batch, leaves, y, push, vectors, sums)
