"""Target-based surrogates: one derivative in the outputs of a model serves many steps of its parameters.

With the outputs z = f(x_t) on a batch, the loss l(z) of each term and its slope q = l'(z),

    s(x) = [sum of l(z) + <q, f(x) - z> + |f(x) - z|^2 / (2 eta)] / count

has the value and the gradient of the loss at x_t. Where l is smooth in the outputs with a constant of at most 1 / eta,
s lies above the loss everywhere, and every x with s(x) < s(x_t) lowers the loss. Steps on s call the model and never l,
which may be a simulator, a player or a person. In the outputs a step is z - eta q, projected on what the model can say.

**Source.** J. Lavington, S. Vaswani, R. Babanezhad, M. Schmidt, N. Le Roux (2023), Target-based surrogates for
stochastic optimization, algorithms 1 and 2, arXiv 2302.02607.
**Differs from the source.** The constant l(z) is kept, so that values of s and of the loss compare.
**Cost.** One pass for z and q; then a gradient of the model for each inner step and a third for each trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.objective import Objective
from frechet.objective.criteria import custom
from frechet.train._armijo import descend
from frechet.train._recorded import Seen


@dataclass(frozen=True)
class SurrogateState:
    """The length with which inner steps begin, and how many outer steps were taken."""

    length: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class SurrogateStep:
    """How a step went: the surrogate before and after its `inner` steps, and the `values` that were computed."""

    loss: float
    after: float
    inner: int
    values: int


@torch.no_grad()
def surrogate(objective: Objective, x: Tensor | None = None, *, eta: float) -> Objective:
    """Return the surrogate of an objective at x, an objective on the same model that never asks for the loss again.

    Args:
        objective: the objective, on all data or on a batch, without penalty, of one process.
        x: the point ``(n,)``. Default: the model's present parameters.
        eta: the step in the outputs. Up to 1 / (the smoothness of the loss of a term in its outputs) the surrogate
            lies above the objective: 1/2 for `squared_error`, 2 for `cross_entropy` of two classes and more.

    Raises:
        ValueError: eta is not positive, or the objective has a penalty, a head or a group of processes.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import surrogate
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = [(torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))]
        >>> objective = Objective(model, squared_error(), data)
        >>> s = surrogate(objective, eta=0.5)
        >>> y = objective.point + 1  # the squared error is its own surrogate at eta = 1/2
        >>> bool((s.value(y) - objective.value(y)).abs() < 1e-12)
        True
    """
    _check(objective, eta)
    snapshot = objective.snapshot(x)
    blocks, found = snapshot.space.unflatten(snapshot.x), []
    with snapshot.installed(blocks):
        for part in snapshot.parts:
            seen = []
            with snapshot.running():
                for batch in part.batches(snapshot.space.device):
                    y = snapshot.forward(blocks, batch).detach()
                    criterion = snapshot.criterion(part, batch)
                    values = criterion.terms(y, batch.targets).detach()
                    q = criterion.score(y, batch.targets).detach()
                    known = (q, y, values.reshape(len(y), -1).sum(1), float(snapshot.count(part, batch)))
                    seen.append(Seen(batch.inputs, known))
            found.append((part, seen))

    def terms(y: Tensor, known: tuple[Tensor, Tensor, Tensor, float]) -> Tensor:
        q, z, values, _ = known
        d = y - z
        return values + (q * d + d.square() / (2 * eta)).reshape(len(y), -1).sum(1)

    criterion = custom(terms, count=lambda known: known[3], convex=True)
    total: Objective | None = None
    for part, seen in found:
        one = part.weight * Objective(
            objective.model, criterion, seen, split=_as_seen, dtype=part.dtype, dropout_seed=objective.dropout_seed
        )
        total = one if total is None else total + one
    assert total is not None  # an objective has a part
    return total


@torch.no_grad()
def surrogate_step(
    objective: Objective, x: Tensor, state: SurrogateState, *, eta: float, steps: int = 10
) -> tuple[Tensor, SurrogateState, SurrogateStep]:
    """Return the point after inner steps of gradient descent with Armijo's rule on the surrogate at x.

    Args:
        objective: the objective on the batch, as in `surrogate`.
        x: the point ``(n,)``.
        state: ``SurrogateState()`` before the first step, then that of the last step.
        eta: as in `surrogate`; on batches let it shrink with the number of steps, as 1 / sqrt(t).
        steps: how many inner steps, each a gradient of the model.

    Returns:
        The next point, the next state, and how the step went.

    Raises:
        ValueError: as in `surrogate`, or steps is no int of at least 1.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.train import SurrogateState, surrogate_step
        >>> _ = torch.manual_seed(0)
        >>> data = [(torch.randn(30, 4), torch.randint(0, 3, (30,)))]
        >>> objective = Objective(torch.nn.Linear(4, 3), cross_entropy(), data)
        >>> x, state = objective.point, SurrogateState()
        >>> for _ in range(5):
        ...     x, state, info = surrogate_step(objective, x, state, eta=2.0)
        >>> bool(objective.value(x) < 0.9 * objective.value())
        True
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"surrogate_step: steps must be an int >= 1, got {steps!r}")
    s = surrogate(objective, x, eta=eta)

    def value(v: Tensor) -> float:
        return float(s.value(v))

    first = value(x)
    moved, length, inner, values = descend(s.space, value, s.gradient, x, state.length, steps)
    return moved, SurrogateState(length, state.steps + 1), SurrogateStep(first, value(moved), inner, values + 2)


def _as_seen(batch: Seen) -> tuple[Any, Any]:
    return batch.inputs, batch.targets


def _check(objective: Objective, eta: float) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"surrogate: objective must be an Objective, got {type(objective).__name__}")
    if not 0 < eta < math.inf:
        raise ValueError(f"surrogate: eta must be a number > 0, got {eta}")
    heads = any(part.head is not None for part in objective.parts)
    for bad, what in (
        (objective.penalties, "a penalty"), (objective.group is not None, "a group"), (heads, "head="),
    ):  # fmt: skip
        if bad:
            raise ValueError(
                f"surrogate: objective must be one of one process, without penalty and head, got one with {what}; add "
                "a penalty to the surrogate, as in `surrogate(objective, eta=eta) + Objective(...)`"
            )
