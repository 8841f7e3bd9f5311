"""How much loss and accuracy does a net keep when weights go, by which rule?

    python benchmarks/prune.py [--seeds 5] [--methods NAME ...] [--seconds 600] [--lines FILE]

A convolutional net for the digits (5 978 parameters), trained on 1 297 images and tried on 500; no training afterwards.
Rules: magnitude; the diagonal of the Fisher matrix (OBD); the inputs' second moments of each layer, column by column,
in the manner of SparseGPT, with the same sparsity in each layer and in one level; ours by the Fisher matrix of 400
examples (M-FAC), by K-FAC and by apoptosis, with joint compensation where there is an inverse. Levels: 16 to 95 %, and
those of the table.

With `--lines` each finished cell is a line of JSON in that file, and a second call runs only what is missing. A cell is
started while less than `--seconds` have passed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import scipy.stats
import timing
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from frechet import Objective, cross_entropy
from frechet.compress import inverse_curvature, prune, sparsity_schedule

MARKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVELS = tuple(sorted({*sparsity_schedule(0.95, 16), *MARKS}))
METHODS = ("magnitude", "obd", "sparsegpt", "fisher", "kfac", "apoptosis")


def data() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(images)[order].view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)[order]


def trained(seed: int, X: Tensor, y: Tensor) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    epochs, X = 60, X.float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=draw).split(128):
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in net.parameters())
            (nn.functional.cross_entropy(net(X[rows]), y[rows]) + 5e-4 * penalty).backward()
            optimizer.step()
        schedule.step()
    return net.double()


def sparsegpt(net: nn.Sequential, X: Tensor, sparsity: float) -> None:
    """Prune every layer in place: the inputs' H = X X', columns in turn, each one's error moved to those after it."""
    for layer in net:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            inputs = X
            if isinstance(layer, nn.Conv2d):
                unfolded = nn.functional.unfold(X, 3, padding=1, stride=layer.stride)
                inputs = unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
            W = layer.weight.data.reshape(len(layer.weight), -1)
            H = inputs.T @ inputs / len(inputs)
            dead = H.diagonal() == 0
            W[:, dead] = 0.0
            H += torch.diag(dead.double() + 0.01 * H.diagonal().mean())
            U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
            scores = (W / U.diagonal()).square()
            gone = torch.zeros_like(W, dtype=torch.bool)
            gone.view(-1)[scores.reshape(-1).argsort()[: round(sparsity * W.numel())]] = True
            for j in range(W.shape[1]):
                error = torch.where(gone[:, j], W[:, j], 0.0) / U[j, j]
                W[:, j:] -= error[:, None] * U[j, j:]
                W[gone[:, j], j] = 0.0
        with torch.no_grad():
            X = layer(X)


def cell(method: str, seed: int) -> dict[str, Any]:
    """Loss on the training images, and loss and accuracy on the others, at each mark."""
    X, y = data()
    net = trained(seed, X[:1297], y[:1297])
    objective = Objective(net, cross_entropy(), [(X[:650], y[:650]), (X[650:1297], y[650:1297])])
    told: dict[str, Any] = {"method": method, "seed": seed, "start": float(objective.value()), "rows": {}}

    def note(level: float) -> None:
        with torch.no_grad():
            out = net(X[1297:])
        told["rows"][str(level)] = {
            "train": float(objective.value()),
            "test": float(nn.functional.cross_entropy(out, y[1297:])),
            "accuracy": float((out.argmax(1) == y[1297:]).double().mean()),
        }

    def observe(x: Tensor, level: float) -> None:
        before = [p.detach().clone() for p in net.parameters()]
        nn.utils.vector_to_parameters(x, net.parameters())
        note(level)
        for p, b in zip(net.parameters(), before, strict=True):
            p.data.copy_(b)

    start = time.perf_counter()
    if method == "sparsegpt":
        before = {n: t.clone() for n, t in net.state_dict().items()}
        for level in MARKS:
            net.load_state_dict(before)
            sparsegpt(net, X[:1297], level)
            note(level)
    elif method in ("fisher", "kfac"):
        damping = {"fisher": 1e-4, "kfac": 1e-3}[method]

        def inverse(objective: Objective, x: Tensor, kept: Tensor) -> Any:
            drawn = 400 if method == "fisher" else None
            return inverse_curvature(objective, method, damping=damping, examples=drawn, seed=0, x=x, kept=kept)

        prune(objective, LEVELS, inverse=inverse, observe=observe)
    else:
        prune(objective, LEVELS, ranking=method, observe=observe)
    told["seconds"] = time.perf_counter() - start
    told["rows"] = {str(m): told["rows"][str(m)] for m in MARKS}
    return told


def table(cells: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Means over seeds, and the interval of the paired difference to magnitude."""
    for quantity in ("train", "accuracy"):
        print(
            f"\n{quantity} {'loss' if quantity == 'train' else 'on the test images'}".ljust(16),
            *(f"{m:>16.0%}" for m in MARKS),
        )
        for method in METHODS:
            line = []
            seeds = [s for m, s in cells if m == method]
            for mark in MARKS:
                own = [cells[method, s]["rows"][str(mark)][quantity] for s in seeds]
                differences = [
                    v - cells["magnitude", s]["rows"][str(mark)][quantity]
                    for s, v in zip(seeds, own, strict=True)
                    if ("magnitude", s) in cells
                ]
                if not own:
                    continue
                d = torch.tensor(differences)
                half = (
                    float(scipy.stats.t.ppf(0.975, len(d) - 1) * d.std() / math.sqrt(len(d)))
                    if len(d) > 1
                    else math.nan
                )
                line.append(f"{sum(own) / len(own):6.3f} ({float(d.mean()):+.2f}±{half:.2f})")
            print(method.ljust(16), *line, f" {len(seeds)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--lines", type=Path, help="where finished cells are kept")
    a = parser.parse_args()
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    if a.lines and a.lines.exists():
        for line in a.lines.read_text().splitlines():
            told = json.loads(line)
            cells[told["method"], told["seed"]] = told
    start = time.monotonic()
    for seed in range(a.seeds):
        for method in a.methods:
            if (method, seed) in cells or time.monotonic() - start > a.seconds:
                continue
            cells[method, seed] = told = cell(method, seed)
            if a.lines:
                with a.lines.open("a") as file:
                    file.write(json.dumps(told) + "\n")
            print(f"{method} {seed}: {told['seconds']:.0f} s", flush=True)
    table(cells)
    results = list(cells.values())
    print(f"\nwritten: {timing.write('prune', timing.record(vars(a) | {'lines': None}, results=results)).name}")


if __name__ == "__main__":
    main()
