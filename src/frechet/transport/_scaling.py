"""Sinkhorn's sweeps: f and g in turn such that the rows, then the columns, of the plan have the right sums.

    P = a b' exp((f + g - C) / epsilon),     f = -epsilon log(sum_j b_j exp((g_j - C_ij) / epsilon)),  g likewise

A `Point` is a g with its best f: the rows sum to a, and what the columns lack is the gradient of the dual function of g
alone. Between two points the sweeps run as products with the fixed matrix P, on scalings u and v of its rows and
columns, which costs a tenth of a pass of exponentials; the scalings are taken into the potentials before they leave the
range in which entries of P that have underflowed are nothing.

**Source.** R. Sinkhorn and P. Knopp (1967), Concerning nonnegative matrices and doubly stochastic matrices, doi
10.2140/pjm.1967.21.343; B. Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport
problems (absorption), doi 10.1137/16M1106018.

**Differs from the source.** A column whose sum underflows gets its potential by a sum in the log domain.

**Cost.** A point: one pass of exponentials over the cost. A sweep: two products with P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.transport._problem import Problem

WINDOW = 8  # sweeps over which the rate is measured


@dataclass(frozen=True, eq=False)
class Point:
    """Potentials at one epsilon with exact row sums. `error` is the sum of |columns - b|."""

    f: Tensor
    g: Tensor
    plan: Tensor  # (n, m)
    columns: Tensor  # (m,), sums of the plan
    error: float
    epsilon: float


def point(problem: Problem, g: Tensor, epsilon: float) -> Point:
    """g with its best f."""
    while True:
        M = (g - problem.cost).div_(epsilon)
        top = M.amax(1, keepdim=True)
        P = M.sub_(top).exp_().mul_(problem.b)
        sums = P.sum(1)
        f = -epsilon * (top[:, 0] + sums.log())
        P.mul_((problem.a / sums).unsqueeze(1))
        columns = P.sum(0)
        if bool((columns > 0).all()):
            return Point(f, g, P, columns, float((columns - problem.b).abs().sum()), epsilon)
        if not bool(torch.isfinite(columns).all()):
            return Point(f, g, P, columns, math.nan, epsilon)
        fresh = -epsilon * torch.logsumexp((f.unsqueeze(1) - problem.cost) / epsilon + problem.a.log().unsqueeze(1), 0)
        g = torch.where(columns > 0, g, fresh)


def sweeps(problem: Problem, p: Point, target: float, limit: int, patience: float) -> tuple[Point, int]:
    """Sweeps from p until the error is at most target, and their number.

    They end early where the rate so far says that more than `patience` further ones are needed, and after a while for
    the sake of the caller, who calls again.
    """
    P, b, spent = p.plan, problem.b, 0
    # exp(-reach) of what has underflowed, twice over, is still below rounding
    reach = -math.log(torch.finfo(P.dtype).tiny) / 8
    v, sums, error, errors = torch.ones_like(b), p.columns, p.error, [p.error]
    while spent < limit and not error <= target:
        v = b / sums
        u = problem.a / (P @ v)
        sums = P.T @ u
        spent += 1
        error = float((v * sums - b).abs().sum())
        errors.append(error)
        extent = float(torch.stack([v.log().abs().max(), u.log().abs().max()]).max())
        if not extent < reach:
            break
        if error > target and len(errors) > WINDOW:
            rate = (error / errors[-1 - WINDOW]) ** (1 / WINDOW)
            if rate >= 1 or math.log(max(target, 1e-300) / error) / math.log(rate) > patience:
                break
    return (point(problem, p.g + p.epsilon * v.log(), p.epsilon) if spent else p), spent
