"""Quantities of single examples: gradients and curvatures of the N functions whose mean is the objective.

    L(x) = 1/N sum_i f_i(x),    f_i = w N / count * total_i + penalties,    g_i = grad f_i,    H_i = Hessian of f_i

so mean g_i is the objective's gradient and mean H_i its Hessian; an example without terms has only the penalties. In
a group of processes the examples are those of all ranks, rank 0's first.

Gradients: per chunk of examples, either `vmap` over single forward passes or a loop of them, pulled back from the
criterion's score; in linear layers that see one vector per example as two factors (`_linear_layers.py`). Only |g_i|^2
and g_i'g leave a chunk. Curvatures v'H_i w come for all examples at once from reverse
mode alone: with weights c on the examples the product sum_i c_i H_i w is linear in c, and its derivative in c along v
is v'H_i w for every i.

**Source.** The weights are those of Townsend, "A new trick for calculating Jacobian vector products" (2017), around a
Hessian product. E (z'H_i w)^2 = ||H_i||_F^2 for independent z, w with unit covariance.
**Differs from the source.** (1) The derivative in the weights comes last. Taking it first, and differentiating the
slopes w'grad total_i in x, costs more, and is silently wrong through torch's layer norm: the double backward of its
kernel takes the mean and the deviation for constants, so only two derivatives in x are right.
**Cost.** Gradients: two passes over the data, one for the mean; about 3 gradients where all layers are linear and see
one vector, else what one gradient of each example costs; at most 256 MiB beside the model's own memory.
Curvatures of k x l pairs: one pass, about 2 + 2 l + 3 k l gradients, no vector per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._linear_layers import Layer, candidates, factors_of, inner_of, rest_of, still_factored
from frechet.analyze._single_examples import (
    ExampleRoute,
    Unbatchable,
    by_route,
    check_alone,
    chunk_gradients,
    of_all_ranks,
    over_ranks,
    refuse_group,
    rows_at_once,
    within_batch,
)
from frechet.errors import NonFinite
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive
from frechet.objective._model import ordinary_mode
from frechet.objective._structure import has_rows
from frechet.operators.derivatives._joint import AtOutputs
from frechet.operators.derivatives._products import columns, grads, second_order
from frechet.space import Space


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
    """v_a'H_i w_b of all examples in data order: ``(N, k, l)``, or ``(N, k)`` of v_a'H_i w_a where paired."""

    values: Tensor  # float64
    examples: int
    terms: float
    passes: int


def example_gradients(
    objective: Objective, *, x: Tensor | None = None, route: ExampleRoute | None = None
) -> ExampleGradients:
    """Return the squared norms of all examples' gradients, their products with the mean gradient, and their losses.

    g_i is the gradient of example i's total times N / count, plus the gradient of the penalties. The mean of the g_i is
    therefore the objective's gradient.

    Args:
        objective: the objective, with one data term.
        x: the point ``(n,)``. Default: the model's present parameters.
        route: ``"vmap"`` differentiates chunks of examples at once, ``"loop"`` one example after the other. Default:
            vmap, but loop for recurrent modules, and where vmap fails.

    Raises:
        UnusableObjective: the output for one example depends on the others of its batch, or an input without an axis of
            examples happens to have the batch's length.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import example_gradients
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]
        >>> example_gradients(Objective(model, squared_error(), data)).squared_norms  # (2 (w x - y) x)^2
        tensor([ 4., 16.], dtype=torch.float64)
    """
    return by_route("example_gradients", route, objective, lambda way: _gradients(objective, x, way))


def _gradients(objective: Objective, x: Tensor | None, route: ExampleRoute) -> ExampleGradients:
    walk = started("example_gradients", objective, x, route)
    snapshot, space = walk.snapshot, walk.snapshot.space
    rest = rest_of(space, walk.layers)
    at = space.indices(rest)
    g, common, others = space.unflatten(walk.mean), space.unflatten(walk.common), walk.common[at]
    rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def visit(part: Part, batch: Batch) -> None:
        outputs, losses, score = walk.scored(part, blocks, batch)
        norms, inner = outputs.new_zeros(2, len(outputs), dtype=torch.float64)
        if walk.layers and len(outputs):
            factors, alone = factors_of(snapshot, blocks, batch, walk.layers, score[:, None, None], len(outputs), True)
            check_alone("example_gradients", alone, outputs, space.eps, batch.index, 0)
            for f in factors:
                norms += f.squared_norms()[:, 0]
                inner += f.slopes(g)[:, 0]
                if snapshot.penalties:
                    norms += 2 * f.slopes(common)[:, 0] + inner_of(common, common, f.layer.names)
                    inner += inner_of(common, g, f.layer.names)
        for a in range(0, len(outputs) if rest.dim else 0, step):
            b = min(a + step, len(outputs))
            G, alone = walk.chunk(rest, leaves, batch, score, a, b)
            check_alone("example_gradients", alone, outputs[a:b], space.eps, batch.index, a)
            G += others
            norms[a:b] += rest.norm(G.T).to(norms.device) ** 2
            inner[a:b] += rest.gram(G.T, walk.mean[at, None])[:, 0].to(norms.device)
        rows.append((norms, inner, losses))

    with ordinary_mode(space.device), torch.no_grad(), snapshot.installed(walk.blocks):
        leaves, step = [walk.blocks[n] for n in rest.names], rows_at_once(rest)
        blocks = walk.blocks
        snapshot.sweep(visit)
    kept = torch.cat([torch.stack([part.cpu().double() for part in row], 1) for row in rows] or [torch.zeros(0, 3)])
    norms, inner, losses = of_all_ranks(snapshot, kept.double()).unbind(1)
    squared = float(space.inner(walk.mean, walk.mean))
    return ExampleGradients(
        *(norms, inner, losses * walk.scale, walk.penalty, walk.mean, squared, walk.examples, walk.terms),
        passes=2,
        route=walk.route,
    )


@dataclass(frozen=True, eq=False)
class Walk:
    """What a first pass over the data tells of the examples: their mean gradient, and what their totals are scaled by.

    g_i = scale * (gradient of total_i) + common. In `layers`, gradients can be kept as factors.
    """

    snapshot: Snapshot
    part: Part
    blocks: dict[str, Tensor]
    layers: list[Layer]
    mean: Tensor  # (n,)
    common: Tensor  # (n,), the penalties' gradient
    penalty: float
    scale: float
    examples: int
    terms: float
    route: ExampleRoute
    reads: bool  # the criterion reads parameters of the model itself
    together: bool  # an example is differentiated within its batch

    @property
    def of_one(self) -> Callable[[Batch, Tensor], Tensor] | None:
        """The f_i of a batch of one example from its outputs, where their slopes in the outputs are not all of them."""
        if not self.reads:
            return None
        return lambda batch, y: self.snapshot.terms_of(self.part, self.blocks, batch, y) * self.scale

    def chunk(
        self, space: Space, leaves: list[Tensor], batch: Batch, score: Tensor, a: int, b: int
    ) -> tuple[Tensor, Tensor]:
        """The gradients (b - a, n) of examples a to b in the blocks of `space`, and their outputs."""
        if self.together:
            return within_batch(self.snapshot, self.part, leaves, self.blocks, batch, self.scale, a, b)
        return chunk_gradients(self.snapshot, space, leaves, self.blocks, batch, score, a, b, self.route, self.of_one)

    def scored(self, part: Part, blocks: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of a batch, each example's loss, and the slopes of the f_i in the outputs, penalties left out."""
        with torch.no_grad():
            outputs = self.snapshot.forward(blocks, batch).detach()
            criterion = self.snapshot.criterion(part, batch)
            score = criterion.score(outputs, batch.targets) * self.scale
            return outputs, criterion.terms(outputs, batch.targets), score


def walk_gradients(
    what: str,
    objective: Objective,
    x: Tensor | None,
    route: ExampleRoute,
    use: Callable[[Tensor, Tensor, Walk], None],
) -> Walk:
    """Two passes: the mean gradient, then `use(G, losses, walk)` for chunks of examples with gradients G ``(m, n)``."""
    walk = started(what, objective, x, route)
    snapshot, space = walk.snapshot, walk.snapshot.space
    refuse_group(snapshot, what)
    leaves, step = [walk.blocks[n] for n in space.names], rows_at_once(space)

    def visit(part: Part, batch: Batch) -> None:
        outputs, losses, score = walk.scored(part, walk.blocks, batch)
        for a in range(0, len(outputs), step):
            b = min(a + step, len(outputs))
            G, alone = walk.chunk(space, leaves, batch, score, a, b)
            check_alone(what, alone, outputs[a:b], space.eps, batch.index, a)
            G += walk.common
            use(G, losses[a:b], walk)

    with ordinary_mode(space.device), torch.no_grad(), snapshot.installed(walk.blocks):
        snapshot.sweep(visit)
    return walk


def started(what: str, objective: Objective, x: Tensor | None, route: ExampleRoute) -> Walk:
    """The first pass."""
    snapshot, part = _one_part(what, objective, x)
    space, reads = snapshot.space, False
    # a batch draws what its examples get, and an example alone would draw something else
    together = snapshot.dropout_seed is not None
    cut = True  # some input has a row for each example, in every batch
    if together and route == "vmap":
        raise Unbatchable(
            f"{what}: with dropout_seed examples are differentiated within their batch; pass route='loop'"
        )
    with ordinary_mode(space.device):
        leaves, blocks = snapshot.leaves(space)
        layers = candidates(snapshot, space) if route == "vmap" else []
        counted: list[tuple[float, int]] = []

        def contribute(part: Part, batch: Batch) -> Tensor:
            nonlocal reads, cut
            with torch.enable_grad():
                terms, outputs = _seen(snapshot, part, blocks, batch)
                criterion = snapshot.criterion(part, batch)
                check_additive(what, criterion, outputs, batch.targets, space.eps, batch.index)
                reads = reads or AtOutputs(snapshot, part, batch, (leaves, blocks), outputs).reads_parameters
                cut = cut and (not len(terms) or has_rows(batch.inputs, len(terms)))
                factored = cut and not reads
                layers[:] = still_factored(snapshot, blocks, batch, layers, len(outputs)) if factored else []
                counted.append((float(snapshot.count(part, batch)), terms.shape[0]))
                return space.join(grads(terms.sum(), leaves, None))

        with torch.no_grad(), snapshot.installed(blocks):
            mean = snapshot.average(contribute, what, start=space.zeros())
        count, examples = over_ranks(snapshot, sum(c for c, _ in counted), sum(n for _, n in counted))
        common, penalty = torch.zeros_like(mean), torch.zeros(())
        if snapshot.penalties:
            with torch.enable_grad():
                penalty = snapshot.penalty(blocks)
                common = space.join(grads(penalty, leaves, None))
    scale = part.weight * examples / count
    return Walk(
        *(snapshot, part, blocks, layers, mean + common, common, float(penalty.detach()), scale, examples, count),
        *(route, reads, together or not cut),
    )


def example_curvatures(
    objective: Objective, V: Tensor, W: Tensor | None = None, *, paired: bool = False, x: Tensor | None = None
) -> ExampleCurvatures:
    """Return the curvatures v'H_i w of every example's Hessian H_i along given directions, exactly.

    Their mean over the examples is v'H w, where H is the objective's Hessian. The products run in reverse mode.

    Args:
        objective: the objective. Its model must treat the examples of a batch independently.
        V: the directions v as columns ``(n, k)``.
        W: the directions w as columns ``(n, l)``. Default: v'H_i v for the columns of V.
        paired: with True, v'H_i w for the k pairs of columns alone, not for all k l combinations.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import example_curvatures
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.zeros(2, 1))]
        >>> v = torch.tensor([[1.0], [0.0]])
        >>> example_curvatures(Objective(model, squared_error(), data), v).values  # 2 (x'v)^2
        tensor([[ 2.],
                [18.]], dtype=torch.float64)
    """
    snapshot, part = _one_part("example_curvatures", objective, x)
    space = snapshot.space
    _check_directions(space, V, W, paired)
    paired = paired or W is None
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
            ends = [lefts[j]] if paired else lefts
            column = [grads(product, [c], v, retain_graph=True)[0].detach() for v in ends]
            found.append(torch.stack(column, 1) if column else values.detach().new_zeros(len(values), 0))
        if not found:
            shape = (len(values), 0) if paired else (len(values), len(lefts), 0)
            return values.detach().new_zeros(shape)
        return torch.cat(found, 1) if paired else torch.stack(found, 2)

    parts: list[Tensor] = []
    count = 0.0

    def visit(part: Part, batch: Batch) -> None:
        nonlocal count
        with torch.enable_grad():
            terms, outputs = _seen(snapshot, part, blocks, batch)
            criterion = snapshot.criterion(part, batch)
            check_additive("example_curvatures", criterion, outputs, batch.targets, space.eps, batch.index)
            parts.append(curved(terms).cpu().double())
        count += float(snapshot.count(part, batch))

    with second_order("example_curvatures", space.device):
        with snapshot.installed(blocks):
            snapshot.sweep(visit)
        count, _ = over_ranks(snapshot, count, 0)
        if count <= 0:
            raise ValueError("example_curvatures: the data must hold at least one term that counts, got none")
        pairs = (len(lefts),) if W is None else (len(lefts), len(rights))
        values = of_all_ranks(snapshot, torch.cat(parts or [torch.zeros(0, *pairs)]).double())
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


def _check_directions(space: Space, V: Tensor, W: Tensor | None, paired: bool) -> None:
    for name, block in (("V", V), ("W", V if W is None else W)):
        if block.ndim != 2 or block.shape[0] != space.dim or block.dtype != space.dtype or block.device != space.device:
            got = f"{block.dtype} on {block.device} of shape {tuple(block.shape)}"
            raise ValueError(f"example_curvatures: {name} must be a block ({space.dim}, k) of {space!r}, got {got}")
    if paired and W is not None and W.shape != V.shape:
        raise ValueError(f"example_curvatures: W must have V's {V.shape[1]} columns to be paired, got {W.shape[1]}")


def _one_part(what: str, objective: Objective, x: Tensor | None) -> tuple[Snapshot, Part]:
    if not isinstance(objective, Objective):
        raise TypeError(f"{what}: objective must be an Objective, got {type(objective).__name__}")
    if len(objective.parts) != 1:
        raise ValueError(
            f"{what}: objective must have one data term, got {len(objective.parts)}; the examples of different terms "
            "are not draws from one population: ask for each term alone"
        )
    snapshot = objective.snapshot(x)
    snapshot.refuse_coupled(what)
    return snapshot, objective.parts[0]


def _terms(snapshot: Snapshot, part: Part, blocks: dict[str, Tensor], batch: Batch) -> Tensor:
    """The terms of each example."""
    return _seen(snapshot, part, blocks, batch)[0]


def _seen(snapshot: Snapshot, part: Part, blocks: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """The terms of each example, and the outputs."""
    outputs = snapshot.forward(blocks, batch)
    terms = snapshot.terms_of(part, blocks, batch, outputs)
    if terms.shape != outputs.shape[:1] and part.criterion.additive and batch.layout.like is None:
        raise ValueError(
            f"examples: the criterion must give one value per example {tuple(outputs.shape[:1])}, got "
            f"{tuple(terms.shape)}"
        )
    return terms, outputs
