"""Nonlinear least squares, minimization with and without constraints, roots and fixed points."""

from frechet.optimize import studies
from frechet.optimize._constrained.constraint import Constraint
from frechet.optimize._constrained.run import ConstrainedState
from frechet.optimize._equations.fixed_point import fixed_point
from frechet.optimize._equations.root import RootState, root
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.least_squares_batch import least_squares_batch
from frechet.optimize._least_squares.least_squares_batch_result import LeastSquaresBatch
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution
from frechet.optimize._least_squares.run import LeastSquaresState
from frechet.optimize._means.frechet_mean import FrechetMean, frechet_mean, karcher_step
from frechet.optimize._means.geometry import Geometry, affine_invariant, bures_wasserstein, hyperbolic, sphere
from frechet.optimize._nonsmooth.convex import Convex
from frechet.optimize._nonsmooth.prox_linear import ProxLinearSolution, ProxLinearState, prox_linear
from frechet.optimize._nonsmooth.stochastic_prox_linear import stochastic_prox_linear
from frechet.optimize._smooth.minimize import minimize
from frechet.optimize._smooth.minimize_result import MinimizeSolution
from frechet.optimize._smooth.newton_loop import MinimizeState

__all__ = [
    "ConstrainedState",
    "Constraint",
    "Convex",
    "FrechetMean",
    "Geometry",
    "LeastSquaresBatch",
    "LeastSquaresSolution",
    "LeastSquaresState",
    "MinimizeSolution",
    "MinimizeState",
    "ProxLinearSolution",
    "ProxLinearState",
    "RootState",
    "affine_invariant",
    "bures_wasserstein",
    "fixed_point",
    "frechet_mean",
    "hyperbolic",
    "karcher_step",
    "least_squares",
    "least_squares_batch",
    "minimize",
    "prox_linear",
    "root",
    "sphere",
    "stochastic_prox_linear",
    "studies",
]
