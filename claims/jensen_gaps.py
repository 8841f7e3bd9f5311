"""S. Abramovich (2024), On Jensen functional, convexity and uniform convexity, arXiv 2405.15681.

Claim: the Jensen functional of a function with Hessians between m I and M I lies between m/2 and M/2 times that of the
square. Here: random sums of softplus and quadratics, extreme eigenvalues by Lanczos at points of the hull.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import eigsh, hessian

D = 12


def function(seed: int):
    draw = torch.Generator().manual_seed(seed)
    A, S = torch.randn(30, D, generator=draw).double(), torch.randn(D, D, generator=draw).double() / D**0.5
    return lambda x: torch.nn.functional.softplus(x @ A.T).sum(-1) + ((x @ S) ** 2).sum(-1) / 2


def measure() -> Claim:
    """How often the gap lies between both bounds, and how tight they are."""
    held, ratios, trials = 0, [], 10
    for seed in range(trials):
        f, draw = function(seed), torch.Generator().manual_seed(1000 + seed)
        X = 0.5 * torch.randn(6, D, generator=draw).double()
        p = torch.rand(6, generator=draw).double()
        p = p / p.sum()
        mean = p @ X
        gap = float(p @ f(X) - f(mean))
        square = float(p @ (X - mean).square().sum(1)) / 2
        # the Taylor remainder stands on the lines from the mean to the points
        ends = [
            eigsh(hessian(f, mean + t * (x - mean)), 2, which="both", seed=0, rtol=1e-6).values
            for x in X
            for t in (0.0, 0.5, 1.0)
        ]
        low, high = min(float(e.min()) for e in ends), max(float(e.max()) for e in ends)
        held += low * square <= gap <= high * square
        ratios.append((gap / (low * square), high * square / gap))
    lower, upper = (sum(r[i] for r in ratios) / trials for i in (0, 1))
    return Claim(
        paper="Abramovich 2024, arXiv 2405.15681",
        claim="the Jensen functional lies between extreme curvatures times that of the square",
        theirs="theorems on normalized Jensen functionals of uniformly convex functions",
        ours=f"{held} of {trials} gaps between the bounds; the gap is {lower:.1f} times the lower, the upper one "
        f"{upper:.1f} times the gap, on average",
        verdict="holds" if held == trials else "does not hold here",
        why="the gap is a mean of curvatures along lines to the mean, by Taylor's formula",
        name="eigsh",
    )
