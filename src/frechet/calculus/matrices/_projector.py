"""Spectral projectors and polar factors: functions of the sign, exact where single vectors have no derivative.

The projector on the eigenvectors above a gap is a step function of A: its derivative divides by the gap alone, and not
by distances inside the two groups. The polar factor of A is the sign of [[0, A], [A', 0]], whose eigenvalues are plus
and minus the singular values; its derivative divides by their sums.

**Source.** Higham, "Functions of Matrices" (2008), sections 5.1 and 8.1. **Cost:** an eigendecomposition of size n, or
of m + n for the polar factor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.calculus.matrices._divided_differences import sign
from frechet.calculus.matrices._guarded import Guard
from frechet.calculus.matrices._matrix_function import require_real, require_square
from frechet.calculus.matrices._symmetric import SymmetricFunction, symmetrized
from frechet.errors import NotDifferentiable

SIGN = sign("spectral_projector")
ODD = sign("polar", zeros=True)  # m - n eigenvalues of [[0, A], [A', 0]] are 0 for every A


def spectral_projector(A: Tensor, count: int, *, largest: bool = True) -> Tensor:
    """Return the projector V V' on `count` eigenvectors of a symmetric matrix, differentiable twice.

    Eigenvalues inside the two groups may be equal. Between the groups there must be a gap.

    Args:
        A: symmetric matrices ``(..., n, n)``.
        count: how many eigenvectors, between 1 and n - 1.
        largest: whether those of the largest eigenvalues, or of the smallest.

    Raises:
        NotDifferentiable: the eigenvalues on both sides of the gap are equal, so that the projector is not defined.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import spectral_projector
        >>> spectral_projector(torch.diag(torch.tensor([3.0, 3.0, 1.0])), 2)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """
    require_square("spectral_projector", A)
    n = A.shape[-1]
    if not 1 <= count <= n - 1:
        raise ValueError(f"spectral_projector: count must be an int between 1 and {n - 1}, got {count}")
    lam = torch.linalg.eigvalsh(symmetrized(A.detach()))
    below, above = (lam[..., n - count - 1], lam[..., n - count]) if largest else (lam[..., count - 1], lam[..., count])

    def check(_: Tensor, lam: Tensor, rise: Tensor) -> None:
        if bool((rise <= math.sqrt(torch.finfo(lam.dtype).eps) * lam.abs().amax(-1)).any()):
            raise NotDifferentiable(
                f"spectral_projector: there must be a gap at count = {count}, got equal eigenvalues on both sides of "
                "it; choose another count"
            )

    A = Guard.apply(check, A, lam, above - below)
    middle = ((above + below) / 2)[..., None, None]
    eye = torch.eye(n, dtype=A.dtype, device=A.device)
    side = 1.0 if largest else -1.0
    return (eye + side * SymmetricFunction.apply(SIGN, A - middle * eye)[0]) / 2


def polar(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the polar factors of A = U P: orthonormal U and semidefinite P = sqrt(A'A), differentiable twice.

    Singular values may be equal. They must not be 0, where U is not defined.

    Args:
        A: matrices ``(..., m, n)`` of full rank n, m >= n.

    Returns:
        U ``(..., m, n)`` and P ``(..., n, n)``.

    Raises:
        NotDifferentiable: A lacks rank.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import polar
        >>> U, P = polar(torch.tensor([[0.0, -2.0], [2.0, 0.0]]))
        >>> P.round()
        tensor([[2., 0.],
                [0., 2.]])
    """
    if A.ndim < 2 or A.shape[-2] < A.shape[-1]:
        raise ValueError(f"polar: A must have shape (..., m, n) with m >= n, got {tuple(A.shape)}; take that of A.mT")
    require_real("polar", "A", A)
    m, n = A.shape[-2:]

    def check(_: Tensor, s: Tensor) -> None:
        if n and bool((s[..., -1] <= math.sqrt(torch.finfo(s.dtype).eps) * s[..., 0]).any()):
            raise NotDifferentiable(
                "polar: A must have full rank, got a singular value that is 0 up to rounding; the factor is not "
                "defined there"
            )

    A = Guard.apply(check, A, torch.linalg.svdvals(A.detach()))
    zero = [A.new_zeros(*A.shape[:-2], k, k) for k in (m, n)]
    H = torch.cat([torch.cat([zero[0], A], -1), torch.cat([A.mT, zero[1]], -1)], -2)
    U = SymmetricFunction.apply(ODD, H)[0][..., :m, m:]
    return U, symmetrized(U.mT @ A)
