"""AdaHessian: Adam with the Hessian's diagonal, estimated by random signs, in the place of squared gradients.

    D = mean over probes of z * (H z),   z_i = +-1;   D is averaged over the entries of each convolution kernel
    m = b1 m + (1 - b1) g,               v = b2 v + (1 - b2) D^2   where the Hessian is asked for
    x = x - lr (m / (1 - b1^t) / ((v / (1 - b2^u))^(k/2) + eps) + weight_decay x)

at step t, after u estimates of D: one in every `every` steps, with the first at the first step.

**Source.** Z. Yao et al. (2021), ADAHESSIAN: an adaptive second order optimizer for machine learning, algorithm 1,
arXiv 2006.00719.
**Differs from the source.** (1) The bias of v is corrected by the number of its updates u and not of steps, which would
lengthen the steps of delayed estimates by sqrt(`every`) at first. (2) D is averaged with its signs, as in the paper,
and not |D| as in its code, whose mean is too large by what neighbours leave in it. (3) Probe j of a seed is the same on
every device and in every process. (4) The Hessian's product is one of its own, on the batch: other steps keep no graph.
**Cost** in gradients: one, and about three for each probe in one of `every` steps. Two vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective._data import Split
from frechet.operators.derivatives import hessian
from frechet.space import Space
from frechet.train._recorded import Loss, OnObjective


@dataclass(frozen=True, eq=False)
class AdaHessianState:
    """Running means of gradients and of squared diagonals ``(n,)``; how many steps and estimates they hold."""

    m: Tensor
    v: Tensor
    steps: int = 0
    updates: int = 0


def adahessian_init(x: Tensor) -> AdaHessianState:
    """Return the state before the first step from `x` ``(n,)``."""
    return AdaHessianState(torch.zeros_like(x), torch.zeros_like(x))


@torch.no_grad()
def adahessian_step(
    objective: Objective,
    x: Tensor,
    state: AdaHessianState,
    *,
    seed: int,
    lr: float | Tensor = 0.15,
    gradient: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-4,
    weight_decay: float | Tensor = 0.0,
    hessian_power: float = 1.0,
    every: int = 1,
    samples: int = 1,
    spatial: bool = True,
) -> tuple[Tensor, AdaHessianState, Tensor | None]:
    """Return the point after one step of AdaHessian on a batch.

    Args:
        objective: the objective on the batch.
        x: the point ``(n,)``.
        state: of `adahessian_init`, or of the last step.
        seed: of the probes. Estimate u takes those with the numbers ``u * samples`` to ``(u + 1) * samples - 1``.
        lr: the rate, or one for each parameter ``(n,)``.
        gradient: the gradient ``(n,)``, where it is known. Default: the objective's.
        betas: the decays b1 and b2.
        eps: is added to the denominator.
        weight_decay: decoupled: a step shrinks x by ``lr * weight_decay``.
        hessian_power: k, in (0, 1].
        every: how many steps share an estimate of the diagonal.
        samples: how many probes an estimate takes.
        spatial: whether D is averaged over the kernels of convolutions: over all axes of a parameter but the first two.

    Returns:
        The next point, the next state, and D ``(n,)`` where it was estimated.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import adahessian_init, adahessian_step
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.ones(2, 1))])
        >>> x = objective.point
        >>> x, state, D = adahessian_step(objective, x, adahessian_init(x), seed=0)
        >>> D  # the Hessian is diagonal, so one probe is exact
        tensor([1., 9.])
    """
    _check_numbers(every, samples, hessian_power, eps, betas)
    g = objective.gradient(x) if gradient is None else gradient
    b1, b2 = betas
    steps, updates = state.steps + 1, state.updates
    m, v, D = b1 * state.m + (1 - b1) * g, state.v, None
    if state.steps % every == 0:
        D = diagonal_probe(objective, x, range(updates * samples, (updates + 1) * samples), seed)
        D = averaged(objective.space, D) if spatial else D
        v, updates = b2 * v + (1 - b2) * D.square(), updates + 1
    size = (v / (1 - b2**updates)).sqrt() ** hessian_power + eps
    x = x - lr * (m / (1 - b1**steps) / size + weight_decay * x)
    return x, AdaHessianState(m, v, steps, updates), D


def diagonal_probe(objective: Objective, x: Tensor, probes: range, seed: int) -> Tensor:
    """The mean of z * (H z) over random signs: an unbiased estimate of the Hessian's diagonal."""
    Z = objective.space.random(probes, seed)
    return (Z * (hessian(objective, x=x) @ Z)).mean(1)


def averaged(space: Space, D: Tensor) -> Tensor:
    """D with its mean over a kernel in the place of the entries of that kernel."""
    blocks = [
        b if b.ndim < 3 else b.mean(tuple(range(2, b.ndim)), keepdim=True).expand(b.shape) for b in space.split(D)
    ]
    return space.join(blocks)


def _check_numbers(every: int, samples: int, power: float, eps: float, betas: Sequence[float]) -> None:
    for name, value in (("every", every), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"AdaHessian: {name} must be an int >= 1, got {value!r}")
    if not 0 < power <= 1:
        raise ValueError(f"AdaHessian: hessian_power must lie in (0, 1], got {power}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"AdaHessian: eps must be a number >= 0, got {eps}")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise ValueError(f"AdaHessian: betas must be two numbers in [0, 1), got {tuple(betas)}")


class AdaHessian(OnObjective):
    """AdaHessian as a torch optimizer. A step comes to its batch as one of `GaussNewton` does.

    The rates of Adam are far too small here, and those of SGD are a better first guess.

    Args:
        model: the model, whose forward passes in training mode are heard. `remove_hooks` ends that.
        criterion: what the loop minimizes, as a criterion of frechet's or a torch loss with ``reduction="mean"``.
        params: parameters or groups of them, with `lr` and `weight_decay` of their own. Default: all trainable ones.
        seed: of the probes.
        lr: the rate.
        betas: the decays of the running means.
        eps: is added to the denominator.
        weight_decay: decoupled.
        hessian_power: of the denominator, in (0, 1].
        every: how many steps share an estimate of the Hessian's diagonal. Steps between cost what those of Adam do.
        samples: how many probes an estimate takes.
        spatial: whether the diagonal is averaged over the kernels of convolutions.
        split: as in `GaussNewton`.
        dropout_seed: as in `GaussNewton`.

    Example:
        >>> import torch
        >>> from frechet.train import AdaHessian
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> loss_of = torch.nn.MSELoss()
        >>> optimizer = AdaHessian(model, loss_of, seed=0, lr=0.1, every=5)
        >>> x = torch.randn(64, 4)
        >>> y = torch.sin(x).sum(1, keepdim=True)
        >>> losses = []
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = loss_of(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     losses.append(loss.item())
        >>> losses[-1] < 0.1 * losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Loss,
        params: Iterable[Any] | None = None,
        *,
        seed: int,
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        every: int = 1,
        samples: int = 1,
        spatial: bool = True,
        split: Split | None = None,
        dropout_seed: int | None = None,
    ) -> None:
        _check_numbers(every, samples, hessian_power, eps, betas)
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(model, criterion, params, defaults, split=split, dropout_seed=dropout_seed)
        self._check(lr=">= 0", weight_decay=">= 0")
        self._options: dict[str, Any] = {
            "seed": seed, "betas": betas, "eps": eps, "hessian_power": hessian_power, "every": every,
            "samples": samples, "spatial": spatial,
        }  # fmt: skip

    def _moved(self, objective: Objective, x: Tensor, gradient: Tensor | None, names: list[str]) -> Tensor:
        space, first = objective.space, self.param_groups[0]
        steps, updates = first.get("steps", 0), first.get("updates", 0)
        state = AdaHessianState(self._remembered(space, "m"), self._remembered(space, "v"), steps, updates)
        moved, after, _ = adahessian_step(
            objective, x, state, lr=self._by_group(space, "lr"), gradient=gradient,
            weight_decay=self._by_group(space, "weight_decay"), **self._options,
        )  # fmt: skip
        for group in self.param_groups:
            group["updates"] = after.updates
        self._remember(space, "m", after.m, names)
        self._remember(space, "v", after.v, names)
        return moved
