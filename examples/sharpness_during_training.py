"""How sharp does the loss get while gradient descent trains, and where is the limit of its learning rate?

    python examples/sharpness_during_training.py

A tanh network is trained on handwritten digits by plain gradient descent with a constant learning rate. Every few steps
the largest Hessian eigenvalue is computed, started from the vector found before. It rises until it meets 2 / rate,
above which gradient descent is unstable, and then hovers there: the edge of stability (Cohen and others 2021, arXiv
2103.00065).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, eigsh, hessian, squared_error
from frechet.analyze import stable_learning_rate

EXAMPLES, RATE, STEPS, EVERY = 200, 1.0, 600, 60


@dataclass(frozen=True)
class Row:
    step: int
    loss: float
    sharpness: float
    residual: float
    limit: float  # largest stable learning rate at this point
    products: int


def make() -> Objective:
    """The network and the first digits, as an objective."""
    images, labels = load_digits(return_X_y=True)
    X, Y = torch.from_numpy(images[:EXAMPLES]).float() / 16, nn.functional.one_hot(torch.from_numpy(labels[:EXAMPLES]))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return Objective(model, squared_error(), [(X - X.mean(), Y.float())])


def run(rate: float = RATE, steps: int = STEPS, every: int = EVERY) -> list[Row]:
    """Train by gradient descent; one row per `every` steps."""
    objective, rows, start = make(), [], None
    x = objective.point
    for step in range(steps + 1):
        if step % every == 0:
            top = eigsh(hessian(objective, x), 1, seed=0, rtol=1e-2, x0=start)
            start = top.vectors  # the next Hessian is close to this one
            sharpness, residual = float(top.values[0]), float(top.residuals[0])
            limit = stable_learning_rate(sharpness, residual)
            bound = float("inf") if limit is None else limit.value
            rows.append(Row(step, float(objective.value(x)), sharpness, residual, bound, top.products))
        x = x - rate * objective.gradient(x)
    return rows


def main() -> None:
    print(f"gradient descent with learning rate {RATE}: unstable where the sharpness exceeds {2 / RATE:g}\n")
    print(f"{'step':>5}{'loss':>10}{'sharpness':>19}{'2 / sharpness':>16}{'products':>10}")
    for row in run():
        bar = f"{row.sharpness:.3f} ± {row.residual:.3f}"
        print(f"{row.step:5d}{row.loss:10.4f}{bar:>19}{row.limit:16.3f}{row.products:10d}")


if __name__ == "__main__":
    main()
