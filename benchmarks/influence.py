"""The linear datamodeling score of influence functions on digits and on text: do scores add up to what subsets predict?

    python benchmarks/influence.py [--data digits text] [--subsets 30] [--runs 2] [--tests 40] [--damping 3e-3]
                                   [--seconds 600] [--lines FILE]

A network is trained on 400 examples, and on random halves of them, each `runs` times from different starts, whose
losses are averaged: on digits of scikit-learn, and, with an embedding and an attention, on the words of sentences, of
which it says to which library the function belongs that they describe. For each held-out example the score is
Spearman's correlation, over the subsets, between its loss and the sum of its influences over the subset. The table has
the mean over the held-out examples with a 95 % interval by bootstrap over them, the largest residual with the exact
damped Gauss-Newton matrix, and the seconds of the processor. K-FAC leaves out the penalty, so its damping is larger by
the weight decay.

With `--lines` each finished cell is a line of JSON in that file, and a second call runs only what is missing. A cell is
started while less than `--seconds` have passed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import timing
import torch
from bits import LIBRARIES, sentences
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from frechet import Objective, cross_entropy, identity, l2
from frechet.analyze import Influence, influence

EXAMPLES, DECAY, STEPS = 400, 1e-3, 400
METHODS: dict[str, dict[str, Any]] = {
    "gradients": {},
    "gauss_newton": {"curvature": "gauss_newton"},
    "kfac": {"curvature": "kfac"},
    "ekfac": {"curvature": "ekfac"},
    "arnoldi": {"curvature": "arnoldi", "rank": 100, "seed": 0},
    "nystrom": {"curvature": "nystrom", "rank": 100, "seed": 0},
}


WORDS, LENGTH, WIDTH = 300, 12, 12


class Text(nn.Module):
    """One attention over embedded words, whose places are kept by an embedding of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.asked, self.known, self.told = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.first, self.last = nn.Linear(WIDTH, 24), nn.Linear(24, len(LIBRARIES))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(torch.arange(LENGTH))
        weights = (self.asked(h) @ self.known(h).transpose(-1, -2) / WIDTH**0.5).softmax(-1)
        return self.last(torch.tanh(self.first((h + weights @ self.told(h)).mean(-2))))


def network(data: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if data == "text":
        return Text()
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def examples(data: str) -> tuple[Tensor, Tensor]:
    """All inputs and labels, in a random order."""
    if data == "text":
        texts, labels = sentences()
        rows = [[1 + zlib.crc32(w.encode()) % (WORDS - 1) for w in t.lower().split()[:LENGTH]] for t in texts]
        X, y = torch.tensor([r + [0] * (LENGTH - len(r)) for r in rows]), torch.tensor(labels)
    else:
        digits = load_digits()
        X, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    return X[order], y[order]


def trained(
    data: str, X: Tensor, y: Tensor, weights: Tensor, seeds: list[int]
) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """One network for each row of `weights` ``(networks, examples)``, all at once, by full-batch Adam."""
    models = [network(data, s) for s in seeds]
    parameters, buffers = stack_module_state(models)
    optimizer = torch.optim.Adam(list(parameters.values()), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def loss(p: dict[str, Tensor], w: Tensor) -> Tensor:
        terms = nn.functional.cross_entropy(functional_call(models[0], (p, buffers), (X,)), y, reduction="none")
        return (terms * w).sum() / w.sum() + DECAY / 2 * torch.stack([t.square().sum() for t in p.values()]).sum()

    for _ in range(STEPS):
        optimizer.zero_grad()
        vmap(loss)(parameters, weights).sum().backward()
        optimizer.step()
        schedule.step()
    return models, {n: p.detach() for n, p in parameters.items()}


def losses_of(model: nn.Module, parameters: dict[str, Tensor], X: Tensor, y: Tensor) -> Tensor:
    """(networks, tests)."""

    def one(p: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (X,)), y, reduction="none")

    return vmap(one)(parameters)


def interval(scores: np.ndarray) -> tuple[float, float, float]:
    """The mean and its 95 % interval by bootstrap."""
    draws = np.random.default_rng(0).choice(scores, (2000, len(scores))).mean(1)
    return float(scores.mean()), *(float(q) for q in np.percentile(draws, [2.5, 97.5]))


def scores(
    name: str, model: nn.Module, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor], damping: float
) -> Influence:
    """The influence of the training examples on the loss of each held-out one."""
    objective = Objective(model, cross_entropy(), [known], penalty=l2(DECAY))
    each = [Objective(model, cross_entropy(), [(x[None], t[None])]) for x, t in zip(*asked, strict=True)]
    V = torch.stack([o.gradient() for o in each], 1)
    if name == "gradients":  # their inner products: a curvature that is a multiple of the identity
        return influence(objective, V, damping=0.0, curvature=identity(objective.space), rtol=1e-4)
    extra = DECAY if name in ("kfac", "ekfac") else 0.0
    return influence(objective, V, damping=damping + extra, rtol=1e-4, **METHODS[name])


def measured(
    name: str,
    models: list[nn.Module],
    known: tuple[Tensor, Tensor],
    asked: tuple[Tensor, Tensor],
    damping: float,
    halves: Tensor,
    true: Tensor,
) -> dict[str, Any]:
    """The datamodeling score of a method, for the losses `true` ``(subsets, tests)``."""
    start = time.process_time()
    found = [scores(name, model, known, asked, damping) for model in models]
    seconds = time.process_time() - start
    total = torch.stack([f.scores for f in found]).sum(0)
    predicted = -(halves.double() @ total)  # scores are changes when left out
    each = [scipy.stats.spearmanr(predicted[:, i], true[:, i]).statistic for i in range(true.shape[1])]
    mean, low, high = interval(np.array(each))
    residual = max(f.gauss_newton_residual for f in found)
    return {"method": name, "score": mean, "interval": [low, high], "residual": residual, "seconds": seconds}


def prepared(data: str, subsets: int, runs: int, tests: int) -> tuple[Any, ...]:
    """Networks on all examples, these, those that are asked for, the halves, and the losses of networks on halves."""
    X, y = examples(data)
    known, asked = (X[:EXAMPLES], y[:EXAMPLES]), (X[EXAMPLES:][:tests], y[EXAMPLES:][:tests])
    g = torch.Generator().manual_seed(1)
    halves = torch.stack([torch.randperm(EXAMPLES, generator=g) < EXAMPLES // 2 for _ in range(subsets)]).float()
    seeds = [j % runs for j in range(subsets * runs)]
    models, parameters = trained(data, *known, halves.repeat_interleave(runs, 0), seeds)
    true = losses_of(models[0], parameters, *asked).view(subsets, runs, -1).mean(1)
    models, whole = trained(data, *known, torch.ones(runs, EXAMPLES), list(range(runs)))
    with torch.no_grad():
        for j, model in enumerate(models):
            for n, p in model.named_parameters():
                p.copy_(whole[n][j])
    return models, known, asked, halves, true


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["digits", "text"], choices=["digits", "text"])
    parser.add_argument("--subsets", type=int, default=30)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tests", type=int, default=40)
    parser.add_argument("--damping", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--lines", type=Path, help="where finished cells are kept")
    a = parser.parse_args()
    timing.restart(a.threads)
    torch.set_num_threads(a.threads)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    if a.lines and a.lines.exists():
        for line in a.lines.read_text().splitlines():
            told = json.loads(line)
            cells[told["data"], told["method"]] = told
    start = time.monotonic()
    for data in a.data:
        missing = [name for name in METHODS if (data, name) not in cells]
        models, known, asked, halves, true = prepared(data, a.subsets, a.runs, a.tests) if missing else (None,) * 5
        for name in missing:
            if time.monotonic() - start > a.seconds:
                continue
            told = {"data": data, **measured(name, models, known, asked, a.damping, halves, true)}
            cells[data, name] = told
            if a.lines:
                with a.lines.open("a") as file:
                    file.write(json.dumps(told) + "\n")
        for name in METHODS:
            if c := cells.get((data, name)):
                told = f"{c['score']:.3f} [{c['interval'][0]:.3f}, {c['interval'][1]:.3f}]"
                print(f"{data:7} {name:13} {told}  residual {c['residual']:.2e}  {c['seconds']:.1f} s", flush=True)
    timing.write("influence", timing.record(vars(a) | {"lines": None}, cells=list(cells.values())))


if __name__ == "__main__":
    main()
