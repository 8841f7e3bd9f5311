"""Derivatives of solutions: implicit differentiation and hypergradients."""

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
    "fixed_point_conditions",
    "hypergradient",
    "implicit",
    "kkt_conditions",
    "least_squares_conditions",
    "ode_solution",
    "root_conditions",
    "solution_jacobian",
    "stationary_conditions",
]
