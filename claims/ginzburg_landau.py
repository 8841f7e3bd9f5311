"""O. Akande, P. Dondl, K. Gupta, A. Onwunta, S. Wojtowytsch (2024), Momentum-based minimization of the Ginzburg-Landau
functional on Euclidean spaces and graphs, arXiv 2501.00389.

Claim: with a convex-concave splitting, momentum converges faster than the gradient flow if the time step is large.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from claim import Claim

from frechet.calculus.functionals import sobolev
from frechet.physics import metric_descent

N, EPS, RADIUS, STEPS = 96, 0.03, 0.35, (0.005, 0.05, 0.5)
PERIMETER = 2 * math.pi * RADIUS * 2 * math.sqrt(2) / 3  # times the energy of a unit of interface


def energy(u):
    """int eps |Du|^2 / 2 + (u^2 - 1)^2 / (4 eps) on the periodic unit square."""
    d = (u.roll(-1, 0) - u).square().sum() + (u.roll(-1, 1) - u).square().sum()
    return EPS / 2 * d + (u * u - 1).square().sum() / (4 * EPS * N * N)


def run(tau, momentum):
    """The descent from a disc until it has half its radius."""
    x = (torch.arange(N, dtype=torch.float64) + 0.5) / N - 0.5
    u0 = -torch.tanh(((x[:, None] ** 2 + x**2).sqrt() - RADIUS) / (math.sqrt(2) * EPS))
    split = sobolev((N, N), 1 / N, mass=1 / tau + 2 / EPS, length=math.sqrt(EPS), boundary="periodic")

    def half(now):
        return math.sqrt(float((now.x > 0).sum()) / math.pi) / N < RADIUS / 2

    return metric_descent(energy, u0, metric=split, momentum=momentum, gtol=0.0, max_iterations=1000, observe=half)


def measure() -> Claim:
    """Steps of the flow and of momentum for three time steps, and whether an energy ever rose."""
    flow, fast = ([run(tau, momentum) for tau in STEPS] for momentum in (False, True))
    rises = sum(b > a + 1e-12 for s in (*flow, *fast) for a, b in pairwise(s.energies))
    ratios = [b.iterations / a.iterations for a, b in zip(flow, fast, strict=True)]
    start = flow[0].energies[0]
    good = max(ratios) <= 0.3 and rises == 0 and abs(start / PERIMETER - 1) <= 0.005
    return Claim(
        paper="Akande, Dondl, Gupta, Onwunta, Wojtowytsch 2024, arXiv 2501.00389",
        claim="with a convex-concave splitting momentum is faster than the gradient flow",
        theirs="faster if the step is large but not too large",
        ours=(
            f"a disc to half its radius, time steps {STEPS}: flow {[s.iterations for s in flow]} steps, momentum "
            f"{[s.iterations for s in fast]}; the energy rose {rises} times; it is {start:.3f} at the start, the "
            f"perimeter times 2 sqrt(2) / 3 is {PERIMETER:.3f}"
        ),
        verdict="holds" if good else "holds in part",
        why=(
            "the implicit split is a flow with the time step tau / (1 + 2 tau / eps) <= eps / 2, so a large tau does "
            "not help it, while momentum gains by adding steps up"
        ),
        name="metric_descent",
    )
