"""M-FAC as a pure update rule: natural gradients from the last gradients of a run.

    B = (damping I + (1/m) sum_i g_i g_i')^-1 over the last m gradients, that of the step among them
    v <- momentum v + B g,    x <- (1 - lr weight_decay) x - lr v

**Source.** E. Frantar, E. Kurtic, D. Alistarh (2021), M-FAC, arXiv 2107.03356, section 3.2. `MFAC` says what differs.
**Cost.** Per step a gradient, a copy of the window, 4 m n operations and m^3 / 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.operators import InverseFisher, inverse_fisher
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class MfacState:
    """The inverse of the Fisher matrix of the last gradients, and the running sum of the updates ``(n,)``."""

    inverse: InverseFisher
    velocity: Tensor


def mfac_init(space: Space, *, damping: float = 1e-3) -> MfacState:
    """Return the state before the first step.

    Args:
        space: the space of the parameters, such as ``objective.space``.
        damping: what is added to the matrix, > 0, in the unit of a squared gradient.
    """
    return MfacState(inverse_fisher(space.zeros(0).T, damping, domain=space), space.zeros())


@torch.no_grad()
def mfac_step(
    objective: Objective,
    x: Tensor,
    state: MfacState,
    *,
    lr: float | Tensor = 1e-3,
    momentum: float = 0.9,
    window: int = 128,
    weight_decay: float | Tensor = 0.0,
    gradient: Tensor | None = None,
) -> tuple[Tensor, MfacState, Tensor]:
    """Return the point after one step of M-FAC on a batch.

    Args:
        objective: the objective on the batch.
        x: the point ``(n,)``.
        state: of `mfac_init`, or of the last step.
        lr: the rate, or one for each parameter ``(n,)``.
        momentum: of the updates.
        window: how many gradients are kept.
        weight_decay: decoupled: a step shrinks x by ``lr * weight_decay``.
        gradient: the gradient ``(n,)``, where it is known. Default: the objective's.

    Returns:
        The next point, the next state, and the natural gradient ``(n,)``.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import mfac_init, mfac_step
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.ones(1, 1), torch.ones(1, 1))])
        >>> state = mfac_init(objective.space, damping=1.0)
        >>> x, state, natural = mfac_step(objective, objective.point, state, lr=0.5)
        >>> natural, x  # g = -2, and -2 / (1 + 4)
        (tensor([-0.4000]), tensor([0.2000]))
    """
    g = objective.gradient(x) if gradient is None else gradient
    B = state.inverse.added(g, window=window)
    natural = B.of_gradient(-1)
    velocity = momentum * state.velocity + natural
    return (1 - lr * weight_decay) * x - lr * velocity, MfacState(B, velocity), natural
