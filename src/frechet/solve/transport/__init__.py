"""Optimal transport."""

from frechet.solve.transport.batch import TransportBatch, sinkhorn_batch
from frechet.solve.transport.cardinality import SparseTransportSolution, SparseTransportState, sparse_transport
from frechet.solve.transport.derivatives import transport_plan, transport_potentials, transport_value
from frechet.solve.transport.dual_hessian import DualHessian
from frechet.solve.transport.monge import monge_gap
from frechet.solve.transport.result import TransportSolution, TransportState
from frechet.solve.transport.sinkhorn import sinkhorn

__all__ = [
    "DualHessian",
    "SparseTransportSolution",
    "SparseTransportState",
    "TransportBatch",
    "TransportSolution",
    "TransportState",
    "monge_gap",
    "sinkhorn",
    "sinkhorn_batch",
    "sparse_transport",
    "transport_plan",
    "transport_potentials",
    "transport_value",
]
