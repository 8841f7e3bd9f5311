"""Optimal transport."""

from frechet.solve.transport.dual_hessian import DualHessian
from frechet.solve.transport.result import TransportSolution, TransportState
from frechet.solve.transport.sinkhorn import sinkhorn

__all__ = ["DualHessian", "TransportSolution", "TransportState", "sinkhorn"]
