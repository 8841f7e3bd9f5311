"""Optimal transport and its derivatives."""

from frechet.transport._batch import TransportBatch, sinkhorn_batch
from frechet.transport._cardinality import SparseTransportSolution, SparseTransportState, sparse_transport
from frechet.transport._derivatives import transport_plan, transport_potentials, transport_value
from frechet.transport._dual_hessian import DualHessian
from frechet.transport._monge import monge_gap
from frechet.transport._result import TransportSolution, TransportState
from frechet.transport._sinkhorn import sinkhorn

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
