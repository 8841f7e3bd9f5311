"""Certified bounds of derivatives over regions: Lipschitz constants, Jacobians, monotonicity."""

from frechet.calculus.bounds._jacobian_bounds import (
    Direction,
    JacobianBounds,
    Monotonicity,
    jacobian_bounds,
    monotonicity,
)
from frechet.calculus.bounds._lipschitz import LipschitzBounds, local_lipschitz

__all__ = [
    "Direction",
    "JacobianBounds",
    "LipschitzBounds",
    "Monotonicity",
    "jacobian_bounds",
    "local_lipschitz",
    "monotonicity",
]
