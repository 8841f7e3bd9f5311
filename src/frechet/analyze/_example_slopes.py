"""The slopes v'g_i of every example along given directions, without a gradient per example.

g_i is the gradient of f_i, whose mean over the N examples is the objective (see `_examples.py`). With s_i the score of
example i in its outputs and J_i their Jacobian, v'g_i = s_i'(J_i v): the tangent of all outputs along v, weighted.

For an operator A that is symmetric, g_i'A v is the slope along A v: one product serves all examples.

**Source.** The directional derivative as a forward-mode pass: Baydin et al., "Automatic differentiation in machine
learning: a survey", JMLR 18 (2018), section 3.1.
**Cost.** One pass for k directions, no vector per example. In gradients: forward about 0.7 k; reverse about 1 + 0.7 k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._examples import _one_part
from frechet.analyze._single_examples import refuse_group
from frechet.errors import NonFinite
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive
from frechet.objective.criteria._criterion import per_example
from frechet.operators.derivatives._chunked_head import along, head_blocks, head_tangents
from frechet.operators.derivatives._joint import AtOutputs, Push
from frechet.operators.derivatives._modes import Route, Way, chosen
from frechet.operators.derivatives._on_batches import primal_and_tangent, prove_adjoint
from frechet.operators.derivatives._products import columns, differentiating, grads
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class ExampleSlopes:
    """v_a'g_i of all examples in data order, ``(N, k)``."""

    values: Tensor  # float64
    examples: int
    terms: float
    route: Route
    passes: int


def example_slopes(
    objective: Objective, V: Tensor, *, x: Tensor | None = None, route: Route | None = None
) -> ExampleSlopes:
    """Return the slopes v'g_i of every example's loss along given directions v, exactly.

    Their mean over the examples is v'g, where g is the objective's gradient.

    Args:
        objective: the objective. Its model must treat the examples of a batch independently, as `example_gradients`
            checks.
        V: the directions as columns ``(n, k)``.
        x: the point ``(n,)``. Default: the model's present parameters.
        route: ``"forward"`` or ``"reverse"``. Default: forward, where the model has a forward mode.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import example_slopes
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]
        >>> example_slopes(Objective(model, squared_error(), data), torch.ones(1, 1)).values  # 2 (w x - y) x
        tensor([[-2.],
                [ 4.]], dtype=torch.float64)
    """
    snapshot, part = _one_part("example_slopes", objective, x)
    refuse_group(snapshot, "example_slopes")
    space = snapshot.space
    require_block("example_slopes", "V", V, space)
    way = Way(chosen(route, snapshot.model, "example_slopes", gauss_newton=True), route is not None)
    return way.along(lambda: _slopes(objective, snapshot, part, V, way.route))


def _slopes(objective: Objective, snapshot: Snapshot, part: Part, V: Tensor, way: Route) -> ExampleSlopes:
    space = snapshot.space
    parts: list[Tensor] = []
    count = 0.0

    def visit(part: Part, batch: Batch) -> None:
        nonlocal count
        y, push = _pushed(snapshot, space, leaves, blocks, vectors, batch, part, way)
        if part.head is None:
            found = _along(AtOutputs(snapshot, part, batch, (leaves, dict(blocks)), y), push, vectors)
        else:
            rows = snapshot.head_rows(part, blocks, batch, y)
            tangents = head_tangents(rows, head_blocks(part, space), push, vectors)
            found = [rows.per_example(a) for a in along(rows, tangents)]
        values = torch.stack(found, 1) if found else y.new_zeros(len(y), 0)
        if not bool(torch.isfinite(values).all()):
            raise snapshot.nonfinite("example_slopes", part, batch)
        parts.append(values.cpu().double())
        count += float(snapshot.count(part, batch))

    with differentiating("example_slopes", space.device), torch.no_grad():
        leaves, blocks = snapshot.leaves(space)
        vectors = columns(space, V.detach())
        with snapshot.installed(blocks):
            snapshot.sweep(visit)
        if count <= 0:
            raise ValueError("example_slopes: the data must hold at least one term that counts, got none")
        values = torch.cat(parts)
        values = values * (part.weight * len(values) / count)
        if snapshot.penalties:
            with torch.enable_grad():
                common = space.join(grads(snapshot.penalty(blocks), leaves, None))
            values = values + space.gram(V.detach(), common[:, None])[:, 0].cpu()
    if not bool(torch.isfinite(values).all()):
        raise NonFinite("example_slopes: the penalty gives a NaN or an infinity, though the data term is finite")
    return ExampleSlopes(values, len(values), count, way, passes=1)


def _along(at: AtOutputs, push: Push, vectors: list[list[Tensor]]) -> list[Tensor]:
    """The slopes of each example's terms along each vector."""
    s, batch, criterion = at.snapshot, at.batch, at.snapshot.criterion(at.part, at.batch)
    check_additive("example_slopes", criterion, at.y, batch.targets, s.space.eps, batch.index)
    if at.reads_parameters:
        return [at.along(push(i), v) for i, v in enumerate(vectors)]
    score = criterion.score(at.y, batch.targets)
    return [per_example(score * push(i)) for i in range(len(vectors))]


def require_block(what: str, name: str, V: Tensor, space: Space) -> None:
    """Raise unless V is a block of vectors of `space`."""
    if V.ndim != 2 or V.shape[0] != space.dim or V.dtype != space.dtype or V.device != space.device:
        got = f"{V.dtype} on {V.device} of shape {tuple(V.shape)}"
        raise ValueError(f"{what}: {name} must be a block ({space.dim}, k) of {space!r}, got {got}")


def _pushed(
    s: Snapshot,
    space: Space,
    leaves: list[Tensor],
    blocks: Mapping[str, Tensor],
    vectors: list[list[Tensor]],
    batch: Batch,
    part: Part,
    route: Route,
) -> tuple[Tensor, Push]:
    """The outputs (with a head, what goes into it) without a graph, and i -> J v_i."""
    if route == "forward":
        pairs = [primal_and_tangent(s, space, blocks, v, batch, part.head) for v in vectors]
        y = pairs[0][0] if pairs else s.forward(blocks, batch, part.head)
        return y, lambda i: pairs[i][1]
    with torch.enable_grad():
        y = s.forward(blocks, batch, part.head)
        u = torch.zeros_like(y).requires_grad_()
        transposed = grads(y, leaves, [u], create_graph=True)
        prove_adjoint("example_slopes", s, batch, y, leaves, u, transposed)
    return y.detach(), lambda i: grads(transposed, [u], vectors[i], retain_graph=True)[0]
