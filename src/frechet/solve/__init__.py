"""Linear systems, nonlinear least squares, roots and fixed points."""

from frechet.solve.cg import CGState, cg
from frechet.solve.convex import Convex
from frechet.solve.fixed_point import fixed_point
from frechet.solve.gmres import GmresState, gmres
from frechet.solve.least_squares import least_squares
from frechet.solve.least_squares_batch import LeastSquaresBatch, least_squares_batch
from frechet.solve.least_squares_result import LeastSquaresSolution
from frechet.solve.linear import solve
from frechet.solve.lsmr import LsmrState, lsmr
from frechet.solve.minimize_result import MinimizeSolution
from frechet.solve.minres import MinresState, minres
from frechet.solve.optimize_result import to_optimize_result
from frechet.solve.prox_linear import ProxLinearSolution, ProxLinearState, prox_linear
from frechet.solve.regressor import LeastSquaresRegressor
from frechet.solve.root import RootState, root
from frechet.solve.run import LeastSquaresState
from frechet.solve.sketched_lstsq import SketchedSolution, sketched_lstsq
from frechet.solve.stochastic_prox_linear import stochastic_prox_linear

__all__ = [
    "CGState",
    "Convex",
    "GmresState",
    "LeastSquaresBatch",
    "LeastSquaresRegressor",
    "LeastSquaresSolution",
    "LeastSquaresState",
    "LsmrState",
    "MinimizeSolution",
    "MinresState",
    "ProxLinearSolution",
    "ProxLinearState",
    "RootState",
    "SketchedSolution",
    "cg",
    "fixed_point",
    "gmres",
    "least_squares",
    "least_squares_batch",
    "lsmr",
    "minres",
    "prox_linear",
    "root",
    "sketched_lstsq",
    "solve",
    "stochastic_prox_linear",
    "to_optimize_result",
]
