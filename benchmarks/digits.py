"""A small conv net trained on the digits, and the truth about it from the dense Hessian.

The first 600 digits of a fixed permutation come in three batches of 200: with equal batches every library multiplies by
the same matrix, also those that average batch means. 2 738 parameters: the dense float64 Hessian takes a minute or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from models import Batch, Problem
from reference import dense_hessian
from sklearn.datasets import load_digits
from torch import Tensor, nn

EXAMPLES, BATCH = 600, 200


@dataclass(frozen=True, eq=False)
class Truth:
    """The Hessian in float64, its eigenvalues from largest to smallest, and its trace."""

    H: Tensor
    values: Tensor
    trace: float


def trained() -> tuple[Problem, list[Batch], float]:
    """The problem, its batches, and the accuracy on them."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:EXAMPLES]
    inputs, targets = inputs[order], targets[order]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for x, y in zip(inputs.split(64), targets.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.zero_grad()
    accuracy = (model(inputs).argmax(1) == targets).double().mean().item()
    problem = Problem("digits", model, nn.CrossEntropyLoss(), lambda _: (inputs, targets))
    return problem, list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True)), accuracy


def truth(problem: Problem, batches: list[Batch], kept: Path | None = None) -> Truth:
    """The truth: read from the file `kept` if that is of these parameters, else computed and written there."""
    x = torch.cat([p.detach().flatten() for p in problem.parameters])
    known = torch.load(kept) if kept is not None and kept.exists() else None
    if known is not None and torch.equal(known["x"], x):
        H = known["H"]
    else:
        H = dense_hessian(problem.to(torch.float64), [(inputs.double(), targets) for inputs, targets in batches])
        if kept is not None:
            torch.save({"x": x, "H": H}, kept)
    return Truth(H, torch.linalg.eigvalsh(H).flip(0), float(H.trace()))
