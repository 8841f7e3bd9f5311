"""Is an objective one fixed, finite function? Two passes, under different global seeds, and who is guilty if not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frechet.errors import LostRank, NotDifferentiable, UnusableObjective
from frechet.objective._data import Batch, untouched_generators
from frechet.objective._parts import Part
from frechet.objective._snapshot import Snapshot
from frechet.objective._torch_internals import dtypes_of, nodes_of, padding_rows, tree_leaves, tree_map

# autograd's names of operations whose first derivative jumps
_KINKS = (
    *("relu", "hardtanh", "hardswish", "hardsigmoid", "threshold", "shrink", "clamp"),
    *("maxpool", "maxunpool", "maximum", "minimum", "amax", "abs"),
)


@dataclass(frozen=True, eq=False)
class Proved:
    """One claim about an objective's derivatives, and whether a difference proves it or says nothing."""

    claim: str
    proved: bool
    difference: float  # relative


@dataclass(frozen=True, eq=False)
class Check:
    """What passes over the data, of all ranks, have shown."""

    value: float
    batches: int
    examples: int
    terms: float
    own_loss: float | None  # what the model itself returned as loss on the first batch, where it does
    unreached: tuple[str, ...]  # parameters on which no data term depends
    kinks: tuple[str, ...]  # operations that are not differentiable everywhere, by autograd's names
    coupled: tuple[str, ...]  # modules by which the loss depends on how the data are divided into batches
    seconds: float  # of one pass, the slowest rank's
    ranks: int = 1  # processes that hold the data together
    wrapper: str | None = None  # what the model was taken out of, such as DistributedDataParallel
    proved: tuple[Proved, ...] = ()  # what differences say of the derivatives
    padding: tuple[tuple[str, int], ...] = ()  # rows of embeddings that get no gradient by design, by parameter


@dataclass(frozen=True, eq=False)
class _Row:
    """One batch in one pass: each example's loss, and the number of terms."""

    losses: Tensor
    terms: float


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module: digests of what it was given and returned, since the tensors may be changed in place."""

    name: str
    kind: str
    given: list[tuple[object, ...]]
    returned: list[tuple[object, ...]]


def passes(snapshot: Snapshot, value: Callable[[], Tensor], wrapper: str | None) -> Check:
    """Raise `UnusableObjective` if an objective is random, unrepeatable or contradicts the model's own loss."""
    group = snapshot.group
    loss = _value(value)  # names the batch of a NaN before anything else is asked
    if group is None:
        return replace(_alone(snapshot, loss), wrapper=wrapper)
    found = group.objects(group.together(lambda: _alone(replace(snapshot, group=None), loss)))
    return Check(
        loss,
        sum(c.batches for c in found),
        sum(c.examples for c in found),
        sum(c.terms for c in found),
        next((c.own_loss for c in found if c.own_loss is not None), None),
        tuple(n for n in snapshot.space.names if all(n in c.unreached for c in found)),
        tuple(sorted({k for c in found for k in c.kinks})),
        snapshot.coupled,
        max(c.seconds for c in found),
        group.size,
        wrapper,
    )


def _alone(snapshot: Snapshot, value: float) -> Check:
    """What this process sees of its own data."""
    start = time.perf_counter()
    first = _pass(snapshot, seed=1)
    seconds = time.perf_counter() - start
    _compare(snapshot, first, _pass(snapshot, seed=2))
    _compare_head(snapshot)
    own = _own_loss(snapshot)
    unreached, kinks, padding = _graph(snapshot)
    if len(unreached) == len(snapshot.space.names) and snapshot.group is None:
        raise UnusableObjective(
            f"check: the loss must depend on a trainable parameter, got no gradient for any of {len(unreached)} blocks "
            f"({', '.join(unreached[:3])}, ...): the model runs under torch.no_grad, or detaches its outputs"
        )
    examples, terms = sum(len(r.losses) for r in first), sum(r.terms for r in first)
    return Check(value, len(first), examples, terms, own, unreached, kinks, snapshot.coupled, seconds, padding=padding)


def _pass(snapshot: Snapshot, seed: int) -> list[_Row]:
    rows: list[_Row] = []

    def visit(part: Part, batch: Batch) -> None:
        losses = snapshot.terms(part, blocks, batch)
        rows.append(_Row(losses.double().cpu(), float(snapshot.count(part, batch))))

    with torch.no_grad():
        blocks = snapshot.space.unflatten(snapshot.x)
        snapshot.sweep(visit, reseed=seed)
    return rows


def _value(value: Callable[[], Tensor]) -> float:
    """An objective's value; what the user's model or data raise on the way is told in one sentence."""
    try:
        return float(value())
    except (NotDifferentiable, LostRank):
        raise
    except (IndexError, KeyError, AttributeError, AssertionError, NotImplementedError, RuntimeError) as error:
        message = (str(error).strip().splitlines() or [""])[0]
        place = " ".join(note.removeprefix("Objective: ") for note in getattr(error, "__notes__", ()))
        who = "the criterion" if "in the criterion" in place else "the model or the data"
        raise UnusableObjective(
            f"check: {who} raised {type(error).__name__}: {message}"
            + (f" ({place})" if place else "; call the model on one batch to see where")
        ) from error


def _compare(snapshot: Snapshot, first: list[_Row], second: list[_Row]) -> None:
    if len(first) != len(second):
        raise UnusableObjective(
            f"check: two passes over the data must agree, got {len(first)} and {len(second)} batches"
        )
    tolerance = 1e3 * snapshot.space.eps  # kernels may add in another order
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        same = a.losses.shape == b.losses.shape
        scale = max(float(a.losses.abs().mean()), 1.0) if same and len(a.losses) else 1.0
        if not same or not torch.allclose(a.losses, b.losses, rtol=tolerance, atol=tolerance * scale):
            raise UnusableObjective(
                f"check: batch {index} gives total loss {float(a.losses.sum()):.6g} in one pass and "
                f"{float(b.losses.sum()):.6g} in the next: {_guilty(snapshot, index)}"
            )


def _guilty(snapshot: Snapshot, index: int) -> str:
    one, two = (_read(snapshot, index, seed) for seed in (1, 2))
    if _digest((one.inputs, one.targets)) != _digest((two.inputs, two.targets)):
        if _examples(snapshot, seed=1) == _examples(snapshot, seed=2):
            return "the same examples come in another order each time; use shuffle=False"
        return (
            "the data themselves change between passes (a random augmentation, or a sampler that draws other "
            "examples); make the data set deterministic"
        )
    calls = [_calls(snapshot, one, seed) for seed in (1, 2)]
    if [c.name for c in calls[0]] != [c.name for c in calls[1]]:  # layers left out at random
        calls = [[c[-1]] for c in calls]
    for a, b in zip(*calls, strict=True):
        if a.given == b.given and a.returned != b.returned:
            where = f"module '{a.name}' ({a.kind})" if a.name else f"{a.kind}.forward"
            return (
                f"{where} gives different outputs for the same inputs; make it deterministic (dropout only when "
                "self.training, model.eval(), torch.use_deterministic_algorithms), or fix what it draws with "
                "Objective(..., dropout_seed=0): noise of a diffusion model or a VAE, layer drop"
            )
    return "the model's outputs repeat, so the criterion is random or keeps a state between calls"


def _read(snapshot: Snapshot, index: int, seed: int) -> Batch:
    """Batch number `index`, counted over all parts."""
    found: list[Batch] = []
    left = index

    def visit(_part: Part, batch: Batch) -> None:
        nonlocal left
        if left == 0:
            found.append(batch)
        left -= 1

    snapshot.sweep(visit, reseed=seed)
    return found[0]


def _digest(tree: Any) -> list[tuple[object, ...]]:
    """Numbers that differ if two nested structures of tensors do."""
    rows = []
    logits = getattr(tree, "logits", None)  # an output object that pytrees do not know
    for t in tree_leaves(logits if isinstance(logits, Tensor) else tree):
        if isinstance(t, Tensor):
            flat = t.detach().reshape(-1).double().cpu()
            ramp = torch.linspace(1, 2, flat.numel(), dtype=flat.dtype)
            rows.append((tuple(t.shape), float(flat.sum()), float(flat @ ramp)))
    return rows


def _examples(snapshot: Snapshot, seed: int) -> list[tuple[object, ...]]:
    """Digests of all examples, sorted, so that only their order is lost."""
    rows: list[tuple[object, ...]] = []

    def visit(_part: Part, batch: Batch) -> None:
        tensors = [t for t in tree_leaves((batch.inputs, batch.targets)) if isinstance(t, Tensor) and t.ndim]
        rows.extend(tuple(_digest(list(example))) for example in zip(*tensors, strict=False))

    snapshot.sweep(visit, reseed=seed)
    return sorted(rows)


def _calls(snapshot: Snapshot, batch: Batch, seed: int) -> list[_Call]:
    """Every module's call on a batch, inner ones first."""
    record: list[_Call] = []
    given: list[Any] = []

    def before(_module: nn.Module, args: Any, keywords: Any) -> None:
        given.append(_digest((args, keywords)))

    hooks = []
    for name, m in snapshot.model.named_modules():

        def after(module: nn.Module, _args: Any, _keywords: Any, out: Any, name: str = name) -> None:
            record.append(_Call(name, type(module).__name__, given.pop(), _digest(out)))

        hooks.append(m.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(m.register_forward_hook(after, with_kwargs=True))
    blocks = snapshot.space.unflatten(snapshot.x)
    try:
        with torch.no_grad(), untouched_generators(reseed=seed), snapshot.exact():
            snapshot.returned(blocks, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return record


def _compare_head(snapshot: Snapshot) -> None:
    """Compare a head applied in chunks with the model as it is, on one example."""
    state = {**snapshot.constants, **snapshot.space.unflatten(snapshot.x)}
    tolerance = 1e3 * snapshot.space.eps
    for part in snapshot.parts:
        if part.head is None:
            continue
        device = snapshot.space.device
        with torch.no_grad(), untouched_generators(), snapshot.exact():
            _, batch = _first(part, device)
            if batch is None:
                continue
            chunked = float(snapshot.total(part, state, batch))
            whole = float(part.criterion.terms(snapshot.forward(state, batch), batch.targets).sum())
        if abs(chunked - whole) > tolerance * max(abs(chunked), abs(whole), 1.0):
            raise UnusableObjective(
                f"check: one example of batch 0 gives total loss {whole:.6g}, and {chunked:.6g} with head "
                f"'{part.head.name}' in chunks: the model does something to its head's output; leave head= out"
            )


def _first(part: Part, device: torch.device) -> tuple[Any, Batch | None]:
    """The first batch of a part as it is and split; with a head only an example of it, whose logits are small."""
    raw = next(iter(part.data), None)
    batch = next(part.batches(device), None)
    if part.head is None or batch is None:  # none in an empty shard
        return raw, batch
    size = batch.examples
    counts = (i for i in range(size) if float(part.criterion.count(batch.targets[i : i + 1])) > 0)
    i = next(counts, 0)
    inputs, targets = (_cut(tree, size, i) for tree in (batch.inputs, batch.targets))
    return _cut(raw, size, i), Batch(inputs, targets, batch.index)


def _cut(tree: Any, size: int, i: int) -> Any:
    """Example i of every tensor that has `size` of them."""
    if isinstance(tree, Mapping):  # tokenizers' batches are mappings that pytrees do not know
        return {k: _cut(v, size, i) for k, v in tree.items()}
    return tree_map(lambda t: t[i : i + 1] if isinstance(t, Tensor) and t.ndim and len(t) == size else t, tree)


def _own_loss(snapshot: Snapshot) -> float | None:
    """Compare with the loss that a model returns when it is given the labels; only for dict batches with labels."""
    found: float | None = None
    blocks = snapshot.space.unflatten(snapshot.x)
    for part in snapshot.parts:
        device = snapshot.space.device
        with torch.no_grad(), untouched_generators(), snapshot.exact():
            raw, batch = _first(part, device)
            if batch is None:  # an empty shard
                continue
            if not isinstance(raw, Mapping) or "labels" not in raw or not isinstance(batch.inputs, Mapping):
                continue
            try:
                labels = raw["labels"].to(snapshot.space.device)
                returned = snapshot.returned(blocks, replace(batch, inputs={**batch.inputs, "labels": labels}))
            except TypeError:  # its forward takes no labels
                continue
            loss = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
            if not isinstance(loss, Tensor):
                continue
            ours = float(snapshot.total(part, blocks, batch) / part.criterion.count(batch.targets))
        theirs = float(loss)
        if abs(ours - theirs) > 1e-4 * max(abs(ours), abs(theirs)) + 1e-6:
            raise UnusableObjective(
                f"check: on batch 0 the criterion gives {ours:.6g} and the model's own loss is {theirs:.6g}; "
                "a causal language model needs split=causal_lm, another ignore_index or smoothing its own criterion"
            )
        found = theirs if found is None else found
    return found


def _graph(snapshot: Snapshot) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, int], ...]]:
    """From the graph of the first batch of each part: unreached parameters, operations with kinks, padding rows."""
    reached: set[str] = set()
    padding: set[tuple[str, int]] = set()
    kinks: set[str] = set()
    for part in snapshot.parts:
        with untouched_generators(), snapshot.exact():
            leaves, blocks = snapshot.leaves(snapshot.space)
            batch = next(part.batches(snapshot.space.device), None)
            if batch is None:  # an empty shard
                continue
            with torch.enable_grad(), snapshot.installed(blocks):
                total = snapshot.total(part, blocks, batch)
            nodes = nodes_of([total])
        owners = {id(node.variable) for node in nodes if hasattr(node, "variable")}
        names = {id(leaf): name for name, leaf in zip(snapshot.space.names, leaves, strict=True)}
        padding |= {(names[id(leaf)], row) for leaf, row in padding_rows(nodes) if id(leaf) in names}
        reached |= {name for name, leaf in zip(snapshot.space.names, leaves, strict=True) if id(leaf) in owners}
        for node in nodes:
            operation = type(node).__name__.split("Backward")[0]
            halves = dtypes_of(node) & {torch.float16, torch.bfloat16}
            if halves:
                raise UnusableObjective(
                    f"check: operation '{operation}' runs in {halves.pop()}, though the parameters have "
                    f"{snapshot.space.dtype}, so that derivatives are rounded to a few digits; a module casts, or "
                    "enters autocast, by itself: let it take the dtype of its input"
                )
            if any(k in operation.lower() for k in _KINKS):
                kinks.add(operation)
    unreached = tuple(n for n in snapshot.space.names if n not in reached)
    return unreached, tuple(sorted(kinks)), tuple(sorted(padding))
