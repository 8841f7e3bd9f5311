"""Published methods that do not pay on what was measured here, callable, each with its claim page."""

from frechet.optimize.studies._cubic_newton import cubic_newton
from frechet.optimize.studies._stepsized_newton import stepsized_newton

__all__ = ["cubic_newton", "stepsized_newton"]
