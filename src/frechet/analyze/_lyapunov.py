"""Lyapunov exponents of a map: how fast neighbouring runs part.

k tangents are carried along and made orthonormal again every few steps; the logarithms of what their triangle grows by,
per step, are the exponents. Where the largest is positive, gradients through T steps grow as exp(l T): beyond
T l = log(1 / eps) they carry no digit of the truth.

**Source.** Benettin, Galgani, Giorgilli and Strelcyn, "Lyapunov characteristic exponents for smooth dynamical systems"
(1980), doi 10.1007/BF02128236. Metz et al., "Gradients are not all you need" (2021), arXiv 2111.05803: what they say of
gradients.
**Differs from the source.** Each exponent has the standard error of batch means.
**Cost.** k tangents per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.linalg._result import Estimate
from frechet.linalg._shown import Result
from frechet.operators.derivatives._products import _load_forward_rules
from frechet.space import generator

BATCHES = 10  # of batch means


@dataclass(frozen=True, eq=False)
class Lyapunov(Result):
    """The k largest exponents per step, with standard errors. `x` is where the run ended."""

    exponents: Estimate
    x: Tensor
    steps: int
    message: str = ""

    @property
    def horizon(self) -> float:
        """The number of steps after which gradients through the run have lost all digits; infinite without chaos."""
        top = float(self.exponents.value[0])
        return math.log(1 / torch.finfo(self.x.dtype).eps) / top if top > 0 else math.inf


def lyapunov(
    step: Callable[[Tensor], Tensor], x0: Tensor, *, steps: int, k: int = 1, every: int = 5, burn: int = 0, seed: int
) -> Lyapunov:
    """Estimate the k largest Lyapunov exponents of the map x -> step(x), with standard errors.

    Args:
        step: a differentiable map of a vector ``(n,)``, such as one step of training on a fixed batch.
        x0: where the run starts.
        steps: how many are taken after `burn`.
        k: how many exponents.
        every: the steps between two orthogonalizations.
        burn: steps before the count begins.
        seed: of the first tangents.

    Example:
        >>> import torch
        >>> from frechet.analyze import lyapunov
        >>> A = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
        >>> found = lyapunov(lambda x: A @ x, torch.zeros(2, dtype=torch.float64), steps=200, k=2, burn=50, seed=0)
        >>> [round(v, 4) for v in found.exponents.value.tolist()]  # log 2 and log 1/2
        [0.6931, -0.6931]
    """
    n = x0.numel()
    if x0.ndim != 1 or not 1 <= k <= n or every < 1 or steps < BATCHES * every:
        raise ValueError(
            f"lyapunov: x0 must be a vector, k between 1 and its length, and steps at least {BATCHES} times every, got "
            f"shape {tuple(x0.shape)}, k={k}, steps={steps}, every={every}"
        )
    _load_forward_rules()
    Q = torch.linalg.qr(torch.randn(n, k, generator=generator(seed), dtype=torch.float64).to(x0)).Q
    x, logs, done = x0, [], -burn
    while done < steps:
        for _ in range(every):
            # a loop over few columns costs less than vmap, and asks nothing of `step`
            pairs: list[Any] = [torch.func.jvp(step, (x,), (v,)) for v in Q.T]
            x, Q = pairs[0][0], torch.stack([v for _, v in pairs], 1)
        if not bool(torch.isfinite(x).all() and torch.isfinite(Q).all()):
            raise ValueError(f"lyapunov: the run must stay finite, got a NaN or an infinity after {done + burn} steps")
        Q, R = torch.linalg.qr(Q)
        done += every
        if done > 0:
            # a direction that dies out within one stretch has no logarithm
            logs.append(R.diagonal().abs().clamp(min=torch.finfo(R.dtype).tiny).double().log().cpu() / every)
    rates = torch.stack(logs)
    means = torch.stack([part.mean(0) for part in rates.chunk(BATCHES)])
    error = means.std(0) / math.sqrt(len(means))
    found = Estimate(
        rates.mean(0), error, len(rates), 0, seed, degrees_of_freedom=len(means) - 1, method="batch means along the run"
    )
    made = Lyapunov(found, x, steps)
    if steps > made.horizon:
        told = f"lyapunov: chaos: gradients through more than {made.horizon:.0f} steps carry no digit; truncate them"
        return Lyapunov(found, x, steps, told)
    return made
