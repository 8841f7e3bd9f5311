"""Linear systems, nonlinear least squares, roots and fixed points."""

from frechet.solve.cg import CGState, cg
from frechet.solve.conditions import (
    Conditions,
    fixed_point_conditions,
    least_squares_conditions,
    root_conditions,
    stationary_conditions,
)
from frechet.solve.constrained import ConstrainedState, Constraint
from frechet.solve.convex import Convex
from frechet.solve.fixed_point import fixed_point
from frechet.solve.gmres import GmresState, gmres
from frechet.solve.hypergradient import Hypergradient, hypergradient
from frechet.solve.implicit import implicit
from frechet.solve.kkt import kkt_conditions
from frechet.solve.least_squares import least_squares
from frechet.solve.least_squares_batch import LeastSquaresBatch, least_squares_batch
from frechet.solve.least_squares_result import LeastSquaresSolution
from frechet.solve.linear import solve
from frechet.solve.lsmr import LsmrState, lsmr
from frechet.solve.minimize import minimize
from frechet.solve.minimize_result import MinimizeSolution
from frechet.solve.minres import MinresState, minres
from frechet.solve.optimize_result import to_optimize_result
from frechet.solve.prox_linear import ProxLinearSolution, ProxLinearState, prox_linear
from frechet.solve.regressor import LeastSquaresRegressor
from frechet.solve.root import RootState, root
from frechet.solve.run import LeastSquaresState
from frechet.solve.sketched_lstsq import SketchedSolution, sketched_lstsq
from frechet.solve.smooth_run import MinimizeState
from frechet.solve.solution_jacobian import solution_jacobian
from frechet.solve.stochastic_prox_linear import stochastic_prox_linear
from frechet.solve.transport import (
    DualHessian,
    SparseTransportSolution,
    SparseTransportState,
    TransportBatch,
    TransportSolution,
    TransportState,
    monge_gap,
    sinkhorn,
    sinkhorn_batch,
    sparse_transport,
    transport_plan,
    transport_potentials,
    transport_value,
)

__all__ = [
    "CGState",
    "Conditions",
    "ConstrainedState",
    "Constraint",
    "Convex",
    "DualHessian",
    "GmresState",
    "Hypergradient",
    "LeastSquaresBatch",
    "LeastSquaresRegressor",
    "LeastSquaresSolution",
    "LeastSquaresState",
    "LsmrState",
    "MinimizeSolution",
    "MinimizeState",
    "MinresState",
    "ProxLinearSolution",
    "ProxLinearState",
    "RootState",
    "SketchedSolution",
    "SparseTransportSolution",
    "SparseTransportState",
    "TransportBatch",
    "TransportSolution",
    "TransportState",
    "cg",
    "fixed_point",
    "fixed_point_conditions",
    "gmres",
    "hypergradient",
    "implicit",
    "kkt_conditions",
    "least_squares",
    "least_squares_batch",
    "least_squares_conditions",
    "lsmr",
    "minimize",
    "minres",
    "monge_gap",
    "prox_linear",
    "root",
    "root_conditions",
    "sinkhorn",
    "sinkhorn_batch",
    "sketched_lstsq",
    "solution_jacobian",
    "solve",
    "sparse_transport",
    "stationary_conditions",
    "stochastic_prox_linear",
    "to_optimize_result",
    "transport_plan",
    "transport_potentials",
    "transport_value",
]
