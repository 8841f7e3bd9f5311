"""Mean and covariance of features, as a factor with as few rows as the features allow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
        mean: the mean ``(d,)``, in float64.
        factor: F ``(r, d)`` with the covariance F'F; r is its rank.
        count: how many samples it comes from, None where it was given.
    """

    mean: Tensor
    factor: Tensor
    count: int | None = None

    @property
    def covariance(self) -> Tensor:
        """The covariance ``(d, d)``."""
        return self.factor.mT @ self.factor

    def __repr__(self) -> str:
        return f"Gaussian(features={self.mean.shape[-1]}, rank={self.factor.shape[-2]}, count={self.count})"


def gaussian(mean: Tensor, covariance: Tensor) -> Gaussian:
    """Return the Gaussian of a mean and a covariance, as a reference for `frechet_distance`; it carries no graph.

    Args:
        mean: ``(d,)``.
        covariance: symmetric and semidefinite up to rounding, ``(d, d)``. Directions without variance are left out.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import gaussian
        >>> gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 2.0, 0.0])))
        Gaussian(features=3, rank=2, count=None)
    """
    if covariance.ndim != 2 or covariance.shape != (mean.numel(), mean.numel()):
        raise ValueError(
            f"gaussian: covariance must have shape (d, d) with d = {mean.numel()}, got {tuple(covariance.shape)}"
        )
    return Gaussian(mean.detach().double(), _factor("gaussian", covariance.detach().double()))


@torch.no_grad()
def gaussian_of(batches: Tensor | Iterable[Tensor]) -> Gaussian:
    """Return mean and covariance (with n - 1) of features of any model, batch by batch in float64, without a graph.

    Args:
        batches: features ``(n, d)``, or an iterable of such, as ``(model(x) for x in loader)``.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import gaussian_of
        >>> gaussian_of(torch.randn(5, 8) for _ in range(20))
        Gaussian(features=8, rank=8, count=100)
    """
    count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        x = features("gaussian_of", batch, least=1)
        center = x.mean(0)
        own = (x - center).mT @ (x - center)
        if not count:
            count, mean, scatter = len(x), center, own
            continue
        if center.shape != mean.shape:
            raise ValueError(f"gaussian_of: batches must have {len(mean)} features each, got {len(center)}")
        step, total = center - mean, count + len(x)
        scatter = scatter + own + torch.outer(step, step) * (count * len(x) / total)
        mean, count = mean + step * (len(x) / total), total
    if count < 2:
        raise ValueError(f"gaussian_of: batches must hold at least 2 samples, got {count}")
    return Gaussian(mean, _factor("gaussian_of", scatter / (count - 1)), count)


def features(name: str, x: Tensor, *, least: int) -> Tensor:
    """Return features in float64, after a check."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: features must be real of shape (n, d), got {got}; flatten them per sample")
    if len(x) < least or not x.shape[1]:
        raise ValueError(f"{name}: features must have at least {least} samples and 1 feature, got {tuple(x.shape)}")
    return x.double()


def moments(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and factor ``(n - 1, d)`` of features ``(n, d)``, with their graph.

    A reflection that takes (1, ..., 1) to the first axis leaves n - 1 rows, so that no direction is lost to centering.
    """
    x = features(name, x, least=2)
    n, mean = len(x), x.mean(0)
    c = x - mean
    # rows 2 ... n of (I - w w' 2 / |w|^2) c, w = (1, ..., 1) + sqrt(n) e_1; the sum of c is 0, so w'c = sqrt(n) c_1
    factor = c[1:] - c[0] * (math.sqrt(n) / (n + math.sqrt(n)))
    return mean, factor / math.sqrt(n - 1)


def _factor(name: str, S: Tensor) -> Tensor:
    """F with S = F'F, without the directions whose variance is rounding."""
    if not bool(S.isfinite().all()):
        raise NonFinite(f"{name}: the covariance must be finite, got NaN or infinite entries")
    lam, V = torch.linalg.eigh((S + S.mT) / 2)
    noise = len(S) * torch.finfo(S.dtype).eps * float(lam.abs().max())
    if float(lam[0]) < -1e3 * noise:
        raise ValueError(f"{name}: the covariance must be semidefinite, got an eigenvalue {float(lam[0]):.3g}")
    keep = lam > noise
    return (V[:, keep] * lam[keep].sqrt()).mT
