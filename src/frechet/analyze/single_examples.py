"""One example at a time: its output alone, its gradient written out, and whether it is an example on its own at all.

Chunks of examples go through `vmap` at top level (a forward mode around it would be wrong in torch 2.13), or one after
the other where a module has no batching rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import Batch, Snapshot
from frechet.operators.products import grads
from frechet.space import Space

ExampleRoute = Literal["vmap", "loop"]

CHUNK_BYTES = 1 << 27  # of gradients, held twice: by block and joined
LOOPED = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)  # no batching rule in torch 2.13, or no example axis


def example_route(what: str, route: ExampleRoute | None, model: nn.Module) -> ExampleRoute:
    """`route`, checked, or the default for this model."""
    if route not in (None, "vmap", "loop"):
        raise ValueError(f"{what}: route must be 'vmap' or 'loop', got {route!r}")
    return route or ("loop" if any(isinstance(m, LOOPED) for m in model.modules()) else "vmap")


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
) -> tuple[Tensor, Tensor]:
    """The gradients (b - a, n) of examples a to b in the blocks of `space`, and the outputs of each of them alone."""
    alone, rows = one_by_one(snapshot, blocks, batch, score.shape[0])
    if route == "vmap":
        return _mapped(alone, dict(zip(space.names, leaves, strict=True)), [r[a:b] for r in rows], score[a:b])
    G, outputs = leaves[0].new_empty(b - a, space.dim), []
    for i in range(a, b):
        with torch.enable_grad():
            y = alone({}, [r[i] for r in rows])
            pulled = grads(y, leaves, [score[i : i + 1]])
        torch.cat([g.reshape(-1) for g in pulled], out=G[i - a])
        outputs.append(y.detach())
    return G, torch.cat(outputs)


def one_by_one(
    snapshot: Snapshot, blocks: dict[str, Tensor], batch: Batch, size: int
) -> tuple[Callable[[dict[str, Tensor], list[Tensor]], Tensor], list[Tensor]]:
    """(parameters, rows of one example) -> its output ``(1, ...)``, and the batch's tensors that have such rows."""
    flat, tree = tree_flatten(batch.inputs)
    mapped = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.ndim and t.shape[0] == size]

    def alone(parameters: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        inputs: list[Any] = list(flat)
        for i, row in zip(mapped, rows, strict=True):
            inputs[i] = row.unsqueeze(0)
        return snapshot.forward({**blocks, **parameters}, Batch(tree_unflatten(inputs, tree), None, batch.index))

    return alone, [flat[i] for i in mapped]


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
    return torch.cat([g.reshape(len(score), -1) for g in by_block.values()], 1), outputs.squeeze(1)


@contextmanager
def batching() -> Iterator[None]:
    """vmap's complaint about a model in one sentence."""
    try:
        yield
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise NotDifferentiable(
            f"examples: route='vmap' cannot go through this model: {str(error).splitlines()[0][:200]}; "
            "pass route='loop'"
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
        "length"
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
