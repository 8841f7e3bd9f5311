"""Train with each optimizer under DistributedDataParallel, each process on its part of the data."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frechet.train import KFAC, MFAC, GaussNewton

LOSS = nn.CrossEntropyLoss()
OPTIMIZERS: dict[str, Callable[[nn.Module, nn.Module], torch.optim.Optimizer]] = {  # of the model, and of its wrapper
    "KFAC": lambda model, _: KFAC(model, refresh=2),
    "MFAC": lambda model, _: MFAC(model.parameters(), window=3),
    "GaussNewton": lambda _, forward: GaussNewton(
        forward, LOSS, solver="cg", damping=0.1, stop=None, max_iterations=200
    ),
}


def trained(name: str, wrapped: bool, part: slice) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = torch.randn(12, 6, dtype=torch.float64)[part], torch.randint(0, 3, (12,))[part]
    forward = DistributedDataParallel(model) if wrapped else model
    optimizer = OPTIMIZERS[name](model, forward)
    for _ in range(5):
        optimizer.zero_grad()
        LOSS(forward(X), y).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def main(rank: int, folder: Path | None) -> dict[str, list[Tensor]]:
    """The parameters that each optimizer ends with; on one process alone without `folder`."""
    part = slice(None) if folder is None else slice(rank, None, 2)
    return {name: trained(name, folder is not None, part) for name in OPTIMIZERS}
