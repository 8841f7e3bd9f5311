"""Gram matrices over a data set: of the examples' gradients, and of the outputs' (the neural tangent kernel, dense).

    gradient_gram:  K_ij = g_i'g_j ``(N, N)``        ntk_matrix:  K = J J' over (example, output) pairs

In linear layers that see one vector per example the products are those of factors (see `_linear_layers.py`). For all
other parameters rows of the Jacobian are pulled back for chunks of examples by vmap at top level, or one after the
other, and multiplied by the rows that are held. Where they do not all fit into `memory`, each pass over the data holds
the next of them.

**Source.** Novak, Sohl-Dickstein, Schoenholz, "Fast finite width neural tangent kernel", ICML 2022, arXiv 2206.08720:
contraction of Jacobians, and of the factors of dense layers.
**Differs from the source.** (1) Factors only where a layer sees one vector. (2) A bound of the memory for rows.
**Cost** for m rows, in gradients of the whole data: for factored layers as many as an example has outputs, and m^2 (in
+ out) multiplications; for the other n parameters what one gradient of each example costs, as many times, and m^2 n
multiplications; in p passes about p/2 times as many rows. `ntk(objective).dense()` takes m products of 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from frechet.analyze import _single_examples as single_examples
from frechet.analyze._examples import started
from frechet.analyze._linear_layers import Factors, Layer, candidates, factors_of, inner_of, rest_of, still_factored
from frechet.analyze._single_examples import (
    ExampleRoute,
    batching,
    by_route,
    check_alone,
    example,
    one_by_one,
    refuse_group,
    rows_at_once,
    taken_alone,
)
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._kernels import ordinary_mode
from frechet.objective._structure import has_rows
from frechet.operators.derivatives._products import grads, second_order
from frechet.space import Space

MEMORY = 1 << 30  # bytes of rows that are held

# use(first, R): rows number first, first + 1, ... of the Jacobian as (r, n)
Use = Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Gram:
    """A Gram matrix with rows in data order. `rows` of the Jacobian were written out, in `passes` over the data.

    `factored` counts the linear layers whose gradients were kept as factors; where these are all layers, `rows` is 0.
    """

    matrix: Tensor  # (m, m) float64
    examples: int
    rows: int
    factored: int
    passes: int
    route: ExampleRoute


def gradient_gram(
    objective: Objective, *, x: Tensor | None = None, route: ExampleRoute | None = None, memory: int = MEMORY
) -> Gram:
    """Return the inner products g_i'g_j ``(N, N)`` of all examples' gradients, in float64.

    g_i is that of `example_gradients`. The mean of all entries is the squared norm of the objective's gradient.

    Args:
        objective: the objective.
        x: the point ``(n,)``. Default: the model's present parameters.
        route: as in `example_gradients`.
        memory: how many bytes of gradients are held at a time. The result does not depend on it.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import gradient_gram
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]
        >>> gradient_gram(Objective(model, squared_error(), data)).matrix  # g = -2, 4
        tensor([[ 4., -8.],
                [-8., 16.]], dtype=torch.float64)
    """
    return by_route("gradient_gram", route, objective, lambda way: _gradient_gram(objective, x, way, memory))


def _gradient_gram(objective: Objective, x: Tensor | None, route: ExampleRoute, memory: int) -> Gram:
    walk = started("gradient_gram", objective, x, route)
    snapshot, space = walk.snapshot, walk.snapshot.space
    refuse_group(snapshot, "gradient_gram")
    rest = rest_of(space, walk.layers)
    leaves, step = [walk.blocks[n] for n in rest.names], rows_at_once(rest)
    others = walk.common[space.indices(rest)]
    common = space.unflatten(walk.common)
    held: list[list[Factors]] = []

    def factor(part: Part, batch: Batch) -> None:
        outputs, _, score = walk.scored(part, walk.blocks, batch)
        if not len(outputs):
            return
        cotangents = score[:, None, None]
        found, alone = factors_of(snapshot, walk.blocks, batch, walk.layers, cotangents, len(outputs), True)
        check_alone("gradient_gram", alone, outputs, space.eps, batch.index, 0)
        held.append(found)

    def sweep(start: int, use: Use) -> None:
        row = 0

        def visit(part: Part, batch: Batch) -> None:
            nonlocal row
            size = batch.examples
            if row + size > start:
                outputs, _, score = walk.scored(part, walk.blocks, batch)
                for a in range(max(0, start - row), size, step):
                    b = min(a + step, size)
                    G, alone = walk.chunk(rest, leaves, batch, score, a, b)
                    check_alone("gradient_gram", alone, outputs[a:b], space.eps, batch.index, a)
                    G += others
                    use(row + a, G)
            row += size

        snapshot.sweep(visit)

    with ordinary_mode(space.device), torch.no_grad(), snapshot.installed(walk.blocks):
        K, rows, passes = _assembled("gradient_gram", rest, walk.examples, memory, sweep)
        if walk.layers:
            snapshot.sweep(factor)
            _add_factored(K, held)
        if walk.layers and snapshot.penalties:
            c = torch.cat([sum(f.slopes(common)[:, 0].double() for f in found) for found in held])  # type: ignore[arg-type]
            K += c[:, None] + c + inner_of(common, common, [n for layer in walk.layers for n in layer.names])
    return Gram(K, walk.examples, rows, len(walk.layers), 1 + passes + bool(walk.layers), walk.route)


def ntk_matrix(
    objective: Objective,
    *,
    x: Tensor | None = None,
    restrict: str | list[str] | None = None,
    route: ExampleRoute | None = None,
    memory: int = MEMORY,
) -> Gram:
    """Return the neural tangent kernel J J' as a matrix ``(m, m)`` in float64, unscaled.

    Its rows are the pairs (example, output) in data order. It is the matrix of ``ntk(objective)``, at the cost of one
    example's gradient per row.

    Args:
        objective: the objective. Its criterion and targets are not used.
        x: the point ``(n,)``. Default: the model's present parameters.
        restrict: a glob pattern, or several, for the blocks of parameters that count. Default: all trainable ones.
        route: as in `example_gradients`.
        memory: how many bytes of rows are held at a time. The result does not depend on it.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import ntk_matrix
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> X = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> ntk_matrix(Objective(model, squared_error(), [(X, torch.zeros(2, 1))])).matrix  # X X'
        tensor([[1., 1.],
                [1., 5.]], dtype=torch.float64)
    """
    return by_route("ntk_matrix", route, objective, lambda way: _ntk_matrix(objective, x, restrict, way, memory))


def _ntk_matrix(
    objective: Objective, x: Tensor | None, restrict: str | list[str] | None, way: ExampleRoute, memory: int
) -> Gram:
    snapshot = objective.snapshot(x)
    snapshot.refuse_coupled("ntk_matrix")
    refuse_group(snapshot, "ntk_matrix")
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    _, blocks = snapshot.leaves(space)
    layers = candidates(snapshot, space) if way == "vmap" else []
    shapes: list[torch.Size] = []
    held: list[list[Factors]] = []
    cut = True  # some input has a row for each example, in every batch: otherwise outputs are taken within their batch

    def measure(_part: Part, batch: Batch) -> None:
        nonlocal cut
        shapes.append(snapshot.forward(blocks, batch).shape)
        cut = cut and (not shapes[-1][0] or has_rows(batch.inputs, shapes[-1][0]))
        layers[:] = still_factored(snapshot, blocks, batch, layers, shapes[-1][0]) if cut else []

    def factor(_part: Part, batch: Batch) -> None:
        together = snapshot.forward(blocks, batch)
        if not len(together):
            return
        held.append(_output_factors(snapshot, blocks, batch, layers, together))

    def sweep(start: int, use: Use) -> None:
        row, index = 0, 0

        def visit(_part: Part, batch: Batch) -> None:
            nonlocal row, index
            shape, index = shapes[index], index + 1
            if row + shape.numel() > start:
                together = snapshot.forward(blocks, batch).detach()
                if not len(together):
                    return
                _output_rows(snapshot, rest, blocks, batch, together, way, start - row, row, use, cut)
            row += shape.numel()

        snapshot.sweep(visit)

    with second_order("ntk_matrix", space.device), torch.no_grad(), snapshot.installed(blocks):
        snapshot.sweep(measure)
        size = sum(s.numel() for s in shapes)
        rest = rest_of(space, layers)
        K, rows, passes = _assembled("ntk_matrix", rest, size, memory, sweep)
        if layers:
            snapshot.sweep(factor)
            _add_factored(K, held)
    return Gram(K, sum(s[0] for s in shapes), rows, len(layers), 1 + passes + bool(layers), way)


def _add_factored(K: Tensor, held: list[list[Factors]]) -> None:
    """Add the products of the factors of all batches, of which one list holds one batch's layers."""
    sizes = [len(found[0].a) * found[0].b.shape[1] for found in held]
    parts = [block.split(sizes, 1) for block in K.split(sizes)]
    for i, first in enumerate(held):
        for j, second in enumerate(held[: i + 1]):
            for f, g in zip(first, second, strict=True):
                product = f.gram(g)
                parts[i][j].add_(product)
                if i != j:
                    parts[j][i].add_(product.T)


def _output_factors(
    snapshot: Snapshot, blocks: dict[str, Tensor], batch: Batch, layers: list[Layer], together: Tensor
) -> list[Factors]:
    """The factors of all outputs of a batch's examples, for groups of outputs at a time."""
    size, each = len(together), together[0].numel()
    width = sum(layer.module.out_features for layer in layers) * together.element_size()
    step = max(1, single_examples.CHUNK_BYTES // max(1, size * width))
    eye = torch.eye(each, dtype=together.dtype, device=together.device).view(each, 1, *together.shape[1:])
    groups = []
    for c in range(0, each, step):
        found, alone = factors_of(snapshot, blocks, batch, layers, eye[c : c + step], size, False)
        check_alone("ntk_matrix", alone, together, snapshot.space.eps, batch.index, 0)
        groups.append(found)
    return [Factors(fs[0].layer, fs[0].a, torch.cat([f.b for f in fs], 1)) for fs in zip(*groups, strict=True)]


def _assembled(
    what: str, space: Space, m: int, memory: int, sweep: Callable[[int, Use], None]
) -> tuple[Tensor, int, int]:
    """K = R R' from the rows (m, n) that `sweep(start, use)` gives from number `start` on; rows computed; passes."""
    if memory < 1:
        raise ValueError(f"{what}: memory must be positive bytes, got {memory}")
    if not space.dim:
        return torch.zeros(m, m, dtype=torch.float64, device=space.device), 0, 0
    most = max(1, min(m, memory // max(1, space.dim * torch.finfo(space.dtype).bits // 8)))
    K = torch.zeros(m, m, dtype=torch.float64, device=space.device)
    rows = 0
    for start in range(0, m, most):
        stop = min(start + most, m)
        held = torch.empty(stop - start, space.dim, dtype=space.dtype, device=space.device)

        def use(first: int, R: Tensor, start: int = start, stop: int = stop, held: Tensor = held) -> None:
            nonlocal rows
            last = min(first + len(R), stop)
            if first < stop:
                held[first - start : last - start] = R[: last - first]
            K[first : first + len(R), start:last] = space.gram(R.T, held[: last - start].T).to(K.device)
            rows += len(R)

        sweep(start, use)
    K = K.tril()
    return K + K.tril(-1).T, rows, -(-m // most)


def _output_rows(
    snapshot: Snapshot,
    space: Space,
    blocks: dict[str, Tensor],
    batch: Batch,
    together: Tensor,
    route: ExampleRoute,
    start: int,
    offset: int,
    use: Use,
    cut: bool,
) -> None:
    """Give the rows of one batch from its number `start` on to `use`, numbered from `offset`."""
    size, each, most = len(together), together[0].numel(), rows_at_once(space)
    alone, inputs = one_by_one(snapshot, blocks, batch, size) if route == "vmap" and cut else (None, [])
    step = max(1, most // max(1, each))
    for a in range(max(0, start) // max(1, each), size, step):
        b = min(a + step, size)
        # one example's rows may be more than fit: then its outputs go in groups
        for c in range(0, each, min(each, most)):
            eye = torch.eye(each, dtype=together.dtype, device=together.device)[c : c + most]
            cotangents = eye.view(len(eye), 1, *together.shape[1:])
            own = {n: blocks[n] for n in space.names}
            if alone is not None:
                rows, y = _mapped_rows(alone, own, [t[a:b] for t in inputs], cotangents)
            else:
                runs = [partial(_output, snapshot, blocks, batch, i, size, cut) for i in range(a, b)]
                rows, y = _looped_rows(runs, own, cotangents)
            check_alone("ntk_matrix", y, together[a:b], space.eps, batch.index, a)
            first = a * each + c
            skip = max(0, start - first)
            if skip < len(rows):
                use(offset + first + skip, rows[skip:])


def _output(snapshot: Snapshot, blocks: dict[str, Tensor], batch: Batch, i: int, size: int, cut: bool) -> Tensor:
    """The output of example i, alone or, where inputs cannot be cut, in its batch."""
    if not cut:
        return snapshot.forward(blocks, batch)[i : i + 1]
    with taken_alone(batch.index, i):
        return snapshot.forward(blocks, example(batch, i, size))


def _mapped_rows(
    alone: Callable[[dict[str, Tensor], list[Tensor]], Tensor],
    parameters: dict[str, Tensor],
    inputs: list[Tensor],
    cotangents: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows (examples x cotangents, n) of the Jacobian, and the outputs of each example alone."""

    def pulled(parameters: dict[str, Tensor], inputs: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        found = torch.func.vjp(lambda p: alone(p, inputs), parameters)
        y, pull = found[0], found[1]
        return torch.func.vmap(pull)(cotangents)[0], y

    detached = {name: p.detach() for name, p in parameters.items()}
    with batching():
        by_block, outputs = torch.func.vmap(pulled, in_dims=(None, 0))(detached, inputs)
        m = outputs.shape[0] * len(cotangents)
        joined = torch.cat([g.reshape(m, -1) for g in by_block.values()], 1)
    return joined, outputs.squeeze(1)


def _looped_rows(
    alone: list[Callable[[], Tensor]], parameters: dict[str, Tensor], cotangents: Tensor
) -> tuple[Tensor, Tensor]:
    leaves, rows, outputs = list(parameters.values()), [], []
    for run in alone:
        with torch.enable_grad():
            y = run()
            pulled = (grads(y, leaves, [u.view(y.shape)], retain_graph=True) for u in cotangents)
            rows += [torch.cat([g.reshape(-1) for g in blocks]) for blocks in pulled]
        outputs.append(y.detach())
    return torch.stack(rows), torch.cat(outputs)
