"""What is differentiated: a sum over examples divided by the number of its terms, plus penalties.

    L(x) = sum_j w_j (sum over batches of total_j) / (sum over batches of count_j) + sum_i c_i penalty_i(x)

Totals and counts are added up in one pass, so ragged last batches, padded tokens and unequal batches weigh right. A
mean of batch means, which is what most loops compute, does not.

An `Objective` looks at a live model. A `Snapshot` is the objective at one moment: copies of the point, of the buffers
and of frozen parameters, and the training flags. Operators hold snapshots, so training the model changes no operator.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frechet.errors import NonFinite
from frechet.objective.check import Check, check
from frechet.objective.criterion import Criterion
from frechet.objective.data import (
    Batch,
    Split,
    Subsample,
    default_split,
    refuse_unrepeatable,
    to_device,
    untouched_generators,
)
from frechet.objective.kernels import ordinary_mode
from frechet.objective.model import (
    Places,
    call,
    exact_math,
    outputs_of,
    parameter_space,
    places_of,
    refuse_random_or_coupled,
    training_flags,
    unwrap,
)
from frechet.objective.torch_losses import as_criterion
from frechet.space import Space


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
    """One weighted data term of an objective."""

    criterion: Criterion
    data: Iterable[Any]
    split: Split
    weight: float

    def batches(self, device: torch.device) -> Iterator[Batch]:
        index = -1
        for index, raw in enumerate(self.data):
            inputs, targets = self.split(raw)
            yield Batch(to_device(inputs, device), to_device(targets, device), index)
        if index < 0:
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
        """Call `visit` once per batch of every part, with the model in its recorded state."""
        with self._running(reseed):
            for part in self.parts:
                for batch in part.batches(self.space.device):
                    visit(part, batch)

    def average(
        self,
        contribute: Callable[[Part, Batch], Tensor],
        what: str,
        scale: Callable[[float, int], float] | None = None,
    ) -> Tensor:
        """sum_j w_j scale_j sum over batches of contribute, in one pass; scale(count, examples) is 1 / count."""
        total: Tensor | None = None
        with self._running():
            for part in self.parts:
                sums: Tensor | None = None
                count, examples = None, 0
                for batch in part.batches(self.space.device):
                    piece, terms = contribute(part, batch), part.criterion.count(batch.targets)
                    sums = piece if sums is None else sums + piece
                    count = terms if count is None else count + terms
                    examples += len_of(batch)
                number = 0.0 if count is None else float(count)  # on a device this waits, once per pass
                if sums is None or number <= 0:
                    raise ValueError(f"{what}: the data must hold at least one term that counts, got none")
                part_total = sums * (part.weight * (1 / number if scale is None else scale(number, examples)))
                total = part_total if total is None else total + part_total
            assert total is not None  # an objective has at least one part
            # one cheap reduction first: a finite sum has finite terms
            if not math.isfinite(float(total.detach().sum())) and not bool(torch.isfinite(total.detach()).all()):
                self._name_nonfinite(contribute, what)
        return total

    def _name_nonfinite(self, contribute: Callable[[Part, Batch], Tensor], what: str) -> None:
        for part in self.parts:
            for batch in part.batches(self.space.device):
                if not bool(torch.isfinite(contribute(part, batch)).all()):
                    raise self.nonfinite(what, part, batch)
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


class Objective:
    """A model, a criterion and data: a function of the model's trainable parameters.

    `criterion` is one of frechet's or a torch loss with ``reduction="mean"``. `data` is any iterable of batches that
    gives the same batches each time. `split(batch) -> (inputs, targets)` defaults to pairs and to dicts with
    ``labels``; use `causal_lm` for language models. `penalty` is a `Penalty`, such as `l2(1e-4)`.

    Objectives on one model add up: ``objective + 0.5 * other``.

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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Objective: model must be a torch.nn.Module, got {type(model).__name__}")
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"Objective: penalty must be a Penalty, got {type(penalty).__name__}; use l2(c) or Penalty(function)"
            )
        part = Part(as_criterion(criterion), data, default_split if split is None else split, 1.0)
        self._set(unwrap(model), (part,), () if penalty is None else ((1.0, penalty),))

    def _set(self, model: nn.Module, parts: tuple[Part, ...], penalties: tuple[tuple[float, Penalty], ...]) -> None:
        for name, value in (("model", model), ("parts", parts), ("penalties", penalties)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "space", parameter_space(model))

    model: nn.Module
    parts: tuple[Part, ...]
    penalties: tuple[tuple[float, Penalty], ...]
    space: Space

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Objective is frozen: cannot set {name}; make a new one")

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, {self.space!r}, {len(self.parts)} part(s))"

    def _with(self, parts: tuple[Part, ...], penalties: tuple[tuple[float, Penalty], ...]) -> Objective:
        other = object.__new__(Objective)
        other._set(self.model, parts, penalties)
        return other

    def __add__(self, other: object) -> Objective:
        if not isinstance(other, Objective):
            raise TypeError(f"Objective + other: other must be an Objective, got {type(other).__name__}")
        if other.model is not self.model:
            raise ValueError("Objective + other: both must be objectives of one and the same model object")
        return self._with(self.parts + other.parts, self.penalties + other.penalties)

    def __mul__(self, c: float) -> Objective:
        if not isinstance(c, numbers.Real):
            raise TypeError(f"c * Objective: c must be a real number, got {type(c).__name__}")
        parts = tuple(replace(p, weight=float(c) * p.weight) for p in self.parts)
        return self._with(parts, tuple((float(c) * w, p) for w, p in self.penalties))

    __rmul__ = __mul__

    def on(self, batch: Any) -> Objective:
        """The same objective on one raw batch (penalties stay whole). For sums of objectives, call it on each."""
        if len(self.parts) != 1:
            raise ValueError(f"Objective.on: needs an objective with one data term, got {len(self.parts)}")
        return self._with((replace(self.parts[0], data=[batch]),), self.penalties)

    @property
    def point(self) -> Tensor:
        """The current trainable parameters as one flat vector ``(n,)``, a fresh copy."""
        parameters = dict(self.model.named_parameters())
        with ordinary_mode(self.space.device):
            return self.space.join([parameters[name].detach() for name in self.space.names]).clone()

    @property
    def population(self) -> int | None:
        """The number of examples that the data were drawn from, if they are a `subsample`."""
        data = self.parts[0].data
        return data.population if isinstance(data, Subsample) else None

    def snapshot(self, x: Tensor | Mapping[str, Tensor] | None = None) -> Snapshot:
        """This objective at this moment and at `x` (default: the model's parameters), which must not require grad."""
        if any(isinstance(b, Tensor) and b.requires_grad for b in (x.values() if isinstance(x, Mapping) else [x])):
            raise ValueError(
                "Objective: x must not require grad: an operator carries no graph, so it would be a constant in a "
                "loss; use hessian_product(objective.value, x, v), which autograd sees through, or pass x.detach()"
            )
        return self._snapshot(self._flat(x))

    def _snapshot(self, x: Tensor, copy: bool = True) -> Snapshot:
        refuse_random_or_coupled(self.model)
        for part in self.parts:
            refuse_unrepeatable(part.data)
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        frozen = {n: t.detach() for n, t in named if n not in set(self.space.names)}
        with ordinary_mode(self.space.device):
            constants = {n: t.clone() if copy or t.is_inference() else t for n, t in frozen.items()}
        flags = training_flags(self.model)
        modules, places = tuple(self.model.modules()), places_of(self.model)
        return Snapshot(self.model, self.parts, self.penalties, self.space, x, constants, flags, modules, places)

    def _flat(self, x: Tensor | Mapping[str, Tensor] | None) -> Tensor:
        if x is None:
            return self.point
        flat = self.space.flatten(x) if isinstance(x, Mapping) else x
        if not isinstance(flat, Tensor):
            raise TypeError(f"Objective: x must be a tensor or a dict of tensors, got {type(flat).__name__}")
        if flat.shape != (self.space.dim,) or flat.dtype != self.space.dtype:
            raise ValueError(
                f"Objective: x must be {self.space.dtype} of shape ({self.space.dim},), got {flat.dtype} of shape "
                f"{tuple(flat.shape)}"
            )
        if flat.device != self.space.device:
            raise ValueError(f"Objective: x must be on {self.space.device}, got {flat.device}; move it with x.to(...)")
        with ordinary_mode(self.space.device):
            return flat.detach().clone()

    def batches(self) -> Iterator[Batch]:
        """The batches of all parts on the parameters' device, split into inputs and targets."""
        for part in self.parts:
            yield from part.batches(self.space.device)

    def value(self, x: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """L(x), a scalar tensor. Differentiable in `x` where it requires grad."""
        if isinstance(x, Mapping):
            x = self.space.flatten(x)
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            snapshot = self._snapshot(x, copy=False)
            blocks = self.space.unflatten(x)
            mean = snapshot.average(lambda p, b: snapshot.total(p, blocks, b), "value")
            return snapshot.plus_penalty("value", mean, lambda: snapshot.penalty(blocks))
        with torch.no_grad():
            snapshot = self._snapshot(self._flat(x), copy=False)
            blocks = self.space.unflatten(snapshot.x)
            # float64 sums: thousands of batch totals of one sign
            mean = snapshot.average(lambda p, b: snapshot.total(p, blocks, b).double(), "value")
            return snapshot.plus_penalty("value", mean, lambda: snapshot.penalty(blocks)).to(self.space.dtype)

    def gradient(self, x: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """The gradient of L at `x`, flat ``(n,)``."""
        snapshot = self._snapshot(self._flat(x), copy=False)
        with ordinary_mode(self.space.device):
            leaves, blocks = snapshot.leaves(self.space)

            def slope(value: Callable[[], Tensor]) -> Tensor:
                with torch.enable_grad():
                    y = value()
                    if not y.requires_grad:
                        return self.space.zeros()
                    return self.space.join(torch.autograd.grad(y, leaves, allow_unused=True, materialize_grads=True))

            mean = snapshot.average(lambda p, b: slope(lambda: snapshot.total(p, blocks, b)), "gradient")
            return snapshot.plus_penalty("gradient", mean, lambda: slope(lambda: snapshot.penalty(blocks)))

    def check(self) -> Check:
        """Two passes: is this one fixed, finite function that agrees with the model's own loss? Raises if not."""
        return check(self)
