"""A sum over a data set, batch by batch from recordings: Hessian, Gauss-Newton, Fisher.

The constants of the first batches are kept, as far as memory goes; those of the others are computed at each product.
Batches that no recording serves go by the operator itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frechet.errors import UnusableObjective
from frechet.objective import Batch, Part, Snapshot
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import FromCallable
from frechet.operators.derivatives._gauss_newton import OutputProduct
from frechet.operators.derivatives._hessian import ObjectiveHessian
from frechet.operators.derivatives._modes import lacks_forward
from frechet.operators.derivatives._products import Adding, Leaves, Sums, columns, differentiating
from frechet.recording._batch import own, seen, without_numbers
from frechet.recording._budget import Budget
from frechet.recording._program import Untraceable
from frechet.recording._recordings import Plain, Product, Recorded, Recordings, Served, play
from frechet.recording._watch import Map

Derivative = ObjectiveHessian | OutputProduct
Key = tuple[int, int]  # part, batch


@dataclass(frozen=True, eq=False)
class _Absent:
    """Stands for a batch that is not read again: copies of its targets, to count by, and inputs without numbers."""

    inputs: Any
    targets: Any


@dataclass(frozen=True, eq=False)
class _Rest:
    """A data set some of whose batches are not needed any more."""

    absent: dict[int, _Absent]
    data: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        for index, raw in enumerate(self.data):
            yield self.absent.get(index, raw)


class _NeedsModel(Exception):
    """A batch that was recorded goes by the operator itself now, in a pass in which the model is not prepared."""


@dataclass(frozen=True, eq=False)
class OfData:
    """How an operator's product on each batch is computed; `absent` are those that are not read again."""

    A: Derivative
    served: dict[Key, Served]
    absent: dict[Key, _Absent]

    @property
    def plain(self) -> bool:
        """Whether batches go by the operator itself; on several processes, whether one could."""
        if any(isinstance(served, Plain) for served in self.served.values()):
            return True
        return self.A.snapshot.group is not None and len(self.absent) < len(self.served)

    def of(self, s: Snapshot, part: Part, batch: Batch, model: bool) -> tuple[Served, list[Tensor]]:
        """How the product on a batch is computed, and from which tensors."""
        served = self.served.get((s.parts.index(part), batch.index))
        if served is None:
            raise UnusableObjective(
                f"{self.A.name}: the data must give the same batches each time, but batch {batch.index} was not among "
                "those with which it was linearized"
            )
        found, tensors = still(self.A.name, served, batch)
        if isinstance(found, Plain) and not model:
            raise _NeedsModel
        return found, tensors


def still(what: str, served: Served, batch: Batch) -> tuple[Served, list[Tensor]]:
    """How the product on a batch is computed: one that looks otherwise now goes by the operator itself."""
    if isinstance(served, Plain) or served.kept:
        return served, []
    try:
        found, tensors = seen((batch.inputs, batch.targets))
    except Untraceable as error:
        return Plain(str(error)), []
    if found.shapes != served.look.shapes:
        was, now = ([shape for shape, _ in look.shapes] for look in (served.look, found))
        raise UnusableObjective(
            f"{what}: the data must give the same batches each time, but batch {batch.index} has tensors of shapes "
            f"{now}, and {was} when it was linearized"
        )
    return served if found.same_form(served.look) else Plain("it looks otherwise than before"), tensors


def recorded_product(A: Derivative, budget: Budget) -> tuple[LinearOperator, list[tuple[Served, ...]], str]:
    """A by a recording for each batch, or by its own products; how each is served; and the route of recordings."""
    s, space = A.snapshot, A.domain
    drawn = isinstance(A, OutputProduct) and A.drawn
    if space.shard is not None:
        return A, [(Plain("the parameters are sharded (fully_shard) and gathered for each product"),)], A.route
    if len({id(p) for p in s.parts}) < len(s.parts):
        if drawn:
            return A, [(Plain("labels are drawn for a data term that the objective holds twice"),)], A.route
        s = replace(s, parts=tuple(replace(p) for p in s.parts))
        A = replace(A, snapshot=s)
    before = len(budget.replays)
    recordings = Recordings(budget, space)
    with differentiating(A.name, space.device), torch.no_grad():
        how = _served(A, recordings)
    if drawn and not all(isinstance(one, Recorded) for one in how.served.values()):
        budget.forget(before)
        why = Plain(f"labels are drawn in one stream for all batches, and {recordings.why}")
        return A, [(why,) for _ in how.served], A.route
    route, matmat = "forward" if recordings.other else A.route, _matmat(how)
    return FromCallable(matmat, matmat, space, space, A.facts), [(one,) for one in how.served.values()], route


def _served(A: Derivative, recordings: Recordings) -> OfData:
    """Decide how the product on each batch is computed, in one pass."""
    s, space = A.snapshot, A.domain
    leaves, how = s.leaves(space), OfData(A, {}, {})
    recordings.budget.hold_apart([s.x, *s.constants.values(), *leaves[1].values()])
    # two streams of labels, where they are drawn: what is recorded and what it is compared with draw the same
    add, plain, other = A.adding(), A.adding(), _in_forward_mode(A)
    drawn = isinstance(A, OutputProduct) and A.drawn

    def visit(part: Part, batch: Batch) -> None:
        key = (s.parts.index(part), batch.index)

        def through(add: Adding) -> Callable[[Any], Map]:
            return lambda tree: _product(add, leaves, part, replace(batch, inputs=tree[0], targets=tree[1]))

        product = Product(
            key[0],
            (batch.inputs, batch.targets),
            through(add),
            _product(plain, leaves, part, batch),
            None if other is None else through(other.adding()),
            # the constants of a head in chunks would be all at once what the chunks avoid
            anew=part.head is None and not drawn,
        )
        served = how.served[key] = recordings.serve(product)
        if isinstance(served, Recorded) and served.kept:
            how.absent[key] = _Absent(without_numbers(batch.inputs), own(batch.targets)[0])

    with s.installed(leaves[1]):
        s.sweep(visit)
    if isinstance(A, ObjectiveHessian):
        A.prove()
    return how


def _product(add: Adding, leaves: Leaves, part: Part, batch: Batch) -> Map:
    def product(v: list[Tensor]) -> list[Tensor]:
        sums = Sums([[]])
        add(leaves, part, batch, [v], sums)
        return sums.rows[0]

    return product


def _matmat(how: OfData) -> Callable[[Tensor], Tensor]:
    A, space = how.A, how.A.domain
    rests = {plain: _without(A.snapshot if plain else A.snapshot.without_model(), how) for plain in (False, True)}

    def product(V: Tensor, plain: bool) -> Tensor:
        rest = rests[plain]
        with differentiating(A.name, space.device):
            vectors = columns(space, V)
            leaves = rest.leaves(space) if plain or rest.penalties else ([], {})
            add = A.adding()

            def contribute(part: Part, batch: Batch, rows: list[list[Tensor]]) -> None:
                served, tensors = how.of(rest, part, batch, plain)
                if isinstance(served, Plain):
                    add(leaves, part, batch, vectors, Sums(rows))
                else:
                    play(served, tensors, V, space, Sums(rows))

            with rest.installed(leaves[1]) if plain else nullcontext():
                squared = isinstance(A, OutputProduct) and A.squared
                mean = rest.average_rows(contribute, space, len(vectors), A.name, A.scale, V, squared)
            if isinstance(A, OutputProduct) and not A.penalized:
                return mean.T
            return rest.plus_penalty(A.name, mean, lambda: A.of_penalty(leaves, vectors)).T

    def matmat(V: Tensor) -> Tensor:
        try:
            return product(V, how.plain)
        except _NeedsModel:
            return product(V, True)

    return matmat


def _without(s: Snapshot, how: OfData) -> Snapshot:
    """The snapshot whose passes do not read the batches whose constants are kept."""
    parts = []
    for j, part in enumerate(s.parts):
        absent = {index: a for (i, index), a in how.absent.items() if i == j}
        complete = all(key in how.absent for key in how.served if key[0] == j)
        data = list(absent.values()) if complete else _Rest(absent, part.data)
        parts.append(replace(part, data=data, split=_split(part)) if absent else part)
    return replace(s, parts=tuple(parts))


def _split(part: Part) -> Callable[[Any], tuple[Any, Any]]:
    return lambda raw: (raw.inputs, raw.targets) if isinstance(raw, _Absent) else part.split(raw)


def _in_forward_mode(A: Derivative) -> Derivative | None:
    """A in forward mode, for Hessians through convolutions in reverse, whose second backward does needless work."""
    model = A.snapshot.model
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    if convolves and isinstance(A, ObjectiveHessian) and A.route == "reverse" and lacks_forward(model) is None:
        return replace(A, route="forward")
    return None
