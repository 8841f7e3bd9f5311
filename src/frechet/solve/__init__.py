"""Linear systems, nonlinear least squares, roots and fixed points."""

from frechet.solve.cg import CGState, cg
from frechet.solve.fixed_point import fixed_point
from frechet.solve.gmres import GmresState, gmres
from frechet.solve.least_squares import least_squares
from frechet.solve.least_squares_batch import LeastSquaresBatch, least_squares_batch
from frechet.solve.least_squares_result import LeastSquaresSolution
from frechet.solve.linear import solve
from frechet.solve.lsmr import LsmrState, lsmr
from frechet.solve.minimize import minimize
from frechet.solve.minimize_result import MinimizeSolution
from frechet.solve.minres import MinresState, minres
from frechet.solve.root import RootState, root
from frechet.solve.run import LeastSquaresState
from frechet.solve.smooth_run import MinimizeState

__all__ = [
    "CGState",
    "GmresState",
    "LeastSquaresBatch",
    "LeastSquaresSolution",
    "LeastSquaresState",
    "LsmrState",
    "MinimizeSolution",
    "MinimizeState",
    "MinresState",
    "RootState",
    "cg",
    "fixed_point",
    "gmres",
    "least_squares",
    "least_squares_batch",
    "lsmr",
    "minimize",
    "minres",
    "root",
    "solve",
]
