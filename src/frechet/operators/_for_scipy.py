"""The class of what `to_scipy` returns: an operator as a `scipy.sparse.linalg.LinearOperator`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator as SciPyOperator

from frechet.operators._operator import LinearOperator


class ForScipy(SciPyOperator):
    """What `to_scipy` returns. `operator` is the wrapped operator."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(torch.zeros(0, dtype=operator.domain.dtype).numpy().dtype, operator.shape)
        self.operator = operator

    def _matvec(self, x: NDArray) -> NDArray:
        return on_arrays(self.operator, x)

    def _rmatvec(self, x: NDArray) -> NDArray:
        return on_arrays(self.operator.T, x)

    def _matmat(self, X: NDArray) -> NDArray:
        return on_arrays(self.operator, X)

    def _rmatmat(self, X: NDArray) -> NDArray:
        return on_arrays(self.operator.T, X)


def on_arrays(A: LinearOperator, x: NDArray) -> NDArray:
    if np.iscomplexobj(x):
        return on_arrays(A, np.real(x)) + 1j * on_arrays(A, np.imag(x))
    # a copy: a torch tensor must not share memory that SciPy will overwrite, nor be read-only
    return (A @ torch.from_numpy(np.array(x)).to(A.domain.device, A.domain.dtype)).cpu().numpy()
