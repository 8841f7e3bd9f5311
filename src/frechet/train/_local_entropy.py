"""Entropy-SGD: descent on the local entropy, a smoothing of the loss that prefers wide valleys.

    F(x) = -log int exp(-f(x') - gamma |x' - x|^2 / 2) dx',   grad F(x) = gamma (x - E x')

E x' is the mean of a Langevin walk that starts at x and takes `steps` gradients, each of another batch:

    x' = x' - inner_lr [grad f(x') + gamma (x' - x)] + sqrt(inner_lr) noise N(0, I)
    mu = average mu + (1 - average) x'
    after the last one   x = x - lr (x - mu),   gamma = gamma (1 + scope)

Each optimizer step is a step of the walk, on the batch of that step: the loop stays as it is. Between the walks the
parameters are x; during a walk they are x'.

**Source.** P. Chaudhari et al. (2017), Entropy-SGD: biasing gradient descent into wide valleys, algorithm 1, arXiv
1611.01838.
**Differs from the source.** (1) The noise has the factor of the paper and not of its code, which has sqrt(2) more. (2)
gamma grows by walks. **Cost** in gradients: one for each step, so that a step of x costs `steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.space import euclidean

WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class LocalEntropyState:
    """Where the walk started, the mean of the walk, its momentum ``(n,)``; and how many of its steps were taken."""

    center: Tensor
    mean: Tensor
    velocity: Tensor
    steps: int = 0


def local_entropy_init(x: Tensor) -> LocalEntropyState:
    """Return the state before the first step from `x` ``(n,)``."""
    return LocalEntropyState(x.clone(), x.clone(), torch.zeros_like(x))


@torch.no_grad()
def local_entropy_step(
    objective: Objective,
    x: Tensor,
    state: LocalEntropyState,
    *,
    seed: int,
    lr: float = 1.0,
    inner_lr: float = 0.1,
    steps: int = 20,
    gamma: float = 1e-2,
    scope: float = 0.0,
    noise: float = 1e-4,
    average: float = 0.75,
    momentum: float = 0.9,
    gradient: Tensor | None = None,
) -> tuple[Tensor, LocalEntropyState]:
    """Return the point after one step of the walk, which with the last one goes back to the center's next place.

    Args:
        objective: the objective on the batch of this step.
        x: the point ``(n,)``.
        state: of `local_entropy_init`, or of the last step.
        seed: of the noise. Step t draws number t.
        lr: how far the center goes towards the mean of the walk; 1 is the mean.
        inner_lr: the rate of the walk.
        steps: of a walk.
        gamma: the strength with which the walk is held at its center.
        scope: how much gamma grows from walk to walk, as a share.
        noise: the standard deviation of the walk's noise, over sqrt(inner_lr).
        average: the decay of the running mean of the walk.
        momentum: Nesterov's, of the walk.
        gradient: the gradient ``(n,)`` at x, where it is known. Default: the objective's.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import local_entropy_init, local_entropy_step
        >>> objective = Objective(torch.nn.Linear(2, 1), squared_error(), [(torch.eye(2), torch.ones(2, 1))])
        >>> x = objective.point
        >>> state = local_entropy_init(x)
        >>> for _ in range(200):
        ...     x, state = local_entropy_step(objective, x, state, seed=0)
        >>> bool(objective.value(x) < 1e-2 * objective.value())
        True
    """
    _check(lr, inner_lr, steps, gamma, scope, noise, average, momentum)
    g = objective.gradient(x) if gradient is None else gradient
    N = objective.space.random(state.steps, seed, "gaussian") if noise else None
    walk = _Walk(inner_lr, gamma * (1 + scope) ** (state.steps // steps), noise, average, momentum)
    at = walk.moved(x, g, state.center, state.mean, state.velocity, N)
    if (state.steps + 1) % steps == 0:
        center = state.center - lr * (state.center - at[1])
        return center, LocalEntropyState(center, center.clone(), torch.zeros_like(x), state.steps + 1)
    return at[0], LocalEntropyState(state.center, at[1], at[2], state.steps + 1)


@dataclass(frozen=True)
class _Walk:
    """The numbers of a step of the walk."""

    lr: float
    gamma: float
    noise: float
    average: float
    momentum: float

    def moved(
        self, x: Tensor, g: Tensor, center: Tensor, mean: Tensor, velocity: Tensor, N: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next x', mean and velocity."""
        velocity = self.momentum * velocity + g
        d = g + self.momentum * velocity + self.gamma * (x - center)
        x = x - self.lr * d
        if N is not None:
            x = x + math.sqrt(self.lr) * self.noise * N
        return x, self.average * mean + (1 - self.average) * x, velocity


class EntropySGD(torch.optim.Optimizer):
    """Entropy-SGD as a torch optimizer, in any loop of gradients: each step is one of the walk.

    Measure the model where ``optimizer.at_center`` is True, after each `steps` steps: between, its parameters walk. A
    scheduler scales `lr`, the rate of the centers. Parameters of few digits walk in float32. A parameter whose gradient
    is not finite stays where it is in that step.

    Args:
        params: parameters or groups of them.
        seed: of the noise.
        lr: how far a center goes towards the mean of its walk.
        inner_lr: the rate of the walk.
        steps: of a walk; the same in all groups.
        gamma: the strength with which the walk is held at its center.
        scope: how much gamma grows from walk to walk, as a share.
        noise: the standard deviation of the walk's noise, over sqrt(inner_lr).
        average: the decay of the running mean of the walk.
        momentum: Nesterov's, of the walk.
        weight_decay: of the loss: adds ``weight_decay * x'`` to the gradients.

    Example:
        >>> import torch
        >>> from frechet.train import EntropySGD
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = EntropySGD(model.parameters(), seed=0, steps=5)
        >>> x = torch.randn(64, 4)
        >>> y = x.sum(1, keepdim=True)
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-2, optimizer.at_center
        (True, True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        seed: int,
        lr: float = 1.0,
        inner_lr: float = 0.1,
        steps: int = 20,
        gamma: float = 1e-2,
        scope: float = 0.0,
        noise: float = 1e-4,
        average: float = 0.75,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        euclidean(1).random(0, seed)  # refuses a bad seed
        defaults = {
            "lr": lr, "inner_lr": inner_lr, "gamma": gamma, "scope": scope, "noise": noise, "average": average,
            "momentum": momentum, "weight_decay": weight_decay, "taken": 0,
        }  # fmt: skip
        super().__init__(params, defaults)
        for g in self.param_groups:
            _check(
                g["lr"], g["inner_lr"], steps, g["gamma"], g["scope"], g["noise"], g["average"], g["momentum"]
            )  # fmt: skip
            if not 0 <= g["weight_decay"] < math.inf:
                raise ValueError(f"EntropySGD: weight_decay must be a number >= 0, got {g['weight_decay']}")
        self._seed, self._steps = seed, steps

    @property
    def at_center(self) -> bool:
        """Whether the parameters are a center, and no point of a walk."""
        return all(group["taken"] % self._steps == 0 for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the walk from the gradients as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number, count = 0, sum(len(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            taken = group["taken"]
            gamma = group["gamma"] * (1 + group["scope"]) ** (taken // self._steps)
            walk = _Walk(group["inner_lr"], gamma, group["noise"], group["average"], group["momentum"])
            for p in group["params"]:
                if p.grad is not None and bool(p.grad.isfinite().all()):
                    self._walk(p, walk, group, taken * count + number)
                number += 1
            group["taken"] = taken + 1
            if group["taken"] % self._steps == 0:
                self._return(group)
        return loss

    def _walk(self, p: Tensor, walk: _Walk, group: dict[str, Any], draw: int) -> None:
        assert p.grad is not None  # by the caller
        state = self.state[p]
        wide = p.detach().clone() if p.dtype in WIDE else p.detach().float()
        if "center" not in state:
            state |= {"center": wide.clone(), "mean": wide.clone(), "velocity": torch.zeros_like(wide)}
        if "walker" in state and torch.equal(state["walker"].to(p.dtype), p):
            wide = state["walker"]
        g = (p.grad.to_dense() if p.grad.layout is not torch.strided else p.grad).to(wide)
        if group["weight_decay"]:
            g = g + group["weight_decay"] * wide
        N = None
        if walk.noise:
            N = euclidean(p.numel(), wide.dtype, p.device).random(draw, self._seed, "gaussian").view(p.shape)
        x, state["mean"], state["velocity"] = walk.moved(wide, g, state["center"], state["mean"], state["velocity"], N)
        self._write(p, x)

    def _return(self, group: dict[str, Any]) -> None:
        """End the walk: the center's next place, and a new walk from there."""
        for p in group["params"]:
            if "center" in (state := self.state[p]):
                center = state["center"] - group["lr"] * (state["center"] - state["mean"])
                state |= {"center": center, "mean": center.clone(), "velocity": torch.zeros_like(center)}
                self._write(p, center)

    def _write(self, p: Tensor, x: Tensor) -> None:
        if p.dtype not in WIDE:
            self.state[p]["walker"] = x.clone()
        p.copy_(x)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, which keeps its digits beside parameters of fewer."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[p][name] = value.clone().to(p.device)


def _check(
    lr: float, inner_lr: float, steps: int, gamma: float, scope: float, noise: float, average: float, momentum: float
) -> None:
    named = {"lr": lr, "inner_lr": inner_lr, "gamma": gamma, "scope": scope, "noise": noise}
    for name, value in named.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"EntropySGD: {name} must be a number >= 0, got {value}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"EntropySGD: steps must be an int >= 1, got {steps!r}")
    for name, value in (("average", average), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"EntropySGD: {name} must lie in [0, 1), got {value}")
