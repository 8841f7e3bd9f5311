"""Differential equations, optimal control, inverse problems."""

from frechet.physics._implicit_step import implicit_step
from frechet.physics._march import Trajectory, march

__all__ = [
    "Trajectory",
    "implicit_step",
    "march",
]
