"""Has a fit run to infinity? Parameters that r depends on elsewhere, and no longer does where a run ended.

There every test on the gradient holds, though nothing is fitted: an exponential has left the range of the numbers, or
two parameters have passed a pole together. With the terms A = J diag(x), a combination u of relative changes with
norm(A u) at rounding is such a candidate; u is the part of (1, ..., 1) in that null space, so that x + x u leads
outwards. The model is flat at infinity if r does not change outwards, and does inwards. A parameter or a combination
that r never depends on changes nothing on either side, and at a minimum at which a column of J vanishes r changes on
both.

**Cost.** One SVD; nine evaluations of r at most, only where J has such a null space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.optimize._least_squares.residual import Linearization, Residual, length
from frechet.optimize._stopping import leads_on

ROUNDING = 10.0  # of r: a smaller change by a move of the size of x is none
SHOWS = 1e3
INWARDS = (0.9, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1.0)  # parts of the way to zero
MOVES = 0.1  # relative change of a parameter that takes part


def ran_away(residual: Residual, linear: Linearization, free: Tensor) -> list[int]:
    """The parameters that ran to where r is flat, none if it is not."""
    u = _flat_direction(linear, free)
    moved = (u.abs() >= MOVES) & (linear.x != 0)
    if not bool(moved.any()):
        return []
    v, alone = linear.x * u / float(u.abs().max()), torch.diag(linear.x)[moved]

    def change(x: Tensor) -> float:
        point = residual.at(x)
        return float("inf") if point is None else length(point.r - linear.point.r)

    for move in (v, *alone):  # two that cancel each other change nothing together
        far = linear.x + move
        if bool(((far < residual.lower) | (far > residual.upper)).any()):
            continue  # a bound holds it back, so that nothing would change
        outwards = change(linear.x + move)
        if outwards <= ROUNDING * linear.noise and any(
            change(linear.x - part * move) > SHOWS * linear.noise for part in INWARDS
        ):
            return moved.nonzero()[:, 0].tolist()
    return []


def falls_on(residual: Residual, linear: Linearization, S: Tensor, free: Tensor) -> bool:
    """Whether the cost falls for ever along a Newton step, with the second derivatives J'J + S; see `leads_on`."""
    H = ((linear.J.T @ linear.J).cpu() + S)[free][:, free]
    scale = torch.where(H.diagonal() > 0, H.diagonal(), 1.0).sqrt()
    p = torch.zeros_like(linear.x)
    p[free] = -torch.linalg.lstsq(H / scale / scale[:, None], (linear.gradient[free] / scale)[:, None])[0][:, 0] / scale

    def evaluate(x: Tensor) -> Tensor | None:
        point = residual.at(x) if bool(((x >= residual.lower) & (x <= residual.upper)).all()) else None
        at = None if point is None else residual.linearized(point)
        return None if at is None else torch.where(free, at.gradient, 0.0)

    return leads_on(evaluate, torch.dot, linear.x, p, torch.where(free, linear.gradient, 0.0))


def _flat_direction(linear: Linearization, free: Tensor) -> Tensor:
    """The part of (1, ..., 1) in the combinations of relative changes that leave r as it is."""
    A = torch.where(free.to(linear.J.device), linear.J * linear.x.to(linear.J.device), 0.0)
    _, s, Vh = torch.linalg.svd(A, full_matrices=False)
    lively = Vh[s > ROUNDING * linear.noise].cpu()
    ones = torch.where(free & (linear.x != 0), 1.0, 0.0).to(lively)
    return ones - lively.T @ (lively @ ones)
