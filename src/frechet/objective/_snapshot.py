"""An objective at one moment: what is summed, and the state in which the model runs.

A `Snapshot` holds copies of the point, of the buffers and of frozen parameters, and the training flags. Operators hold
snapshots, so training the model changes no operator. Its `average` is the one place where totals and counts are added
up over batches, and over the processes of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frechet.errors import NonFinite, NotDifferentiable
from frechet.objective._attributes import Attributes
from frechet.objective._data import Batch, fixed_draws, untouched_generators
from frechet.objective._fully_shard import whole_tensor
from frechet.objective._functions import Functions
from frechet.objective._group import Tally, combined, room
from frechet.objective._guards import explained, mark, misfit, refuse_graph
from frechet.objective._head import Head, HeadRows, rows_of
from frechet.objective._kernels import refused_hooks, refused_reentrant_checkpoints
from frechet.objective._model import (
    Places,
    call,
    couplings,
    exact_math,
    installed,
    is_installed,
    outputs_of,
    refuse_coupled,
    writes_inputs,
)
from frechet.objective._parts import Part, Penalty
from frechet.objective._structure import tensors_of
from frechet.objective._torch_internals import differentiable, in_transform, without_needless_graph
from frechet.objective.criteria._criterion import Criterion
from frechet.objective.criteria._custom import Custom, criterion_for
from frechet.space import Group, Space, aligned
from frechet.space._group import sketch

T = TypeVar("T")

_CHECKPOINTED = (
    "Objective.value: the model saves tensors through hooks (activation checkpoints, save_on_cpu), which would "
    "recompute with the model's present parameters in a later backward pass; turn them off, or use "
    "hessian(objective, x)"
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An objective at one moment. `x` is the flat point in `space`; `constants` are frozen parameters and buffers.

    Where `space` has a shard, both are held in pieces, and what is computed is computed by the `gathered` snapshot.
    """

    model: nn.Module
    parts: tuple[Part, ...]
    penalties: tuple[tuple[float, Penalty], ...]
    space: Space
    x: Tensor
    constants: dict[str, Tensor]
    flags: tuple[bool, ...]
    modules: tuple[nn.Module, ...]
    places: Places
    moving: tuple[str, ...] = ()  # buffers into which a forward pass may write
    dropout_seed: int | None = None
    group: Group | None = None
    attributes: Attributes = field(default_factory=list)  # what user's modules keep beside parameters and buffers
    functions: Functions | None = None  # how the model's and the criterion's own code runs; None: there is none

    def gathered(self) -> Snapshot:
        """This snapshot with whole vectors, for the time of one pass. Collective where the parameters are sharded."""
        if self.space.shard is None:
            return self
        constants = {name: whole_tensor(t) for name, t in self.constants.items()}
        return replace(self, space=self.space.unsharded, x=self.space.whole(self.x), constants=constants)

    def leaves(self, space: Space) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Differentiable copies of the blocks of `space`, and the full dict of parameters that contains them."""
        blocks = self.space.unflatten(self.x)
        leaves = {name: mark(aligned(blocks[name].detach()).requires_grad_()) for name in space.names}
        return list(leaves.values()), {**blocks, **leaves}

    def installed(self, blocks: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """The model with its state and `blocks` inside, for whatever runs parts of it again in a backward pass.

        Activation checkpoints do: without this they would recompute with the model's present parameters.
        """
        return installed(self.places, self._state(blocks))

    def _state(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: self.constants[name].clone() for name in self.moving}
        return {**self.constants, **moved, **blocks}

    def returned(self, blocks: Mapping[str, Tensor], batch: Batch) -> Any:
        """What the model returns for the inputs of a batch, as a function of its parameters."""

        def run() -> Any:
            with ExitStack() as stack:
                if self.dropout_seed is not None:
                    stack.enter_context(fixed_draws(self.dropout_seed, batch.index))
                if torch.is_grad_enabled():
                    stack.enter_context(refused_reentrant_checkpoints())
                    holder, key = self.places[self.space.names[0]][0]
                    if not is_installed(holder[key]):  # nothing is installed for the backward pass
                        stack.enter_context(refused_hooks(_CHECKPOINTED))
                state, written = self._state(blocks), writes_inputs(self.modules)
                if self.functions is not None and self.functions.nested:  # it may differentiate in its parameters
                    state |= {name: differentiable(state[name]) for name in self.space.names}
                model, left = batch.model or self.model, batch.layout.left
                return call(model, self.places, state, batch.inputs, self.attributes, self.modules, written, left)

        return self.evaluated(run)

    def evaluated(self, run: Callable[[], T]) -> T:
        """What `run` returns, where it calls code of the user's."""
        return run() if self.functions is None else self.functions.evaluate(run)

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch, head: Head | None = None) -> Tensor:
        """The model's outputs on a batch as one real tensor, as a function of its parameters; with `head`, what goes
        into the head.

        `criterion(part, batch)` is the criterion of such outputs.
        """

        def run() -> Any:
            return outputs_of(self.returned(blocks, batch))

        try:
            found = run() if head is None else head.before(run)
        except Exception as error:
            raise explained(error, self, batch) from (None if isinstance(error, NotDifferentiable) else error)
        outputs = without_needless_graph(batch.layout.pack(found))
        if any(part.dtype is not None for part in self.parts) and outputs.dtype != self.space.dtype:
            raise misfit(self, batch, f"its outputs are {outputs.dtype}")
        if self.functions is not None and batch.index == 0 and outputs.requires_grad and not in_transform():
            refuse_graph(outputs, blocks, self.functions, self.space.dtype)
        return outputs

    def criterion(self, part: Part, batch: Batch) -> Criterion:
        """The criterion of a part as a function of what `forward` returned last for this batch."""
        return criterion_for(part.criterion, batch.layout, batch.examples)

    def count(self, part: Part, batch: Batch) -> Tensor:
        """The number of a batch's terms that count."""
        if isinstance(part.criterion, Custom) and part.criterion.counter is None:
            return torch.tensor(batch.examples, dtype=torch.float64)
        return part.criterion.count(batch.targets)

    @property
    def coupled(self) -> tuple[str, ...]:
        """The modules that make an example's output depend on the rest of its batch."""
        return couplings(self.model, self.flags)

    def refuse_coupled(self, what: str) -> None:
        """Raise where the model is known to couple the examples of a batch, so that none has a loss of its own."""
        refuse_coupled(self.model, self.flags, what)

    def head_rows(self, part: Part, blocks: Mapping[str, Tensor], batch: Batch, hidden: Tensor) -> HeadRows:
        """The rows of a batch before the part's head, from `hidden` = forward(blocks, batch, part.head)."""
        assert part.head is not None
        return rows_of(part.head, part.criterion, hidden, {**self.constants, **blocks}, batch.targets)

    def terms(self, part: Part, blocks: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The sum of each example's terms ``(examples,)``, as a function of the parameters."""
        if part.head is None:
            return self.terms_of(part, blocks, batch, self.forward(blocks, batch))
        rows = self.head_rows(part, blocks, batch, self.forward(blocks, batch, part.head))
        return rows.per_example(rows.terms())

    def terms_of(self, part: Part, blocks: Mapping[str, Tensor], batch: Batch, outputs: Tensor) -> Tensor:
        """The sum of each example's terms ``(examples,)`` of given outputs, as a function of both."""
        criterion = self.criterion(part, batch)
        if not isinstance(criterion, Custom) or self.functions is None:
            return criterion.terms(outputs, batch.targets)
        try:
            with self.installed(blocks):  # the criterion may read parameters of the model
                found = self.functions.evaluate(lambda: criterion.terms(outputs, batch.targets))
                return without_needless_graph(found)
        except Exception as error:
            error.add_note(f"Objective: in the criterion, batch {batch.index}")
            raise

    def total(self, part: Part, blocks: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The sum of a batch's terms, as a function of the parameters."""
        return self.terms(part, blocks, batch).sum()

    def running(self, reseed: int | None = None) -> ExitStack:
        """Contexts of a pass: random generators put back afterwards, the model in its recorded state."""
        stack = ExitStack()
        # batches in memory draw nothing; any other data may draw from every generator there is
        drawing = not all(isinstance(part.data, list | tuple) for part in self.parts)
        stack.enter_context(untouched_generators(reseed, everywhere=drawing or reseed is not None))
        if self.modules:
            stack.enter_context(self.exact())
        return stack

    def exact(self) -> AbstractContextManager[None]:
        """The model in its recorded state, by kernels and formulas with right derivatives."""
        return exact_math(self.modules, self.flags, self.space.device, self.functions)

    def without_model(self) -> Snapshot:
        """This snapshot for passes over the data in which the model does not run."""
        return replace(self, modules=(), flags=())

    def sweep(
        self,
        visit: Callable[[Part, Batch], None],
        reseed: int | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `visit` once per batch of every part, and `then` after all, with the model in its recorded state.

        In a group on this rank's batches; what `visit` raises on one rank, all raise.
        """
        failure, at = None, 0
        with self.running(reseed):
            try:
                for part in self.parts:
                    at = 0
                    for batch in part.batches(self.space.device):
                        visit(part, batch)
                        at = batch.index + 1
                then()
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
        squared: bool = False,
    ) -> Tensor:
        """As `average`, for k vectors of `space` as rows ``(k, n)`` to which `contribute` adds, block by block.

        Adding in place keeps the peak over many batches at that of one: k vectors and one batch's graph. `V` is what
        is multiplied, which must be the same on all ranks of a group. `squared` weights count as their squares.
        """
        size, behind = k * space.dim, room(self.group)

        def empty() -> Tensor:
            return torch.zeros(size + behind, dtype=space.dtype, device=space.device)

        def add(part: Part, batch: Batch, sums: Tensor | None) -> Tensor:
            if sums is None and k == 1:  # the first product is the sum so far
                row: list[list[Tensor]] = [[]]
                contribute(part, batch, row)
                return space.join([*row[0], *([self.x.new_zeros(behind)] if behind else [])]) if row[0] else empty()
            flat = empty() if sums is None else sums
            contribute(part, batch, [space.split(row) for row in flat[:size].view(k, space.dim)])
            return flat

        drawn = sketch(V) if V is not None and self.group is not None else 0.0
        found = self._averaged(add, empty, size, what, scale, drawn, in_place=True, power=1 + squared)
        return found.view(k, space.dim)

    def _averaged(
        self,
        add: Callable[[Part, Batch, Tensor | None], Tensor],
        empty: Callable[[], Tensor],
        size: int,
        what: str,
        scale: Callable[[float, int], float] | None,
        drawn: float = 0.0,
        in_place: bool = False,
        power: int = 1,
    ) -> Tensor:
        total: Tensor | None = None
        with self.running():
            for part in self.parts:
                sums, number, examples = self._summed(part, add, empty, size, what, drawn)
                if number <= 0:
                    everywhere = "" if self.group is None else f" of any of the {self.group.size} ranks"
                    raise ValueError(f"{what}: the data{everywhere} must hold at least one term that counts, got none")
                factor = part.weight**power * (1 / number if scale is None else scale(number, examples))
                part_total = sums.mul_(factor) if in_place else sums * factor
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
                sums, terms = add(part, batch, sums), self.count(part, batch)
                count = terms if count is None else count + terms
                examples += batch.examples
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
        if not self.penalties:
            return value
        with self.exact() if self.modules else nullcontext(), self.installed(blocks):
            return self.evaluated(lambda: self._penalty(blocks, convex_only))

    def _penalty(self, blocks: Mapping[str, Tensor], convex_only: bool) -> Tensor:
        value = self.x.new_zeros(())
        for weight, p in self.penalties:
            if p.convex or not convex_only:
                value = value + weight * p.at(blocks, self.functions)
        return value


def _finite(tree: Any) -> bool:
    return all(not t.is_floating_point() or bool(torch.isfinite(t).all()) for t in tensors_of(tree))
