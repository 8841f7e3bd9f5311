"""P. Quinton, V. Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232.

Claims: no loss conflicts with UPGrad's update; and instance-wise risk minimization, which treats each example of a
batch as a loss of its own, converges faster per step than the mean gradient. Tried with random Jacobians whose rows
differ by up to 1e4 in length, and on the digits with batches of 32, each rule at the best of four rates.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet import Objective, cross_entropy
from frechet.analyze import gradient_gram
from frechet.train import upgrad

STEPS, BATCH = 150, 32
RATES = (0.1, 0.2, 0.4, 0.8)


def worst_cosine() -> float:
    """The least cosine between an update and a gradient."""
    worst = 1.0
    for seed in range(500):
        g = torch.Generator().manual_seed(seed)
        J = torch.randn(2 + seed % 9, 24, generator=g, dtype=torch.float64)
        J = J * 1e4 ** (2 * torch.rand(len(J), 1, generator=g, dtype=torch.float64) - 1)
        update = J.T @ upgrad(J @ J.T)
        worst = min(worst, float(((J @ update) / (J.norm(dim=1) * update.norm())).min()))
    return worst


def trained(rule: str, rate: float, seed: int) -> float:
    """The training loss after STEPS steps."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images[:512]).float() / 16, torch.from_numpy(labels[:512])
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    optimizer, draw = torch.optim.SGD(model.parameters(), lr=rate), torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randperm(512, generator=draw)[:BATCH]
        losses = torch.nn.functional.cross_entropy(model(X[chosen]), y[chosen], reduction="none")
        w = torch.full((BATCH,), 1 / BATCH)
        if rule == "upgrad":
            w = upgrad(gradient_gram(Objective(model, cross_entropy(), [(X[chosen], y[chosen])])).matrix).float()
        optimizer.zero_grad()
        (w * losses).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(X), y))


def measure() -> Claim:
    """The worst cosine, and the loss of both rules at their best rates, over three seeds."""
    worst = worst_cosine()
    best = {
        rule: min(sum(trained(rule, rate, seed) for seed in range(3)) / 3 for rate in RATES)
        for rule in ("mean", "upgrad")
    }
    faster = best["upgrad"] < best["mean"]
    exact = worst >= -1e-7
    return Claim(
        paper="Quinton, Rey 2024, arXiv 2406.16232",
        claim="UPGrad's update conflicts with no gradient; with one loss per example it trains faster per step",
        theirs="cosine >= 0 by construction; lower training loss than SGD on six image data sets at tuned rates",
        ours=f"worst cosine {worst:.0e} over 500 Jacobians; digits loss after {STEPS} steps {best['upgrad']:.3f}, "
        f"{best['mean']:.3f} by the mean",
        verdict="holds" if exact and faster else "holds in part" if exact or faster else "does not hold here",
        why="a step needs the Gram matrix of the batch besides the gradient: two to three times the cost of a step",
        name="train.upgrad",
    )
