"""Train with M-FAC under DistributedDataParallel, each process on its part of the data."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frechet.train import MFAC


def trained(model: nn.Module, forward: nn.Module, X: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    optimizer = MFAC(model.parameters(), window=3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(X), y).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def main(rank: int, folder: Path | None) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 3, (12,))
    if folder is None:
        return {"parameters": trained(model, model, X, y)}
    return {"parameters": trained(model, DistributedDataParallel(model), X[rank::2], y[rank::2])}
