"""Is an objective one fixed, finite function? Two passes, under different global seeds, and who is guilty if not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from frechet.errors import UnusableObjective
from frechet.objective.data import Batch, refuse_unrepeatable, untouched_generators
from frechet.objective.model import call, exact_math, refuse_random_or_coupled

if TYPE_CHECKING:
    from frechet.objective.objective import Objective, Part, Snapshot

_KINKS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.MaxPool1d,
    nn.MaxPool2d,
)


@dataclass(frozen=True, eq=False)
class Check:
    """What two passes over the data have shown."""

    value: float
    batches: int
    examples: int
    terms: float
    own_loss: float | None  # what the model itself returned as loss, where it does
    unreached: tuple[str, ...]  # parameters that get no gradient
    kinks: tuple[str, ...]  # kinds of modules that are not differentiable everywhere
    seconds: float  # of one pass


def check(objective: Objective) -> Check:
    """Raise `UnusableObjective` if `objective` is random, unrepeatable or contradicts the model's own loss."""
    refuse_random_or_coupled(objective.model)
    for part in objective.parts:
        refuse_unrepeatable(part.data)
    snapshot = objective.snapshot()
    value = float(objective.value())  # names the batch of a NaN before anything else is asked
    start = time.perf_counter()
    with torch.no_grad(), untouched_generators(reseed=1):
        first = _pass(snapshot)
    seconds = time.perf_counter() - start
    with torch.no_grad(), untouched_generators(reseed=2):
        second = _pass(snapshot)
    _compare(snapshot, first, second)
    own = _own_loss(snapshot)
    examples, terms = sum(n for _, n, _ in first), float(sum(c for _, _, c in first))
    kinks = sorted({type(m).__name__ for m in objective.model.modules() if isinstance(m, _KINKS)})
    return Check(value, len(first), examples, terms, own, _unreached(snapshot), tuple(kinks), seconds)


def _pass(snapshot: Snapshot) -> list[tuple[float, int, float]]:
    """(total, examples, terms) of every batch."""
    blocks, rows = snapshot.space.unflatten(snapshot.x), []
    with exact_math(snapshot.model, snapshot.flags, snapshot.space.device):
        for part in snapshot.parts:
            for batch in part.batches(snapshot.space.device):
                terms = part.criterion.terms(snapshot.forward(blocks, batch), batch.targets)
                rows.append((float(terms.double().sum()), terms.shape[0], float(part.criterion.count(batch.targets))))
    return rows


def _compare(snapshot: Snapshot, first: list[tuple[float, int, float]], second: list[tuple[float, int, float]]) -> None:
    if len(first) != len(second):
        raise UnusableObjective(
            f"check: two passes over the data must agree, got {len(first)} and {len(second)} batches"
        )
    tolerance = 1e3 * snapshot.space.eps  # kernels may add in another order
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if abs(a[0] - b[0]) > tolerance * max(abs(a[0]), abs(b[0]), a[2]):
            raise UnusableObjective(
                f"check: batch {index} gives total loss {a[0]:.6g} in one pass and {b[0]:.6g} in the next: "
                + _guilty(snapshot, index)
            )


def _guilty(snapshot: Snapshot, index: int) -> str:
    passes = []
    for seed in (1, 2):
        with untouched_generators(reseed=seed):
            passes.append(_nth(snapshot, index))
    (_, one), (_, two) = passes
    if not _same(one.inputs, two.inputs) or not _same(one.targets, two.targets):
        if isinstance(one.targets, Tensor) and one.targets.shape == two.targets.shape and _shuffled(one, two):
            return "the data come in another order each time; use shuffle=False"
        return "the data themselves change between passes (a random augmentation or a shuffling sampler); fix the seed "
    traces = []
    for seed in (1, 2):
        with untouched_generators(reseed=seed), torch.no_grad():
            traces.append(_trace(snapshot, one))
    for (name, a), (_, b) in zip(*traces, strict=False):
        if not _same(a, b):
            return f"module '{name}' gives different outputs for the same inputs; make it deterministic (model.eval()?)"
    return "the model gives different outputs for the same inputs; a non-deterministic kernel may be the cause"


def _nth(snapshot: Snapshot, index: int) -> tuple[Part, Batch]:
    for part in snapshot.parts:
        for batch in part.batches(snapshot.space.device):
            if index == 0:
                return part, batch
            index -= 1
    raise IndexError(index)


def _trace(snapshot: Snapshot, batch: Batch) -> list[tuple[str, Any]]:
    """Outputs of the modules without children, in the order of their calls."""
    record: list[tuple[str, Any]] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out, name=name: record.append((name, out)))
        for name, m in snapshot.model.named_modules()
        if not any(True for _ in m.children())
    ]
    try:
        with exact_math(snapshot.model, snapshot.flags, snapshot.space.device):
            call(snapshot.model, {**snapshot.constants, **snapshot.space.unflatten(snapshot.x)}, batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return record


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return True


def _shuffled(one: Batch, two: Batch) -> bool:
    """Whether every example of the first batch can be told from the other's only by its place, or is missing there."""
    a, b = one.inputs, two.inputs
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.ndim == 0:
        return False
    sums = [t.double().flatten(1).sum(1) if t.ndim > 1 else t.double() for t in (a, b)]
    return bool(torch.isclose(sums[0].sort().values, sums[1].sort().values).all())


def _own_loss(snapshot: Snapshot) -> float | None:
    """Compare with the loss that a model returns when it is given the labels; only for dict batches with labels."""
    part = snapshot.parts[0]
    with torch.no_grad(), untouched_generators(), exact_math(snapshot.model, snapshot.flags, snapshot.space.device):
        raw = next(iter(part.data))
        if not isinstance(raw, dict) or "labels" not in raw:
            return None
        batch = next(part.batches(snapshot.space.device))
        state = {**snapshot.constants, **snapshot.space.unflatten(snapshot.x)}
        inputs = {**batch.inputs, "labels": raw["labels"].to(snapshot.space.device)}
        try:
            returned = call(snapshot.model, state, inputs)
        except TypeError:  # its forward takes no labels
            return None
        loss = returned.get("loss") if isinstance(returned, dict) else getattr(returned, "loss", None)
        if not isinstance(loss, Tensor):
            return None
        blocks = snapshot.space.unflatten(snapshot.x)
        ours = float(snapshot.total(part, blocks, batch) / part.criterion.count(batch.targets))
    if abs(ours - float(loss)) > 1e-3 * max(abs(ours), abs(float(loss))) + 1e-6:
        raise UnusableObjective(
            f"check: on batch 0 the criterion gives {ours:.6g} and the model's own loss is {float(loss):.6g}; "
            "a causal language model needs split=causal_lm, another ignore_index or smoothing its own criterion"
        )
    return float(loss)


def _unreached(snapshot: Snapshot) -> tuple[str, ...]:
    """Trainable parameters on which the first batch's loss does not depend."""
    leaves, blocks = snapshot.leaves(snapshot.space)
    part = snapshot.parts[0]
    with untouched_generators(), exact_math(snapshot.model, snapshot.flags, snapshot.space.device), torch.enable_grad():
        batch = next(part.batches(snapshot.space.device))
        grads = torch.autograd.grad(snapshot.total(part, blocks, batch), leaves, allow_unused=True)
    return tuple(name for name, g in zip(snapshot.space.names, grads, strict=True) if g is None)
