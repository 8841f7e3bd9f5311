"""Minimization under equalities, inequalities and bounds, from products alone."""

from frechet.solve.constrained.constrained import constrained
from frechet.solve.constrained.constraint import Constraint
from frechet.solve.constrained.run import ConstrainedState

__all__ = ["ConstrainedState", "Constraint", "constrained"]
