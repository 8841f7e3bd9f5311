"""The influence of every training example on a function of where a run ends, from one backward sweep over the run.

With u the adjoint of the gradient of step t, the influence of example n through that step is the slope of its loss
along u, over the batch size. `_trajectory.py` says how the adjoint is carried from step to step.

**Source.** Hara, Nitanda and Maehara, "Data cleansing for models trained with SGD" (2019), arXiv 1906.08473: the sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.analyze._example_slopes import example_slopes
from frechet.analyze._trajectory import State, Trajectory, adjoint_of_step, on_rows
from frechet.operators.derivatives._hessian import hessian


def trajectory_influence(run: Trajectory, metric_gradient: Tensor) -> Tensor:
    """Return dM/dw_n for every example n: how a metric of the trained parameters changes with the example's weight.

    Leaving example n out of every batch it is in (with the batches' denominators as they are) changes the metric by
    about minus this number.

    Args:
        run: the training run. For several players, or a loop of your own, there is `step_influence`.
        metric_gradient: the gradient ``(n,)`` of the metric at ``run.x``, such as ``validation.gradient(run.x)``.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import sgd_update, trajectory, trajectory_influence
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.ones(2, 1), torch.tensor([[1.0], [3.0]]))])
        >>> run = trajectory(objective, [torch.tensor([0, 1])], sgd_update(0.5))
        >>> trajectory_influence(run, torch.ones(1))  # x_1 = 0.5 w_0 + 1.5 w_1
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    space = run.objective.space
    if not isinstance(metric_gradient, Tensor) or metric_gradient.shape != (space.dim,):
        got = tuple(metric_gradient.shape) if isinstance(metric_gradient, Tensor) else type(metric_gradient).__name__
        raise ValueError(f"trajectory_influence: metric_gradient must have shape ({space.dim},), got {got}")
    total = torch.zeros(run.examples, dtype=torch.float64)
    u = metric_gradient[:, None]
    adjoint: State = (u, *(torch.zeros_like(u) for _ in run.update.buffers))
    for t, part, state, g in run.backward():
        adjoint, ug = adjoint_of_step(run.update, state, g, t, adjoint)
        without = part._with(part.parts, ())  # penalties, which no example's weight multiplies
        slopes = example_slopes(without, ug, x=state[0])
        order = on_rows(run.objective, run.rows[t])[1]
        total.index_add_(0, order, slopes.values[:, 0] / len(order))
        adjoint = (adjoint[0] + hessian(part, state[0]) @ ug, *adjoint[1:])
    return total
