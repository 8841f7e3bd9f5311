"""L. Metz, C. D. Freeman, S. S. Schoenholz, T. Kachman (2021), Gradients are not all you need, arXiv 2111.05803.

Claim: the variance of a gradient through T steps of a chaotic system grows as exp(2 lambda T), with lambda its largest
Lyapunov exponent; where lambda is negative it does not grow.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.analyze import lyapunov


def growth(gain: float) -> tuple[float, float, float]:
    """The exponent, its standard error, and half the growth rate of the mean square gradient of a recurrent network."""
    torch.manual_seed(0)
    n = 48
    W = gain * torch.randn(n, n, dtype=torch.float64) / n**0.5

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(W @ x)

    found = lyapunov(step, torch.randn(n, dtype=torch.float64), steps=2000, burn=200, seed=0)
    x = torch.randn(n, 200, dtype=torch.float64)
    for _ in range(200):
        x = torch.tanh(W @ x)
    D, logs = torch.randn(n, 200, dtype=torch.float64), []
    for _ in range(120):  # tangents of 200 runs, each along its own path
        x = torch.tanh(W @ x)
        D = (1 - x * x) * (W @ D)
        logs.append(float(D.square().sum(0).log().mean()))
    slope = (logs[-1] - logs[20]) / (len(logs) - 21) / 2
    return float(found.exponents.value[0]), float(found.exponents.standard_error[0]), slope


def measure() -> Claim:
    """Random recurrent networks below and above the onset of chaos."""
    found = {g: growth(g) for g in (0.7, 1.5, 3.0)}
    close = all(abs(s - v) < max(4 * e, 0.02) for v, e, s in found.values())
    signs = found[0.7][0] < 0 < found[1.5][0] < found[3.0][0]
    told = "; ".join(f"{g:g}: {v:.3f} +- {e:.3f} and {s:.3f}" for g, (v, e, s) in found.items())
    return Claim(
        paper="Metz, Freeman, Schoenholz, Kachman 2021, arXiv 2111.05803",
        claim="gradients through a chaotic system grow with its Lyapunov exponent",
        theirs="exploding gradient variance in simulators and learned optimizers",
        ours=f"recurrent tanh networks by gain: exponent per step and half the growth of log squared gradients, {told}",
        verdict="holds" if close and signs else "holds in part" if signs else "does not hold here",
        why="the exponent comes from one run of 2000 steps, the growth from 200 others of 120 steps",
        name="lyapunov",
    )
