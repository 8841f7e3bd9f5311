"""S. Malladi, K. Lyu, A. Panigrahi, S. Arora (2022), On the SDEs and scaling rules for adaptive gradient algorithms,
arXiv 2205.10287.

Claim: a batch k times as large wants sqrt(k) times Adam's rate, 1 - beta times k and eps over sqrt(k), in the regime
where gradient noise dominates; the linear rule of SGD is wrong for Adam.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.analyze import Hyperparameters, scale_for_batch


def late_loss(hp: Hyperparameters, noise: float, steps: int) -> float:
    """The late loss of Adam on a noisy quadratic with 400 coordinates, mean of two seeds."""
    (b1, b2), late = hp.betas, []
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        w, m, v = torch.ones(400), torch.zeros(400), torch.full((400,), noise**2)
        for t in range(steps):
            g = w + noise * torch.randn(400, generator=draw)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w - hp.rate * m / (v.sqrt() + (hp.eps or 0.0))
            if t >= 0.75 * steps:
                late.append(float(w.square().mean() / 2))
    return sum(late) / len(late)


def measure() -> Claim:
    """The late loss after scaling by 4, over that before, by both rules."""
    hp, steps, k = Hyperparameters(2e-3, (0.95, 0.999), 1e-8), 12000, 4
    base = late_loss(hp, 3.0, steps)
    rooted = scale_for_batch(hp, k, optimizer="adam")
    square = late_loss(rooted, 1.5, steps // k) / base
    linear = late_loss(Hyperparameters(k * hp.rate, rooted.betas, hp.eps), 1.5, steps // k) / base
    return Claim(
        paper="Malladi, Lyu, Panigrahi, Arora 2022, arXiv 2205.10287",
        claim="the square-root rule keeps Adam's path where noise dominates",
        theirs="the square-root rule matches, the linear rule does not",
        ours=f"loss ratio at 4 times the batch: square root {square:.2f}, linear {linear:.2f}",
        verdict="holds" if abs(square - 1) < 0.1 and linear > 1.5 else "does not hold here",
        why="a noisy quadratic: the stationary loss is proportional to rate times noise, and Adam divides by the noise",
        name="scale_for_batch",
    )
