"""A. Defazio, A. Cutkosky, H. Mehta, K. Mishchenko (2023), When, why and how much? Adaptive learning rate scheduling by
refinement, arXiv 2310.07831.

Claims: linear decay matches or outperforms cosine annealing, and schedules refined by a run's gradient norms improve
further. Tried on a net for the digits with SGD, each schedule at the best of three rates, ten seeds.
"""

from __future__ import annotations

import math

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet.train import refined_schedule

STEPS, SEEDS, RATES = 300, range(10), (0.1, 0.3, 1.0)
t = torch.arange(STEPS)
SCHEDULES = {
    "constant": torch.ones(STEPS),
    "linear": 1 - t / STEPS,
    "cosine": 0.5 * (1 + torch.cos(math.pi * t / STEPS)),
}


def run(factors: Tensor, rate: float, seed: int) -> tuple[float, list[float]]:
    """The loss on other digits at the end, and the norms of the gradients."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    torch.manual_seed(seed)
    model, loss = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(factors[min(k, STEPS - 1)]))
    norms = []
    for _ in range(STEPS):
        rows = torch.randint(0, 1300, (32,))
        optimizer.zero_grad()
        loss(model(X[rows]), y[rows]).backward()
        norms.append(float(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).norm()))
        optimizer.step()
        plan.step()
    with torch.no_grad():
        return float(loss(model(X[1300:]), y[1300:])), norms


def measure() -> Claim:
    """The mean loss of each schedule at its best rate; the refined one comes from the norms of a linear run."""
    schedules = SCHEDULES | {"refined": refined_schedule(run(SCHEDULES["linear"], 0.3, 100)[1])}
    found = {}
    for name, factors in schedules.items():
        values = [torch.tensor([run(factors, r, s)[0] for s in SEEDS]) for r in RATES]
        best = min(values, key=lambda v: float(v.mean()))
        found[name] = (float(best.mean()), float(best.std()) / len(SEEDS) ** 0.5)
    matches = found["linear"][0] <= found["cosine"][0] + 2 * found["cosine"][1]
    further = found["refined"][0] < found["linear"][0] - 2 * found["linear"][1]
    return Claim(
        paper="Defazio, Cutkosky, Mehta, Mishchenko 2023, arXiv 2310.07831",
        claim="linear decay matches or beats cosine annealing, and refined schedules beat it",
        theirs="linear decay best or equal on most of ten problems; refinement improves further",
        ours="; ".join(f"{n}: loss {v:.4f} +- {e:.4f}" for n, (v, e) in found.items()),
        verdict="holds" if matches and further else "holds in part" if matches or further else "does not hold here",
        why="three hundred steps of a small net are far from the end of its training, where decay counts",
        name="train.refined_schedule",
    )
