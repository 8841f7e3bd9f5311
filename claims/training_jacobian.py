"""N. Belrose, A. Scherlis (2024), Understanding gradient descent through the training Jacobian, arXiv 2412.07003.

Claim: the singular values of d x_T / d x_0 fall into three regions: a chaotic one above 1, a bulk at 1 whose left and
right vectors agree, and a stable one below 1.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet import Objective, cross_entropy
from frechet.analyze import sgd_update, training_jacobian, trajectory


def measure() -> Claim:
    """A tanh network on digits without the pixels that are always dark, so that softmax shifts alone are trivial."""
    torch.manual_seed(0)
    X, y = load_digits(return_X_y=True)
    X = torch.from_numpy(X[:300].reshape(-1, 8, 8)[:, ::2, ::2].reshape(-1, 16) / 16)
    X, y = X[:, X.std(0) > 0], torch.from_numpy(y[:300])
    hidden = 5
    model = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 10)
    ).double()
    rows = [torch.randint(0, 300, (64,)) for _ in range(60)]
    run = trajectory(Objective(model, cross_entropy(), [(X, y)]), rows, sgd_update(1.0))
    J = training_jacobian(run)
    U, s, Vt = torch.linalg.svd(J @ torch.eye(J.shape[1], dtype=torch.float64))
    aligned = (U * Vt.T).sum(0).abs()
    bulk, chaotic, stable = (s - 1).abs() < 0.02, s > 1.1, s < 0.9
    trivial = hidden + 1  # the same number added to all logits, by each hidden unit and by the bias
    beyond = int(bulk.sum()) - trivial
    three = int(chaotic.sum()) > 5 and int(stable.sum()) > 5 and beyond > 5
    return Claim(
        paper="Belrose, Scherlis 2024, arXiv 2412.07003",
        claim="three regions of the training Jacobian",
        theirs="a chaotic, a bulk and a stable region; the bulk's vectors hardly move",
        ours=f"{J.shape[0]} parameters, {run.steps} steps: {int(chaotic.sum())} above 1.1, {int(bulk.sum())} within "
        f"2 % of 1 ({trivial} of them softmax shifts), {int(stable.sum())} below 0.9; |u'v| in the bulk "
        f"{float(aligned[bulk].median()):.2f}",
        verdict="holds" if three else "holds in part",
        why="on so small a network the bulk is made of exact null directions, which are taken off before it is counted",
        name="training_jacobian",
    )
