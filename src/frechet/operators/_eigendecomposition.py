"""Eigenvectors of symmetric operators whose structure shows them.

    A = Q diag(values) Q'      with Q orthogonal: identity, diagonal, dense, Kronecker, block diagonal,
                                                       in another order, and shifts
    U S U' = V diag(mu) V'     with V orthonormal ``(n, r)``, for a low-rank operator

Dense blocks are decomposed in float64 and rounded once. The eigenvectors of a Kronecker product are the Kronecker
product of the factors' eigenvectors, so nothing of size n x n is formed for it.

Cost: no products with A; O(m^3) for each dense m x m block, O(n k^2) for k low-rank columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.errors import NoClosedForm
from frechet.operators._canonical import normal_form
from frechet.operators._operator import NONE, PD, PSD, SYMMETRIC, Fact, LinearOperator, Product, Scaled, Sum
from frechet.operators._structured import (
    BlockDiagonal,
    Diagonal,
    Eigendecomposed,
    Identity,
    Kronecker,
    LowRank,
    Matrix,
    Permuted,
)

_ITERATIVE = {"inverse": "solve(A, b)", "square_root": "apply_function(A, b, torch.sqrt)"}


def eigendecomposition(A: LinearOperator, name: str) -> Eigendecomposed:
    """Eigenvectors and eigenvalues of a symmetric structure; dense blocks are decomposed in float64."""
    Q: LinearOperator = Identity(A.domain)
    match normal_form(A):
        case Eigendecomposed() as E:
            return E
        case Identity(domain):
            values = torch.ones(domain.dim, dtype=torch.float64, device=domain.device)
        case Diagonal(d):
            values = double(d)
        case Matrix(M, domain):
            values, vectors = torch.linalg.eigh((double(M) + double(M).T) / 2)
            Q = Matrix(vectors.to(M), domain, domain, NONE)
        case Scaled(c, operator) | Sum(terms=(Scaled(operator=Identity(), scale=c), operator)) as B:
            E = eigendecomposition(operator, name)
            Q, values = E.Q, c + E.values if isinstance(B, Sum) else c * E.values
        case Kronecker(B, C):
            left, right = eigendecomposition(B, name), eigendecomposition(C, name)
            Q, values = Kronecker(left.Q, right.Q), torch.outer(left.values, right.values).reshape(-1)
        case Permuted(B, order, domain):
            E = eigendecomposition(B, name)
            Q, values = Permuted(E.Q, order, domain), torch.empty_like(E.values)
            values[order] = E.values
        case BlockDiagonal(blocks, domain, codomain):
            parts = [eigendecomposition(b, name) for b in blocks]
            Q = BlockDiagonal(tuple(p.Q for p in parts), domain, codomain)
            values = torch.cat([p.values for p in parts])
        case _:
            raise no_closed_form(name, A)
    if Fact.POSITIVE_SEMIDEFINITE in A.facts:
        values = values.clamp_min(0)
    return Eigendecomposed(Q, values, sign(values))


def orthonormal_factors(L: LowRank) -> tuple[Tensor, Tensor]:
    """V ``(n, r)`` orthonormal and mu ``(r,)`` float64 with U diag(s) U' = V diag(mu) V'; r is the numerical rank."""
    U, s = L.U[:, L.s != 0], double(L.s[L.s != 0])
    Q, R = L.domain.orthonormalize(U)
    if bool((s > 0).all()):
        P, sigma, _ = torch.linalg.svd(R * s.sqrt(), full_matrices=False)
        mu, size = sigma.square(), sigma
    else:
        mu, P = torch.linalg.eigh((R * s) @ R.T)
        size = mu.abs()
    keep = size > len(size) * L.domain.eps * size.max() if size.numel() else size > 0
    return Q @ P[:, keep].to(Q), mu[keep]


def spectral(Q: LinearOperator, values: Tensor) -> LinearOperator:
    """Q diag(values) Q' for an orthogonal Q."""
    return Eigendecomposed(Q, values, sign(values))


def sign(values: Tensor) -> frozenset[Fact]:
    """The facts of a symmetric operator with these eigenvalues."""
    return PD if bool((values > 0).all()) else PSD if bool((values >= 0).all()) else SYMMETRIC


def no_closed_form(name: str, A: LinearOperator) -> NoClosedForm:
    """The exception of function `name` for an operator without the structure, with the iterative way."""
    parts = A.terms if isinstance(A, Sum) else A.factors if isinstance(A, Product) else ()
    listed = f" made of {', '.join(type(p).__name__ for p in parts)}" if parts else ""
    return NoClosedForm(f"{name}: no closed form is known for {A!r}{listed}; use {_ITERATIVE[name]}")


def double(t: Tensor) -> Tensor:
    """`t` in float64, on the host where the device has none."""
    return t.cpu().double() if t.device.type == "mps" else t.double()
