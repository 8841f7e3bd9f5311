"""Whether predicted probabilities are right: scores, and the share of right predictions at each confidence.

    nll     mean of -log p_y           brier   mean of |p - e_y|^2
    ece     sum over bins of the confidence of  (examples in the bin / N) |share right - mean confidence|

The expected calibration error is biased upwards by the noise of the bins: `ece_of_chance` is the mean that perfectly
calibrated predictions with the same confidences have, so that an error near it says nothing against them.

**Source.** A. Naeini, G. Cooper, M. Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning,
AAAI; E. B. Wilson (1927), Probable inference, JASA 22 (the intervals of the plot).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._shown import Result, Rows
from frechet.space import generator

DRAWS = 200  # of labels, for `ece_of_chance`; its error is then about 5 % of its spread


@dataclass(frozen=True, eq=False)
class Calibration(Result):
    """Scores of predicted class probabilities, and what the bins of confidence hold."""

    nll: float
    brier: float
    accuracy: float
    ece: float
    ece_of_chance: float
    confidences: Tensor  # (bins,) float64, mean confidence of each bin; NaN in an empty one
    shares: Tensor  # (bins,) the share of right predictions
    counts: Tensor  # (bins,)

    def intervals(self) -> tuple[Tensor, Tensor]:
        """Wilson's 95 % intervals of the shares."""
        z, n = 1.959964, self.counts.double()
        center = (self.shares + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * (self.shares * (1 - self.shares) / n + z**2 / (4 * n**2)).sqrt()
        return center - half, center + half

    def plot(self, axes: Any) -> Any:
        """Draw the share of right predictions over the confidence, with intervals, and the diagonal."""
        kept = self.counts > 0
        x, y = self.confidences[kept], self.shares[kept]
        low, high = (t[kept] for t in self.intervals())
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.errorbar(x.numpy(), y.numpy(), yerr=[(y - low).clamp_min(0).numpy(), (high - y).clamp_min(0).numpy()])
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        return axes

    def _table(self) -> Rows:
        rows = zip(self.confidences.tolist(), self.shares.tolist(), self.counts.tolist(), strict=True)
        return ("confidence", "share right", "examples"), [(f"{c:.3f}", f"{s:.3f}", str(n)) for c, s, n in rows if n]


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = 15, seed: int = 0) -> Calibration:
    """Return scores of class probabilities against labels, and the calibration in bins of equal width.

    Args:
        probabilities: ``(N, classes)``, rows that add up to 1; or ``(N,)``, of class 1 of two.
        labels: the classes ``(N,)``.
        bins: how many bins the confidences from 0 to 1 are put into. Default: 15.
        seed: of the labels that are drawn for `ece_of_chance`.

    Raises:
        ValueError: shapes do not fit, a row does not add up to 1, or a label is no class.

    Example:
        >>> import torch
        >>> from frechet.analyze import calibration
        >>> p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.2, 0.8]])
        >>> round(calibration(p, torch.tensor([0, 0, 0, 0, 0])).ece, 3)  # 4 of 5 right at 0.8
        0.0
    """
    p = probabilities.detach().double().cpu()
    p = torch.stack([1 - p, p], 1) if p.ndim == 1 else p
    y = labels.detach().cpu().long()
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(p):
        raise ValueError(
            f"calibration: labels must be (N,) for probabilities (N, classes), N >= 1, got {tuple(labels.shape)} and "
            f"{tuple(probabilities.shape)}"
        )
    if not bool(p.isfinite().all()):
        raise NonFinite("calibration: probabilities must be finite, got NaN or infinity")
    if float((p.sum(1) - 1).abs().max()) > 1e-4 or float(p.min()) < -1e-6:
        raise ValueError("calibration: rows of probabilities must be non-negative and add up to 1; apply softmax first")
    if int(y.min()) < 0 or int(y.max()) >= p.shape[1]:
        raise ValueError(
            f"calibration: labels must be between 0 and {p.shape[1] - 1}, got {int(y.min())} to {int(y.max())}"
        )
    if bins < 1:
        raise ValueError(f"calibration: bins must be at least 1, got {bins}")
    confidence, predicted = p.max(1)
    right = (predicted == y).double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)
    mean_confidence, shares = (_in_bins(t, place, bins) / counts for t in (confidence, right))
    g = generator(seed)
    drawn = [(torch.rand(len(y), generator=g, dtype=torch.float64) < confidence).double() for _ in range(DRAWS)]
    by_chance = [_error(confidence, r, place, bins) for r in drawn]
    own = p.gather(1, y[:, None])[:, 0]
    one_hot = torch.nn.functional.one_hot(y, p.shape[1]).double()
    return Calibration(
        nll=float(-own.clamp_min(1e-300).log().mean()),
        brier=float((p - one_hot).square().sum(1).mean()),
        accuracy=float(right.mean()),
        ece=_error(confidence, right, place, bins),
        ece_of_chance=sum(by_chance) / DRAWS,
        confidences=mean_confidence,
        shares=shares,
        counts=counts,
    )


def _in_bins(values: Tensor, place: Tensor, bins: int) -> Tensor:
    return torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values)


def _error(confidence: Tensor, right: Tensor, place: Tensor, bins: int) -> float:
    return float(_in_bins(right - confidence, place, bins).abs().sum()) / len(right)
