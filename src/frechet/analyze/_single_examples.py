"""One example at a time: its output alone, its gradient written out, and whether it is an example on its own at all.

Chunks of examples go through `vmap` at top level (a forward mode around it would be wrong in torch 2.13), or one after
the other where that cannot go through the model: branches on values (masks of transformers), modules without a batching
rule, derivatives inside of the model, structures that cannot be stacked. The result says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from frechet.errors import NonFinite, NotDifferentiable, UnusableObjective
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import RAISED
from frechet.objective._structure import is_cut, mapped, rows_of, tensors_of
from frechet.operators.derivatives._products import grads
from frechet.space import Space

T = TypeVar("T")

ExampleRoute = Literal["vmap", "loop"]

CHUNK_BYTES = 1 << 27  # of gradients, held twice: by block and joined
LOOPED = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)  # no batching rule in torch 2.13, or no example axis


class Unbatchable(NotDifferentiable):
    """What vmap cannot go through."""


def by_route(what: str, route: ExampleRoute | None, objective: Objective, run: Callable[[ExampleRoute], T]) -> T:
    """`run` by `route`, or by the default: by vmap, and one example after the other where vmap cannot go through."""
    if not isinstance(objective, Objective):
        raise TypeError(f"{what}: objective must be an Objective, got {type(objective).__name__}")
    if route not in (None, "vmap", "loop"):
        raise ValueError(f"{what}: route must be 'vmap' or 'loop', got {route!r}")
    if route is not None:
        return run(route)
    if any(isinstance(m, LOOPED) for m in objective.model.modules()):
        return run("loop")
    try:
        return run("vmap")
    except Unbatchable:
        return run("loop")


def rows_at_once(space: Space) -> int:
    """As many gradients as `CHUNK_BYTES` hold, at least one."""
    return max(1, CHUNK_BYTES // max(1, space.dim * torch.finfo(space.dtype).bits // 8))


def chunk_gradients(
    snapshot: Snapshot,
    space: Space,
    leaves: list[Tensor],
    blocks: dict[str, Tensor],
    batch: Batch,
    score: Tensor,
    a: int,
    b: int,
    route: ExampleRoute,
    terms: Callable[[Batch, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients (b - a, n) of examples a to b in the blocks of `space`, and the outputs of each of them alone.

    `terms(batch, outputs)` is what is differentiated, where that is more than the outputs times their score.
    """
    if route == "vmap":
        if terms is not None:
            raise Unbatchable("examples: the criterion reads parameters of the model; pass route='loop'")
        alone, rows = one_by_one(snapshot, blocks, batch, score.shape[0])
        return _mapped(alone, dict(zip(space.names, leaves, strict=True)), [r[a:b] for r in rows], score[a:b])
    G, outputs = leaves[0].new_empty(b - a, space.dim), []
    for i in range(a, b):
        with torch.enable_grad():
            single = example(batch, i, score.shape[0])
            with taken_alone(batch.index, i):
                y = snapshot.forward(blocks, single)
            value, cotangent = (y, score[i : i + 1]) if terms is None else (terms(single, y).sum(), None)
            pulled = grads(value, leaves, None if cotangent is None else [cotangent.view(y.shape)])
        torch.cat([g.reshape(-1) for g in pulled], out=G[i - a])
        outputs.append(y.detach())
    return G, torch.cat(outputs)


def within_batch(
    snapshot: Snapshot,
    part: Part,
    leaves: list[Tensor],
    blocks: dict[str, Tensor],
    batch: Batch,
    scale: float,
    a: int,
    b: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of examples a to b, each differentiated in one pass over its whole batch, and their outputs."""
    with torch.enable_grad():
        outputs = snapshot.forward(blocks, batch)
        values = snapshot.terms_of(part, blocks, batch, outputs) * scale
        rows = [grads(values[i], leaves, None, retain_graph=True) for i in range(a, b)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]), outputs[a:b].detach()


def example(batch: Batch, i: int, size: int) -> Batch:
    """A batch of example i alone, of `size`."""
    inputs, targets = (rows_of(tree, slice(i, i + 1), size) for tree in (batch.inputs, batch.targets))
    return Batch(inputs, targets, batch.index)


def one_by_one(
    snapshot: Snapshot, blocks: dict[str, Tensor], batch: Batch, size: int
) -> tuple[Callable[[dict[str, Tensor], list[Tensor]], Tensor], list[Tensor]]:
    """(parameters, rows of one example) -> its output ``(1, ...)``, and the batch's tensors that have such rows."""
    flat = tensors_of(batch.inputs)
    at = [i for i, t in enumerate(flat) if t.ndim and t.shape[0] == size]
    if any(t.is_nested or t.layout is not torch.strided for t in flat) or not _stacks(batch.inputs, size):
        raise Unbatchable("examples: route='vmap' needs inputs that are dense tensors; pass route='loop'")

    def alone(parameters: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        given, number = dict(zip(at, rows, strict=True)), count()

        def put(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            row = given.get(next(number))
            return leaf if row is None else row.unsqueeze(0)

        return snapshot.forward({**blocks, **parameters}, Batch(mapped(batch.inputs, put), None, batch.index))

    return alone, [flat[i] for i in at]


def _stacks(tree: Any, size: int) -> bool:
    """Whether no part of a structure has one item, and not one row, for each example."""
    if isinstance(tree, PackedSequence) or is_cut(tree, size):
        return False
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple | list) else ()
    return all(_stacks(item, size) for item in items)


def _mapped(
    alone: Callable[[dict[str, Tensor], list[Tensor]], Tensor],
    parameters: dict[str, Tensor],
    rows: list[Tensor],
    score: Tensor,
) -> tuple[Tensor, Tensor]:
    def pulled(parameters: dict[str, Tensor], rows: list[Tensor], score: Tensor) -> tuple[Tensor, Tensor]:
        y = alone(parameters, rows)
        return (y * score.unsqueeze(0)).sum(), y

    detached = {name: p.detach() for name, p in parameters.items()}
    with batching():
        by_block, outputs = torch.func.vmap(torch.func.grad(pulled, has_aux=True), in_dims=(None, 0, 0))(
            detached, rows, score
        )
        joined = torch.cat([g.reshape(len(score), -1) for g in by_block.values()], 1)
    return joined, outputs.squeeze(1)


@contextmanager
def batching() -> Iterator[None]:
    """What vmap cannot go through, in one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, NotDifferentiable, UnusableObjective):
        raise
    except RAISED as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise Unbatchable(
            f"examples: route='vmap' cannot go through this model: {text[:200]}; pass route='loop'"
        ) from error


@contextmanager
def taken_alone(index: int, i: int) -> Iterator[None]:
    """What a model raises for one example alone, in one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, NotDifferentiable, UnusableObjective, NonFinite):
        raise
    except RAISED as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise UnusableObjective(
            f"examples: batch {index}: the model must take example {i} alone, but it raised {type(error).__name__}: "
            f"{text[:200]}; where inputs cannot be cut into examples, or the model takes one size of batch, give "
            "batches of one example each"
        ) from error


def check_alone(what: str, alone: Tensor, together: Tensor, eps: float, index: int, first: int) -> None:
    """Raise where an example's output alone is not that in its batch: then there are no per-example gradients."""
    size = float(together.abs().max()) if together.numel() else 0.0
    if alone.shape == together.shape:
        off = (alone - together).reshape(len(alone), -1).abs().amax(1) > 1e4 * eps * max(size, 1e-30)
        if not bool(off.any()):
            return
        first += int(off.nonzero()[0])
    raise UnusableObjective(
        f"{what}: batch {index}: the output of example {first} alone must be its output in the batch, got "
        "another one; the model couples the examples of a batch, or an input without example axis has the batch's "
        "length: where inputs cannot be cut into examples, give batches of one example each"
    )


def over_ranks(snapshot: Snapshot, count: float, examples: int) -> tuple[float, int]:
    """Terms and examples on all ranks."""
    if snapshot.group is None:
        return count, examples
    total = snapshot.group.sum(torch.tensor([count, examples], dtype=torch.float64))
    return float(total[0]), int(total[1])


def of_all_ranks(snapshot: Snapshot, rows: Tensor) -> Tensor:
    """One row for each example, those of rank 0 first."""
    return rows if snapshot.group is None else snapshot.group.gather(rows)


def refuse_group(snapshot: Snapshot, what: str) -> None:
    """Raise where the examples lie on several processes."""
    if snapshot.group is not None:
        ranks = snapshot.group.size
        raise ValueError(f"{what}: must be asked of an objective of one process; its examples lie on {ranks} ranks")
