"""What an objective sums: data terms with their criterion, and penalties on the parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frechet.objective._data import Batch, Split, to_device
from frechet.objective._functions import Functions
from frechet.objective._guards import refuse_kept
from frechet.objective._head import Head
from frechet.objective._torch_internals import in_forward_mode, in_transform
from frechet.objective.criteria._criterion import Criterion


@dataclass(frozen=True, eq=False)
class Penalty:
    """A function of the parameters alone, ``{name: tensor} -> scalar``; `convex` is your word that it is."""

    function: Callable[[Mapping[str, Tensor]], Tensor]
    convex: bool = False

    def at(self, blocks: Mapping[str, Tensor], functions: Functions | None) -> Tensor:
        """The penalty at `blocks`; raises where it hangs on parameters by what the model kept from another pass."""
        with torch.enable_grad():
            term = torch.as_tensor(self.function(blocks))
        if term.ndim:
            raise ValueError(f"Penalty: function must return a scalar, got shape {tuple(term.shape)}")
        if term.requires_grad and functions is not None and not in_transform():
            refuse_kept(term, blocks, functions)
        return term if torch.is_grad_enabled() or in_forward_mode() else term.detach()


def l2(strength: float) -> Penalty:
    """Return the penalty strength / 2 * |x|^2, whose gradient torch.optim's coupled ``weight_decay=strength`` adds.

    Example:
        >>> import torch
        >>> from frechet import Objective, hessian, l2, squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> hessian(Objective(model, squared_error(), data, penalty=l2(0.5))).dense()  # 2 + 0.5
        tensor([[2.5000]])
    """
    if not strength >= 0:
        raise ValueError(f"l2: strength must be non-negative, got {strength}")
    return Penalty(lambda blocks: sum((p * p).sum() for p in blocks.values()) * (strength / 2), convex=True)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Part:
    """One weighted data term of an objective; `head` is the last layer, where that is applied in chunks.

    A `shard` may be empty: other processes hold the rest of the data.
    """

    criterion: Criterion
    data: Iterable[Any]
    split: Split
    weight: float
    head: Head | None = None
    dtype: torch.dtype | None = None  # to which floating inputs and targets are cast
    shard: bool = False
    population: int | None = None  # examples that the data were drawn from, on all processes, if they are a subsample
    model: nn.Module | None = None  # that takes its inputs, in a sum of objectives on several; None: the objective's

    def batches(self, device: torch.device) -> Iterator[Batch]:
        index = -1
        for index, raw in enumerate(self.data):
            inputs, targets = self.split(raw)
            yield Batch(
                to_device(inputs, device, self.dtype), to_device(targets, device, self.dtype), index, model=self.model
            )
        if index < 0 and not self.shard:
            raise ValueError(
                "Objective: data must hold at least one batch, got an empty iterable; an IterableDataset must begin "
                "anew whenever it is iterated"
            )
