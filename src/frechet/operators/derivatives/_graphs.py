"""Functions whose value has no graph: a constant, or a function of x that autograd cannot follow."""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable

STEP = 1e-3  # times 1 + |x|: how far the second point is


def beside(x: list[Tensor]) -> list[Tensor]:
    """Blocks of a second point, each entry moved."""
    return [b.detach() + STEP * (1 + b.detach().abs()) for b in x]


def refuse_cut(what: str, name: str, y: Tensor, elsewhere: Tensor) -> None:
    """Raise for a value `y` without a graph that is another one `elsewhere`: its derivatives would be zero."""
    if y.shape != elsewhere.shape or not torch.equal(y.detach(), elsewhere.detach()):
        raise NotDifferentiable(
            f"{what}: {name} must depend on x through torch operations, got a value that changes with x and has no "
            "graph; write it without .detach(), .item() and NumPy"
        )
