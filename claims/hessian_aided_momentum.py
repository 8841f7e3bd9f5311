"""I. Fatkhullin, A. Barakat, A. Kireeva, N. He (2023), Stochastic policy gradient methods, arXiv 2302.01734.

Claim: a Hessian product on the way between two points (HARPG) estimates the gradient better than momentum, and better
than implicit gradient transport (rates eps^-2 and eps^-2.5). Tried on a net for the digits with batches of 16: the
distance between the estimate and the gradient on all data, relative, over 300 steps of equal length.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, cross_entropy
from frechet.train import hessian_aided_init, hessian_aided_step

STEPS, SEEDS, KINDS = 300, (0, 1, 2), ("none", "transport", "hessian")


def run(correction: str, seed: int) -> tuple[float, float]:
    """The mean relative error of the estimate over the second half, and the loss on all data at the end."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    whole = Objective(model, cross_entropy(), [(X, y)])
    x, errors = whole.point, []
    state = hessian_aided_init(x)
    for step in range(STEPS):
        rows = torch.randint(0, len(X), (16,))
        batch, at = Objective(model, cross_entropy(), [(X[rows], y[rows])]), x
        x, state = hessian_aided_step(batch, x, state, seed=seed, lr=0.05, momentum=0.9, correction=correction)
        if step >= STEPS // 2 and step % 5 == 0:
            g = whole.gradient(at)
            errors.append(float((state.v - g).norm() / g.norm()))
    return sum(errors) / len(errors), float(whole.value(x))


def measure() -> Claim:
    """Means over the seeds."""
    found = {k: torch.tensor([run(k, s) for s in SEEDS]).mean(0).tolist() for k in KINDS}
    h, plain, ahead = found["hessian"], found["none"], found["transport"]
    better, best = h[0] < 0.95 * plain[0], h[0] < 0.95 * ahead[0]
    return Claim(
        paper="Fatkhullin, Barakat, Kireeva, He 2023, arXiv 2302.01734",
        claim="a Hessian product between two points estimates gradients better than momentum and than transport",
        theirs="sample complexities eps^-2 (Hessian product) and eps^-2.5 (transport)",
        ours="; ".join(f"{k}: relative error {e:.2f}, loss {v:.3f}" for k, (e, v) in found.items()),
        verdict="holds" if better and best else "holds in part" if better or best else "does not hold here",
        why="both corrections take the lag of momentum away, and noise is what is left; transport does so for one "
        "gradient a step, while the product costs two more",
        name="train.HessianAided",
    )
