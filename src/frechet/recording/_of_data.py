"""A sum over a data set, batch by batch from recordings: Hessian, Gauss-Newton, Fisher.

The constants of the first batches are kept, as far as memory goes; those of the others are computed at each product.
Batches that no recording serves go by the operator itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from frechet.errors import UnusableObjective
from frechet.objective import Batch, Part, Snapshot
from frechet.objective._torch_internals import AnyConvolution
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import FromCallable
from frechet.operators.derivatives._gauss_newton import OutputProduct
from frechet.operators.derivatives._hessian import ObjectiveHessian
from frechet.operators.derivatives._modes import lacks_forward
from frechet.operators.derivatives._products import Leaves, Sums, differentiating
from frechet.operators.derivatives._sum_over_data import Adding, SumOverData
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


@dataclass(eq=False)
class _How:
    """How an operator's product on each batch is computed; `absent` are those that are not read again."""

    served: dict[Key, Served] = field(default_factory=dict)
    absent: dict[Key, _Absent] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Played(SumOverData):
    """`plain` from recordings, batch by batch; from its own products where there is none, if the model runs."""

    plain: Derivative
    how: _How

    def adding(self) -> Adding:
        by_itself = self.plain.adding()

        def add(leaves: Leaves, part: Part, batch: Batch, vectors: list[list[Tensor]], sums: Sums) -> None:
            served = self.how.served.get((self.snapshot.parts.index(part), batch.index))
            if served is None:
                raise UnusableObjective(
                    f"{self.name}: the data must give the same batches each time, but batch {batch.index} was not "
                    "among those with which it was linearized"
                )
            found, tensors = still(self.name, served, batch)
            if not isinstance(found, Plain):
                play(found, tensors, vectors, self.domain, sums)
            elif self.runs:
                by_itself(leaves, part, batch, vectors, sums)
            else:
                raise _NeedsModel

        return add

    def _of_penalties(self, leaves: Leaves, vectors: list[list[Tensor]]) -> Tensor:
        return self.plain._of_penalties(leaves, vectors)


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
    if space.shard is not None:
        return A, [(Plain("the parameters are sharded (fully_shard) and gathered for each product"),)], A.route
    if len({id(p) for p in s.parts}) < len(s.parts):
        if A.drawn:
            return A, [(Plain("labels are drawn for a data term that the objective holds twice"),)], A.route
        s = replace(s, parts=tuple(replace(p) for p in s.parts))
        A = replace(A, snapshot=s)
    before = len(budget.replays)
    recordings = Recordings(budget, space)
    with differentiating(A.name, space.device), torch.no_grad():
        how = _served(A, recordings)
    if A.drawn and not all(isinstance(one, Recorded) for one in how.served.values()):
        budget.forget(before)
        why = Plain(f"labels are drawn in one stream for all batches, and {recordings.why}")
        return A, [(why,) for _ in how.served], A.route
    route, matmat = "forward" if recordings.other else A.route, _matmat(A, how)
    return FromCallable(matmat, matmat, space, space, A.facts), [(one,) for one in how.served.values()], route


def _served(A: Derivative, recordings: Recordings) -> _How:
    """Decide how the product on each batch is computed, in one pass."""
    s, space = A.snapshot, A.domain
    leaves, how = s.leaves(space), _How()
    recordings.budget.hold_apart([s.x, *s.constants.values(), *leaves[1].values()])
    # two streams of labels, where they are drawn: what is recorded and what it is compared with draw the same
    add, plain, other = A.adding(), A.adding(), _in_forward_mode(A)

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
            anew=part.head is None and not A.drawn,
        )
        served = how.served[key] = recordings.serve(product)
        if isinstance(served, Recorded) and served.kept:
            how.absent[key] = _Absent(without_numbers(batch.inputs), own(batch.targets)[0])

    with s.installed(leaves[1]):
        s.sweep(visit)
    A.prove()
    return how


def _product(add: Adding, leaves: Leaves, part: Part, batch: Batch) -> Map:
    def product(v: list[Tensor]) -> list[Tensor]:
        sums = Sums([[]])
        add(leaves, part, batch, [v], sums)
        return sums.rows[0]

    return product


def _matmat(A: Derivative, how: _How) -> Callable[[Tensor], Tensor]:
    with_model, without = (
        _Played(
            **{f.name: getattr(A, f.name) for f in fields(SumOverData)} | {"snapshot": _without(s, how), "runs": runs},
            plain=A,
            how=how,
        )
        for s, runs in ((A.snapshot, True), (A.snapshot.without_model(), False))
    )
    # on several processes, whether one of them could need it
    apart = A.snapshot.group is not None and len(how.absent) < len(how.served)
    if apart or any(isinstance(served, Plain) for served in how.served.values()):
        return with_model._matmat

    def matmat(V: Tensor) -> Tensor:
        try:
            return without._matmat(V)
        except _NeedsModel:
            return with_model._matmat(V)

    return matmat


def _without(s: Snapshot, how: _How) -> Snapshot:
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
    convolves = any(isinstance(m, AnyConvolution) for m in model.modules())
    if convolves and isinstance(A, ObjectiveHessian) and A.route == "reverse" and lacks_forward(model) is None:
        return replace(A, route="forward")
    return None
