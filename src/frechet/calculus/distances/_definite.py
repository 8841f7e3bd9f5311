"""Riemannian distances between symmetric positive definite matrices, with exact derivatives at repeated eigenvalues.

Log-Euclidean: |log A - log B|. Affine invariant: |log(L^-1 B L^-T)| with A = L L'. Bures-Wasserstein: the distance of
Gaussians with the mean 0. Their squares are smooth; the distances have a kink at A = B.

**Source.** Arsigny et al., "Geometric means in a novel vector space structure on symmetric positive definite matrices"
(2007); Pennec, Fillard and Ayache, "A Riemannian framework for tensor computing" (2006). **Cost:** two
eigendecompositions; the second derivative of the logarithm takes n^4 operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.distances._bures import Bures
from frechet.calculus.matrices import cholesky, kronecker_solve, logm
from frechet.calculus.matrices._forward_rule import nested
from frechet.calculus.matrices._guarded import Guard
from frechet.calculus.matrices._matrix_function import require_square
from frechet.calculus.matrices._symmetric import moved, symmetrized
from frechet.errors import NotDifferentiable


def log_euclidean_distance(A: Tensor, B: Tensor, *, squared: bool = False) -> Tensor:
    """Return the log-Euclidean distance |log A - log B| of definite matrices, differentiable twice.

    Args:
        A: symmetric positive definite matrices ``(..., n, n)``.
        B: the same; leading dimensions broadcast.
        squared: whether to return the square, which has derivatives at A = B too.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import log_euclidean_distance
        >>> log_euclidean_distance(torch.eye(2), torch.eye(2) * torch.e, squared=True).round(decimals=4)
        tensor(2.)
    """
    A, B = _pair("log_euclidean_distance", A, B)
    found = (logm(A, symmetric=True) - logm(B, symmetric=True)).square().sum((-2, -1))
    return found if squared else Root.apply("log_euclidean_distance", found)


def affine_invariant_distance(A: Tensor, B: Tensor, *, squared: bool = False) -> Tensor:
    """Return the affine invariant distance |log(A^(-1/2) B A^(-1/2))| of definite matrices, differentiable twice.

    Args:
        A: symmetric positive definite matrices ``(..., n, n)``.
        B: the same; leading dimensions broadcast.
        squared: whether to return the square, which has derivatives at A = B too.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import affine_invariant_distance
        >>> A, B = torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([torch.e, 2.0]))
        >>> affine_invariant_distance(A, B).round(decimals=4)
        tensor(1.)
    """
    A, B = _pair("affine_invariant_distance", A, B)
    L = cholesky(A)
    found = logm(symmetrized(kronecker_solve(L, L, B)), symmetric=True).square().sum((-2, -1))
    return found if squared else Root.apply("affine_invariant_distance", found)


def bures_distance(A: Tensor, B: Tensor, *, squared: bool = False) -> Tensor:
    """Return the Bures-Wasserstein distance sqrt(tr A + tr B - 2 tr (A B)^(1/2)) of definite matrices, differentiable
    twice.

    Args:
        A: symmetric positive definite matrices ``(..., n, n)``.
        B: the same; leading dimensions broadcast.
        squared: whether to return the square, which has derivatives at A = B too.

    Example:
        >>> import torch
        >>> from frechet.calculus.distances import bures_distance
        >>> bures_distance(torch.eye(2), 4 * torch.eye(2), squared=True).round(decimals=4)
        tensor(2.)
    """
    A, B = _pair("bures_distance", A, B)
    found = Bures.apply(cholesky(A).mT, cholesky(B).mT)[0]
    return found if squared else Root.apply("bures_distance", found)


class Root(torch.autograd.Function):
    """The square root of a squared distance, whose derivative at 0 is refused."""

    @staticmethod
    def forward(name: str, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clamp(min=0).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, _half(ctx.name, ctx.saved_tensors[0], g)

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, d: Tensor) -> Tensor:  # type: ignore[override]
        return _half(ctx.name, saved[0], d)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Root.apply(*moved(given, dims, info.batch_size)), 0


def _half(name: str, x: Tensor, g: Tensor) -> Tensor:
    """g / (2 sqrt x), after a check."""

    def check(x: Tensor) -> None:
        if bool((x <= 0).any()):
            raise NotDifferentiable(f"{name}: A and B must differ for derivatives, got equal ones; give squared=True")

    return g / (2 * Guard.apply(check, x).sqrt())


def _pair(name: str, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    for x in (A, B):
        require_square(name, x)
    if A.shape[-1] != B.shape[-1]:
        raise ValueError(f"{name}: A and B must have the same size, got {A.shape[-1]} and {B.shape[-1]}")
    A, B = torch.broadcast_tensors(A, B)
    return A, B
