"""An objective at one moment: what is summed, and the state in which the model runs.

A `Snapshot` holds copies of the point, of the buffers and of frozen parameters, and the training flags. Operators hold
snapshots, so training the model changes no operator. Its `average` is the one place where totals and counts are added
up over batches, and over the processes of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frechet.errors import NonFinite
from frechet.objective.criterion import Criterion
from frechet.objective.data import Batch, Split, to_device, untouched_generators
from frechet.objective.group import Tally, combined, room
from frechet.objective.model import Places, call, exact_math, outputs_of
from frechet.space import Group, Space
from frechet.space.group import sketch


@dataclass(frozen=True, eq=False)
class Penalty:
    """A function of the parameters alone, ``{name: tensor} -> scalar``; `convex` is your word that it is."""

    function: Callable[[Mapping[str, Tensor]], Tensor]
    convex: bool = False


def l2(strength: float) -> Penalty:
    """strength / 2 * |x|^2, what torch.optim's coupled ``weight_decay=strength`` adds to the gradient."""
    if not strength >= 0:
        raise ValueError(f"l2: strength must be non-negative, got {strength}")
    return Penalty(lambda blocks: sum((p * p).sum() for p in blocks.values()) * (strength / 2), convex=True)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Part:
    """One weighted data term of an objective. A `shard` may be empty: other processes hold the rest of the data."""

    criterion: Criterion
    data: Iterable[Any]
    split: Split
    weight: float
    shard: bool = False
    population: int | None = None  # examples that the data were drawn from, on all processes, if they are a subsample

    def batches(self, device: torch.device) -> Iterator[Batch]:
        index = -1
        for index, raw in enumerate(self.data):
            inputs, targets = self.split(raw)
            yield Batch(to_device(inputs, device), to_device(targets, device), index)
        if index < 0 and not self.shard:
            raise ValueError("Objective: data must hold at least one batch, got an empty iterable")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An objective at one moment. `x` is the flat point in `space`; `constants` are frozen parameters and buffers."""

    model: nn.Module
    parts: tuple[Part, ...]
    penalties: tuple[tuple[float, Penalty], ...]
    space: Space
    x: Tensor
    constants: dict[str, Tensor]
    flags: tuple[bool, ...]
    modules: tuple[nn.Module, ...]
    places: Places
    group: Group | None = None

    def leaves(self, space: Space) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Differentiable copies of the blocks of `space`, and the full dict of parameters that contains them."""
        blocks = self.space.unflatten(self.x)
        leaves = {name: blocks[name].detach().requires_grad_() for name in space.names}
        return list(leaves.values()), {**blocks, **leaves}

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The model's outputs on a batch, as a function of its parameters."""
        try:
            return outputs_of(call(self.model, self.places, {**self.constants, **blocks}, batch.inputs))
        except (RuntimeError, ValueError) as error:
            if any(word in str(error) for word in ("dtype", "scalar type", "Input type")):
                raise TypeError(
                    f"Objective: batch {batch.index} and the {self.space.dtype} model do not fit together: "
                    f"{str(error).splitlines()[0]}; convert the data or the model"
                ) from error
            raise

    def total(self, part: Part, blocks: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The sum of a batch's terms, as a function of the parameters."""
        return part.criterion.terms(self.forward(blocks, batch), batch.targets).sum()

    def _running(self, reseed: int | None = None) -> ExitStack:
        """Contexts of a pass: random generators put back afterwards, the model in its recorded state."""
        stack = ExitStack()
        # batches in memory draw nothing; any other data may draw from every generator there is
        drawing = not all(isinstance(part.data, list | tuple) for part in self.parts)
        stack.enter_context(untouched_generators(reseed, everywhere=drawing or reseed is not None))
        stack.enter_context(exact_math(self.modules, self.flags, self.space.device))
        return stack

    def sweep(self, visit: Callable[[Part, Batch], None], reseed: int | None = None) -> None:
        """Call `visit` once per batch of every part, with the model in its recorded state.

        In a group on this rank's batches; what `visit` raises on one rank, all raise.
        """
        failure, at = None, 0
        with self._running(reseed):
            try:
                for part in self.parts:
                    at = 0
                    for batch in part.batches(self.space.device):
                        visit(part, batch)
                        at = batch.index + 1
            except Exception as error:
                if self.group is None:
                    raise
                failure = error
        if self.group is not None:
            self.group.settle(failure, f", batch {at}")

    def average(
        self,
        contribute: Callable[[Part, Batch], Tensor],
        what: str,
        scale: Callable[[float, int], float] | None = None,
        *,
        start: Tensor,
    ) -> Tensor:
        """sum_j w_j scale_j sum over batches of contribute, in one pass; scale(count, examples) is 1 / count.

        `start`, shaped like the result, is what the sums begin with: zero.
        """

        def add(part: Part, batch: Batch, sums: Tensor | None) -> Tensor:
            return (start.reshape(-1) if sums is None else sums) + contribute(part, batch).reshape(-1)

        return self._averaged(add, lambda: start.reshape(-1), start.numel(), what, scale).view(start.shape)

    def average_rows(
        self,
        contribute: Callable[[Part, Batch, list[list[Tensor]]], None],
        space: Space,
        k: int,
        what: str,
        scale: Callable[[float, int], float] | None = None,
        V: Tensor | None = None,
    ) -> Tensor:
        """As `average`, for k vectors of `space` as rows ``(k, n)`` to which `contribute` adds, block by block.

        Adding in place keeps the peak over many batches at that of one: k vectors and one batch's graph. `V` is what
        is multiplied, which must be the same on all ranks of a group.
        """
        size, behind = k * space.dim, room(self.group)

        def empty() -> Tensor:
            return torch.zeros(size + behind, dtype=space.dtype, device=space.device)

        def add(part: Part, batch: Batch, sums: Tensor | None) -> Tensor:
            flat = empty() if sums is None else sums
            contribute(part, batch, [space.split(row) for row in flat[:size].view(k, space.dim)])
            return flat

        drawn = sketch(V) if V is not None and self.group is not None else 0.0
        return self._averaged(add, empty, size, what, scale, drawn).view(k, space.dim)

    def _averaged(
        self,
        add: Callable[[Part, Batch, Tensor | None], Tensor],
        empty: Callable[[], Tensor],
        size: int,
        what: str,
        scale: Callable[[float, int], float] | None,
        drawn: float = 0.0,
    ) -> Tensor:
        total: Tensor | None = None
        with self._running():
            for part in self.parts:
                sums, number, examples = self._summed(part, add, empty, size, what, drawn)
                if number <= 0:
                    everywhere = "" if self.group is None else f" of any of the {self.group.size} ranks"
                    raise ValueError(f"{what}: the data{everywhere} must hold at least one term that counts, got none")
                part_total = sums * (part.weight * (1 / number if scale is None else scale(number, examples)))
                total = part_total if total is None else total + part_total
            assert total is not None  # an objective has at least one part
            # one cheap reduction first: a finite sum has finite terms
            if not math.isfinite(float(total.detach().sum())) and not bool(torch.isfinite(total.detach()).all()):
                self._name_nonfinite(add, what)
        return total

    def _summed(
        self,
        part: Part,
        add: Callable[[Part, Batch, Tensor | None], Tensor],
        empty: Callable[[], Tensor],
        size: int,
        what: str,
        drawn: float,
    ) -> tuple[Tensor, float, int]:
        """The flat sums over the batches of a part, its terms and its examples, of all ranks."""
        sums: Tensor | None = None
        count, examples, at = None, 0, 0
        failure: Exception | None = None
        number = 0.0
        try:
            for batch in part.batches(self.space.device):
                sums, terms = add(part, batch, sums), part.criterion.count(batch.targets)
                count = terms if count is None else count + terms
                examples += len_of(batch)
                at = batch.index + 1
            number = 0.0 if count is None else float(count)  # on a device this waits, once per pass
        except Exception as error:
            if self.group is None:
                raise
            failure = error
        sums = empty() if sums is None else sums
        if self.group is None:
            return sums, number, examples
        return combined(self.group, sums, size, Tally(number, examples, at, failure, drawn), what)

    def _name_nonfinite(self, add: Callable[[Part, Batch, Tensor | None], Tensor], what: str) -> None:
        def look() -> None:
            for part in self.parts:
                for batch in part.batches(self.space.device):
                    if not bool(torch.isfinite(add(part, batch, None)).all()):
                        raise self.nonfinite(what, part, batch)

        look() if self.group is None else self.group.together(look)
        raise NonFinite(f"{what}: the sum over all batches overflows {self.space.dtype}, though each batch is finite")

    def nonfinite(self, what: str, part: Part, batch: Batch) -> NonFinite:
        """The error for a batch that gives a NaN or an infinity, with its cause where that can be seen."""
        where = f"batch {batch.index}" + (f" of part {self.parts.index(part)}" if len(self.parts) > 1 else "")
        bad = [name for name in ("inputs", "targets") if not _finite(getattr(batch, name))]
        if bad:
            cause = f"its {' and '.join(bad)} hold NaN or infinity"
        elif not _finite(self.x):
            cause = "the point holds NaN or infinity"
        else:
            cause = "its inputs and targets and the point are finite, but the vector may not be"
        return NonFinite(f"{what}: {where} gives a NaN or an infinity ({cause})")

    def plus_penalty(self, what: str, mean: Tensor, term: Callable[[], Tensor]) -> Tensor:
        """`mean` plus the penalties' `term`, which must be finite."""
        if not self.penalties:
            return mean
        value = term()
        if not bool(torch.isfinite(value.detach()).all()):
            raise NonFinite(f"{what}: the penalty gives a NaN or an infinity, though the data term is finite")
        return mean + value

    def penalty(self, blocks: Mapping[str, Tensor], convex_only: bool = False) -> Tensor:
        """The sum of the penalties at `blocks`."""
        value = self.x.new_zeros(())
        for weight, p in self.penalties:
            if p.convex or not convex_only:
                term = torch.as_tensor(p.function(blocks))
                if term.ndim:
                    raise ValueError(f"Penalty: function must return a scalar, got shape {tuple(term.shape)}")
                value = value + weight * term
        return value


def len_of(batch: Batch) -> int:
    """Number of examples of a batch."""
    return batch.targets.shape[0] if isinstance(batch.targets, Tensor) and batch.targets.ndim else 1


def _finite(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, Mapping):
        return all(_finite(v) for v in tree.values())
    return all(_finite(v) for v in tree) if isinstance(tree, list | tuple) else True
