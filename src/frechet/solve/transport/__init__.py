"""Optimal transport."""

from frechet.solve.transport.derivatives import transport_plan, transport_potentials, transport_value
from frechet.solve.transport.dual_hessian import DualHessian
from frechet.solve.transport.result import TransportSolution, TransportState
from frechet.solve.transport.sinkhorn import sinkhorn

__all__ = [
    "DualHessian",
    "TransportSolution",
    "TransportState",
    "sinkhorn",
    "transport_plan",
    "transport_potentials",
    "transport_value",
]
