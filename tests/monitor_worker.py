"""Train under DistributedDataParallel with and without monitors, on each of several processes."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frechet import Objective, cross_entropy
from frechet.analyze import Monitor
from training_runs import made, probe, state_of


def trained(rank: int, name: str, monitor=None):
    model, X, y = made(name)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    watch = None if monitor is None else monitor(model, X, y)
    random.seed(rank), np.random.seed(rank), torch.manual_seed(rank)
    losses = []
    for step in range(1, 9):
        rows = torch.randint(0, 40, (8,))
        optimizer.zero_grad()
        with wrapped.no_sync():  # gradients accumulate over two batches
            nn.functional.cross_entropy(wrapped(X[rows]), y[rows]).backward()
        loss = nn.functional.cross_entropy(wrapped(X[rows + 0]), y[rows])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        if watch is not None:
            watch.step(step, optimizer)
    return state_of(model, optimizer, losses), [] if watch is None else watch.readings


def main(rank: int, folder: Path) -> dict:
    def alone(model, X, y):
        return Monitor(probe(model, X, y), seed=0, every=2, folder=folder / "alone")

    def together(model, X, y):
        part = [(X[i : i + 8], y[i : i + 8]) for i in range(16 * rank, 16 * rank + 16, 8)]
        objective = Objective(model, cross_entropy(), part, group="world")
        return Monitor(objective, quantities=("sharpness",), seed=0, every=2, folder=folder / "together")

    plain, _ = trained(rank, "norms")
    watched, of_one = trained(rank, "norms", alone)
    other, _ = trained(rank, "plain")
    shared, of_all = trained(rank, "plain", together)
    numbers = [
        [(r.step, r["sharpness"].value, r["sharpness"].residual) for r in readings] for readings in (of_one, of_all)
    ]
    return {
        "plain": plain,
        "watched": watched,
        "other": other,
        "shared": shared,
        "alone": numbers[0],
        "together": numbers[1],
    }
