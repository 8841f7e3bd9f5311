"""The linear datamodeling score of influence functions on digits: do scores add up to what subsets predict?

    python benchmarks/influence.py [--subsets 30] [--runs 2] [--tests 40] [--damping 3e-3] [--threads 1]

A network is trained on 400 digits of scikit-learn, and on random halves of them, each `runs` times from different
starts, whose losses are averaged. For each held-out digit the score is Spearman's correlation, over the subsets,
between its loss and the sum of its influences over the subset. The table has the mean over the held-out digits with a
95 % interval by bootstrap over them, the largest residual with the exact damped Gauss-Newton matrix, and the seconds.
K-FAC leaves out the penalty, so its damping is larger by the weight decay.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import scipy
import timing
import torch
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


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def trained(X: Tensor, y: Tensor, weights: Tensor, seeds: list[int]) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """One network for each row of `weights` ``(networks, examples)``, all at once, by full-batch Adam."""
    models = [network(s) for s in seeds]
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


def scores(name: str, model: nn.Module, digits: tuple[Tensor, Tensor], tests: slice, damping: float) -> Influence:
    """The influence of the training digits on the loss of each held-out one."""
    X, y = digits
    objective = Objective(model, cross_entropy(), [(X[:EXAMPLES], y[:EXAMPLES])], penalty=l2(DECAY))
    each = [Objective(model, cross_entropy(), [(X[i : i + 1], y[i : i + 1])]) for i in range(tests.start, tests.stop)]
    V = torch.stack([o.gradient() for o in each], 1)
    if name == "gradients":  # their inner products: a curvature that is a multiple of the identity
        return influence(objective, V, damping=0.0, curvature=identity(objective.space), rtol=1e-4)
    extra = DECAY if name in ("kfac", "ekfac") else 0.0
    return influence(objective, V, damping=damping + extra, rtol=1e-4, **METHODS[name])


def measured(
    name: str,
    models: list[nn.Module],
    digits: tuple[Tensor, Tensor],
    tests: slice,
    damping: float,
    halves: Tensor,
    true: Tensor,
) -> dict[str, Any]:
    """The datamodeling score of a method, for the losses `true` ``(subsets, tests)``."""
    start = time.perf_counter()
    found = [scores(name, model, digits, tests, damping) for model in models]
    seconds = time.perf_counter() - start
    total = torch.stack([f.scores for f in found]).sum(0)
    predicted = -(halves.double() @ total)  # scores are changes when left out
    each = [scipy.stats.spearmanr(predicted[:, i], true[:, i]).statistic for i in range(true.shape[1])]
    mean, low, high = interval(np.array(each))
    residual = max(f.gauss_newton_residual for f in found)
    return {"method": name, "score": mean, "interval": [low, high], "residual": residual, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=30)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tests", type=int, default=40)
    parser.add_argument("--damping", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    torch.set_num_threads(arguments["threads"])
    data, g = load_digits(), torch.Generator().manual_seed(0)
    X, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(X), generator=g)
    X, y = X[order], y[order]
    known, tests = (X[:EXAMPLES], y[:EXAMPLES]), slice(EXAMPLES, EXAMPLES + arguments["tests"])
    runs, subsets = arguments["runs"], arguments["subsets"]
    halves = torch.stack([torch.randperm(EXAMPLES, generator=g) < EXAMPLES // 2 for _ in range(subsets)]).float()
    seeds = [j % runs for j in range(subsets * runs)]
    models, parameters = trained(*known, halves.repeat_interleave(runs, 0), seeds)
    true = losses_of(models[0], parameters, X[tests], y[tests]).view(subsets, runs, -1).mean(1)
    models, whole = trained(*known, torch.ones(runs, EXAMPLES), list(range(runs)))
    with torch.no_grad():
        for j, model in enumerate(models):
            for n, p in model.named_parameters():
                p.copy_(whole[n][j])
    cells = []
    for name in METHODS:
        cells.append(measured(name, models, (X, y), tests, arguments["damping"], halves, true))
        c = cells[-1]
        told = f"{c['score']:.3f} [{c['interval'][0]:.3f}, {c['interval'][1]:.3f}]"
        print(f"{name:13} {told}  residual {c['residual']:.2e}  {c['seconds']:.1f} s", flush=True)
    timing.write("influence", timing.record(arguments, cells=cells))


if __name__ == "__main__":
    main()
