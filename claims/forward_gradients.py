"""A. G. Baydin et al. (2022), Gradients without backpropagation, arXiv 2202.08587.

Claim: a directional derivative times its random direction is an unbiased estimate of the gradient, and descends. Here:
bias and variance on the loss of a small network, and descent with it beside the gradient.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet.calculus.estimated import bias_and_variance, forward_gradient


def loss_of(seed: int):
    draw = torch.Generator().manual_seed(seed)
    X, y = torch.randn(64, 4, generator=draw).double(), torch.randn(64, generator=draw).double()
    return lambda p: ((torch.tanh(X @ p[:20].view(4, 5)) @ p[20:] - y).square()).mean()


def descend(f, x, steps: int, rate: float, probes: int | None) -> float:
    for step in range(steps):
        g = torch.func.grad(f)(x) if probes is None else forward_gradient(f, x, probes=probes, seed=step).value
        x = x - rate * g
    return float(f(x))


def measure() -> Claim:
    """The bias against its error bar, the variance against the formula, and both descents."""
    f, x = loss_of(0), 0.5 * torch.randn(25, generator=torch.Generator().manual_seed(1)).double()
    g = torch.func.grad(f)(x)
    report = bias_and_variance(lambda s: forward_gradient(f, x, probes=5, seed=s), g, repeats=400, seed=0)
    z = float(report.bias_squared) / float(report.bias_squared.standard_error)
    formula = 24 * float(g.square().sum()) / 5
    start, plain, ours = float(f(x)), descend(f, x, 400, 0.05, None), descend(f, x, 400, 0.05, 5)
    good = abs(z) < 4 and abs(float(report.variance) / formula - 1) < 0.15 and ours < 0.5 * (start + plain)
    return Claim(
        paper="Baydin et al. 2022, arXiv 2202.08587",
        claim="the forward gradient is unbiased, and gradient descent with it trains",
        theirs="unbiased; training up to twice as fast in time",
        ours=f"squared bias {z:.1f} standard errors from 0; variance {float(report.variance) / formula:.3f} of the "
        f"formula; loss {start:.3f} to {ours:.3f} in 400 steps of 5 directions, to {plain:.3f} by gradients",
        verdict="holds in part" if good else "does not hold here",
        why="unbiased and it descends; the variance is (d - 1)/m of the squared gradient, and no step here is cheaper",
        name="forward_gradient",
    )
