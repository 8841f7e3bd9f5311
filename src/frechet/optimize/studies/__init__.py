"""Published methods that do not pay on what was measured here, callable, each with its claim page."""

from frechet.optimize.studies._affine_scalings import interior_least_squares
from frechet.optimize.studies._cubic_newton import cubic_newton
from frechet.optimize.studies._sketched_lagrangian import sketched_lagrangian
from frechet.optimize.studies._stepsized_newton import stepsized_newton

__all__ = ["cubic_newton", "interior_least_squares", "sketched_lagrangian", "stepsized_newton"]
