"""Linear matrix equations, differentiable to any order: A X + X B = C, and A X B' = C.

The adjoint of the Sylvester map is the Sylvester map of the transposes. A' Y + Y B' = G gives the gradients Y for C,
-Y X' for A and -X' Y for B, by the same solver.

**Source.** Bartels and Stewart, "Solution of the matrix equation AX + XB = C" (1972), in SciPy, on the processor, one
matrix of a batch at a time. **Cost:** 25 (m^3 + n^3) for each solve; the Kronecker matrix of size m n is never formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.calculus.matrices._forward_rule import nested
from frechet.calculus.matrices._matrix_function import require_real, require_square
from frechet.calculus.matrices._symmetric import moved

SINGULAR = 10.0  # multiples of eps that the distance of the spectra of A and -B must have, relative to their sizes


class Sylvester(torch.autograd.Function):
    """X with A X + X B = C."""

    @staticmethod
    def forward(A: Tensor, B: Tensor, C: Tensor) -> Tensor:  # type: ignore[override]
        batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2], C.shape[:-2])
        given = [x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:]) for x in (A, B, C)]
        arrays = [x.detach().to("cpu", torch.float64).numpy() for x in given]
        found = [_solved(a, b, c) for a, b, c in zip(*arrays, strict=True)]
        shape = (*batch, *C.shape[-2:])
        return (torch.from_numpy(np.stack(found)) if found else given[2]).reshape(shape).to(C)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shape = inputs[2].shape
        ctx.save_for_backward(*inputs[:2], output)
        ctx.save_for_forward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        A, B, X = ctx.saved_tensors
        Y = Sylvester.apply(A.mT, B.mT, g)
        return _summed(-Y @ X.mT, A.shape), _summed(-X.mT @ Y, B.shape), _summed(Y, ctx.shape)

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], dA: Tensor | None, dB: Tensor | None, dC: Tensor | None) -> Tensor:  # type: ignore[override]
        A, B, X = saved
        right = torch.zeros_like(X) if dC is None else dC
        if dA is not None:
            right = right - dA @ X
        if dB is not None:
            right = right - X @ dB
        return Sylvester.apply(A, B, right)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Sylvester.apply(*_aligned(moved(given, dims, info.batch_size))), 0


def _aligned(given: list[Tensor]) -> list[Tensor]:
    """Tensors with as many dimensions each, ones put in after the first, so that leading dimensions broadcast."""
    most = max(x.ndim for x in given)
    return [x.reshape(len(x), *[1] * (most - x.ndim), *x.shape[1:]) for x in given]


def _summed(g: Tensor, shape: torch.Size) -> Tensor:
    return g.sum_to_size(shape) if g.shape != shape else g


def _solved(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    if not all(np.isfinite(x).all() for x in (a, b, c)):
        raise ValueError("sylvester: A, B and C must be finite, got NaN or infinite entries")
    if not c.size:
        return c
    apart = np.abs(np.linalg.eigvals(a)[:, None] + np.linalg.eigvals(b)).min()
    if apart <= SINGULAR * np.finfo(np.float64).eps * max(np.abs(a).max() + np.abs(b).max(), np.finfo(np.float64).tiny):
        raise ValueError(
            f"sylvester: A and -B must have no eigenvalue in common, got two at a distance of {apart:.1g}; the "
            "equation has no unique solution"
        )
    return scipy.linalg.solve_sylvester(a, b, c)


def sylvester(A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Solve A X + X B = C, differentiable to any order in all three.

    Args:
        A: matrices ``(..., m, m)``.
        B: matrices ``(..., n, n)``; no eigenvalue of A is one of -B.
        C: matrices ``(..., m, n)``. Leading dimensions broadcast.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import sylvester
        >>> sylvester(torch.eye(2), torch.eye(2), torch.full((2, 2), 4.0))
        tensor([[2., 2.],
                [2., 2.]])
    """
    for name, x in (("A", A), ("B", B)):
        require_square(f"sylvester: {name} as", x)
    require_real("sylvester", "C", C)
    if C.ndim < 2 or C.shape[-2:] != (A.shape[-1], B.shape[-1]):
        raise ValueError(f"sylvester: C must have shape (..., {A.shape[-1]}, {B.shape[-1]}), got {tuple(C.shape)}")
    return Sylvester.apply(A, B, C)


def lyapunov(A: Tensor, Q: Tensor) -> Tensor:
    """Solve A X + X A' = Q, differentiable to any order in both.

    Args:
        A: matrices ``(..., n, n)``, no two of whose eigenvalues add up to 0; stable ones qualify.
        Q: matrices ``(..., n, n)``.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import lyapunov
        >>> lyapunov(-torch.eye(2), -torch.eye(2))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    require_square("lyapunov", A)
    return sylvester(A, A.mT, Q)


class KroneckerSolve(torch.autograd.Function):
    """X with A X B' = C. Nested forward mode through `torch.linalg.solve` is off by a factor in torch 2.13."""

    @staticmethod
    def forward(A: Tensor, B: Tensor, C: Tensor) -> Tensor:  # type: ignore[override]
        return torch.linalg.solve(B, torch.linalg.solve(A, C).mT).mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shape = inputs[2].shape
        ctx.save_for_backward(*inputs[:2], output)
        ctx.save_for_forward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        A, B, X = ctx.saved_tensors
        Y = KroneckerSolve.apply(A.mT, B.mT, g)
        return _summed(-Y @ B @ X.mT, A.shape), _summed(-Y.mT @ A @ X, B.shape), _summed(Y, ctx.shape)

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], dA: Tensor | None, dB: Tensor | None, dC: Tensor | None) -> Tensor:  # type: ignore[override]
        A, B, X = saved
        right = torch.zeros_like(X) if dC is None else dC
        if dA is not None:
            right = right - dA @ X @ B.mT
        if dB is not None:
            right = right - A @ X @ dB.mT
        return KroneckerSolve.apply(A, B, right)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return KroneckerSolve.apply(*_aligned(moved(given, dims, info.batch_size))), 0


def kronecker_solve(A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Solve A X B' = C, which is (A kron B) x = c for row-major x and c, differentiable to any order.

    Args:
        A: invertible matrices ``(..., m, m)``.
        B: invertible matrices ``(..., n, n)``.
        C: matrices ``(..., m, n)``.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import kronecker_solve
        >>> kronecker_solve(2 * torch.eye(2), torch.eye(2), torch.ones(2, 2))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    require_square("kronecker_solve", A)
    require_square("kronecker_solve", B)
    if C.ndim < 2 or C.shape[-2:] != (A.shape[-1], B.shape[-1]):
        raise ValueError(
            f"kronecker_solve: C must have shape (..., {A.shape[-1]}, {B.shape[-1]}), got {tuple(C.shape)}"
        )
    return KroneckerSolve.apply(A, B, C)
