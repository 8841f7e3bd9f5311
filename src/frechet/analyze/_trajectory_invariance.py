"""Whether two settings of the hyperparameters give one loss curve, against the spread between seeds.

    distance^2 = mean over points of (mean_a log L - mean_b log L)^2,    spread^2 = the same expected of seeds alone

Curves that depend on a combination of hyperparameters only, such as rate times decay, coincide where it does: then a
search over two hyperparameters is one over the combination.

**Source.** "Efficient hyperparameter tuning via trajectory invariance principle" (2025), arXiv 2509.25049.
**Differs from the source.** The collapse of curves, which is judged by eye there, has a test: the share of all ways of
dealing the curves to two groups that put them at least as far apart. It is exact where seeds are exchangeable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.space import generator

MOST = 5000  # ways of dealing that are all tried; above it as many are drawn


@dataclass(frozen=True)
class TrajectoryInvariance(Result):
    """How far two sets of loss curves are apart in log loss, and how far seeds alone put them.

    `ratio` is distance over spread, about 1 for one law of curves. `p_value` is the share of ways of dealing the curves
    that put them as far apart; it cannot fall below `smallest`.
    """

    distance: float
    spread: float
    p_value: float
    smallest: float

    @property
    def ratio(self) -> float:
        """Distance over what seeds alone make."""
        return self.distance / self.spread if self.spread > 0 else math.inf if self.distance > 0 else 1.0


def trajectory_invariance(first: Sequence[Tensor], second: Sequence[Tensor], *, seed: int = 0) -> TrajectoryInvariance:
    """Return how far the loss curves of two settings are apart, beside what seeds alone make.

    Args:
        first: loss curves ``(k,)`` of one setting at the same k steps, one for each seed; two or more. Leave out steps
            that are not compared: early curves depend on the rate alone.
        second: those of the other setting.
        seed: of the ways of dealing that are drawn where there are more than 5000.

    Example:
        >>> import torch
        >>> from frechet.analyze import trajectory_invariance
        >>> curves = [torch.tensor([2.0, 1.0]) * (1 + 0.01 * i) for i in range(6)]
        >>> near = trajectory_invariance(curves[0::2], curves[1::2])
        >>> far = trajectory_invariance(curves[:3], [1.5 * c for c in curves[3:]])
        >>> near.p_value > 0.3, far.p_value == far.smallest
        (True, True)
    """
    if len(first) < 2 or len(second) < 2:
        raise ValueError(
            f"trajectory_invariance: needs two curves or more of each setting, got {len(first)} and {len(second)}"
        )
    curves = [c.detach().double().cpu() for c in (*first, *second)]
    if any(c.ndim != 1 or c.shape != curves[0].shape or not len(c) for c in curves):
        raise ValueError(
            "trajectory_invariance: all curves must be losses (k,) at the same steps, got "
            f"{sorted({tuple(c.shape) for c in curves})}"
        )
    if not all(bool((c > 0).all() and torch.isfinite(c).all()) for c in curves):
        raise ValueError("trajectory_invariance: losses must be positive and finite: they are compared by logarithms")
    logs, n = torch.stack(curves).log(), len(first)
    total = len(curves)
    distance = _distance(logs, torch.arange(n))
    spread = math.sqrt(float(logs[:n].var(0).mean()) / n + float(logs[n:].var(0).mean()) / (total - n))
    if math.comb(total, n) <= MOST:
        deals = [torch.tensor(c) for c in itertools.combinations(range(total), n)]
    else:
        draws = (torch.randperm(total, generator=generator(seed, j))[:n] for j in range(MOST))
        deals = [torch.arange(n), *draws]
    farther = sum(_distance(logs, deal) >= distance * (1 - 1e-12) for deal in deals)
    twins = 2 if 2 * n == total else 1  # the same two groups in the other order
    return TrajectoryInvariance(distance, spread, farther / len(deals), twins / len(deals))


def _distance(logs: Tensor, chosen: Tensor) -> float:
    inside = torch.zeros(len(logs), dtype=torch.bool)
    inside[chosen] = True
    return math.sqrt(float((logs[inside].mean(0) - logs[~inside].mean(0)).square().mean()))
