"""Linear systems."""

from frechet.solve.cg import cg
from frechet.solve.gmres import gmres
from frechet.solve.linear import solve
from frechet.solve.lsmr import lsmr
from frechet.solve.minres import minres

__all__ = [
    "cg",
    "gmres",
    "lsmr",
    "minres",
    "solve",
]
