"""Quantities of single examples: gradients and curvatures of the N functions whose mean is the objective.

    L(x) = 1/N sum_i f_i(x),    f_i = w N / count * total_i + penalties,    g_i = grad f_i,    H_i = Hessian of f_i

so mean g_i is the objective's gradient and mean H_i its Hessian; an example without terms has only the penalties. In
a group of processes the examples are those of all ranks, rank 0's first.

Gradients: per chunk of examples, either `vmap` over single forward passes or a loop of them, pulled back from the
criterion's score. Only |g_i|^2 and g_i'g leave a chunk. Curvatures v'H_i w come for all examples at once from reverse
mode alone: with weights c on the examples the product sum_i c_i H_i w is linear in c, and its derivative in c along v
is v'H_i w for every i.

**Source.** The weights are those of Townsend, "A new trick for calculating Jacobian vector products" (2017), around a
Hessian product. E (z'H_i w)^2 = ||H_i||_F^2 for independent z, w with unit covariance.
**Differs from the source.** (1) The derivative in the weights comes last. Taking it first, and differentiating the
slopes w'grad total_i in x, costs more, and is silently wrong through torch's layer norm: the double backward of its
kernel takes the mean and the deviation for constants, so only two derivatives in x are right.
**Cost.** Gradients: two passes over the data, one for the mean; at most 256 MiB beside the model's own memory.
Curvatures of k x l pairs: one pass, about 2 + 2 l + 3 k l gradients, no vector per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from frechet.errors import NonFinite, NotDifferentiable, UnusableObjective
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective.model import ordinary_mode
from frechet.operators.products import columns, grads, second_order

ExampleRoute = Literal["vmap", "loop"]

CHUNK_BYTES = 1 << 27  # of gradients, held twice: by block and joined
LOOPED = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)  # no batching rule in torch 2.13, or no example axis


@dataclass(frozen=True, eq=False)
class ExampleGradients:
    """What is kept of the gradients g_i of all examples, in data order. `gradient` is their mean, the objective's."""

    squared_norms: Tensor  # (N,) float64, |g_i|^2
    inner: Tensor  # (N,) float64, g_i'g
    losses: Tensor  # (N,) float64, f_i without the penalties
    penalty: float
    gradient: Tensor  # (n,)
    squared_gradient: float  # |g|^2
    examples: int
    terms: float
    passes: int
    route: ExampleRoute


@dataclass(frozen=True, eq=False)
class ExampleCurvatures:
    """v_a'H_i w_b of all examples in data order: ``(N, k, l)``, or ``(N, k)`` of v_a'H_i v_a where W was left out."""

    values: Tensor  # float64
    examples: int
    terms: float
    passes: int


def example_gradients(
    objective: Objective, *, x: Tensor | None = None, route: ExampleRoute | None = None
) -> ExampleGradients:
    """The squared norms of all examples' gradients, their inner products with the mean gradient, and their losses.

    g_i is the gradient of example i's total times N / count (plus the penalties' gradient), so the mean is the
    objective's gradient. ``route="vmap"`` runs chunks of examples at once and is the default, ``"loop"`` one after the
    other, the default for recurrent modules. A model whose output for an example depends on the others of its batch
    raises `UnusableObjective`; so does an input without example axis that happens to have the batch's length.

    Example:
        >>> import torch
        >>> from frechet import Objective, example_gradients, squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]
        >>> example_gradients(Objective(model, squared_error(), data)).squared_norms  # (2 (w x - y) x)^2
        tensor([ 4., 16.], dtype=torch.float64)
    """
    snapshot, part = _one_part("example_gradients", objective, x)
    if route not in (None, "vmap", "loop"):
        raise ValueError(f"example_gradients: route must be 'vmap' or 'loop', got {route!r}")
    way = route or ("loop" if any(isinstance(m, LOOPED) for m in snapshot.model.modules()) else "vmap")
    space = snapshot.space
    with ordinary_mode(space.device):
        leaves, blocks = snapshot.leaves(space)
        counted: list[tuple[float, int]] = []

        def contribute(part: Part, batch: Batch) -> Tensor:
            with torch.enable_grad():
                terms = _terms(snapshot, part, blocks, batch)
                counted.append((float(part.criterion.count(batch.targets)), terms.shape[0]))
                return space.join(grads(terms.sum(), leaves, None))

        with torch.no_grad():
            mean = snapshot.average(contribute, "example_gradients", start=space.zeros())
        count, examples = _over_ranks(snapshot, sum(c for c, _ in counted), sum(n for _, n in counted))
        scale = part.weight * examples / count
        common = torch.zeros_like(mean)
        penalty = torch.zeros(())
        if snapshot.penalties:
            with torch.enable_grad():
                penalty = snapshot.penalty(blocks)
                common = space.join(grads(penalty, leaves, None))
        mean = mean + common
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        step = max(1, CHUNK_BYTES // max(1, space.dim * mean.element_size()))

        def visit(part: Part, batch: Batch) -> None:
            with torch.no_grad():
                outputs = snapshot.forward(blocks, batch).detach()
                losses = part.criterion.terms(outputs, batch.targets)
                score = part.criterion.score(outputs, batch.targets) * scale
                for a in range(0, outputs.shape[0], step):
                    b = min(a + step, outputs.shape[0])
                    G, alone = _chunk(snapshot, leaves, blocks, batch, score, a, b, way)
                    _check_alone(alone, outputs[a:b], space.eps, batch.index, a)
                    G += common
                    rows.append((space.norm(G.T) ** 2, space.gram(G.T, mean[:, None])[:, 0], losses[a:b]))

        snapshot.sweep(visit)
        kept = torch.cat([torch.stack([part.cpu().double() for part in row], 1) for row in rows] or [torch.zeros(0, 3)])
        norms, inner, losses = _of_all_ranks(snapshot, kept.double()).unbind(1)
        squared = float(space.inner(mean, mean))
        return ExampleGradients(
            norms, inner, losses * scale, float(penalty.detach()), mean, squared, examples, count, passes=2, route=way
        )


def example_curvatures(
    objective: Objective, V: Tensor, W: Tensor | None = None, *, x: Tensor | None = None
) -> ExampleCurvatures:
    """The curvatures v'H_i w of every example along given directions: columns v of V ``(n, k)`` and w of W ``(n, l)``.

    Without W the k curvatures v'H_i v. Exact, in reverse mode. Their mean over the examples is v'H w with H the
    objective's Hessian.

    Example:
        >>> import torch
        >>> from frechet import Objective, example_curvatures, squared_error
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.zeros(2, 1))]
        >>> v = torch.tensor([[1.0], [0.0]])
        >>> example_curvatures(Objective(model, squared_error(), data), v).values  # 2 (x'v)^2
        tensor([[ 2.],
                [18.]], dtype=torch.float64)
    """
    snapshot, part = _one_part("example_curvatures", objective, x)
    space = snapshot.space
    for name, block in (("V", V), ("W", V if W is None else W)):
        if block.ndim != 2 or block.shape[0] != space.dim or block.dtype != space.dtype or block.device != space.device:
            got = f"{block.dtype} on {block.device} of shape {tuple(block.shape)}"
            raise ValueError(f"example_curvatures: {name} must be a block ({space.dim}, k) of {space!r}, got {got}")
    with ordinary_mode(space.device):
        leaves, blocks = snapshot.leaves(space)
        lefts = columns(space, V.detach())
        rights = lefts if W is None else columns(space, W.detach())

    def curved(values: Tensor) -> Tensor:
        """(m, k, l) or (m, k) for the functions `values` (m,) of the leaves."""
        c = torch.ones_like(values).requires_grad_()
        gradient = grads(values, leaves, [c], create_graph=True)
        found = []
        for j, w in enumerate(rights):
            product = grads(gradient, leaves, w, create_graph=True)  # sum_i c_i H_i w
            ends = [lefts[j]] if W is None else lefts
            column = [grads(product, [c], v, retain_graph=True)[0].detach() for v in ends]
            found.append(torch.stack(column, 1) if column else values.detach().new_zeros(len(values), 0))
        if not found:
            shape = (len(values), 0) if W is None else (len(values), len(lefts), 0)
            return values.detach().new_zeros(shape)
        return torch.cat(found, 1) if W is None else torch.stack(found, 2)

    parts: list[Tensor] = []
    count = 0.0

    def visit(part: Part, batch: Batch) -> None:
        nonlocal count
        with torch.enable_grad():
            parts.append(curved(_terms(snapshot, part, blocks, batch)).cpu().double())
        count += float(part.criterion.count(batch.targets))

    with second_order("example_curvatures", space.device):
        snapshot.sweep(visit)
        count, _ = _over_ranks(snapshot, count, 0)
        if count <= 0:
            raise ValueError("example_curvatures: the data must hold at least one term that counts, got none")
        pairs = (len(lefts),) if W is None else (len(lefts), len(rights))
        values = _of_all_ranks(snapshot, torch.cat(parts or [torch.zeros(0, *pairs)]).double())
        values = values * (part.weight * len(values) / count)
        if snapshot.penalties:
            with torch.enable_grad():
                values = values + curved(snapshot.penalty(blocks).reshape(1)).cpu().double()
    wrong = ~torch.isfinite(values).flatten(1).all(1)
    if bool(wrong.any()):
        raise NonFinite(
            f"example_curvatures: example {int(wrong.nonzero()[0])} has a curvature that is NaN or infinite; check the "
            "point, its data and the directions"
        )
    return ExampleCurvatures(values, len(values), count, passes=1)


def _one_part(what: str, objective: Objective, x: Tensor | None) -> tuple[Snapshot, Part]:
    if not isinstance(objective, Objective):
        raise TypeError(f"{what}: objective must be an Objective, got {type(objective).__name__}")
    if len(objective.parts) != 1:
        raise ValueError(
            f"{what}: objective must have one data term, got {len(objective.parts)}; the examples of different terms "
            "are not draws from one population: ask for each term alone"
        )
    return objective.snapshot(x), objective.parts[0]


def _over_ranks(snapshot: Snapshot, count: float, examples: int) -> tuple[float, int]:
    """Terms and examples on all ranks."""
    if snapshot.group is None:
        return count, examples
    total = snapshot.group.sum(torch.tensor([count, examples], dtype=torch.float64))
    return float(total[0]), int(total[1])


def _of_all_ranks(snapshot: Snapshot, rows: Tensor) -> Tensor:
    """One row for each example, those of rank 0 first."""
    return rows if snapshot.group is None else snapshot.group.gather(rows)


def _terms(snapshot: Snapshot, part: Part, blocks: dict[str, Tensor], batch: Batch) -> Tensor:
    outputs = snapshot.forward(blocks, batch)
    terms = part.criterion.terms(outputs, batch.targets)
    if terms.shape != outputs.shape[:1]:
        raise ValueError(
            f"examples: the criterion must give one value per example {tuple(outputs.shape[:1])}, got "
            f"{tuple(terms.shape)}"
        )
    return terms


def _chunk(
    snapshot: Snapshot,
    leaves: list[Tensor],
    blocks: dict[str, Tensor],
    batch: Batch,
    score: Tensor,
    a: int,
    b: int,
    route: ExampleRoute,
) -> tuple[Tensor, Tensor]:
    """The gradients (b - a, n) of examples a to b, and the outputs of each of them alone."""
    size, names = score.shape[0], snapshot.space.names
    flat, tree = tree_flatten(batch.inputs)
    mapped = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and t.ndim and t.shape[0] == size]

    def alone(parameters: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        inputs: list[Any] = list(flat)
        for i, row in zip(mapped, rows, strict=True):
            inputs[i] = row.unsqueeze(0)
        return snapshot.forward({**blocks, **parameters}, Batch(tree_unflatten(inputs, tree), None, batch.index))

    if route == "vmap":
        return _mapped(alone, dict(zip(names, leaves, strict=True)), [flat[i][a:b] for i in mapped], score[a:b])
    G, outputs = leaves[0].new_empty(b - a, snapshot.space.dim), []
    for i in range(a, b):
        with torch.enable_grad():
            y = alone({}, [flat[j][i] for j in mapped])
            pulled = grads(y, leaves, [score[i : i + 1]])
        torch.cat([g.reshape(-1) for g in pulled], out=G[i - a])
        outputs.append(y.detach())
    return G, torch.cat(outputs)


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
    try:
        by_block, outputs = torch.func.vmap(torch.func.grad(pulled, has_aux=True), in_dims=(None, 0, 0))(
            detached, rows, score
        )
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise NotDifferentiable(
            f"example_gradients: route='vmap' cannot go through this model: {str(error).splitlines()[0][:200]}; "
            "pass route='loop'"
        ) from error
    return torch.cat([g.reshape(len(score), -1) for g in by_block.values()], 1), outputs.squeeze(1)


def _check_alone(alone: Tensor, together: Tensor, eps: float, index: int, first: int) -> None:
    """Raise where an example's output alone is not that in its batch: then there are no per-example gradients."""
    size = float(together.abs().max()) if together.numel() else 0.0
    if alone.shape == together.shape:
        off = (alone - together).flatten(1).abs().amax(1) > 1e4 * eps * max(size, 1e-30)
        if not bool(off.any()):
            return
        first += int(off.nonzero()[0])
    raise UnusableObjective(
        f"example_gradients: batch {index}: the output of example {first} alone must be its output in the batch, got "
        "another one; the model couples the examples of a batch, or an input without example axis has the batch's "
        "length"
    )
