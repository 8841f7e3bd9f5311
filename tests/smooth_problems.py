"""Functions to minimize with known answers, and a run of one method on one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.optimize._counts import Counts
from frechet.optimize._smooth.newton_loop import Rules
from frechet.optimize._smooth.smooth_function import SmoothFunction
from frechet.space import Space


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def far_logistic() -> tuple:
    """Logistic regression in 20 dimensions, from a start where full Newton steps overshoot for ever."""
    g = torch.Generator().manual_seed(0)
    A = 3 * torch.randn(200, 20, generator=g, dtype=torch.float64)
    noise = 3 * torch.randn(200, generator=g, dtype=torch.float64)
    truth = torch.randn(20, generator=g, dtype=torch.float64)
    y = torch.sign(A @ truth + noise)
    x0 = 3 * torch.randn(20, generator=g, dtype=torch.float64)
    return lambda x: torch.nn.functional.softplus(-y * (A @ x)).mean() + 5e-4 * (x @ x), x0


def begun(f, x0: Tensor, *, full: int = 64, gtol: float = 0.0, ftol: float | None = None, max_iterations: int = 500):
    """The function, the first point and the rules, as `minimize` makes them."""
    space = Space.of({"": x0})
    function = SmoothFunction(f, space, True, None, Counts())
    point = function.differentiated(function.at(x0.clone()))
    assert point is not None
    rules = Rules(
        gtol=gtol,
        ftol=space.eps if ftol is None else ftol,
        max_iterations=max_iterations,
        start=point.largest,
        full=full,
        most=100,
        beyond=0,
        preconditioner=None,
        tight=True,
        least=0.0,
        smallest=0.0,
        lowest=-1e20 * max(1.0, abs(point.value)),
        farthest=1e15 * max(1.0, float(space.norm(point.x))),
    )
    return function, point, rules
