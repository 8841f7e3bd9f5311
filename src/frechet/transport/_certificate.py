"""What potentials prove: a plan with exact marginals near theirs, and how far it can be from the best.

The plan P of approximate potentials is moved onto the marginals: rows, then columns, that hold too much are scaled
down, and what is then missing, e in rows and h in columns, is added as e h' / sum(e). For the result Q

    (primal value of Q) - (dual value of f, g) = epsilon KL(Q | P) >= 0

so that the gap is a sum of non-negative terms and never the difference of two large numbers. For the transport problem
without entropy, f and the largest g that it allows give a lower bound, the cost of Q an upper one.

**Source.** J. Altschuler, J. Weed and P. Rigollet (2017), Near-linear time approximation algorithms for optimal
transport via Sinkhorn iteration, algorithm 2, arXiv 1705.09634.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rounded(P: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors x (n,), y (m,) and the matrix E with ``x P y' + E`` on the marginals a and b exactly."""
    rows = P.sum(1)
    x = torch.where(rows > a, a / rows, 1.0)
    columns = (P * x.unsqueeze(1)).sum(0)
    y = torch.where(columns > b, b / columns, 1.0)
    Q = P * x.unsqueeze(1) * y
    e, h = (a - Q.sum(1)).clamp(min=0), (b - Q.sum(0)).clamp(min=0)
    total = torch.minimum(e.sum(), h.sum())
    added = torch.outer(e, h) / total if float(total) > 0 else torch.zeros_like(P)
    return x, y, added


def gap(P: Tensor, exponent: Tensor, a: Tensor, b: Tensor, epsilon: float, cost: Tensor) -> float:
    """epsilon KL(Q | P) for the rounded plan Q; inf where Q needs a forbidden pair. P = exp(exponent)."""
    x, y, added = rounded(P, a, b)
    if bool((added[~torch.isfinite(cost)] > 0).any()):
        return math.inf
    present = math.sqrt(torch.finfo(P.dtype).tiny) < P
    safe = torch.where(present, P, 1.0)
    excess = torch.where(present, x.unsqueeze(1) * y - 1 + added / safe, 0.0)  # Q / P - 1
    series = excess * excess * (0.5 - excess / 6)  # of (1 + t) log(1 + t) - t, which has no digits near 0
    term = torch.where(excess.abs() < 1e-5, series, torch.xlogy(1 + excess, 1 + excess) - excess)
    # where P has all but underflowed, Q is what was added
    floor = torch.where(torch.isfinite(exponent), exponent, 0.0)
    new = torch.where(present, 0.0, torch.xlogy(added, added) - added * floor - added)
    return epsilon * float((torch.where(present, P * term, 0.0) + new).clamp(min=0).sum())


def transport_bounds(P: Tensor, f: Tensor, a: Tensor, b: Tensor, cost: Tensor) -> tuple[float, float]:
    """A lower and an upper bound on min <C, P> over the plans with marginals a and b."""
    rows, columns = a > 0, b > 0
    highest = (cost[rows] - f[rows].unsqueeze(1)).amin(0)
    lower = float((a * f)[rows].sum() + (b * highest)[columns].sum())
    x, y, added = rounded(P, a, b)
    Q = P * x.unsqueeze(1) * y + added
    upper = float(torch.where(Q > 0, cost, 0.0).mul(Q).sum())
    return lower, upper
