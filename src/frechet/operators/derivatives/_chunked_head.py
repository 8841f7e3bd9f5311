"""J' C J where the outputs are logits that are never stored whole: the body's J and J' around chunks of the head.

The body maps parameters to hidden states h; the head and the criterion see rows of h. With (dh, dW, db) = J v of the
body and the head's own blocks of v, each chunk of rows takes

    u = C (dh W' + h dW' + db),    then    (u W, u'h, sum u)

of which u W goes back through the body and the rest is added to the head's blocks. A weight shared with the body gets
both. All columns of a block share a chunk's logits.

**Cost** of the head in multiplications of rows x d x V: 1 + 4 k for k columns, as without chunks (2 + 4 k for the
empirical Fisher per example, in two passes over the chunks). Of the body, in its gradients: 2 in the forward route, a
third more than with a graph that carries the tangents too, which would need twice the memory. Memory: three to five
chunks of logits, and 2 k tensors of the size of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from frechet.objective import Part
from frechet.objective._head import HeadRows, pushed
from frechet.operators.derivatives._products import Sums, add_into
from frechet.space import Space

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None]  # (dh, dW, db); None stands for zero


@dataclass(frozen=True, eq=False)
class Blocks:
    """The positions of the head's weight and bias among the blocks of `space`; None where they are not in it."""

    weight: int | None
    bias: int | None


def head_blocks(part: Part, space: Space) -> Blocks:
    """Where the blocks of the head of `part` are."""
    assert part.head is not None
    where = {name: i for i, name in enumerate(space.names)}
    return Blocks(where.get(part.head.weight), None if part.head.bias is None else where.get(part.head.bias))


def head_tangents(
    rows: HeadRows, blocks: Blocks, push: Callable[[int], Tensor] | None, vectors: list[list[Tensor]]
) -> list[Tangent]:
    """What each vector is for the head: the tangent of the rows' hidden states (zero without `push`), W and b."""
    return [
        (
            None if push is None else rows.select(push(i)),
            None if blocks.weight is None else v[blocks.weight],
            None if blocks.bias is None else v[blocks.bias],
        )
        for i, v in enumerate(vectors)
    ]


@torch.no_grad()
def add_headed(
    rows: HeadRows,
    blocks: Blocks,
    push: Callable[[int], Tensor],
    factor: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]] | None,
    leaves: list[Tensor],
    vectors: list[list[Tensor]],
    sums: Sums,
) -> None:
    """Add J' C J v_i to row i of `sums`. `push(i)` is J v_i of the body, `factor(logits, targets)` is C.

    Without a `factor` C is the sum over examples of the outer product of the example's score, all its rows together.
    """
    tangents = head_tangents(rows, blocks, push if (body := rows.hidden.requires_grad) else None, vectors)
    h, W, b = rows.h.detach(), rows.W.detach(), None if rows.b is None else rows.b.detach()
    back = [torch.zeros_like(h) for _ in vectors] if body else []
    weights = None if factor is not None else [rows.per_example(a)[rows.examples()] for a in along(rows, tangents)]
    into = [sums.row(i, leaves) for i in range(len(vectors))]
    for c in rows.chunks():
        z, y = F.linear(h[c], W, b), rows.targets[c]
        s = None if weights is None else rows.criterion.score(z, y)
        C = None if factor is None else factor(z, y)
        del z  # held by C only, where that needs it
        for i, tangent in enumerate(tangents):
            if s is not None and weights is not None:
                u = s * weights[i][c, None]
            else:
                dz = pushed(h[c], W, *_rows_of(tangent, c))
                if C is None or dz is None:
                    continue
                u = C(dz)
            if body:
                torch.mm(u, W, out=back[i][c])
            if blocks.weight is not None:
                into[i][blocks.weight].addmm_(u.T, h[c])
            if blocks.bias is not None:
                into[i][blocks.bias].add_(u.sum(0))
    for i, u in enumerate(back):
        found = torch.autograd.grad(
            rows.hidden, leaves, rows.spread(u), retain_graph=i + 1 < len(back), allow_unused=True
        )
        reached = [j for j, piece in enumerate(found) if piece is not None]  # zeros for the head's weight are large
        add_into([into[i][j] for j in reached], [piece for piece in found if piece is not None])


def _rows_of(tangent: Tangent, c: slice) -> Tangent:
    dh, dW, db = tangent
    return None if dh is None else dh[c], dW, db


@torch.no_grad()
def along(rows: HeadRows, tangents: list[Tangent]) -> list[Tensor]:
    """The derivative of each row's term along each tangent."""
    h, W, b = rows.h.detach(), rows.W.detach(), None if rows.b is None else rows.b.detach()
    found = [h.new_zeros(h.shape[0]) for _ in tangents]
    for c in rows.chunks():
        s = rows.criterion.score(F.linear(h[c], W, b), rows.targets[c])
        for out, tangent in zip(found, tangents, strict=True):
            dz = pushed(h[c], W, *_rows_of(tangent, c))
            if dz is not None:
                out[c] = (s * dz).sum(1)
    return found
