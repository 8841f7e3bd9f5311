"""A learning-rate schedule refined by the gradient norms of a run.

    eta_t = w_t sum_{p > t} w_p,   divided by the largest,   w_t = 1 / norm(g_t)^2  (SGD) or  1 / norm_1(g_t)  (Adam)

With constant norms it is the linear decay. Its rates fall early where gradients grow, and later where they shrink.

**Source.** A. Defazio, A. Cutkosky, H. Mehta, K. Mishchenko (2023), Optimal linear decay learning rate schedules and
further refinements, theorem 3 and algorithm 1, arXiv 2310.07831.
**Differs from the source.** The smoothing is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import scipy
import torch
from torch import Tensor


def refined_schedule(norms: Tensor | Sequence[float], *, power: Literal[1, 2] = 2, smooth: float = 0.1) -> Tensor:
    """Return the factors ``(T,)`` of the learning rate at each step of the next run, the largest of which is 1.

    Args:
        norms: of the gradients at the steps of a run, before clipping: the Euclidean ones for SGD, the sums of absolute
            values for Adam.
        power: 2 for SGD, 1 for Adam.
        smooth: the width of the median filter of the norms, as a share of the steps; 0 for none.

    Example:
        >>> from frechet.train import refined_schedule
        >>> factors = refined_schedule([1.0] * 5)  # LambdaLR(optimizer, lambda step: float(factors[step]))
        >>> factors
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    g = torch.as_tensor(norms, dtype=torch.float64).detach().cpu()
    if g.ndim != 1 or len(g) < 2:
        raise ValueError(
            f"refined_schedule: norms must have one number for each of two steps or more, got {tuple(g.shape)}"
        )
    if not bool(((g > 0) & g.isfinite()).all()):
        raise ValueError(
            f"refined_schedule: norms must be positive and finite, got {float(g.min())}; leave out steps without a "
            "gradient"
        )
    if power not in (1, 2) or not 0 <= smooth < 1:
        raise ValueError(f"refined_schedule: power must be 1 or 2 and smooth lie in [0, 1), got {power} and {smooth}")
    width = 2 * math.floor(smooth * len(g) / 2) + 1
    if width > 1:
        g = torch.from_numpy(scipy.ndimage.median_filter(g.numpy(), size=width, mode="nearest"))
    w = (g / g.max()) ** -power
    after = w.flip(0).cumsum(0).flip(0) - w
    after[-1] = 0.0
    eta = w * after
    return eta / eta.max()
