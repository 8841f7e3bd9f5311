"""L. Sagun, U. Evci, V. U. Guney, Y. Dauphin, L. Bottou (2017), Empirical analysis of the Hessian of over-parametrized
neural networks, arXiv 1706.04454.

Claim: the Hessian has a bulk near zero and a few outliers; more classes in the data make more outliers, and a wider
network only scales the bulk.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import Objective, cross_entropy, hessian
from frechet.analyze import outliers


def counted(classes: int, width: int) -> tuple[int, float]:
    """The outliers of a trained network on Gaussian clusters, and the parameters' number."""
    torch.manual_seed(0)
    means = 4 * torch.nn.functional.normalize(torch.randn(classes, 12), dim=1)
    y = torch.arange(400) % classes
    X = means[y] + 0.7 * torch.randn(400, 12)
    net = torch.nn.Sequential(torch.nn.Linear(12, width), torch.nn.Tanh(), torch.nn.Linear(width, classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    net = net.double()
    objective = Objective(net, cross_entropy(), [(X.double(), y)])
    found = outliers(hessian(objective), seed=0, most=40)
    return found.count, objective.space.dim


def measure() -> Claim:
    """Two to eight clusters at width 32, and widths 16 to 64 with four clusters."""
    by_class = {k: counted(k, 32)[0] for k in (2, 4, 8)}
    by_width = {w: counted(4, w)[0] for w in (16, 32, 64)}
    grows = by_class[2] < by_class[4] < by_class[8]
    stays = max(by_width.values()) <= 2 * min(by_width.values())
    return Claim(
        paper="Sagun, Evci, Guney, Dauphin, Bottou 2017, arXiv 1706.04454",
        claim="outliers follow the number of classes, not the width",
        theirs="as many outliers as clusters, by eye",
        ours="outliers with 2, 4, 8 clusters: "
        + ", ".join(map(str, by_class.values()))
        + "; at widths 16, 32, 64 with 4 clusters: "
        + ", ".join(map(str, by_width.values())),
        verdict="holds" if grows and stays else "holds in part" if grows or stays else "does not hold here",
        why="an outlier lies above the widest gap of the logarithms of the leading eigenvalues",
        name="outliers",
    )
