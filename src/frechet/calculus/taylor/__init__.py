"""Taylor mode: derivatives of any order, and sums of them, in one pass through a torch program."""

from frechet.calculus.taylor._jet import jet
from frechet.calculus.taylor._operator import LaplacianParts, bilaplacian, differential_operator, laplacian
from frechet.calculus.taylor._stde import stde
from frechet.calculus.taylor._tangents import Tangents, tangents

__all__ = ["LaplacianParts", "Tangents", "bilaplacian", "differential_operator", "jet", "laplacian", "stde", "tangents"]
