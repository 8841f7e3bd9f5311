"""Which training examples does the test loss depend on? One solve with the curvature, checked by retraining.

    python examples/solve_with_curvature.py

At a minimum of the training loss L, taking example i out moves the parameters by about G^-1 g_i / N, with g_i its
gradient and G the curvature, and so the test loss by about s' g_i / N with G s = g_test: one system for all examples
(Koh and Liang 2017, arXiv 1703.04730). The model is softmax regression with weight decay, for which G is the Hessian,
and which Newton steps train to its minimum again, so the prediction can be checked. A randomized Nystrom preconditioner
shows what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, cross_entropy, gauss_newton, hessian, identity, l2, solve
from frechet.linalg import cg, nystrom

TRAIN, DECAY, RANK = 400, 1e-2, 60


@dataclass(frozen=True)
class Influence:
    example: int
    predicted: float  # change of the test loss
    measured: float


@dataclass(frozen=True)
class Found:
    gradient_norm: float  # of the training loss at its minimum
    plain: int  # iterations of cg
    preconditioned: int
    influences: tuple[Influence, ...]


def minimum(objective: Objective, x: Tensor) -> Tensor:
    """Newton's method with halved steps, for a convex objective."""
    for _ in range(20):
        gradient, value, scale = objective.gradient(x), objective.value(x), 1.0
        if float(objective.space.norm(gradient)) < 1e-10:
            break
        step = solve(hessian(objective, x), gradient, rtol=1e-4).x
        while scale > 1e-3 and objective.value(x - scale * step) > value:
            scale /= 2
        x = x - scale * step
    return x


def run(examples: int = 5) -> Found:
    """The training examples with the largest predicted influence on the test loss, each checked by retraining."""
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images) / 16, torch.from_numpy(labels)
    model = nn.Linear(64, 10).double()

    def on(rows: slice) -> Objective:
        return Objective(model, cross_entropy(), [(X[rows], y[rows])])

    data, test = on(slice(0, TRAIN)), on(slice(TRAIN, None))
    train = Objective(model, cross_entropy(), [(X[:TRAIN], y[:TRAIN])], penalty=l2(DECAY))
    x = minimum(train, train.space.zeros())

    G = gauss_newton(data, x=x)
    damped = G + DECAY * identity(G.domain)  # the penalty's Hessian
    target = test.gradient(x)
    plain = cg(damped, target, rtol=1e-8).checked()
    quick = cg(damped, target, rtol=1e-8, preconditioner=nystrom(G, rank=RANK, damping=DECAY, seed=0)).checked()

    predicted = torch.tensor([float(quick.x @ on(slice(i, i + 1)).gradient(x)) / TRAIN for i in range(TRAIN)])
    before, rows = float(test.value(x)), []
    for i in predicted.abs().topk(examples).indices.tolist():
        without = train + (-1 / TRAIN) * on(slice(i, i + 1))  # objectives add up
        rows.append(Influence(i, float(predicted[i]), float(test.value(minimum(without, x))) - before))
    return Found(float(train.space.norm(train.gradient(x))), plain.iterations, quick.iterations, tuple(rows))


def main() -> None:
    found = run()
    print(f"gradient norm at the minimum: {found.gradient_norm:.1e}")
    print(f"iterations of cg: {found.plain} plain, {found.preconditioned} preconditioned by Nystrom of rank {RANK}\n")
    print(f"{'left out':>8}{'change of the test loss: predicted':>37}{'retrained':>12}")
    for row in found.influences:
        print(f"{row.example:8d}{row.predicted:37.5f}{row.measured:12.5f}")


if __name__ == "__main__":
    main()
