"""A new class of scaling matrices for scaled trust region algorithms (convex combinations of affine scalings), beside
T. Coleman and Y. Li (1996), doi 10.1137/0806023, and S. Bellavia, M. Macconi and B. Morini (2003),
doi 10.1016/S0168-9274(02)00170-8.

Claim: for systems F(x) = 0 in a box the combined scaling is better than the single ones on several test problems.
"""

from __future__ import annotations

import math

import torch
from claim import Claim

from frechet.optimize.studies import interior_least_squares

SCALINGS = ("coleman-li", "heinkenschloss-ulbrich", "kanzow-klug", "hager-mair-zhang", "combined")


def trigonometric(x):
    """More, Garbow and Hillstrom's system 26."""
    return len(x) - x.cos().sum() + torch.arange(1.0, len(x) + 1, dtype=x.dtype) * (1 - x.cos()) - x.sin()


def rosenbrock(x):
    return torch.cat([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def broyden(x):
    left, right = torch.cat([x.new_zeros(1), x[:-1]]), torch.cat([x[1:], x.new_zeros(1)])
    return (3 - 2 * x) * x - left - 2 * right + 1


def chandrasekhar(x):
    n = len(x)
    mu = (torch.arange(n, dtype=x.dtype) + 0.5) / n
    return x - 1 / (1 - 0.9 / (2 * n) * (mu[:, None] / (mu[:, None] + mu) * x).sum(1))


def exponential(x):
    return torch.stack([1e4 * x[0] * x[1] - 1, (-x[0]).exp() + (-x[1]).exp() - 1.0001])


PROBLEMS = {
    "trigonometric": (trigonometric, 10, 0.0, 3.0, 1.5),
    "Rosenbrock at its bound": (rosenbrock, 10, -10.0, 1.0, -1.2),
    "Broyden": (broyden, 10, -5.0, 0.0, -2.0),
    "Chandrasekhar": (chandrasekhar, 20, 0.0, 10.0, 5.0),
    "Powell, badly scaled": (exponential, 2, 0.0, math.inf, 1.0),
}


def measure() -> Claim:
    """Roots found and residual evaluations, by scaling."""
    solved, counts = dict.fromkeys(SCALINGS, 0), dict.fromkeys(SCALINGS, 0)
    for F, n, low, high, at in PROBLEMS.values():
        x0 = torch.full((n,), at, dtype=torch.float64)
        for scaling in SCALINGS:
            found = interior_least_squares(F, x0, bounds=(low, high), scaling=scaling, max_evaluations=500)
            solved[scaling] += found.residual < 1e-9
            counts[scaling] += found.residual_evaluations
    told = ", ".join(f"{s} {solved[s]} ({counts[s]})" for s in SCALINGS)
    others = [s for s in SCALINGS if s != "combined"]
    most = all(solved["combined"] >= solved[s] for s in others)
    least = all((solved["combined"], -counts["combined"]) >= (solved[s], -counts[s]) for s in others)
    return Claim(
        paper="A new class of scaling matrices for scaled trust region algorithms; Coleman, Li 1996",
        claim="a convex combination of affine scalings is better than each on several systems in boxes",
        theirs="fewer iterations or more solved on several of their test problems",
        ours=f"roots of {len(PROBLEMS)} (evaluations): {told}",
        verdict="holds" if least else "holds in part" if most else "does not hold here",
        why="near a bound the scalings differ in how long they keep from it; a combination is between them",
        name='least_squares(method="interior"), optimize.studies.interior_least_squares',
    )
