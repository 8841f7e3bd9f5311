"""Residuals at points as an `Objective`, for all that is asked of objectives: report, eigenvalues, optimizers.

    L(p) = norm(r(p))^2 / 2,        gradient J'r,        Gauss-Newton matrix J'J

Each condition is one term, a mean of squares over its points; a batch is some of its points.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.physics._collocation import Collocation


class ResidualsAtPoints(nn.Module):
    """A model whose outputs are the residuals ``(N, k)`` of one condition at its points."""

    def __init__(self, model: nn.Module, residual: Collocation) -> None:
        super().__init__()
        self.model = model
        self.functions = {c.name: c for c in residual.conditions}

    def forward(self, name: str, factors: Tensor, *columns: Tensor) -> Tensor:
        c = replace(self.functions[name], columns=columns, factors=factors)
        return c.values(dict(self.model.named_parameters()))


def as_objective(residual: Collocation, model: nn.Module, *, batch: int | None = None) -> Objective:
    """Return half the squared norm of a residual as an objective of a model's parameters.

    Args:
        residual: from `collocation`; its functions take the parameters of `model` by their names.
        model: a network, or a module of networks and of parameters of the equation.
        batch: the most points in a batch, >= 1. Default: all points of a condition.

    Example:
        >>> import torch
        >>> from torch.func import functional_call
        >>> from frechet.calculus.taylor import laplacian
        >>> from frechet.physics import as_objective, collocation
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> def equation(p, x):
        ...     return laplacian(lambda x: functional_call(net, p, (x,)))(x) - 1
        >>> residual = collocation(equation, torch.rand(20, 2))
        >>> objective = as_objective(residual, net)
        >>> r = residual(dict(net.named_parameters()))["points"]
        >>> torch.allclose(objective.value(), r.square().sum() / 2)
        True
    """
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"as_objective: batch must be an integer >= 1 or None, got {batch!r}")
    entries = residual.entries(dict(model.named_parameters()))
    outer, total = ResidualsAtPoints(model, residual), None
    for c, k in zip(residual.conditions, entries, strict=True):
        size, data = batch or len(c), []
        for start in range(0, len(c), size):
            index = slice(start, start + size)
            part = c.rows(index)
            data.append(((c.name, c.factors[index], *part), torch.zeros(len(part[0]), k).to(c.factors)))
        term = (0.5 * k * len(c)) * Objective(outer, squared_error(), data)
        total = term if total is None else total + term
    assert total is not None
    return total
