"""N. Belrose, A. Scherlis (2024), Understanding gradient descent through the training Jacobian, arXiv 2412.07003.

Claim: the singular values of d x_T / d x_0 fall into three regions: a chaotic one above 1, a bulk at 1 whose left and
right vectors agree, and a stable one below 1. Moves in the bulk hardly change outputs on the data.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet import Objective, cross_entropy
from frechet.analyze import sgd_update, training_regions, trajectory


def measure() -> Claim:
    """A tanh network on digits without the pixels that are always dark, with more weights than its 15 digits fix."""
    torch.manual_seed(0)
    X, y = load_digits(return_X_y=True)
    X = torch.from_numpy(X[:15].reshape(-1, 8, 8)[:, ::2, ::2].reshape(-1, 16) / 16)
    X, y = X[:, X.std(0) > 0], torch.from_numpy(y[:15])
    model = torch.nn.Sequential(torch.nn.Linear(X.shape[1], 20), torch.nn.Tanh(), torch.nn.Linear(20, 10)).double()
    rows = [torch.randint(0, 15, (8,)) for _ in range(60)]
    objective = Objective(model, cross_entropy(), [(X, y)])
    run = trajectory(objective, rows, sgd_update(1.0))
    found = training_regions(run)
    bulk = (found.values - 1).abs() < 0.01
    aligned = float(found.alignments[bulk].median()) if found.bulk else 0.0
    rest = float(found.alignments[(found.values > 1.1) | (found.values < 0.9)].median())
    three = min(found.chaotic, found.stable, found.bulk) >= 10 and aligned > 0.98
    return Claim(
        paper="Belrose, Scherlis 2024, arXiv 2412.07003",
        claim="three regions of the training Jacobian",
        theirs="a chaotic, a bulk and a stable region; the bulk's left and right vectors nearly agree",
        ours=f"{objective.space.dim} parameters, {run.steps} steps, {found.trivial} exact null directions taken "
        f"off: {found.chaotic} values above 1.1 (up to {float(found.values[0]):.3g}), {found.bulk} within 1 % of 1, "
        f"{found.stable} below 0.9, {found.between} between; |u'v| {aligned:.3f} in the bulk, {rest:.2f} outside",
        verdict="holds" if three else "holds in part",
        why="with few data the bulk is no longer made of exact null directions alone: pixels that are never on and "
        "shifts of all logits are counted apart",
        name="training_regions",
    )
