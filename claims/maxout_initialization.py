"""H. Tseran, G. Montúfar (2023), Expected gradients of maxout networks, arXiv 2301.06956.

Claim: weights of variance c / fan_in with c = 1 / E max(N_1, ..., N_K)^2 avoid vanishing and exploding gradients in
wide maxout networks, and improve the training of deep ones over the variance 2 / fan_in of He's initialization.

Measured: maxout networks of rank 5, depth 20 and width 128 on digits. The mean log of |J u|^2 by layers along the
inputs and across them, and the training loss after 150 steps of Adam, three seeds.
"""

from __future__ import annotations

import math

import torch
from claim import Claim
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet.train import Maxout, jacobian_moments, maxout_variance

DEPTH, WIDTH, RANK = 20, 128, 5


def network(variance: float, seed: int) -> nn.Module:
    layers: list[nn.Module] = [Maxout(64 if d == 0 else WIDTH, WIDTH, RANK, seed=100 * seed + d) for d in range(DEPTH)]
    with torch.no_grad():
        for layer in layers:
            layer.linear.weight.mul_(math.sqrt(variance / maxout_variance(RANK)))  # type: ignore[union-attr]
    torch.manual_seed(seed)
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def final_loss(model: nn.Module, X: Tensor, y: Tensor) -> float:
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    loss = torch.zeros(())
    for step in range(150):
        rows = torch.randint(0, len(X), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X[rows]), y[rows])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(X), y))


def measure() -> Claim:
    data = load_digits()
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    X = X / X.square().sum(1, keepdim=True).sqrt() * 8
    c, ends = maxout_variance(RANK), [str(d) for d in range(DEPTH)]
    drift, across, losses = {}, {}, {}
    for name, variance in (("c", c), ("He", 2.0)):
        model = network(variance, 0)
        along = jacobian_moments(model, X[:64], seed=0, probes=1, along=X[:64])
        apart = jacobian_moments(model, X[:64], seed=0, probes=2)
        drift[name] = float(along.log_means[along.names.index(ends[-1])])
        across[name] = float(apart.log_means[apart.names.index(ends[-1])])
        losses[name] = [final_loss(network(variance, seed), X, y) for seed in range(3)]
    better = max(losses["c"]) < min(losses["He"])
    flat = abs(drift["c"]) < 0.1 * abs(drift["He"])
    return Claim(
        paper=__doc__.splitlines()[0],
        claim="The variance c / fan_in avoids vanishing and exploding gradients in deep maxout networks.",
        theirs="deep maxout networks train where He's variance fails",
        ours=f"log |J u|^2 at depth {DEPTH}: along the inputs {drift['c']:.1f} (He {drift['He']:.1f}), across them "
        f"{across['c']:.1f} (He {across['He']:.1f}); loss after 150 steps "
        f"{sum(losses['c']) / 3:.3f} (He {sum(losses['He']) / 3:.3g})",
        verdict="holds in part" if flat and better else "does not hold here",
        why="Outputs and |J u|^2 along the inputs keep their size. Across the inputs each layer multiplies |J u|^2 by "
        f"c = {c:.3f}, down to the inputs' own share of about 1 / {WIDTH}.",
        name="frechet.train.Maxout",
    )
