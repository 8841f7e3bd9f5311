"""Operators for SciPy: `scipy.sparse.linalg.eigsh`, `svds`, `gmres` and the rest take what `to_scipy` returns.

Vectors cross between NumPy (host) and the operator's dtype and device at each product. Cost: the product itself and two
copies of the block.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse.linalg as sla
import torch
from numpy.typing import NDArray

from frechet.operators._operator import LinearOperator


def to_scipy(A: LinearOperator) -> sla.LinearOperator:
    """Return `A` as a `scipy.sparse.linalg.LinearOperator` of the same shape and dtype, with its transpose.

    NumPy input of another real dtype is converted to A's dtype. Complex input is taken as two real products.

    Raises:
        TypeError: NumPy lacks A's dtype (bfloat16).

    Example:
        >>> import torch
        >>> from scipy.sparse.linalg import eigsh
        >>> from frechet import from_diagonal
        >>> from frechet.operators import to_scipy
        >>> A = from_diagonal(torch.arange(1.0, 9.0, dtype=torch.float64))
        >>> eigsh(to_scipy(A), k=2, which="LA", return_eigenvectors=False).round(6).tolist()
        [7.0, 8.0]
    """
    if A.domain.dtype not in (torch.float16, torch.float32, torch.float64):
        raise TypeError(f"to_scipy: A must have a dtype that NumPy has, got {A.domain.dtype}; use float32 vectors")
    return ForScipy(A)


class ForScipy(sla.LinearOperator):
    """What `to_scipy` returns. `operator` is the wrapped operator."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(torch.zeros(0, dtype=operator.domain.dtype).numpy().dtype, operator.shape)
        self.operator = operator

    def _matvec(self, x: NDArray) -> NDArray:
        return _on_arrays(self.operator, x)

    def _rmatvec(self, x: NDArray) -> NDArray:
        return _on_arrays(self.operator.T, x)

    def _matmat(self, X: NDArray) -> NDArray:
        return _on_arrays(self.operator, X)

    def _rmatmat(self, X: NDArray) -> NDArray:
        return _on_arrays(self.operator.T, X)


def _on_arrays(A: LinearOperator, x: NDArray) -> NDArray:
    if np.iscomplexobj(x):
        return _on_arrays(A, np.real(x)) + 1j * _on_arrays(A, np.imag(x))
    # a copy: a torch tensor must not share memory that SciPy will overwrite, nor be read-only
    return (A @ torch.from_numpy(np.array(x)).to(A.domain.device, A.domain.dtype)).cpu().numpy()
