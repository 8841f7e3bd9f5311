"""What is differentiated: a sum over examples divided by the number of its terms, plus penalties.

    L(x) = sum_j w_j (sum over batches of total_j) / (sum over batches of count_j) + sum_i c_i penalty_i(x)

Totals and counts are added up in one pass, so ragged last batches, padded tokens and unequal batches weigh right. A
mean of batch means, which is what most loops compute, does not.

An `Objective` looks at a live model; what is computed holds a `Snapshot` of it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frechet.objective.check import Check, check
from frechet.objective.criterion import Criterion
from frechet.objective.data import (
    Batch,
    Split,
    Subsample,
    default_split,
    refuse_unrepeatable,
)
from frechet.objective.head import head_of
from frechet.objective.kernels import ordinary_mode
from frechet.objective.model import (
    moving_buffers,
    parameter_space,
    places_of,
    refuse_unusable,
    training_flags,
    unwrap,
)
from frechet.objective.snapshot import Part, Penalty, Snapshot
from frechet.objective.torch_losses import as_criterion
from frechet.space import Space, generator


class Objective:
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
        head: str | None = None,
        head_rows: int | None = None,
        dtype: torch.dtype | None = None,
        dropout_seed: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Objective: model must be a torch.nn.Module, got {type(model).__name__}")
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"Objective: penalty must be a Penalty, got {type(penalty).__name__}; use l2(c) or Penalty(function)"
            )
        if dtype not in (None, torch.float32, torch.float64):
            raise TypeError(f"Objective: dtype must be torch.float32 or torch.float64, got {dtype}")
        if dropout_seed is not None:
            generator(dropout_seed)  # refuses a bad seed
        if head is None and head_rows is not None:
            raise ValueError("Objective: head_rows must come with head=, the name of the model's last layer")
        last = None if head is None else head_of(unwrap(model), head, head_rows)
        part = Part(as_criterion(criterion), data, default_split if split is None else split, 1.0, last, dtype)
        object.__setattr__(self, "dropout_seed", dropout_seed)
        self._set(unwrap(model), (part,), () if penalty is None else ((1.0, penalty),))

    def _set(self, model: nn.Module, parts: tuple[Part, ...], penalties: tuple[tuple[float, Penalty], ...]) -> None:
        for name, value in (("model", model), ("parts", parts), ("penalties", penalties)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "space", parameter_space(model, parts[0].dtype))

    model: nn.Module
    parts: tuple[Part, ...]
    penalties: tuple[tuple[float, Penalty], ...]
    space: Space
    dropout_seed: int | None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Objective is frozen: cannot set {name}; make a new one")

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, {self.space!r}, {len(self.parts)} part(s))"

    def _with(self, parts: tuple[Part, ...], penalties: tuple[tuple[float, Penalty], ...]) -> Objective:
        other = object.__new__(Objective)
        object.__setattr__(other, "dropout_seed", self.dropout_seed)
        other._set(self.model, parts, penalties)
        return other

    def __add__(self, other: object) -> Objective:
        if not isinstance(other, Objective):
            raise TypeError(f"Objective + other: other must be an Objective, got {type(other).__name__}")
        if other.model is not self.model:
            raise ValueError("Objective + other: both must be objectives of one and the same model object")
        for what, mine, theirs in (
            ("dtype", self.parts[0].dtype, other.parts[0].dtype),
            ("dropout_seed", self.dropout_seed, other.dropout_seed),
        ):
            if mine != theirs:
                raise ValueError(f"Objective + other: both must have one {what}, got {mine} and {theirs}")
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
            return self.space.join([parameters[n].detach().to(self.space.dtype) for n in self.space.names]).clone()

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
        refuse_unusable(self.model, seeded=self.dropout_seed is not None)
        for part in self.parts:
            refuse_unrepeatable(part.data)
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        frozen = {n: t.detach() for n, t in named if n not in set(self.space.names)}
        dtype = self.parts[0].dtype
        with ordinary_mode(self.space.device):
            constants = {n: t.clone() if copy or t.is_inference() else t for n, t in frozen.items()}
            if dtype is not None:
                constants = {n: t.to(dtype) if t.is_floating_point() else t for n, t in constants.items()}
        flags = training_flags(self.model)
        modules, places = tuple(self.model.modules()), places_of(self.model)
        return Snapshot(
            *(self.model, self.parts, self.penalties, self.space, x, constants, flags, modules, places),
            *(moving_buffers(self.model, places), self.dropout_seed),
        )

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

            with snapshot.installed(blocks):
                mean = snapshot.average(lambda p, b: slope(lambda: snapshot.total(p, blocks, b)), "gradient")
            return snapshot.plus_penalty("gradient", mean, lambda: slope(lambda: snapshot.penalty(blocks)))

    def check(self) -> Check:
        """Two passes: is this one fixed, finite function that agrees with the model's own loss? Raises if not."""
        return check(self)
