"""Momentum whose memory moves with the parameters: a Hessian product corrects what old gradients say.

    v = (1 - a) (v + H(x~) (x - x_last)) + a g(x),   x~ = q x + (1 - q) x_last,   q uniform in [0, 1]
    x+ = x - lr v / norm(v)

On average over q the product is the change of the gradient, so that v forgets noise and not the point. "transport"
reaches the same end without a product, by a gradient further ahead: v = (1 - a) v + a g(x + (1 - a) / a (x - x_last)).

**Source.** I. Fatkhullin, A. Barakat, A. Kireeva, N. He (2023), Stochastic policy gradient methods: improved sample
complexity for Fisher-non-degenerate policies, algorithms 1 (N-PG-IGT) and 2 ((N)-HARPG), arXiv 2302.01734.
**Differs from the source.** (1) Any objective, and gradient and product are on one batch. (2) v begins at the first
gradient. (3) Without `normalize` the step is lr v.
**Cost** in gradients: one, and for "hessian" about two more. Two vectors of memory.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective._data import Split
from frechet.operators.derivatives import hessian
from frechet.space import Space, euclidean
from frechet.train._recorded import Loss, OnObjective

Correction = Literal["hessian", "transport", "none"]


@dataclass(frozen=True, eq=False)
class HessianAidedState:
    """The estimate v of the gradient ``(n,)``, the point before ``(n,)``, and how many steps were taken."""

    v: Tensor
    last: Tensor
    steps: int = 0


def hessian_aided_init(x: Tensor) -> HessianAidedState:
    """Return the state before the first step from `x` ``(n,)``."""
    return HessianAidedState(torch.zeros_like(x), x.clone())


@torch.no_grad()
def hessian_aided_step(
    objective: Objective,
    x: Tensor,
    state: HessianAidedState,
    *,
    seed: int,
    lr: float | Tensor = 1e-2,
    momentum: float = 0.9,
    correction: Correction = "hessian",
    normalize: bool = True,
    gradient: Tensor | None = None,
    restrict: Sequence[str] | None = None,
) -> tuple[Tensor, HessianAidedState]:
    """Return the point after one step along a gradient estimate that a Hessian product corrects.

    Args:
        objective: the objective on the batch of this step.
        x: the point ``(n,)``.
        state: of `hessian_aided_init`, or of the last step.
        seed: of q. Step t draws number t.
        lr: the length of the step, or one for each parameter ``(n,)``; with ``normalize=False`` the rate.
        momentum: 1 - a, in [0, 1).
        correction: ``"hessian"``, ``"transport"``, or ``"none"`` for plain momentum.
        normalize: whether the step has the length lr.
        gradient: the gradient ``(n,)`` at x, where it is known. Default: the objective's.
        restrict: the names of the parameters that move. Default: all.

    Returns:
        The next point and the next state.

    Raises:
        ValueError: a number is out of range, or a gradient is given with "transport", which takes one elsewhere.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import hessian_aided_init, hessian_aided_step
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
        >>> objective = Objective(model, squared_error(), [(X, torch.ones(2, 1, dtype=torch.float64))])
        >>> x = objective.point
        >>> state = hessian_aided_init(x)
        >>> for _ in range(5):
        ...     at = x
        ...     x, state = hessian_aided_step(objective, x, state, seed=0)
        >>> bool((state.v - objective.gradient(at)).abs().max() < 1e-12)  # exact where the curvature is constant
        True
    """
    _check(lr, momentum, correction, gradient)
    names = None if restrict is None else [glob.escape(n) for n in restrict]
    space = objective.space if names is None else objective.space.restrict(names)
    at = slice(None) if names is None else objective.space.indices(space)
    a, moved = 1 - momentum, x - state.last
    if state.steps == 0:
        v = (objective.gradient(x) if gradient is None else gradient)[at]
    elif correction == "transport":
        v = momentum * state.v[at] + a * objective.gradient(x + (momentum / a) * moved)[at]
    else:
        g = (objective.gradient(x) if gradient is None else gradient)[at]
        v = state.v[at]
        if correction == "hessian" and momentum > 0:
            q = uniform(state.steps, seed)
            v = v + hessian(objective, x=q * x + (1 - q) * state.last, restrict=names) @ moved[at]
        v = momentum * v + a * g
    size = float(space.norm(v)) if normalize else 1.0
    whole = torch.zeros_like(x)
    whole[at] = v
    step = whole / size if 0 < size < math.inf else torch.zeros_like(x)
    return x - lr * step, HessianAidedState(whole, x.clone(), state.steps + 1)


def uniform(step: int, seed: int) -> float:
    """Number `step` of a seed, uniform in [0, 1]: the share of a normal distribution below one of its draws."""
    z = float(euclidean(1, torch.float64).random(step, seed, "gaussian"))
    return 0.5 * math.erfc(-z / math.sqrt(2))


class HessianAided(OnObjective):
    """Momentum corrected by Hessian products, as a torch optimizer. A step comes to its batch as one of `GaussNewton`.

    Args:
        model: the model, whose forward passes in training mode are heard. `remove_hooks` ends that.
        criterion: what the loop minimizes, as a criterion of frechet's or a torch loss with ``reduction="mean"``.
        params: parameters or groups of them, with `lr` and `weight_decay` of their own. Default: all trainable ones.
        seed: of the points between the last two.
        lr: the length of a step; with ``normalize=False`` the rate.
        momentum: in [0, 1).
        normalize: whether steps have the length lr.
        weight_decay: decoupled.
        split: as in `GaussNewton`.
        dropout_seed: as in `GaussNewton`.

    Example:
        >>> import torch
        >>> from frechet.train import HessianAided
        >>> _ = torch.manual_seed(0)
        >>> model, loss_of = torch.nn.Linear(4, 1), torch.nn.MSELoss()
        >>> optimizer = HessianAided(model, loss_of, seed=0, lr=0.05)
        >>> x = torch.randn(64, 4)
        >>> y = x.sum(1, keepdim=True)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     loss = loss_of(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-2
        True
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        params: Iterable[Any] | None = None,
        *,
        seed: int,
        lr: float = 1e-2,
        momentum: float = 0.9,
        normalize: bool = True,
        weight_decay: float = 0.0,
        split: Split | None = None,
        dropout_seed: int | None = None,
    ) -> None:
        _check(lr, momentum, "hessian", None)
        uniform(0, seed)  # refuses a bad seed
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(model, criterion, params, defaults, split=split, dropout_seed=dropout_seed)
        self._check(lr=">= 0", weight_decay=">= 0")
        self._options: dict[str, Any] = {"seed": seed, "momentum": momentum, "normalize": normalize}

    def _moved(self, objective: Objective, x: Tensor, gradient: Tensor | None, names: list[str]) -> Tensor:
        space, steps = objective.space, max(g.get("steps", 0) for g in self.param_groups)
        state = HessianAidedState(self._remembered(space, "v"), self._last(space, x), steps)
        moved, after = hessian_aided_step(
            objective, x, state, lr=self._by_group(space, "lr"), gradient=gradient, restrict=names, **self._options
        )
        self._remember(space, "v", after.v, names)
        held = {self._names[p] for group in self.param_groups for p in group["params"]}
        self._remember(space, "last", after.last, [n for n in space.names if n in held])
        return moved - x + self._decayed(space, x, names)

    def _last(self, space: Space, x: Tensor) -> Tensor:
        """The point before; x where a parameter was not there."""
        found = x.clone()
        for n in space.names:
            if "last" in self.state.get(p := self._parameter(n), {}):
                found[space.block(n)] = self.state[p]["last"].reshape(-1)
        return found


def _check(lr: float | Tensor, momentum: float, correction: str, gradient: Tensor | None) -> None:
    worst = float(lr.min()) if isinstance(lr, Tensor) else lr
    if not 0 <= worst < math.inf:
        raise ValueError(f"hessian_aided_step: lr must be a number >= 0, got {worst}")
    if not 0 <= momentum < 1:
        raise ValueError(f"hessian_aided_step: momentum must lie in [0, 1), got {momentum}")
    if correction not in ("hessian", "transport", "none"):
        raise ValueError(f"hessian_aided_step: correction must be 'hessian', 'transport' or 'none', got {correction!r}")
    if correction == "transport" and gradient is not None:
        raise ValueError("hessian_aided_step: gradient must be None with 'transport', got one; it is taken further on")
