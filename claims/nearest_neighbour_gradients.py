"""G. Ausset, S. Clémençon, F. Portier (2020), Nearest neighbour based estimates of gradients, arXiv 2006.15043.

Claim: local linear fits of nearest neighbours estimate gradients at a nonasymptotic rate, and the error falls with the
samples. Here: d = 4, k = 3 sqrt(n) neighbours, and whether intervals with the bias bound cover.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.estimated import knn_gradient


def errors(n: int, runs: int) -> tuple[float, float]:
    """The mean error of the gradient, and how often an entry's 95 % interval held."""
    off, held = 0.0, 0.0
    x = torch.full((4,), 0.5, dtype=torch.float64)
    exact = torch.cos(x * torch.arange(1, 5)) * torch.arange(1, 5)
    for seed in range(runs):
        draw = torch.Generator().manual_seed(seed)
        X = torch.rand(n, 4, generator=draw).double()
        Y = torch.sin(X * torch.arange(1, 5)).sum(1) + 0.05 * torch.randn(n, generator=draw).double()
        found = knn_gradient(X, Y, x, neighbours=int(3 * n**0.5), gradient_constant=16.0)
        low, high = found.interval()
        off += float((found.value - exact).square().sum().sqrt()) / runs
        held += float(((low <= exact) & (exact <= high)).double().mean()) / runs
    return off, held


def measure() -> Claim:
    """Errors for 1e3, 8e3 and 64e3 samples."""
    found = [errors(n, 12) for n in (1_000, 8_000, 64_000)]
    off = [e for e, _ in found]
    slope = (off[2] / off[0]) ** 0.5  # for eight times the samples
    return Claim(
        paper="Ausset, Clémençon, Portier 2020, arXiv 2006.15043",
        claim="the nearest neighbours' plane estimates gradients, with an error that falls with n",
        theirs="nonasymptotic bounds, faster than earlier estimates",
        ours=f"error {off[0]:.3f}, {off[1]:.3f}, {off[2]:.3f} for 1e3, 8e3, 64e3 samples in 4 dimensions, a factor "
        f"{slope:.2f} for eight times the samples; intervals held {min(h for _, h in found):.2f} of entries or more",
        verdict="holds" if off[0] > off[1] > off[2] and min(h for _, h in found) > 0.9 else "does not hold here",
        why="the bias is that of the curvature in the ball of neighbours, the variance that of a plane through them",
        name="knn_gradient",
    )
