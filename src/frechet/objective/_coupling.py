"""Criteria and models that couple the examples of a batch: then no example has a loss of its own, and no piece has."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from frechet.errors import UnusableObjective
from frechet.objective._data import Batch
from frechet.objective._parts import Part
from frechet.objective._snapshot import Snapshot
from frechet.objective._structure import Layout, has_rows, leaves_of, rows_of
from frechet.objective.criteria._criterion import Criterion
from frechet.objective.criteria._custom import Custom

# what code that is given other data than it expects may raise
RAISED = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)

_COUPLED = (
    "(a contrastive, ranking or batch-normalized loss, or weights relative to the batch), so no example has a loss of "
    "its own; ask for the objective's gradient, Hessian or Gauss-Newton operator, which are right for such losses"
)


def check_additive(what: str, criterion: Criterion, outputs: Tensor, targets: Any, eps: float, index: int) -> None:
    """Raise where a criterion's term of an example depends on the other examples of its batch.

    Looked at on the first, the middle and the last example: their terms alone must be those in the batch.
    """
    if not isinstance(criterion, Custom):
        return
    if not criterion.additive:
        raise UnusableObjective(f"{what}: the criterion says additive=False {_COUPLED}")
    with torch.no_grad():
        outputs = outputs.detach()
        losses = criterion.terms(outputs, targets)
        size = len(losses)
        refuse_left(what, criterion, outputs, targets)
        criterion = replace(criterion, examples=None)
        if criterion.layout is not None and not criterion.layout.rowwise:
            raise UnusableObjective(
                f"{what}: every tensor that the model returns must have one row for each example, got a structure in "
                "which they have not; return what belongs to no example as a parameter, or spread it over the examples"
            )
        scale = max(float(losses.abs().max()), 1e-30) if size else 1.0
        for i in sorted({0, size // 2, size - 1}) if size else ():
            try:
                alone = float(criterion.terms(outputs[i : i + 1], rows_of(targets, slice(i, i + 1), size)).sum())
            except RAISED:  # one example is nothing that it takes
                alone = math.nan
            if not abs(alone - float(losses[i])) <= 1e4 * eps * scale:
                raise UnusableObjective(
                    f"{what}: the criterion's terms must see one example each, but in batch {index} the term of "
                    f"example {i} depends on the rest of its batch {_COUPLED}"
                )


def refuse_left(what: str, criterion: Criterion, outputs: Tensor, targets: Any) -> None:
    """Raise where a criterion reads what the forward pass of the whole batch left in attributes of the model."""
    if not isinstance(criterion, Custom) or not criterion.left:
        return

    def hidden(value: Any) -> Any:
        return torch.full_like(value, torch.nan) if isinstance(value, Tensor) and value.is_floating_point() else value

    seen = replace(criterion, left=criterion.left.map(hidden)).terms(outputs, targets)
    if not bool(torch.isfinite(seen).all()):
        raise UnusableObjective(
            f"{what}: the criterion must read the model's outputs and the targets alone, but it reads a tensor that "
            "the forward pass left in an attribute of the model, which is no output and is of the whole batch; let "
            'forward return it too: custom(lambda out, targets: losses(out["y"], targets) + out["extra"])'
        )


def refuse_unseen(what: str, criterion: Criterion, outputs: Tensor, targets: Any) -> None:
    """Raise where a criterion that depends on parameters by more than the outputs does so by no parameter it reads."""
    refuse_left(what, criterion, outputs, targets)
    if isinstance(criterion, Custom) and criterion.layout is not None:
        known = (Tensor, int, float, complex, str, bytes, torch.dtype, torch.device, type(None), Enum)
        kinds = {type(leaf).__name__ for leaf in leaves_of(criterion.layout.like) if not isinstance(leaf, known)}
        if kinds:
            raise UnusableObjective(
                f"{what}: the model must return tensors, and structures or distributions of tensors, got "
                f"{', '.join(sorted(kinds))} among them, on which the loss depends: what is in such an object is no "
                "output that could be linearized; let forward return its tensors"
            )


def couplings_seen(snapshot: Snapshot) -> tuple[str, ...]:
    """What makes an example's loss depend on the rest of its batch, seen on one example of each part."""
    found: list[str] = []
    blocks = snapshot.space.unflatten(snapshot.x)
    with torch.no_grad(), snapshot.running(), snapshot.installed(blocks):
        for part in snapshot.parts:
            batch = next(part.batches(snapshot.space.device), None)
            size = 0 if batch is None else batch.examples
            if batch is None or size < 2:
                continue
            outputs = snapshot.forward(blocks, batch, part.head)
            if part.head is None:
                try:
                    criterion = snapshot.criterion(part, batch)
                    check_additive("check", criterion, outputs, batch.targets, snapshot.space.eps, 0)
                except UnusableObjective:
                    found.append("the criterion")
            if _alone_differs(snapshot, part, blocks, batch, outputs, size):
                found.append("the model")
    return tuple(dict.fromkeys(found))


def _alone_differs(
    snapshot: Snapshot, part: Part, blocks: dict[str, Tensor], batch: Batch, outputs: Tensor, size: int
) -> bool:
    """Whether the output of the first or the last example alone is not that in its batch.

    Where no input has a row for each example (the nodes of several graphs) there is none that could be taken alone.
    """
    if (batch.layout.like is not None and not batch.layout.rowwise) or not has_rows(batch.inputs, size):
        return False
    if not outputs.ndim or len(outputs) != size:
        return True
    for i in (0, size - 1):
        inputs, rows = rows_of(batch.inputs, slice(i, i + 1), size), outputs[i : i + 1].detach()
        try:
            alone = snapshot.forward(blocks, replace(batch, inputs=inputs, layout=Layout()), part.head)
        except (*RAISED, NotImplementedError):  # a batch of one is no input of this model
            return True
        scale = float(rows.abs().max()) if rows.numel() else 0.0
        near = 1e4 * snapshot.space.eps * max(scale, 1e-30)
        if alone.shape != rows.shape or not bool(((alone - rows).abs() <= near).all()):
            return True
    return False


def prove_pieces(snapshot: Snapshot, examples: int) -> None:
    """Raise where the total or the count of a batch is not the sum over its pieces, seen on two pieces of a part.

    Costs two forward passes over at most `examples` examples each, and one over both, without a graph.
    """
    blocks = snapshot.space.unflatten(snapshot.x)
    with torch.no_grad(), snapshot.running():
        for part in snapshot.parts:
            batch = next(part.batches(snapshot.space.device), None)
            if batch is None:  # an empty shard
                continue
            size = batch.examples
            if size > examples:
                _prove(snapshot, part, blocks, batch, examples, size)


def _prove(snapshot: Snapshot, part: Part, blocks: dict[str, Tensor], batch: Batch, examples: int, size: int) -> None:
    rows_of(batch.inputs, slice(0, 1), size)  # names what can never be cut
    if not has_rows(batch.inputs, size):
        raise UnusableObjective(
            f"Objective.in_pieces: some input must have one row for each of the {size} examples of batch 0, got none "
            "(a batch of graphs, examples on another axis than 0); leave the batches whole, or make smaller ones"
        )

    def measured(a: int, b: int) -> tuple[float, float]:
        inputs, targets = (rows_of(tree, slice(a, b), size) for tree in (batch.inputs, batch.targets))
        piece = replace(batch, inputs=inputs, targets=targets)
        return float(snapshot.total(part, blocks, piece).double()), float(snapshot.count(part, piece))

    b = min(2 * examples, size)
    whole, first, second = measured(0, b), measured(0, examples), measured(examples, b)
    if whole[1] != first[1] + second[1]:
        raise UnusableObjective(
            f"Objective.in_pieces: count must add up over pieces, but {b} examples of batch 0 have {whole[1]:g} terms "
            f"and their pieces {first[1]:g} and {second[1]:g}; let count= depend on the targets"
        )
    scale = max(abs(whole[0]), abs(first[0]) + abs(second[0]), 1e-30)
    if not abs(whole[0] - first[0] - second[0]) <= 1e4 * snapshot.space.eps * scale:
        raise UnusableObjective(
            f"Objective.in_pieces: {b} examples of batch 0 have the total loss {whole[0]:.6g} together and "
            f"{first[0] + second[0]:.6g} in pieces of {examples}, since the model or the criterion couples the "
            "examples of a batch, or a tensor that belongs to no example has the batch's length; leave "
            "the batches whole"
        )
