"""The first difference on a uniform grid, with its exact transpose and its boundary terms apart.

Summation by parts: h sum_i (D u)_i v_i = -h sum_j u_j (E v)_j + [u v], with D from nodes to the cells between them.
`D.T` is the transpose in node values, of D alone. With ``"dirichlet"`` u is 0 outside, and the transpose is minus the
difference of v. With ``"free"`` the first and last entries of the transpose hold the boundary terms -v_first / h and
v_last / h.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from frechet.operators import LinearOperator, from_callable
from frechet.space import euclidean


def difference_operator(
    nodes: int,
    spacing: float,
    *,
    boundary: Literal["dirichlet", "free", "periodic"] = "dirichlet",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> LinearOperator:
    """Return u -> (u_{i+1} - u_i) / h from values at nodes to cells, with the exact transpose.

    Args:
        nodes: the number of nodes, >= 2.
        spacing: h, > 0.
        boundary: ``"dirichlet"``, nodes strictly inside and 0 at both ends, nodes + 1 cells; ``"free"``, nodes - 1
            cells; or ``"periodic"``, as many cells as nodes.
        dtype: the dtype of vectors.
        device: their device.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import difference_operator
        >>> D = difference_operator(3, 1.0, boundary="free")
        >>> D @ torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
        tensor([1., 3.], dtype=torch.float64)
        >>> D.T @ torch.ones(2, dtype=torch.float64)  # the boundary terms: constants have no difference inside
        tensor([-1.,  0.,  1.], dtype=torch.float64)
    """
    cells = {"dirichlet": nodes + 1, "free": nodes - 1, "periodic": nodes}.get(boundary)
    if cells is None:
        raise ValueError(f"difference_operator: boundary must be 'dirichlet', 'free' or 'periodic', got {boundary!r}")
    if nodes < 2 or not spacing > 0:
        raise ValueError(f"difference_operator: nodes must be at least 2 and spacing > 0, got {nodes} and {spacing}")

    def product(V: Tensor) -> Tensor:
        if boundary == "periodic":
            return (V.roll(-1, 0) - V) / spacing
        if boundary == "dirichlet":
            V = torch.nn.functional.pad(V, (0, 0, 1, 1))
        return V.diff(dim=0) / spacing

    def transposed(U: Tensor) -> Tensor:
        if boundary == "periodic":
            return (U.roll(1, 0) - U) / spacing
        if boundary == "free":
            U = torch.nn.functional.pad(U, (0, 0, 1, 1))
        return (U[:-1] - U[1:]) / spacing

    spaces = [euclidean(n, dtype, device) for n in (nodes, cells)]
    return from_callable(product, spaces[0], spaces[1], rmatmat=transposed)
