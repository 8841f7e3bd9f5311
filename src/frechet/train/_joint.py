"""Jacobian descent: one backward pass for many losses, whose gradients are combined by a rule on their Gram matrix.

    rows g_i = d loss_i / d x,   G_ij = g_i'g_j,   w = aggregate(G),   x.grad += sum_i w_i g_i

Any optimizer then takes its step. The rows are held where they fit into `memory`; otherwise G comes from several sweeps
of backward passes over pairs of rows, and the update from one more backward pass of ``sum w_i loss_i``.

**Source.** P. Quinton, V. Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232.
**Differs from the source.** The Jacobian need not be held: the bound of the memory.
**Cost.** One backward pass for each of the m losses where their gradients fit; about m^2 / (2 h) where only h do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.space import euclidean
from frechet.train._aggregate import cosines, upgrad

MEMORY = 1 << 30  # bytes of gradients that are held

Row = list[Tensor]


@dataclass(frozen=True, eq=False)
class Joint:
    """What one joint backward pass did. `passes` counts backward passes."""

    weights: Tensor  # (m,) float64
    gram: Tensor  # (m, m) float64
    cosines: Tensor  # (m,) between the update and each gradient
    passes: int


def joint_backward(
    losses: Tensor | Sequence[Tensor],
    parameters: Iterable[Tensor],
    *,
    aggregate: Callable[[Tensor], Tensor] = upgrad,
    memory: int = MEMORY,
    retain_graph: bool = False,
) -> Joint:
    """Add to `.grad` of each parameter the combination of the losses' gradients that `aggregate` chooses.

    It takes the place of ``sum(losses).backward()``. For one loss per example of a large batch, take the Gram matrix
    from `frechet.analyze.gradient_gram` instead, and call ``(w * losses).sum().backward()``.

    Args:
        losses: scalars in a list, or a tensor ``(m,)``.
        parameters: leaves that require a gradient. A parameter that no loss reaches is left alone.
        aggregate: a function of the Gram matrix ``(m, m)`` in float64 that returns weights ``(m,)``.
        memory: how many bytes of gradients are held at a time. The result does not depend on it, but for rounding.
        retain_graph: keeps the graph of the losses, as in `torch.Tensor.backward`.

    Returns:
        A `Joint` with the weights, the Gram matrix and the cosines between the update and the gradients.

    Raises:
        ValueError: there is no loss or no parameter, a loss is no scalar, or several processes train together, between
            which gradients would not be exchanged.
        NotDifferentiable: a loss does not depend on any parameter.
        NonFinite: a gradient is not finite.

    Example:
        >>> import torch
        >>> from frechet.train import joint_backward
        >>> x = torch.zeros(2, requires_grad=True)
        >>> joint = joint_backward([x[0] - 3 * x[1], 9 * x[1]], [x])
        >>> x.grad, bool((joint.cosines >= 0).all())
        (tensor([1.8500, 0.4500]), True)
    """
    rows = _Rows.of(losses, list(parameters))
    held = max(1, min(len(rows.losses), memory // max(1, rows.bytes)))
    G, kept = _gram(rows, held)
    if not bool(G.isfinite().all()):
        raise NonFinite(f"joint_backward: gradients must be finite, got NaN or infinity in loss {_first_bad(G)}")
    w = aggregate(G)
    if not isinstance(w, Tensor) or w.shape != (len(G),):
        got = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
        raise ValueError(f"joint_backward: aggregate must return weights ({len(G)},), got {got}")
    w = w.detach().double()
    _add(rows, w, kept, retain_graph)
    return Joint(weights=w, gram=G, cosines=cosines(G, w), passes=rows.passes)


@dataclass(eq=False)
class _Rows:
    """The losses and the parameters; and the backward passes that were done."""

    losses: list[Tensor]
    parameters: list[Tensor]
    passes: int = 0

    @classmethod
    def of(cls, losses: Tensor | Sequence[Tensor], parameters: list[Tensor]) -> _Rows:
        single = list(losses.unbind()) if isinstance(losses, Tensor) and losses.ndim == 1 else losses
        if not isinstance(single, list | tuple) or not single or any(loss.numel() != 1 for loss in single):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"joint_backward: losses must be scalars in a list or a tensor (m,), got {got}")
        if not parameters:
            raise ValueError("joint_backward: parameters must have at least one tensor, got none")
        for p in parameters:
            if not p.requires_grad or not p.is_leaf:
                raise ValueError(
                    "joint_backward: parameters must be leaves that require a gradient, got one of shape "
                    f"{tuple(p.shape)} that does not; leave frozen ones out"
                )
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"joint_backward: one process is served, got {dist.get_world_size()}; gradients would not be "
                "exchanged between them"
            )
        return cls([loss.reshape(()) for loss in single], parameters)

    @property
    def bytes(self) -> int:
        """Of one row."""
        return sum(p.numel() * p.element_size() for p in self.parameters)

    def row(self, i: int) -> Row:
        """The gradient of loss i by parameters, zero where it does not reach."""
        self.passes += 1
        loss = self.losses[i]
        found = (
            torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            if loss.requires_grad
            else [None] * len(self.parameters)
        )
        if all(g is None for g in found):
            raise NotDifferentiable(
                f"joint_backward: loss {i} must depend on the parameters through torch operations, got none of them; "
                "leave it out"
            )
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]


def _first_bad(G: Tensor) -> int:
    return int((~G.diagonal().isfinite()).nonzero()[0, 0]) if bool((~G.diagonal().isfinite()).any()) else 0


def _gram(rows: _Rows, held: int) -> tuple[Tensor, list[Row] | None]:
    """The Gram matrix in float64, and all rows where they were held."""
    m = len(rows.losses)
    device = rows.parameters[0].device
    G = torch.zeros(m, m, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    kept: list[Row] = []
    for first in range(0, m, held):
        kept = [rows.row(i) for i in range(first, min(first + held, m))]
        for j in range(first, m):
            own = j < first + len(kept)
            products = _inner(kept, kept[j - first] if own else rows.row(j)).to(G)
            G[first : first + len(kept), j] = products
            G[j, first : first + len(kept)] = products
    return G, kept if held == m else None


def _inner(kept: list[Row], other: Row) -> Tensor:
    """The inner products of the rows with another one, in float64."""
    total: Tensor | None = None
    for k, g in enumerate(other):
        space = euclidean(g.numel(), g.dtype, g.device)
        block = torch.stack([row[k].reshape(-1) for row in kept])
        part = space.gram(block.T, g.reshape(-1, 1))[:, 0]
        total = part if total is None else total + part.to(total)
    assert total is not None  # by _Rows.of
    return total


def _add(rows: _Rows, w: Tensor, kept: list[Row] | None, retain_graph: bool) -> None:
    """sum_i w_i g_i into `.grad`."""
    numbers = w.tolist()
    if kept is None:
        rows.passes += 1
        total = torch.stack([c * loss for c, loss in zip(numbers, rows.losses, strict=True)]).sum()
        update = torch.autograd.grad(total, rows.parameters, retain_graph=retain_graph, allow_unused=True)
    else:
        update = [
            sum((c * row[k] for c, row in zip(numbers, kept, strict=True)), start=torch.zeros_like(p))
            for k, p in enumerate(rows.parameters)
        ]
    for p, g in zip(rows.parameters, update, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g
