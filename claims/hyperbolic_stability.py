"""G. Mishne, Z. Wan, Y. Wang, S. Yang (2022), The numerical stability of hyperbolic representation learning,
arXiv 2211.00181.

Claim: in float64 the Poincaré ball represents points about twice as far out as the Lorentz model; gradients of the ball
vanish with the distance; a Euclidean parametrization has neither limit. Here: points at growing distance of the origin.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import jacobian

ORIGIN_DISTANCES = torch.arange(1.0, 60.0, 0.5, dtype=torch.float64)


def poincare(d: torch.Tensor) -> torch.Tensor:
    """The distance that the rounded point tanh(d/2) of the ball has."""
    return 2 * torch.atanh(torch.tanh(d / 2))


def lorentz(d: torch.Tensor) -> torch.Tensor:
    """Whether the rounded point (cosh d, sinh d) still is on the hyperboloid: what its squares leave of one."""
    return torch.cosh(d) ** 2 - torch.sinh(d) ** 2


def furthest(ok: torch.Tensor) -> float:
    bad = (~ok).nonzero()
    return float(ORIGIN_DISTANCES[int(bad[0]) - 1]) if len(bad) else float("inf")


def riemannian(d: float) -> float:
    """The step of gradient descent in the ball's coordinates per unit of the distance's own gradient."""
    r = torch.tanh(torch.tensor([d / 2], dtype=torch.float64))
    slope = float((jacobian(lambda r: 2 * torch.atanh(r), r) @ torch.ones(1, dtype=torch.float64))[0])
    return 1 / slope  # (1 - r^2) / 2: what a step of size one in the distance is in coordinates


def euclidean(d: float) -> float:
    """The same for z with x = tanh(|z|/2) z/|z|, whose distance is |z|."""
    z = torch.tensor([d, 0.0], dtype=torch.float64)
    length = lambda z: z.square().sum().sqrt()[None]  # noqa: E731
    return float((jacobian(length, z) @ torch.tensor([1.0, 0.0], dtype=torch.float64))[0])


def measure() -> Claim:
    """How far out points are right to one unit, and what is left of gradients at 5, 15 and 30."""
    ball = furthest((poincare(ORIGIN_DISTANCES) - ORIGIN_DISTANCES).abs() < 1)
    sheet = furthest((lorentz(ORIGIN_DISTANCES) - 1).abs() < 0.5)
    left = [riemannian(d) for d in (5.0, 15.0, 30.0)]
    flat = [euclidean(d) for d in (5.0, 15.0, 30.0)]
    good = 1.5 < ball / sheet < 2.5 and left[2] < 1e-12 and min(flat) == 1.0
    return Claim(
        paper="Mishne, Wan, Wang, Yang 2022, arXiv 2211.00181",
        claim="the Poincaré ball holds points twice as far as the Lorentz model; the Euclidean one has no such limit",
        theirs="radii of about 38 and 19 in float64",
        ours=f"points are right up to {ball:g} (ball) and {sheet:g} (Lorentz); coordinates move by "
        + ", ".join(f"{v:.0e}" for v in left)
        + " per unit of distance at 5, 15, 30 in the ball, by one in Euclidean coordinates",
        verdict="holds" if good else "holds in part",
        why="1 - |x| falls as 2 exp(-d), and cosh^2 - sinh^2 cancels at exp(2 d) eps = 1",
        name="jacobian",
    )
