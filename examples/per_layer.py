"""Which layer holds the curvature?

    python examples/per_layer.py

A small convolutional net is trained on the handwritten digits. For every module: its part of the trace of the Hessian
with an interval, the largest eigenvalue of its diagonal block, and how much the loss grows when its weights are moved
by a small random vector d, beside what the trace predicts: E L(x + d) - L(x) is about |d|^2 / (2 size) times the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

from frechet import Objective, cross_entropy, hessian
from frechet.analyze import layer_tops, layer_traces

RADIUS, DRAWS = 0.05, 20


@dataclass(frozen=True)
class Row:
    name: str
    size: int
    trace: float
    lower: float
    upper: float
    top: float
    residual: float
    predicted: float  # mean increase of the loss under random moves of length RADIUS
    measured: float


def trained() -> Objective:
    images, labels = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(96, 24),
        nn.Tanh(),
        nn.Linear(24, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(8):
        for rows in torch.randperm(len(y)).split(64):
            loss = nn.functional.cross_entropy(model(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Objective(model.eval(), cross_entropy(), list(zip(X.split(600), y.split(600), strict=True)))


def run() -> list[Row]:
    objective = trained()
    space, x = objective.space, objective.point
    traces = layer_traces(hessian(objective), seed=0, probes=30)
    tops = {top.name: top for top in layer_tops(objective, seed=0).layers}
    rows = []
    for module in traces.modules:
        trace, top = module.trace, tops[module.name]
        lower, upper = (float(end) for end in trace.interval())
        part = space.indices(space.restrict(f"{module.name}.*"))
        increases = []
        for probe in range(DRAWS):
            direction = space.zeros()
            direction[part] = space.random(probe, 1)[part]  # random signs: every entry of one size
            direction *= RADIUS / module.size**0.5
            # the mean of both signs: first derivatives cancel
            increases += [float(objective.value(x + direction)), float(objective.value(x - direction))]
        measured = sum(increases) / len(increases) - float(objective.value(x))
        predicted = RADIUS**2 / (2 * module.size) * float(trace)
        rows.append(
            Row(module.name, module.size, float(trace), lower, upper, top.value, top.residual, predicted, measured)
        )
    return rows


def main() -> None:
    print(f"{'module':>8}{'size':>7}{'trace':>18}{'top eigenvalue':>18}{'increase: predicted':>22}{'measured':>10}")
    for row in run():
        trace = f"{row.trace:.2f} ± {row.upper - row.trace:.2f}"
        top = f"{row.top:.3f} ± {row.residual:.3f}"
        print(f"{row.name:>8}{row.size:7d}{trace:>18}{top:>18}{row.predicted:22.2e}{row.measured:10.2e}")


if __name__ == "__main__":
    main()
