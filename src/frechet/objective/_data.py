"""Data: anything that gives the same batches each time it is iterated; how a batch splits into inputs and targets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from frechet.errors import UnusableObjective
from frechet.objective._kernels import ordinary
from frechet.objective._structure import Layout, examples_of, is_cut, mapped, tensors_of
from frechet.objective._torch_internals import checkpoints_draw_again
from frechet.space import generator

Split = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch on the parameters' device. `inputs` is the model's argument, or a dict of its keyword arguments."""

    inputs: Any
    targets: Any
    index: int
    model: nn.Module | None = None  # that takes the inputs; None: the objective's
    layout: Layout = field(default_factory=Layout)  # how what the model returned last lies in one tensor

    @property
    def examples(self) -> int:
        """How many examples it has."""
        return examples_of(self.inputs, self.targets)


def default_split(batch: Any) -> tuple[Any, Any]:
    """Split a batch: a pair, or a dict with ``labels``, whose rest are the model's keyword arguments."""
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(
                f"Objective: a dict batch needs the key 'labels', got {sorted(batch)}; pass split=lambda batch: "
                "(inputs, targets)"
            )
        labels, tokens = batch["labels"], batch.get("input_ids")
        if isinstance(tokens, Tensor) and tokens.shape == labels.shape and tokens.ndim == 2:
            kept = labels != -100
            if bool(kept.any()) and bool((labels == tokens)[kept].all()):
                raise UnusableObjective(
                    "Objective: labels equal input_ids, so each position would predict its own token; a causal "
                    "language model predicts the next one: pass split=causal_lm, which shifts the labels"
                )
        return {k: v for k, v in batch.items() if k != "labels"}, labels
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{type(batch).__name__} of length {len(batch)}" if isinstance(batch, Sequence) else type(batch).__name__
    one = " (data that is one batch goes into a list: [(inputs, targets)])" if isinstance(batch, Tensor | str) else ""
    raise TypeError(
        f"Objective: a batch must be a pair (inputs, targets) or a dict with 'labels', got {got}{one}; "
        "pass split=lambda batch: (inputs, targets)"
    )


def causal_lm(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Split a language-model batch: the target at each position is the next label; the last position is ignored.

    `labels` are unshifted with -100 where ignored, as Hugging Face's collators make them; where they are missing they
    are `input_ids`, ignored where `attention_mask` is 0.

    Example:
        >>> import torch
        >>> from frechet import causal_lm
        >>> causal_lm({"input_ids": torch.tensor([[5, 6, 7]])})[1]
        tensor([[   6,    7, -100]])
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(f"causal_lm: batch must be a dict with 'input_ids', got {got}")
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    targets = torch.full_like(labels, -100)
    targets[:, :-1] = labels[:, 1:]
    return {k: v for k, v in batch.items() if k != "labels"}, targets


def seq2seq(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Split a batch of an encoder-decoder model (T5, BART): it gets the labels too, from which it makes decoder inputs.

    `labels` are -100 where ignored. The model's logits at a position are those of the label there: nothing is shifted.

    Example:
        >>> import torch
        >>> from frechet.objective import seq2seq
        >>> inputs, targets = seq2seq({"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[7]])})
        >>> sorted(inputs), targets
        (['input_ids', 'labels'], tensor([[7]]))
    """
    if not isinstance(batch, Mapping) or "labels" not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(f"seq2seq: batch must be a dict with 'labels', got {got}")
    return dict(batch), batch["labels"]


def to_device(tree: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Every tensor of a nested structure on `device`, those of floating point in `dtype` where one is given."""

    def moved(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return ordinary(t.to(device, dtype if t.is_floating_point() else None, non_blocking=True))

    return mapped(tree, moved)


def refuse_unrepeatable(data: object) -> None:
    """Raise for data that cannot be iterated twice with the same result, as far as can be seen without a pass."""
    if isinstance(data, Subsample):
        refuse_unrepeatable(data.data)
    if isinstance(data, Iterator):
        raise UnusableObjective(
            f"Objective: data must be iterable more than once, got the iterator {type(data).__name__}; "
            "pass a list of batches or a DataLoader"
        )
    if not isinstance(data, Iterable):
        raise TypeError(
            f"Objective: data must be an iterable of batches, got {type(data).__name__}; "
            "pass a list of batches, or DataLoader(dataset, batch_size=...)"
        )
    if isinstance(data, DataLoader):
        samplers = [data.sampler]
        if isinstance(data.batch_sampler, BatchSampler):
            samplers.append(data.batch_sampler.sampler)
        for sampler in samplers:
            if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
                raise UnusableObjective(
                    f"Objective: data must come in one fixed order, got a shuffling DataLoader "
                    f"({type(sampler).__name__}); pass DataLoader(dataset, batch_size={_batch_size(data)}, "
                    "shuffle=False), a loader for evaluation, or subsample(loader, examples, seed=0)"
                )


def _batch_size(loader: DataLoader[Any]) -> int:
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1


@dataclass(frozen=True, eq=False)
class Subsample:
    """A fixed random part of a data set; `population` examples it was drawn from."""

    data: Iterable[Any]
    examples: int
    population: int
    seed: int

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data) if isinstance(self.data, Sequence | DataLoader) else sum(1 for _ in self.data)


def subsample(loader: Iterable[Any], examples: int, seed: int) -> Subsample:
    """Draw `examples` examples of `loader` without replacement, in data order. A shuffling DataLoader is fine here.

    A DataLoader over a map-style dataset is read at the drawn indices alone. Any other iterable of batches is read
    once, and the drawn rows are kept in memory.

    Args:
        loader: batches, whose tensors have the examples along axis 0.
        examples: how many examples are drawn.
        seed: the seed of the draw.

    Example:
        >>> import torch
        >>> from frechet import subsample
        >>> loader = [(torch.arange(6.0).reshape(6, 1), torch.zeros(6, 1))]
        >>> [x.shape for x, y in subsample(loader, 4, seed=0)]
        [torch.Size([4, 1])]
    """
    if examples < 1:
        raise ValueError(f"subsample: examples must be at least 1, got {examples}")
    with untouched_generators():
        indices = _indices(loader)
        if isinstance(loader, DataLoader) and indices is not None:
            chosen = [indices[i] for i in _choice(len(indices), examples, seed)]
            size = _batch_size(loader)
            data = DataLoader(
                Subset(loader.dataset, chosen),
                batch_size=size,
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
            )
            return Subsample(data, len(chosen), len(indices), seed)
        if isinstance(loader, DataLoader):
            refuse_unrepeatable(loader)
        batches = list(loader)
    for b in batches:
        if not tensors_of(b):
            raise TypeError(f"subsample: a batch must hold tensors with an example axis, got {type(b).__name__}")
    sizes = [examples_of(b) for b in batches]
    chosen = torch.tensor(_choice(sum(sizes), examples, seed), dtype=torch.long)
    kept, start = [], 0
    for batch, size in zip(batches, sizes, strict=True):
        rows = chosen[(chosen >= start) & (chosen < start + size)] - start
        if rows.numel():
            kept.append(rows_of(batch, rows))
        start += size
    return Subsample(kept, len(chosen), sum(sizes), seed)


def _indices(loader: Iterable[Any]) -> Sequence[int] | None:
    """The positions in its dataset that a DataLoader reads, in order; None where the examples must be read instead."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return None
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if isinstance(sampler, WeightedRandomSampler):
        raise UnusableObjective(
            "subsample: the DataLoader must read each example at most once, got a WeightedRandomSampler; "
            "pass DataLoader(dataset, batch_size=..., shuffle=False)"
        )
    if isinstance(sampler, RandomSampler | SequentialSampler):
        return range(len(dataset))
    # a sampler may read a part of the dataset only: the population is that part
    return sorted({int(i) for batch in loader.batch_sampler for i in batch})


def _choice(population: int, examples: int, seed: int) -> list[int]:
    if examples > population:
        raise ValueError(f"subsample: examples must be at most the population {population}, got {examples}")
    order = torch.randperm(population, generator=generator(seed, 0))
    return sorted(order[:examples].tolist())


def rows_of(batch: Any, rows: Tensor) -> Any:
    """The given examples of a raw batch: rows of its tensors, items of lists that have one for each example."""
    size = examples_of(batch)

    def chosen(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {k: chosen(v) for k, v in tree.items()}
        if is_cut(tree, size):
            return [tree[i] for i in rows.tolist()]
        if type(tree) in (tuple, list):
            return type(tree)(chosen(v) for v in tree)
        return mapped(
            tree, lambda t: t[rows.to(t.device)] if isinstance(t, Tensor) and t.ndim and len(t) == size else t
        )

    return chosen(batch)


@contextmanager
def fixed_draws(seed: int, index: int) -> Iterator[None]:
    """Whatever is drawn inside comes from (seed, index), again where an activation checkpoint runs once more."""
    drawn = generator(seed, index).initial_seed() % 2**32  # NumPy takes no larger seed
    with untouched_generators(drawn), checkpoints_draw_again():
        yield


@contextmanager
def untouched_generators(reseed: int | None = None, everywhere: bool = True) -> Iterator[None]:
    """Restore the states of torch's, numpy's and Python's global generators on exit; `reseed` them on entry if given.

    Iterating any DataLoader, even an unshuffled one, draws from torch's global generator. Without `everywhere` only
    torch's are restored: the others take a tenth of a millisecond.
    """
    torch_state = torch.get_rng_state()
    numpy_state, python_state = (np.random.get_state(), random.getstate()) if everywhere else (None, None)
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda_state = torch.cuda.get_rng_state_all() if cuda else None
    if reseed is not None:
        torch.manual_seed(reseed)
        np.random.seed(reseed)
        random.seed(reseed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if numpy_state is not None and python_state is not None:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state_all(cuda_state)
