"""Gauss-Newton as a torch optimizer, on `gauss_newton_step`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective._data import Split
from frechet.train._gauss_newton import (
    GaussNewtonState,
    GaussNewtonStep,
    Preconditioner,
    Solver,
    Stop,
    gauss_newton_step,
)
from frechet.train._recorded import Loss, OnObjective


class GaussNewton(OnObjective):
    """Damped Gauss-Newton steps, by conjugate gradients or through the Gram matrix of a small batch.

    A step needs the batch: ``step(batch)``; ``with record(batch): loss.backward()`` and ``step()``; or a plain
    ``loss.backward()`` and ``step()`` where the model takes its labels itself, as those of transformers do, or where
    `criterion` is the loss module of the loop. Then what the loop does to the gradients counts: accumulation, clipping,
    the average over the processes of DistributedDataParallel. `info` tells how the last step went.

    Each parameter group has its own `lr`, `weight_decay` and `damping`. States load before or after the first step, and
    the next steps are the same to the last bit.

    Args:
        model: the model, whose forward passes in training mode are heard. `remove_hooks` ends that.
        criterion: what the loop minimizes, as a criterion of frechet's or a torch loss with ``reduction="mean"``.
        params: parameters or groups of them, as torch's optimizers take. Default: all trainable ones.
        lr: the longest step, as a factor of the direction.
        damping: the first damping, in the unit of the curvature. It changes by the gain of the steps.
        adapt: whether it does. Otherwise steps are neither judged nor shortened.
        weight_decay: decoupled: a step of rate lr shrinks the parameters by ``lr * weight_decay``.
        judge: a batch on which every step is judged. Default: the batch of the step.
        solver: as in `gauss_newton_step`.
        preconditioner: as in `gauss_newton_step`.
        stop: as in `gauss_newton_step`.
        max_iterations: of conjugate gradients.
        warm: the factor of the last direction with which they begin.
        split: ``split(batch) -> (inputs, targets)``. Default: pairs, and dicts with ``labels``; `causal_lm` for
            language models.
        dropout_seed: lets a model drop units: its masks in the products and in judged losses are those of this seed
            and of the number of the step, and not those of the loop's own pass.

    Example:
        >>> import torch
        >>> from frechet.train import GaussNewton
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> loss_of = torch.nn.MSELoss()
        >>> optimizer = GaussNewton(model, loss_of)
        >>> x = torch.randn(64, 4)
        >>> y = torch.sin(x).sum(1, keepdim=True)
        >>> losses = []
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     loss = loss_of(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     losses.append(loss.item())
        >>> losses[-1] < 0.01 * losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        params: Iterable[Any] | None = None,
        *,
        lr: float = 1.0,
        damping: float = 1.0,
        adapt: bool = True,
        weight_decay: float = 0.0,
        judge: Any = None,
        solver: Solver = "auto",
        preconditioner: Preconditioner | None = None,
        stop: Stop | None = "martens",
        max_iterations: int = 30,
        warm: float = 0.95,
        split: Split | None = None,
        dropout_seed: int | None = None,
    ) -> None:
        defaults = {"lr": lr, "damping": damping, "weight_decay": weight_decay}
        super().__init__(model, criterion, params, defaults, split=split, dropout_seed=dropout_seed)
        self._check(lr=">= 0", damping="> 0", weight_decay=">= 0")
        self._judge = None if judge is None else self._cut(judge)
        self._options: dict[str, Any] = {
            "adapt": adapt, "solver": solver, "preconditioner": preconditioner, "stop": stop,
            "max_iterations": max_iterations, "warm": warm,
        }  # fmt: skip
        self.info: GaussNewtonStep | None = None

    def _moved(self, objective: Objective, x: Tensor, gradient: Tensor | None, names: list[str]) -> Tensor:
        space = objective.space
        rates, damping = self._by_group(space, "lr"), self._by_group(space, "damping")
        largest = float(damping.max())
        state = GaussNewtonState(
            largest, self._remembered(space, "direction"), max(g.get("steps", 0) for g in self.param_groups)
        )
        moved, after, self.info = gauss_newton_step(
            objective, x, state, lr=rates, gradient=gradient, restrict=names,
            judge=None if self._judge is None else self._objective([self._judge]),
            scale=torch.where(damping > 0, damping / largest, 1.0),
            **self._options,
        )  # fmt: skip
        for group in self.param_groups:
            group["damping"] *= after.damping / largest
        self._remember(space, "direction", after.direction, names)
        return self._decayed(space, moved, names)
