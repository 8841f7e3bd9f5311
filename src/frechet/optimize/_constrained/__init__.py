"""Minimization under equalities, inequalities and bounds, from products alone."""

from frechet.optimize._constrained.constrained import constrained
from frechet.optimize._constrained.constraint import Constraint
from frechet.optimize._constrained.run import ConstrainedState

__all__ = ["ConstrainedState", "Constraint", "constrained"]
