"""Linear systems."""

from frechet.solve.cg import CGState, cg
from frechet.solve.gmres import GmresState, gmres
from frechet.solve.linear import solve
from frechet.solve.lsmr import LsmrState, lsmr
from frechet.solve.minres import MinresState, minres

__all__ = [
    "CGState",
    "GmresState",
    "LsmrState",
    "MinresState",
    "cg",
    "gmres",
    "lsmr",
    "minres",
    "solve",
]
