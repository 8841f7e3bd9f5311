"""The sparsity of a Jacobian that nobody declared: which products with unit vectors are not zero.

An entry counts where it is not zero at the start, or at a point a hundredth of the parameters' sizes away: at the start
alone the derivative of a product of two zeros is zero, too. What depends on x by a branch that neither point takes is
not found; the gradient, which is compared at every point, tells.

**Cost.** min(m, n) products at each of two points.
"""

from __future__ import annotations

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.optimize._least_squares.residual import Point, Residual

CHUNK = 32  # products at a time
AWAY = 1e-2  # of the sizes of the parameters


def found_pattern(problem: Residual, start: Point) -> scipy.sparse.coo_array:
    """The pattern ``(m, n)`` of J near `start`."""
    signs = problem.space.with_dtype(torch.float64).random(0, 0).cpu()
    nearby = problem.at(start.x + AWAY * signs * torch.maximum(start.x.abs(), problem.typical))
    points = [start] if nearby is None else [start, nearby]
    rows, columns = (np.concatenate(parts) for parts in zip(*(_nonzeros(problem, p) for p in points), strict=True))
    shape = (start.r.numel(), problem.space.dim)
    return scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _nonzeros(problem: Residual, point: Point) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of the entries of J at `point` that are not zero; NaN is not."""
    J = problem.operator(point)
    m, n = J.shape
    found = []
    for first in range(0, min(m, n), CHUNK):
        some = range(first, min(first + CHUNK, m, n))
        products: Tensor = J @ J.domain.units(some) if n <= m else J.T @ J.codomain.units(some)
        problem.ledger.products += len(some)
        there, which = (t.cpu().numpy() for t in products.nonzero(as_tuple=True))
        found.append((there, which + first) if n <= m else (which + first, there))
    none = np.zeros(0, dtype=np.int64)
    rows, columns = zip(*found, strict=True) if found else ((none,), (none,))
    return np.concatenate(rows), np.concatenate(columns)
