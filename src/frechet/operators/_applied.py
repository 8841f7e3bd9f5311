"""A v as a node of the graph, for a constant operator A: the derivative in v is A, of the cotangent A'.

Operators run without a graph. This puts one product into it, differentiable to any order in both modes: the derivative
of a linear map is the same map again, so each rule below is one product and no arithmetic beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.operators._operator import LinearOperator


class _Applied(torch.autograd.Function):
    @staticmethod
    def forward(A: LinearOperator, v: Tensor) -> Tensor:
        return A @ v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.A = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, _Applied.apply(ctx.A.T, grad_outputs[0])

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _Applied.apply(ctx.A, grad_inputs[1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        A, v = args
        if in_dims[1] is None:
            return _Applied.apply(A, v), None
        rows = v.movedim(in_dims[1], 0)
        if rows.ndim > 2:  # a batch of blocks: their columns are the block of one product
            found = _Applied.apply(A, rows.movedim(0, -1).reshape(rows.shape[1], -1))
            return found.reshape(-1, *rows.shape[2:], rows.shape[0]).movedim(-1, 0), 0
        return _Applied.apply(A, rows.T).T, 0


def applied(A: LinearOperator, v: Tensor) -> Tensor:
    """Return A v as a node of the graph, differentiable in v to any order.

    Args:
        A: an operator; it is a constant.
        v: a vector ``(n,)`` or a block ``(n, k)``.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.operators import applied
        >>> A = from_matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> torch.func.grad(lambda v: applied(A, v)[0] ** 2)(torch.ones(2))
        tensor([ 6., 12.])
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(f"applied: A must be a LinearOperator, got {type(A).__name__}; wrap a matrix with from_matrix")
    return _Applied.apply(A, v)
