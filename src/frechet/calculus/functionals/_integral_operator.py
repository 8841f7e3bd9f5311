"""Linear integral operators on functions, with transposes that are exact on the nodes.

(A u)(x) = int k(x, y) u(y) dy at the nodes is K W u, W the quadrature weights. `A.T` is W K', the transpose in node
values, for covectors. The adjoint between L2 spaces, (A* v)(y) = int k(x, y) v(x) dx, is W^-1 A.T W = K' W.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from frechet.calculus.functionals._domain import Box
from frechet.operators import LinearOperator, from_callable
from frechet.space import euclidean


def integral_operator(
    kernel: Callable[[Tensor, Tensor], Tensor], domain: Box, codomain: Box | None = None
) -> LinearOperator:
    """Return u -> int k(x, y) u(y) dy from values at the nodes of one box to values at the nodes of another.

    Args:
        kernel: k, a function of ``x (M, N, d)`` and ``y (M, N, e)`` to ``(M, N)``.
        domain: the box of y.
        codomain: the box of x. Default: the domain.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import box, integral_operator
        >>> domain = box(0.0, 1.0)
        >>> A = integral_operator(lambda x, y: x[..., 0] * y[..., 0], domain)
        >>> u = domain.points[:, 0]
        >>> torch.allclose(A @ u, domain.points[:, 0] / 3)
        True
    """
    out = domain if codomain is None else codomain
    M, N = len(out.points), len(domain.points)
    x = out.points[:, None].expand(M, N, out.dimension)
    y = domain.points[None].expand(M, N, domain.dimension)
    K = kernel(x, y)
    if not isinstance(K, Tensor) or K.shape != (M, N):
        got = tuple(K.shape) if isinstance(K, Tensor) else type(K).__name__
        raise ValueError(f"integral_operator: kernel must return a value for each pair, {(M, N)}, got {got}")
    A = K.detach() * domain.weights
    spaces = [euclidean(n, A.dtype, A.device) for n in (N, M)]
    return from_callable(lambda V: A @ V, spaces[0], spaces[1], rmatmat=lambda U: A.mT @ U)
