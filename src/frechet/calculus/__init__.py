"""Derivatives beyond backprop: Taylor mode, and derivatives of solutions."""

from frechet.calculus import bounds, estimated, kinks, memory, solutions, taylor
from frechet.calculus.solutions._conditions import (
    Conditions,
    fixed_point_conditions,
    least_squares_conditions,
    root_conditions,
    stationary_conditions,
)
from frechet.calculus.solutions._hypergradient import Hypergradient, hypergradient
from frechet.calculus.solutions._implicit import implicit
from frechet.calculus.solutions._kkt import kkt_conditions
from frechet.calculus.solutions._solution_jacobian import solution_jacobian

__all__ = [
    "Conditions",
    "Hypergradient",
    "bounds",
    "estimated",
    "fixed_point_conditions",
    "hypergradient",
    "implicit",
    "kinks",
    "kkt_conditions",
    "least_squares_conditions",
    "memory",
    "root_conditions",
    "solution_jacobian",
    "solutions",
    "stationary_conditions",
    "taylor",
]
