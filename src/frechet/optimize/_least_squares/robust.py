"""Robust losses: rho(z) in place of each z = r_i^2 / c^2 in the sum of squares, and what a linearized step sees of it.

The cost is (c^2 / 2) sum_i rho(z_i). With w = rho'(z) and a = rho'(z) + 2 z rho''(z), consider a step for the plain
problem with rows scaled by sqrt(a) and residuals scaled by w / sqrt(a). It has the right gradient J' w r and the
Gauss-Newton matrix J' a J of the robust one. Where rho is concave enough to make `a` small or negative it is held at a
tenth of w: the model stays definite, and no row is blown up.

**Source.** B. Triggs, P. McLauchlan, R. Hartley and A. Fitzgibbon (2000), Bundle adjustment: a modern synthesis,
section 4.3, doi 10.1007/3-540-44480-7_21.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

LEAST = 0.1

LossName = Literal["squared", "huber", "soft_l1", "cauchy", "arctan", "tukey"]
Loss = LossName | Callable[[Tensor], Tensor]

# each with rho(0) = 0 and rho'(0) = 1, so that small residuals count as in plain least squares
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "huber": lambda z: torch.where(z <= 1, z, 2 * z.clamp(min=1).sqrt() - 1),
    "soft_l1": lambda z: 2 * ((1 + z).sqrt() - 1),
    "cauchy": torch.log1p,
    "arctan": torch.arctan,
    "tukey": lambda z: torch.where(z <= 1, (1 - (1 - z.clamp(max=1)) ** 3) / 3, torch.full_like(z, 1 / 3)),
}


def robust_loss(loss: Loss) -> Callable[[Tensor], Tensor] | None:
    """rho for a name or a function; None for plain least squares."""
    if callable(loss):
        return loss
    if loss == "squared":
        return None
    if loss not in LOSSES:
        names = ", ".join(f"'{name}'" for name in ("squared", *LOSSES))
        raise ValueError(f"least_squares: loss must be one of {names} or a function of z, got {loss!r}")
    return LOSSES[loss]


def robust_cost(rho: Callable[[Tensor], Tensor], r: Tensor, c: float) -> float:
    """(c^2 / 2) sum rho(r_i^2 / c^2)."""
    with torch.no_grad():
        return 0.5 * c * c * float(rho((r / c) ** 2).sum())


def row_scales(rho: Callable[[Tensor], Tensor], r: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The factors of the residuals and of the rows of J, each ``(m,)``."""
    with torch.enable_grad():
        z = ((r / c) ** 2).detach().requires_grad_()
        first = _slope(rho(z).sum(), z)
        second = _slope(first.sum(), z)
    w = first.detach()
    a = torch.maximum(w + 2 * z.detach() * second.detach(), LEAST * w)
    root = a.sqrt()
    return torch.where(a > 0, w / root, 0.0), root


def _slope(y: Tensor, z: Tensor) -> Tensor:
    """dy/dz, zero where y does not depend on z."""
    if not y.requires_grad:
        return torch.zeros_like(z)
    (slope,) = torch.autograd.grad(y, z, create_graph=True, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope
