"""Linear systems, nonlinear least squares, roots and fixed points."""

from frechet.solve.cg import CGState, cg
from frechet.solve.conditions import (
    Conditions,
    fixed_point_conditions,
    least_squares_conditions,
    root_conditions,
    stationary_conditions,
)
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
from frechet.solve.minimize_result import MinimizeSolution
from frechet.solve.minres import MinresState, minres
from frechet.solve.root import RootState, root
from frechet.solve.run import LeastSquaresState
from frechet.solve.solution_jacobian import solution_jacobian
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
    "DualHessian",
    "GmresState",
    "Hypergradient",
    "LeastSquaresBatch",
    "LeastSquaresSolution",
    "LeastSquaresState",
    "LsmrState",
    "MinimizeSolution",
    "MinresState",
    "RootState",
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
    "minres",
    "monge_gap",
    "root",
    "root_conditions",
    "sinkhorn",
    "sinkhorn_batch",
    "solution_jacobian",
    "solve",
    "sparse_transport",
    "stationary_conditions",
    "transport_plan",
    "transport_potentials",
    "transport_value",
]
