"""Norms of interval matrices, bounded from above and below with rounding.

For J between L and U entry by entry, the norm from sup to sup is max_k sum_j |J_kj|. The spectral norm is at most that
of the matrix of largest magnitudes, and at most |C| + |R| for the centre C and the radii R. The norm of a matrix M >= 0
is at most the root of max_i (M'M v)_i / v_i, for any v > 0 (Collatz, Wielandt), which the dominant vector makes sharp.
For a general C with computed singular vectors, the norm is at most

    |Q| max s |P| + |C - Q S P'|_F,    |Q|^2 <= 1 + |Q'Q - I|_F.

**Source.** Rump, "Verification methods: rigorous results using floating-point arithmetic" (2010), sections 10 and 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.calculus.bounds._rounding import above, below, gamma

STEPS = 30  # of the power iteration: any number is rigorous, more is sharper


def least_magnitude(L: Tensor, U: Tensor) -> Tensor:
    """The smallest |x| for x in [L, U]."""
    return torch.maximum(torch.maximum(L, -U), torch.zeros_like(L))


def row_sums(M: Tensor) -> Tensor:
    """Upper bounds of the sums of rows of M >= 0."""
    return above(M.sum(-1), M.shape[-1] + 2)


def length(M: Tensor) -> Tensor:
    """Upper bounds of the Euclidean lengths of rows of M >= 0."""
    return above(M.square().sum(-1).sqrt(), M.shape[-1] + 8)


def spectral_of_positive(M: Tensor) -> Tensor:
    """Upper bounds of the spectral norms of matrices M >= 0 (..., k, n)."""
    v = M.sum(-2) + 1e-3 * M.sum((-2, -1), keepdim=True).squeeze(-1) + 1e-200
    for _ in range(STEPS):
        w = _gram_product(M, v)
        # v must stay positive, so that every quotient is finite
        v = w / w.amax(-1, keepdim=True).clamp(min=1e-200) + 1e-12
    quotient = above(_gram_product(M, v), 2 * sum(M.shape[-2:]) + 8) / v
    collatz = above(quotient.amax(-1).sqrt(), 8)
    return torch.minimum(collatz, length(M.flatten(-2)))


def _gram_product(M: Tensor, v: Tensor) -> Tensor:
    return (M.mT @ (M @ v.unsqueeze(-1))).squeeze(-1)


def spectral(C: Tensor) -> Tensor:
    """Upper bounds of the spectral norms of matrices (..., k, n)."""
    Q, s, P = torch.linalg.svd(C, full_matrices=False)
    n = 2 * sum(C.shape[-2:]) + 16
    off = C - (Q * s.unsqueeze(-2)) @ P
    size = C.abs() + (Q.abs() * s.unsqueeze(-2)) @ P.abs()
    residual = length(above(off.abs() + gamma(n) * size).flatten(-2))
    skew = [_skew(Q), _skew(P.mT)]
    top = above(s.amax(-1))
    for d in skew:
        top = above(top * (1 + d).sqrt(), 8)
    return above(top + residual)


def _skew(Q: Tensor) -> Tensor:
    """A bound on |Q'Q - I|_F."""
    off = Q.mT @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype)
    size = Q.abs().mT @ Q.abs() + 1
    return length((off.abs() + gamma(sum(Q.shape[-2:])) * size).flatten(-2))


def spectral_from_below(L: Tensor, U: Tensor) -> Tensor:
    """Lower bounds of the spectral norms of matrices between L and U: |C v| / |v| for one vector, without the radii."""
    C, R = (L + U) / 2, above((U - L) / 2)
    v = torch.linalg.svd(C, full_matrices=False)[2][..., 0, :]
    image = (C @ v.unsqueeze(-1)).squeeze(-1)
    error = gamma(C.shape[-1]) * 2 * (C.abs() @ v.abs().unsqueeze(-1)).squeeze(-1)
    stretched = below(least_magnitude(image - error, image + error).square().sum(-1).sqrt(), C.shape[-2] + 8)
    return below(below(stretched / length(v.abs())) - length(R.flatten(-2))).clamp(min=0.0)
