"""A. K. Sahu, M. Zaheer, S. Kar (2018), Gradient free and projection free stochastic optimization, arXiv 1810.03233.

Claim: Frank-Wolfe with one averaged directional derivative a step converges at T^(-1/3) for convex problems, with a
dimension dependence of d^(1/3). Here: a quadratic on the simplex, with the paper's averaging.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.estimated import zeroth_order_gradient


def gap(T: int, d: int, seed: int) -> float:
    """f(x_T) - f* for f = |x - c|^2 / 2 with c in the simplex, so that f* = 0."""
    c = torch.rand(d, generator=torch.Generator().manual_seed(0)).double()
    c = c / c.sum()
    f = lambda x: (x - c).square().sum() / 2  # noqa: E731
    x, mean = torch.eye(d, dtype=torch.float64)[0], torch.zeros(d, dtype=torch.float64)
    for t in range(T):
        rho, step = min(1.0, 4 / ((1 + d) ** (1 / 3) * (t + 8) ** (2 / 3))), 2 / (t + 8)
        g = zeroth_order_gradient(f, x, probes=2, width=1e-4, seed=seed * 100_003 + t, law="gaussian").value
        mean = (1 - rho) * mean + rho * g
        vertex = torch.zeros_like(x)
        vertex[mean.argmin()] = 1.0
        x = x + step * (vertex - x)
    return float(f(x))


def measure() -> Claim:
    """The suboptimality for growing T, and for two dimensions."""
    times = 250, 1_000, 4_000
    found = [sum(gap(T, 8, s) for s in range(2)) / 2 for T in times]
    wide = gap(1_000, 32, 0)
    rate = torch.tensor(found[-1] / found[0]).log() / torch.tensor(times[-1] / times[0]).log()
    return Claim(
        paper="Sahu, Zaheer, Kar 2018, arXiv 1810.03233",
        claim="one averaged directional derivative a step converges at T^(-1/3) at least",
        theirs="O(d^(1/3) / T^(1/3))",
        ours=f"gap {found[0]:.1e}, {found[1]:.1e}, {found[2]:.1e} at T = 250, 1 000, 4 000 (d = 8): rate "
        f"T^{float(rate):.2f}; {wide:.1e} at T = 1 000 for d = 32",
        verdict="holds" if float(rate) < -1 / 3 else "does not hold here",
        why="the average of past estimates has a variance that falls while the point moves less and less",
        name="zeroth_order_gradient",
    )
