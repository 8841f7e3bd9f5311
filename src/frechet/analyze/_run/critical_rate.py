"""The critical rate: how long a step may be before the loss rises, found by forward passes alone.

    t_c = inf { t > 0 : L(x + t d) > L(x) }

On a quadratic along a descent direction t_c = -2 g'd / d'Hd. The first step length is doubled or halved until t_c lies
between two lengths, and bisected then; a loss that is not finite has risen.

**Source.** Kalra et al., "A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs"
(2026), arXiv 2601.16979: the critical sharpness 2 / t_c, with t_c in learning rates.
**Differs from the source.** (1) A loss that is NaN ends the step instead of counting as a fall. (2) The result is the
bracket. (3) `optimizer_step` asks any known optimizer for its next step without taking it.
**Cost.** One forward pass per length, 5 to 7 from a guess within a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from frechet.analyze._run.step_metric import StepMetric
from frechet.analyze._run.step_rule import known, preconditioner, rate_of, unwrapped
from frechet.errors import NonFinite
from frechet.linalg._shown import Result
from frechet.objective import Objective

FARTHEST = 2.0**40  # of the first length: a loss that falls so far has no limit on this line


@dataclass(frozen=True)
class CriticalRate(Result):
    """The step length at which the loss rises, between `lower` and `upper`, in units of the direction.

    `lower` is 0 where the loss rises at once, and `upper` infinite where it falls as far as the search went.
    """

    value: float
    lower: float
    upper: float
    loss: float  # where the step begins
    forwards: int
    message: str = ""


def critical_rate(
    objective: Objective,
    direction: Tensor,
    *,
    start: float = 1.0,
    rtol: float = 1 / 16,
    max_forwards: int = 24,
    x: Tensor | None = None,
) -> CriticalRate:
    """Return the step length along a direction at which the loss rises above where it began, by forward passes.

    Args:
        objective: the objective.
        direction: the step at length 1, flat ``(n,)``; `optimizer_step` gives that of an optimizer.
        start: the first length that is tried.
        rtol: the search ends when upper - lower is at most this times upper.
        max_forwards: the most forward passes after the first, which is the loss at x.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import critical_rate
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> objective = Objective(model, squared_error(), [(torch.ones(1, 1), torch.zeros(1, 1))])  # w^2
        >>> found = critical_rate(objective, torch.tensor([-1.0]), rtol=0.01)
        >>> found.lower <= 2.0 <= found.upper  # w = -1 has the loss of w = 1
        True
    """
    if not 0 < start < math.inf or not 0 < rtol < 1 or max_forwards < 1:
        raise ValueError(
            "critical_rate: start must be positive, rtol in (0, 1) and max_forwards at least 1, got "
            f"{start}, {rtol} and {max_forwards}"
        )
    space = objective.space
    x = objective.point if x is None else x
    if direction.shape != x.shape or not space.finite(direction):
        raise ValueError(
            f"critical_rate: direction must be finite of shape {tuple(x.shape)}, got {tuple(direction.shape)}"
        )
    loss = float(objective.value(x))
    floor = loss + 4 * space.eps * abs(loss)  # two values of one loss differ by rounding
    used = 0

    def rises(t: float) -> bool:
        nonlocal used
        used += 1
        try:
            return not float(objective.value(x + t * direction)) <= floor
        except NonFinite:
            return True

    lower, upper, t = 0.0, math.inf, start
    while used < max_forwards and lower <= (1 - rtol) * upper and start / FARTHEST < t < start * FARTHEST:
        lower, upper = (lower, t) if rises(t) else (t, upper)
        t = 2 * t if math.isinf(upper) else t / 2 if lower == 0 else (lower + upper) / 2
    message = ""
    if lower == 0:
        message = "critical_rate: the loss rises at once: the direction is none of descent on these data"
    elif math.isinf(upper):
        message = f"critical_rate: the loss still falls at {lower:.3g} times the step"
    value = lower if math.isinf(upper) else (lower + upper) / 2 if lower else 0.0
    return CriticalRate(value, lower, upper, loss, used + 1, message)


def optimizer_step(optimizer: Optimizer, objective: Objective, gradient: Tensor, metric: StepMetric) -> Tensor:
    """The step that an optimizer would take with a gradient, flat ``(n,)``. Nothing is changed.

    The preconditioner is the present one, as in the metric.
    """
    inner, space = unwrapped(optimizer), objective.space
    names = {id(p): n for n, p in objective.model.named_parameters()}
    kind, step = known(inner), space.zeros()
    for rule, settings in zip(metric.rules, inner.param_groups, strict=True):
        for p in settings["params"]:
            name = names.get(id(p))
            P = preconditioner(inner, kind, settings, p) if name in space.names and p.requires_grad else None
            if P is None:
                continue
            block, rate = space.block(str(name)), rate_of(settings)
            at, g = p.detach().reshape(-1).to(step), gradient[block]
            if not rule.decoupled:
                g = g + rule.weight_decay * at
            old = _buffer(inner.state.get(p) or {})
            m = rule.fresh * g if old is None else rule.momentum * old.reshape(-1).to(step) + rule.fresh * g
            divisor = P.reshape(-1).to(step) if isinstance(P, Tensor) else P
            if old is not None and kind is torch.optim.RMSprop:  # its buffer holds what is divided already
                move = (rule.momentum * old.reshape(-1).to(step)) + g / divisor
            else:
                move = (rule.of_gradient * g + rule.of_momentum * m) / divisor
            step[block] = -rate * (move + (rule.weight_decay * at if rule.decoupled else 0.0))
    return step


def _buffer(state: Any) -> Tensor | None:
    found = state.get("exp_avg", state.get("momentum_buffer"))
    return found if isinstance(found, Tensor) else None
