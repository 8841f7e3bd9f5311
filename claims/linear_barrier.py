"""S. P. Singh, L. Adilova, M. Kamp, A. Fischer, B. Schoelkopf, T. Hofmann (2024), Landscaping linear mode connectivity,
arXiv 2406.16300.

Claim: barriers between two runs are explained by curvature along the segment, layer by layer too, and are small between
runs that part late.
"""

from __future__ import annotations

import copy

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet import Objective, cross_entropy
from frechet.analyze import Barrier, barrier


def measure() -> Claim:
    """Perceptrons on digits: two runs part after 0, 20 or 300 steps and train on with different batches."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X[:600] / 16), torch.from_numpy(y[:600])

    def train(model: torch.nn.Module, steps: int, seed: int) -> torch.nn.Module:
        model, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        for _ in range(steps):
            rows = torch.randint(0, 600, (32,), generator=draw)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
        return model

    torch.manual_seed(0)
    first = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
    ).double()
    heights, errors = [], []

    def missed(found: Barrier) -> float:
        return float((found.predicted - found.measured).abs().max() / found.measured.abs().max())

    for shared in (0, 20, 300):
        root = train(first, shared, 0)
        ends = [train(root, 400, seed) for seed in (1, 2)]
        objective = Objective(ends[0], cross_entropy(), [(X, y)])
        x0, x1 = (Objective(m, cross_entropy(), [(X, y)]).point for m in ends)
        whole = barrier(objective, x0, x1, nodes=24)
        heights.append(whole.height)
        for layer in ("0.*", "2.*", "4.*"):
            one = barrier(objective, x0, x1, nodes=24, restrict=layer)
            errors.append(missed(one))
        errors.append(missed(whole))
    falls = heights[0] > heights[1] >= heights[2]
    exact = max(errors) < 0.01
    return Claim(
        paper="Singh, Adilova, Kamp, Fischer, Schoelkopf, Hofmann 2024, arXiv 2406.16300",
        claim="curvature along the segment gives the barrier, whole and layer by layer; runs that part late have none",
        theirs="a model of the height that predicts layerwise connectivity",
        ours=f"height after parting at step 0, 20, 300: {', '.join(f'{h:.1e}' for h in heights)}; curvature at 24 "
        f"nodes predicts the excess on the segment to {100 * max(errors):.2g} % at worst, over 12 segments",
        verdict="holds" if falls and exact else "holds in part" if exact or falls else "does not hold here",
        why="the prediction is an identity; both runs begin alike and train at a small rate, so barriers are low",
        name="barrier",
    )
