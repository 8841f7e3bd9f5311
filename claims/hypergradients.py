"""J. Lorraine, P. Vicol, D. Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation,
arXiv 1911.02590.

Claims: the Neumann series with k terms is the derivative of k unrolled steps of gradient descent at the minimum; and a
hypergradient for as many hyperparameters as weights costs a few gradients.
"""

from __future__ import annotations

import time

import torch
from claim import Claim

from frechet.calculus import hypergradient


def unrolled() -> float:
    """The largest relative difference between the series with k terms and k steps, k = 1, 5, 50."""
    draw = torch.Generator().manual_seed(0)
    X, V = (torch.randn(60, 10, generator=draw, dtype=torch.float64) for _ in range(2))
    y, z = X @ torch.ones(10, dtype=torch.float64), V.sum(1) + 0.1

    def inner(x, t):
        return (X @ x - y).square().mean() / 2 + (t.exp() * x.square()).sum() / 2

    def outer(x, t):
        return (V @ x - z).square().mean() / 2

    theta = torch.full((10,), -2.0, dtype=torch.float64)
    x = torch.linalg.solve(X.T @ X / 60 + theta.exp().diag(), X.T @ y / 60)
    scale, differences = 0.2, []
    for k in (1, 5, 50):
        found = hypergradient(outer, inner, x, theta, inverse="neumann", terms=k, scale=scale).gradient
        t = theta.clone().requires_grad_()
        w = x.clone()
        for _ in range(k):
            w = w - scale * torch.func.grad(inner)(w, t)
        (steps,) = torch.autograd.grad(outer(w, t), t)
        differences.append(float((found - steps).norm() / steps.norm()))
    return max(differences)


def cost(size: int) -> float:
    """Seconds of a hypergradient with ten terms for `size` weight decays, in gradients of the inner function."""
    draw = torch.Generator().manual_seed(0)
    hidden = size // 110
    X, y = torch.randn(256, 100, generator=draw), torch.randint(0, 10, (256,), generator=draw)
    x = 0.02 * torch.randn(110 * hidden, generator=draw)
    theta = torch.full_like(x, -2.0)

    def inner(x, t):
        logits = torch.tanh(X @ x[: 100 * hidden].view(100, hidden)) @ x[100 * hidden :].view(hidden, 10)
        return torch.nn.functional.cross_entropy(logits, y) + (t.exp() * x.square()).sum() / 2

    def timed(act) -> float:
        act()
        times = []
        for _ in range(3):
            start = time.process_time()
            act()
            times.append(time.process_time() - start)
        return min(times)

    gradient = timed(lambda: torch.func.grad(inner, argnums=(0, 1))(x, theta))
    return (
        timed(lambda: hypergradient(inner, inner, x, theta, inverse="neumann", terms=10, scale=0.5, strict=False))
        / gradient
    )


def measure() -> Claim:
    """The difference to unrolling, and the cost for half a million hyperparameters."""
    difference, times = unrolled(), cost(500_000)
    return Claim(
        paper="Lorraine, Vicol, Duvenaud 2020, arXiv 1911.02590",
        claim="k terms of the Neumann series are k unrolled steps; millions of hyperparameters cost a few gradients",
        theirs="equal at the minimum (theorem); joint tuning a few times the cost of training",
        ours=f"relative difference {difference:.0e}; half a million decays, ten terms: {times:.0f} gradients' time",
        verdict="holds" if difference < 1e-10 and times < 60 else "does not hold here",
        why="each term is one product with the Hessian, about three gradients",
        name="hypergradient",
    )
