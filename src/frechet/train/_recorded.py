"""What the optimizers on an objective have beside their mathematics: how they come to the batch of a step.

A step needs the loss as a function, and not its gradient alone. The batch comes in one of three ways:

    step(batch)                                    nothing else is needed, no backward pass either
    with record(batch): loss.backward(); step()    for any loop
    loss.backward(); step()                        where hooks see inputs and targets: a model that takes its labels, or
                                                   a loss module that was given as the criterion

In the last two the gradients in `.grad` are the right-hand side as the loop left them: accumulated, averaged over
processes, clipped. Batches of several backward passes are one objective, whose terms count alike.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frechet.objective import Objective, default_split
from frechet.objective._data import Split
from frechet.objective._model import unwrap
from frechet.objective._structure import fresh, tensors_of
from frechet.objective.criteria import Criterion
from frechet.space import Space

Loss = Criterion | nn.Module | Callable[..., Any]


@dataclass(eq=False)
class _Call:
    """A forward pass of the model that may be differentiated: its inputs, and its targets once they are seen."""

    inputs: Any
    outputs: list[Tensor]
    targets: Any = None
    complete: bool = False
    counted: bool = False


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch as the model and the criterion take it."""

    inputs: Any
    targets: Any


def _as_seen(batch: Seen) -> tuple[Any, Any]:
    return batch.inputs, batch.targets


class OnObjective(torch.optim.Optimizer):
    """An optimizer whose steps are taken on an objective; a subclass says how, in `_moved`."""

    _step_supports_amp_scaling = True  # a GradScaler then tells that it is there, and is refused

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        params: Iterable[Any] | None,
        defaults: dict[str, Any],
        *,
        split: Split | None,
        dropout_seed: int | None,
    ) -> None:
        self._name = type(self).__name__
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self._name}: model must be a torch.nn.Module, got {type(model).__name__}")
        self._outer, self._model, self._criterion = model, unwrap(model), criterion
        self._split = default_split if split is None else split
        self._dropout_seed = dropout_seed
        self._names = {p: n for n, p in self._model.named_parameters() if p.requires_grad}
        if not self._names:
            raise ValueError(f"{self._name}: the model must have a parameter that requires a gradient, got none")
        super().__init__(list(self._names) if params is None else params, defaults)
        for group in self.param_groups:
            if any(p not in self._names for p in group["params"]):
                raise ValueError(
                    f"{self._name}: params must be trainable parameters of the model, got another tensor; pass "
                    "model.parameters() or groups of them"
                )
        kinds = {p.dtype for p in self._names}
        self._dtype = torch.float32 if len(kinds) > 1 or kinds & {torch.float16, torch.bfloat16} else None
        self._batches: list[Seen] = []
        self._calls: list[_Call] = []
        self._quiet = False  # in own passes, and where the batch is given
        self._missed = False
        self._handles: list[Any] = []
        self._listen()

    def _check(self, **bounds: str) -> None:
        """Raise for a number of a group that is not within its bound: ">= 0" or "> 0"."""
        for group in self.param_groups:
            for key, bound in bounds.items():
                value = float(group[key])
                if not (value >= 0 and math.isfinite(value)) or (bound == "> 0" and value == 0):
                    raise ValueError(f"{self._name}: {key} must be a number {bound}, got {value}")

    # --- recording ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        heard: Any = torch.compiler.disable(self._forward_seen)  # type: ignore[arg-type]
        self._handles = [self._outer.register_forward_hook(heard, with_kwargs=True)]
        if isinstance(self._criterion, nn.Module):
            self._handles.append(self._criterion.register_forward_pre_hook(self._loss_seen))

    def remove_hooks(self) -> None:
        """Take the hooks off the model, and off the loss module, that this optimizer then no longer hears."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def record(self, batch: Any) -> Iterator[None]:
        """Record a batch, whose backward pass runs inside. Batches of several such blocks count together.

        Args:
            batch: a batch as `split` takes it: ``(inputs, targets)``, or a dict with labels.
        """
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
        self._batches.append(self._cut(batch))

    def _cut(self, batch: Any) -> Seen:
        inputs, targets = self._split(batch)
        return Seen(fresh(inputs), fresh(targets))

    def _forward_seen(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> None:
        if self._quiet or not (module.training and torch.is_grad_enabled()):
            return
        slopes = [t for t in tensors_of(out) if t.requires_grad]
        if not slopes:
            return
        call = _Call(fresh(args[0] if len(args) == 1 and not keywords else args), slopes)
        if keywords:
            call.inputs = _named(self._model, args, keywords)
            if call.inputs is not None and call.inputs.get("labels") is not None:
                seen = self._cut(call.inputs)
                call.inputs, call.targets, call.complete = seen.inputs, seen.targets, True
            else:
                call.inputs = fresh(call.inputs)
        self._calls = [*self._calls[-1:], call]

        def returned(_: Tensor) -> None:
            if not self._quiet and not call.counted:
                call.counted, call.outputs = True, []
                self._missed = self._missed or not call.complete
                self._batches += [Seen(call.inputs, call.targets)] if call.complete else []

        for t in slopes:
            t.register_hook(returned)

    def _loss_seen(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        """The targets of the forward pass whose outputs the loss module gets."""
        if self._quiet or len(given) != 2:
            return
        for call in reversed(self._calls):
            if any(t is given[0] for t in call.outputs):
                call.targets, call.complete = fresh(given[1]), True
                return

    # --- steps ----------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients and the batches that were recorded with them."""
        super().zero_grad(set_to_none)
        self._forget()

    def _forget(self) -> None:
        self._batches, self._missed = [], False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step.

        Args:
            closure: a batch, an Objective, or a function that computes the loss and its gradients. Default: the batches
                that were recorded since the last step, with the gradients as they are now.

        Returns:
            What the function returned; None without one.
        """
        if hasattr(self, "found_inf"):
            raise ValueError(
                f"{self._name}: gradients must not be scaled by a GradScaler, which hides their size from the "
                "curvature; train in bfloat16, which needs no scaler"
            )
        loss, given = None, closure
        if callable(closure) and not isinstance(closure, Objective):
            with torch.enable_grad():
                loss, given = closure(), None
        if given is None:
            objective, gradients = self._recorded(), True
        else:
            gradients = False
            objective = given if isinstance(given, Objective) else self._objective([self._cut(given)])
        moving = {n: p for p, n in self._names.items() if self._moves(p, gradients)}
        try:
            if moving and (not gradients or all(bool(_strided(p).isfinite().all()) for p in moving.values())):
                with self._unheard():
                    self._step(objective, moving, gradients)
        finally:
            self._forget()
        return loss

    def _moves(self, p: Tensor, gradients: bool) -> bool:
        return any(p is q for group in self.param_groups for q in group["params"]) and (
            not gradients or p.grad is not None
        )

    def _recorded(self) -> Objective:
        if not self._batches or self._missed:
            raise ValueError(
                f"{self._name}.step: the batch of each backward pass must be known, got a pass whose targets were not "
                "seen; write step(batch), or `with optimizer.record(batch): loss.backward()`, or call the loss module "
                "that was given as criterion on the model's outputs as they are"
                if self._missed
                else f"{self._name}.step: a batch must be recorded by a backward pass, got none since the last step; "
                "write step(batch), or `with optimizer.record(batch): loss.backward()`"
            )
        return self._objective(self._batches)

    def _objective(self, batches: list[Seen]) -> Objective:
        ranks = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        seed = self._dropout_seed
        if seed is not None:
            seed += max((group.get("steps", 0) for group in self.param_groups), default=0)
        return Objective(
            self._model, self._criterion, list(batches), split=_as_seen, dtype=self._dtype, dropout_seed=seed,
            group="world" if ranks else None,
        )  # fmt: skip

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """Own passes of the model, without the hook, which keeps its place: compiled code looks for it there."""
        hooks, key = self._outer._forward_hooks, self._handles[0].id if self._handles else None
        hook = hooks.pop(key, None) if key is not None else None
        try:
            yield
        finally:
            if hook is not None and key is not None:
                hooks[key] = hook

    def _step(self, objective: Objective, moving: Mapping[str, Tensor], gradients: bool) -> None:
        space = objective.space
        if space.shard is not None:
            raise ValueError(f"{self._name}.step: parameters must be whole on every rank, got sharded ones")
        x = space.join([self._whole(self._parameter(n)).to(space.dtype) for n in space.names])
        g = None
        if gradients:
            given = [_strided(p) if (p := moving.get(n)) is not None else None for n in space.names]
            like = space.split(x)
            parts = [torch.zeros_like(b) if t is None else t.to(b) for b, t in zip(like, given, strict=True)]
            g = space.join(parts)
        moved = self._moved(objective, x, g, [n for n in space.names if n in moving])
        for n, value in space.unflatten(moved).items():
            if n in moving:
                self._write(moving[n], value)
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1

    @abstractmethod
    def _moved(self, objective: Objective, x: Tensor, gradient: Tensor | None, names: list[str]) -> Tensor:
        """The next point; only the parameters in `names` move."""

    def _parameter(self, name: str) -> Tensor:
        return next(p for p, n in self._names.items() if n == name)

    def _whole(self, p: Tensor) -> Tensor:
        """A parameter of few digits with those that its last step had, unless it was changed since."""
        master = self.state[p].get("master") if p in self.state else None
        return master if master is not None and torch.equal(master.to(p.dtype), p) else p.detach()

    def _write(self, p: Tensor, value: Tensor) -> None:
        rounded = value.to(p.dtype)
        if rounded.dtype != value.dtype:
            self.state[p]["master"] = value.clone()
        p.copy_(rounded)

    def _by_group(self, space: Space, key: str) -> Tensor:
        """A number of the parameter groups as a vector, zero where a parameter is in no group."""
        found = space.zeros()
        for group in self.param_groups:
            for p in group["params"]:
                found[space.block(self._names[p])] = float(group[key])
        return found

    def _decayed(self, space: Space, x: Tensor, names: list[str]) -> Tensor:
        """x after decoupled weight decay."""
        rate = self._by_group(space, "lr") * self._by_group(space, "weight_decay")
        kept = space.zeros()
        for n in names:
            kept[space.block(n)] = 1.0
        return x * (1 - rate * kept)

    def _remember(self, space: Space, key: str, v: Tensor, names: list[str]) -> None:
        """A vector of the state, kept beside the parameters, in the objective's dtype."""
        for n, block in space.unflatten(v).items():
            if n in names:
                self.state[self._parameter(n)][key] = block.clone()

    def _remembered(self, space: Space, key: str) -> Tensor:
        found = space.zeros()
        for n in space.names:
            p = self._parameter(n)
            if p in self.state and key in self.state[p]:
                found[space.block(n)] = self.state[p][key].reshape(-1)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, whose vectors keep their type beside parameters of any other."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.clone().to(p.device)


def _strided(p: Tensor) -> Tensor:
    """The gradient of a parameter, dense."""
    assert p.grad is not None  # by the caller
    return p.grad.to_dense() if p.grad.layout is not torch.strided else p.grad


def _named(model: nn.Module, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by their names."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **keywords).arguments
    except (TypeError, ValueError):
        return dict(keywords) if not args else None
    found: dict[str, Any] = {}
    for name, value in bound.items():
        kind = inspect.signature(model.forward).parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        elif value is not None:
            found[name] = value
    return found
