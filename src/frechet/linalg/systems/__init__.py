"""Linear systems and linear least squares from products alone."""

from frechet.linalg.systems._cg import CGState, cg
from frechet.linalg.systems._gmres import GmresState, gmres
from frechet.linalg.systems._lsmr import LsmrState, lsmr
from frechet.linalg.systems._minres import MinresState, minres
from frechet.linalg.systems._sketched_lstsq import SketchedSolution, sketched_lstsq
from frechet.linalg.systems._solve import solve

__all__ = [
    "CGState",
    "GmresState",
    "LsmrState",
    "MinresState",
    "SketchedSolution",
    "cg",
    "gmres",
    "lsmr",
    "minres",
    "sketched_lstsq",
    "solve",
]
