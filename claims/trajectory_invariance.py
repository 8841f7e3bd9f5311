"""Efficient hyperparameter tuning via trajectory invariance principle (2025), arXiv 2509.25049.

Claim: loss curves of AdamW depend early on the rate alone, and later on rate times decay alone, so that one of both
hyperparameters need not be searched.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet.analyze import trajectory_invariance


def curves(rate: float, decay: float) -> list[torch.Tensor]:
    """Losses on noisy digits every 25 steps, for five seeds."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X).float() / 16, torch.from_numpy(y)
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)
        losses = []
        for t in range(1, 1001):
            rows = torch.randint(0, len(y), (16,))
            noisy = X[rows] + 0.5 * torch.randn(16, 64)  # new data at each step: no example comes twice
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(noisy), y[rows]).backward()
            optimizer.step()
            if t % 25 == 0:
                with torch.no_grad():
                    draw = torch.Generator().manual_seed(7)
                    clean = X + 0.5 * torch.randn(X.shape, generator=draw)
                    losses.append(torch.nn.functional.cross_entropy(net(clean), y))
        found.append(torch.stack(losses))
    return found


def measure() -> Claim:
    """A base pair, a pair with the same product, and one with the same rate; early and late parts of the curves."""
    base = curves(2e-3, 1.0)
    product, rate = curves(4e-3, 0.5), curves(2e-3, 0.1)
    early, late = slice(0, 4), slice(24, 40)
    r = {
        name: trajectory_invariance([c[part] for c in base], [c[part] for c in other])
        for name, part, other in (
            ("early, same rate", early, rate),
            ("early, same product", early, product),
            ("late, same rate", late, rate),
            ("late, same product", late, product),
        )
    }
    told = "; ".join(f"{name}: {v.ratio:.1f} (p {v.p_value:.2f})" for name, v in r.items())
    first = r["early, same rate"].ratio < r["early, same product"].ratio / 2
    second = r["late, same product"].ratio < r["late, same rate"].ratio / 2
    alike = r["early, same rate"].p_value > 0.05 and r["late, same product"].p_value > 0.05
    return Claim(
        paper="Trajectory invariance principle 2025, arXiv 2509.25049",
        claim="curves of AdamW depend on the rate first, on rate times decay later",
        theirs="curves of a 164M language model overlap",
        ours=f"distance over the spread of seeds: {told}",
        verdict="holds"
        if first and second and alike
        else "holds in part"
        if first and second
        else "does not hold here",
        why="noisy digits that never repeat, 1000 steps, five seeds",
        name="trajectory_invariance",
    )
