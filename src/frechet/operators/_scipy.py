"""Operators for SciPy: `scipy.sparse.linalg.eigsh`, `svds`, `gmres` and the rest take what `to_scipy` returns.

Vectors cross between NumPy (host) and the operator's dtype and device at each product. Cost: the product itself and two
copies of the block.
"""

from __future__ import annotations

import scipy
import torch

from frechet.operators._operator import LinearOperator


def to_scipy(A: LinearOperator) -> scipy.sparse.linalg.LinearOperator:
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
    # the class is loaded with scipy.sparse.linalg, which is a good part of an import's time
    from frechet.operators._for_scipy import ForScipy

    return ForScipy(A)
