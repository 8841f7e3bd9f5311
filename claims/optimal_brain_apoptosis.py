"""M. Sun et al. (2025), Optimal brain apoptosis, ICLR, arXiv 2502.17941.

Claim: importances from products with the whole Hessian, the entries between layers among them, tell better what the
removal of a channel does to the loss. Tried on a convolutional net for the digits: 72 channels and neurons, each with
the next layer's weights that read it; rank correlation with the measured increase of the loss, over three seeds.
"""

from __future__ import annotations

import torch
from claim import Claim
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, cross_entropy
from frechet.compress import groups_along, saliency

GROUPS = (
    ({"0.weight": 0, "0.bias": 0, "2.weight": 1}, 8),
    ({"2.weight": 0, "2.bias": 0, "4.weight": 1}, 16),
    ({"4.weight": 0, "4.bias": 0, "7.weight": 1}, 16),
    ({"7.weight": 0, "7.bias": 0, "9.weight": 1}, 32),
)


def trained(seed: int) -> Objective:
    """A net of about 6 000 parameters after 30 epochs."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images[:1000]).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels[:1000])
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    optimizer, draw = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2), torch.Generator().manual_seed(0)
    for _ in range(30):
        for rows in torch.randperm(len(y), generator=draw).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
    return Objective(net.double(), cross_entropy(), [(X.double(), y)])


def increases(objective: Objective, groups: list[Tensor]) -> list[float]:
    """The loss without each group, over the loss with all."""
    points = [objective.point.index_fill(0, c, 0.0) for c in groups]
    return [float(objective.value(x) - objective.value()) for x in points]


def measure() -> Claim:
    """Rank correlations of five importances."""
    told: dict[str, list[float]] = {}
    for seed in range(3):
        o = trained(seed)
        groups = [c for axes, number in GROUPS for c in groups_along(o.space, axes, number)]
        truth = increases(o, groups)
        for name, scores in (
            ("magnitude", saliency(o, "magnitude", groups=groups)),
            ("obd", saliency(o, "obd", groups=groups)),
            ("apoptosis", saliency(o, "apoptosis", groups=groups)),
            ("within", saliency(o, "quadratic", groups=groups, across=False)),
            ("whole", saliency(o, "quadratic", groups=groups)),
        ):
            told.setdefault(name, []).append(float(spearmanr(scores, truth)[0]))
    mean = {name: sum(values) / len(values) for name, values in told.items()}
    whole = all(a > b for a, b in zip(told["whole"], told["within"], strict=True))
    rank = max(mean["apoptosis"], mean["whole"]) > max(mean["magnitude"], mean["obd"])
    return Claim(
        paper="Sun et al. 2025, arXiv 2502.17941",
        claim="the Hessian's entries between layers tell better which channels can go",
        theirs="accuracies after pruning and training; no rank correlation is given",
        ours=f"rank correlation with the measured increase: {mean['apoptosis']:.2f} by apoptosis, "
        f"{mean['whole']:.2f} by the whole quadratic form of each group and {mean['within']:.2f} by that without "
        f"entries between layers; {mean['magnitude']:.2f} by magnitude, {mean['obd']:.2f} by the diagonal (OBD)",
        verdict="holds" if whole and rank else "holds in part" if whole or rank else "does not hold here",
        why="exact products rank far better than a diagonal or magnitudes; entries between layers add nothing here, as "
        "removals reach beyond the second order",
        name="compress.saliency",
    )
