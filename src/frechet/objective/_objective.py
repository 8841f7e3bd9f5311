"""What is differentiated: a sum over examples divided by the number of its terms, plus penalties.

    L(x) = sum_j w_j (sum over batches of total_j) / (sum over batches of count_j) + sum_i c_i penalty_i(x)

Totals and counts are added up in one pass, so ragged last batches, padded tokens and unequal batches weigh right. A
mean of batch means, which is what most loops compute, does not.

An `Objective` looks at a live model; what is computed holds a `Snapshot` of it.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frechet.errors import UnusableObjective
from frechet.objective._agreement import agreed_part, agreed_snapshot
from frechet.objective._attributes import attributes_of
from frechet.objective._check import Check
from frechet.objective._coupling import prove_pieces
from frechet.objective._data import (
    Batch,
    Split,
    Subsample,
    default_split,
    refuse_unrepeatable,
)
from frechet.objective._fully_shard import local, refuse_other_shards, resharded, sharded_space
from frechet.objective._functions import Functions
from frechet.objective._group import Deal, dealt
from frechet.objective._head import head_of
from frechet.objective._joined import joined, share_parameters
from frechet.objective._kernels import ordinary_mode
from frechet.objective._model import (
    flat_point,
    moving_buffers,
    needs_functions,
    parameter_space,
    places_of,
    refuse_coupled,
    refuse_unusable,
    training_flags,
    unwrap,
)
from frechet.objective._parts import Part, Penalty
from frechet.objective._pieces import Pieces, as_it_is
from frechet.objective._snapshot import Snapshot
from frechet.objective.criteria._criterion import Criterion
from frechet.objective.criteria._custom import Custom
from frechet.objective.criteria._torch_losses import as_criterion
from frechet.space import Group, Space, generator


@dataclass(frozen=True, eq=False, repr=False)
class _Terms:
    """What an objective holds: a live model, data terms and penalties with their weights."""

    model: nn.Module
    parts: tuple[Part, ...]
    penalties: tuple[tuple[float, Penalty], ...]
    space: Space
    dropout_seed: int | None
    group: Group | None
    wrapper: str | None  # what the model was taken out of, such as DistributedDataParallel


def _space(model: nn.Module, part: Part, group: Group | None) -> Space:
    return sharded_space(model, parameter_space(model, part.dtype), group)


class Objective(_Terms):
    """A model, a criterion and data: a function of the model's trainable parameters.

    `criterion` is one of frechet's or a torch loss with ``reduction="mean"``. `data` is any iterable of batches that
    gives the same batches each time. `split(batch) -> (inputs, targets)` defaults to pairs and to dicts with
    ``labels``; use `causal_lm` for language models. `penalty` is a `Penalty`, such as `l2(1e-4)`.

    `head` names the `torch.nn.Linear` whose output is the model's output, such as ``"lm_head"``: it is then applied to
    `head_rows` rows at a time (default: 32 MiB of logits), and the logits are never stored whole. The criterion must be
    a sum over the rows of the outputs, and the model must do nothing after its head, which every pass checks.
    `dtype` (float32 or float64) computes in that dtype at the point where the model is: parameters, buffers, floating
    inputs and targets are cast, and vectors have it. A bfloat16 model needs it. `dropout_seed` lets a model drop units
    in training mode: whatever its forward draws on batch i comes from (seed, i), the same in every product.

    Objectives on one model add up: ``objective + 0.5 * other``. So do those on modules that share parameters, such as
    two heads on one body; the parameters are then called "0.name" and "1.name" by the module they were first seen in.

    With `group`, a torch.distributed process group or "world", the data of each process are its shard, of any size: the
    value, the gradient and every product are those of all data, the same on all ranks. Every rank then does the same
    in the same order; what fails on one raises on all.

    A model under ``fully_shard`` needs the group over which it is sharded. A vector is then what each rank holds of it,
    flat: `space.length` of the `space.dim` entries. Each pass gathers the parameters for as long as it takes.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> torch.nn.init.constant_(model.weight, 2.0).item()
        2.0
        >>> data = [(torch.ones(3, 1), torch.zeros(3, 1)), (torch.ones(1, 1), torch.ones(1, 1))]
        >>> objective = Objective(model, squared_error(), data)
        >>> float(objective.value())  # (4 + 4 + 4 + 1) / 4
        3.25
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion | nn.Module | Callable[..., Any],
        data: Iterable[Any],
        *,
        split: Split | None = None,
        penalty: Penalty | None = None,
        head: str | None = None,
        head_rows: int | None = None,
        dtype: torch.dtype | None = None,
        dropout_seed: int | None = None,
        group: dist.ProcessGroup | Literal["world"] | None = None,
    ) -> None:
        ranks = None if group is None else Group.of(group)

        def checked() -> tuple[nn.Module, Part, Space]:
            if not isinstance(model, nn.Module):
                raise TypeError(f"Objective: model must be a torch.nn.Module, got {type(model).__name__}")
            if penalty is not None and not isinstance(penalty, Penalty):
                raise TypeError(
                    f"Objective: penalty must be a Penalty, got {type(penalty).__name__}; use l2(c) or "
                    "Penalty(function)"
                )
            if dtype not in (None, torch.float32, torch.float64):
                raise TypeError(f"Objective: dtype must be torch.float32 or torch.float64, got {dtype}")
            if dropout_seed is not None:
                generator(dropout_seed)  # refuses a bad seed
            if head is None and head_rows is not None:
                raise ValueError("Objective: head_rows must come with head=, the name of the model's last layer")
            refuse_other_shards(model)
            inner, cut = unwrap(model), default_split if split is None else split
            last = None if head is None else head_of(inner, head, head_rows)
            population = data.population if isinstance(data, Subsample) else None
            part = Part(as_criterion(criterion), data, cut, 1.0, last, dtype, ranks is not None, population)
            return inner, part, _space(inner, part, ranks)

        if ranks is None:
            inner, part, _ = checked()
        else:
            inner, part = agreed_part(ranks, checked, data, penalty is not None)
        penalties = () if penalty is None else ((1.0, penalty),)
        wrapper = None if inner is model else type(model).__name__
        space = _space(inner, part, ranks)
        super().__init__(inner, (part,), penalties, space, dropout_seed, ranks, wrapper)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Objective is frozen: cannot set {name}; make a new one")

    def __repr__(self) -> str:
        name = type(self.model).__name__ + ("" if self.wrapper is None else f" out of {self.wrapper}")
        where = "" if self.group is None else f", rank {self.group.rank} of {self.group.size}"
        return f"Objective({name}, {self.space!r}, {len(self.parts)} part(s){where})"

    def _with(
        self,
        parts: tuple[Part, ...],
        penalties: tuple[tuple[float, Penalty], ...],
        model: nn.Module | None = None,
        group: Group | None = None,
    ) -> Objective:
        model, group = model or self.model, group or self.group
        space = _space(model, parts[0], group)
        other = object.__new__(Objective)
        _Terms.__init__(other, model, parts, penalties, space, self.dropout_seed, group, self.wrapper)
        return other

    def __add__(self, other: object) -> Objective:
        if not isinstance(other, Objective):
            raise TypeError(f"Objective + other: other must be an Objective, got {type(other).__name__}")
        if other.model is not self.model and not share_parameters(self.model, other.model):
            raise ValueError(
                "Objective + other: both must be objectives of one and the same model object, or of modules that share "
                "parameters"
            )
        for what, mine, theirs in (
            ("dtype", self.parts[0].dtype, other.parts[0].dtype),
            ("dropout_seed", self.dropout_seed, other.dropout_seed),
        ):
            if mine != theirs:
                raise ValueError(f"Objective + other: both must have one {what}, got {mine} and {theirs}")
        if other.group != self.group:
            raise ValueError("Objective + other: both must be objectives of the same group of processes, or of none")
        if other.model is self.model:
            return self._with(self.parts + other.parts, self.penalties + other.penalties)
        both = [(o.model, o.parts, o.penalties) for o in (self, other)]
        model, parts, penalties = joined(*both)
        return self._with(parts, penalties, model)

    def __mul__(self, c: float) -> Objective:
        if not isinstance(c, numbers.Real):
            raise TypeError(f"c * Objective: c must be a real number, got {type(c).__name__}")
        parts = tuple(replace(p, weight=float(c) * p.weight) for p in self.parts)
        return self._with(parts, tuple((float(c) * w, p) for w, p in self.penalties))

    __rmul__ = __mul__

    def on(self, batch: Any) -> Objective:
        """The same objective on one raw batch (penalties stay whole). For sums of objectives, call it on each.

        In a group, on the batches that the ranks give together.
        """
        if len(self.parts) != 1:
            raise ValueError(f"Objective.on: needs an objective with one data term, got {len(self.parts)}")
        return self._with((replace(self.parts[0], data=[batch], population=None),), self.penalties)

    def in_pieces(self, examples: int) -> Objective:
        """The same objective, its batches cut into pieces of at most `examples` examples: less memory at a time.

        Tensors without an axis of examples stay whole. Raises where two pieces of a first batch do not add up to their
        whole, as where the model or the criterion couples the examples of a batch; this takes two forward passes over
        at most `examples` examples and one over twice as many.
        """
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise ValueError(f"Objective.in_pieces: examples must be a positive int, got {examples!r}")
        if self.dropout_seed is not None:
            raise ValueError(
                "Objective.in_pieces: with dropout_seed each batch draws its masks, and pieces would draw others; call "
                "model.eval()"
            )

        def checked() -> None:
            refuse_coupled(self.model, training_flags(self.model), "Objective.in_pieces")
            for part in self.parts:
                refuse_unrepeatable(part.data)
                if not part.criterion.additive:
                    raise ValueError("Objective.in_pieces: the criterion says additive=False; leave the batches whole")
            prove_pieces(replace(self._taken(self.point, copy=False), group=None).gathered(), examples)

        checked() if self.group is None else self.group.together(checked)
        cut = [replace(p, data=Pieces(p.data, p.split, examples), split=as_it_is) for p in self.parts]
        return self._with(tuple(cut), self.penalties)

    def sharded(self, group: dist.ProcessGroup | Literal["world"], *, by: Deal = "batch") -> Objective:
        """The same objective, its passes shared out among the processes of `group`, all of which can read all data.

        Each takes every size-th batch in turn, or, ``by="example"``, every size-th row (axis 0 of every tensor) of each
        batch. Collective. To give each process data that only it has, make an objective with ``group=`` instead.
        """
        ranks = Group.of(group)
        if by not in ("batch", "example"):
            raise ValueError(f"Objective.sharded: by must be 'batch' or 'example', got {by!r}")
        if self.group is not None:
            raise ValueError("Objective.sharded: must be an objective of one process, got one with group=")

        def shared_out() -> tuple[Part, ...]:
            for part in self.parts:
                refuse_unrepeatable(part.data)
            return tuple(replace(part, data=dealt(part.data, ranks, by), shard=True) for part in self.parts)

        return self._with(ranks.together(shared_out), self.penalties, group=ranks)

    @property
    def point(self) -> Tensor:
        """The current trainable parameters as one flat vector ``(n,)``, a fresh copy."""
        parameters = dict(resharded(self.model).named_parameters())
        for n in self.space.names:
            if parameters[n].device != self.space.device:
                raise UnusableObjective(
                    f"Objective: the model must stay where it was when the objective was made ({self.space.device}), "
                    f"got parameter '{n}' on {parameters[n].device}; make the objective after model.to(...)"
                )
        with ordinary_mode(self.space.device):
            return self.space.join([local(parameters[n]).to(self.space.dtype) for n in self.space.names]).clone()

    @property
    def population(self) -> int | None:
        """The number of examples that the data (of all ranks) were drawn from, if they are a `subsample`."""
        return self.parts[0].population

    def snapshot(self, x: Tensor | Mapping[str, Tensor] | None = None, *, pieces: bool = False) -> Snapshot:
        """This objective at this moment and at `x` (default: the model's parameters), which must not require grad.

        With sharded parameters only for callers that know of `pieces`, and gather them.
        """
        if self.space.shard is not None and not pieces:
            raise UnusableObjective(
                "Objective: this question needs whole parameters on every rank, got sharded ones (fully_shard); load "
                "every p.full_tensor() into a model of its own, and give the data with group="
            )
        if any(isinstance(b, Tensor) and b.requires_grad for b in (x.values() if isinstance(x, Mapping) else [x])):
            raise ValueError(
                "Objective: x must not require grad: an operator carries no graph, so it would be a constant in a "
                "loss; use hessian_product(objective.value, x, v), which autograd sees through, or pass x.detach()"
            )
        return self._snapshot(lambda: self._flat(x))

    def _snapshot(self, point: Callable[[], Tensor], copy: bool = True) -> Snapshot:
        def take() -> Snapshot:
            return self._taken(point(), copy)

        return take() if self.group is None else agreed_snapshot(self.group, take, copy)

    def _taken(self, x: Tensor, copy: bool) -> Snapshot:
        refuse_unusable(self.model, seeded=self.dropout_seed is not None)
        for part in self.parts:
            refuse_unrepeatable(part.data)
        resharded(self.model)
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        frozen = {n: t.detach() for n, t in named if n not in set(self.space.names)}
        dtype = self.parts[0].dtype
        with ordinary_mode(self.space.device):
            constants = {n: t.clone() if copy or t.is_inference() else t for n, t in frozen.items()}
            if dtype is not None:
                constants = {n: t.to(dtype) if t.is_floating_point() else t for n, t in constants.items()}
        flags = training_flags(self.model)
        modules, places = tuple(self.model.modules()), places_of(self.model)
        functions = None
        if self.penalties or needs_functions(modules) or any(isinstance(p.criterion, Custom) for p in self.parts):
            functions = Functions({name: (kept[0][0][kept[0][1]], kept[0]) for name, kept in places.items()})
        return Snapshot(
            *(self.model, self.parts, self.penalties, self.space, x, constants, flags, modules, places),
            *(moving_buffers(self.model, places), self.dropout_seed, self.group, attributes_of(modules), functions),
        )

    def _flat(self, x: Tensor | Mapping[str, Tensor] | None) -> Tensor:
        if x is None:
            return self.point
        return flat_point(self.space, x)

    def batches(self) -> Iterator[Batch]:
        """The batches of all parts (this rank's) on the parameters' device, split into inputs and targets."""
        for part in self.parts:
            yield from part.batches(self.space.device)

    def value(self, x: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """L(x), a scalar tensor. Differentiable in `x` where it requires grad and the parameters are not sharded."""
        if isinstance(x, Mapping):
            x = self.space.flatten(x)
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            if self.space.shard is not None:
                raise ValueError(
                    "Objective.value: x must not require grad where parameters are sharded; use objective.gradient(x) "
                    "and hessian(objective, x), or pass x.detach()"
                )
            return self._differentiable_value(x)
        with torch.no_grad():
            snapshot = self._snapshot(lambda: self._flat(x), copy=False).gathered()
            blocks = snapshot.space.unflatten(snapshot.x)
            # float64 sums: thousands of batch totals of one sign
            start = torch.zeros((), dtype=torch.float64, device=self.space.device)
            mean = snapshot.average(lambda p, b: snapshot.total(p, blocks, b).double(), "value", start=start)
            return snapshot.plus_penalty("value", mean, lambda: snapshot.penalty(blocks)).to(self.space.dtype)

    def _differentiable_value(self, x: Tensor) -> Tensor:
        snapshot = self._snapshot(lambda: x, copy=False)
        blocks, here, start = self.space.unflatten(x), x, x.new_zeros(())
        if self.group is not None:
            here = self.group.shared(x)
            # every rank's total depends on x, in every derivative, so that all take part in adding those up
            start = 0.0 * (0.0 * here).exp().sum()
        own = self.space.unflatten(here)
        mean = snapshot.average(lambda p, b: snapshot.total(p, own, b), "value", start=start)
        return snapshot.plus_penalty("value", mean, lambda: snapshot.penalty(blocks))

    def gradient(self, x: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """The gradient of L at `x`, flat ``(n,)``."""
        snapshot = self._snapshot(lambda: self._flat(x), copy=False).gathered()
        space = snapshot.space
        with ordinary_mode(space.device):
            leaves, blocks = snapshot.leaves(space)

            def slope(value: Callable[[], Tensor]) -> Tensor:
                with torch.enable_grad():
                    y = value()
                    if not y.requires_grad:
                        return space.zeros()
                    found = torch.autograd.grad(y, leaves, allow_unused=True, materialize_grads=True)
                    return space.join([g.to_dense() if g.layout is not torch.strided else g for g in found])

            with snapshot.installed(blocks):
                mean = snapshot.average(
                    lambda p, b: slope(lambda: snapshot.total(p, blocks, b)), "gradient", start=space.zeros()
                )
            whole = snapshot.plus_penalty("gradient", mean, lambda: slope(lambda: snapshot.penalty(blocks)))
            return self.space.own(whole)

    def check(self) -> Check:
        """Raise where this is not one fixed, finite function with right derivatives; return what was seen.

        Two passes over the data under different seeds, the model's own loss, and every kind of product against
        differences; about twelve gradients in float64. See `frechet.operators._proof`.
        """
        # the proof takes products of operators, which stand below
        return importlib.import_module("frechet.operators._proof").check(self)
