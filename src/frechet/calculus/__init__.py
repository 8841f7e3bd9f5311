"""Derivatives beyond backprop: Taylor mode, matrices, functionals, bounds, estimates, derivatives of solutions."""

from frechet.calculus import bounds, distances, estimated, functionals, kinks, matrices, memory, solutions, taylor
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
from frechet.calculus.solutions._ode_solution import ode_solution
from frechet.calculus.solutions._solution_jacobian import solution_jacobian

__all__ = [
    "Conditions",
    "Hypergradient",
    "bounds",
    "distances",
    "estimated",
    "fixed_point_conditions",
    "functionals",
    "hypergradient",
    "implicit",
    "kinks",
    "kkt_conditions",
    "least_squares_conditions",
    "matrices",
    "memory",
    "ode_solution",
    "root_conditions",
    "solution_jacobian",
    "solutions",
    "stationary_conditions",
    "taylor",
]
