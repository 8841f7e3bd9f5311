"""Inverses and symmetric square roots of operators whose structure has a closed form.

``inverse(A)`` is the operator B with B A = I; ``square_root(A)`` is the symmetric positive semidefinite B with B B = A.
An empirical Fisher is first written by its examples' gradients (`example_factors`), as of low rank or dense. A sum is
brought into its normal form (see `normal_form`); then each structure answers by one rule:

    diag(d)            diag(1/d)                                diag(sqrt d)
    dense M            Cholesky or LU                           eigenvectors
    A_1 A_2            A_2^-1 A_1^-1                            |S| where A_1 = A_2 = S is symmetric
    A kron B           A^-1 kron B^-1                           sqrt A kron sqrt B
    A kron B + c I     eigenvectors of A and B, which diagonalize both terms
    A in another order  its inverse in that order            its root in that order
    c I + U S U'       I/c - V diag(mu / (c (c + mu))) V'       sqrt(c) I + V diag(sqrt(c + mu) - sqrt c) V'
    D + U S U'         the same rule for D^-1/2 (.) D^-1/2      none

with ``U S U' = V diag(mu) V'`` and V orthonormal. Factorizations run in float64 and are rounded once to the dtype of A.
Everything else raises `NoClosedForm` with the iterative way; nothing falls back to one silently.

**Source** M. A. Woodbury, Inverting modified matrices, Princeton memorandum report 42 (1950); J. Martens and R. Grosse,
Optimizing neural networks with Kronecker-factored approximate curvature (2015), arXiv:1503.05671, for the eigenvectors
of a Kronecker product with a shift.

**Differs from the source** (1) Woodbury's identity is written in an orthonormal basis of the range of U, where no small
matrix is inverted and the square root has the same form.

Cost: no products with A, save for an empirical Fisher; O(n^3) for each dense n x n block, O(n k^2) for k low-rank
columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import matmul

import torch
from torch import Tensor

from frechet.errors import NoClosedForm
from frechet.operators._canonical import normal_form
from frechet.operators._constructors import from_diagonal
from frechet.operators._eigendecomposition import (
    double,
    eigendecomposition,
    no_closed_form,
    orthonormal_factors,
    sign,
    spectral,
)
from frechet.operators._inverse_fisher import InverseFisher, before_inversion
from frechet.operators._operator import PD, PSD, SYMMETRIC, Adjoint, Fact, LinearOperator, Product, Scaled, Sum
from frechet.operators._structured import (
    BlockDiagonal,
    Diagonal,
    Eigendecomposed,
    Identity,
    Kronecker,
    LowRank,
    Matrix,
    Permuted,
    Restriction,
)
from frechet.operators.derivatives._example_factors import by_examples
from frechet.space import Space


@dataclass(frozen=True, eq=False, repr=False)
class Proved(LinearOperator):
    """An operator with facts that its parts do not show: c I - U U' may be the inverse of a definite map."""

    operator: LinearOperator
    facts: frozenset[Fact]

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    def _matmat(self, V: Tensor) -> Tensor:
        return self.operator._matmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self.operator._rmatmat(U)


def inverse(A: LinearOperator) -> LinearOperator:
    """Return the inverse of `A` where its structure has one in closed form. It is positive definite where A is.

    An `empirical_fisher` plus a multiple of the identity, or plus a positive diagonal, is inverted by its examples'
    gradients: a backward pass for each, and as many vectors of memory, at most n. `solve` takes cg there.

    Raises:
        NoClosedForm: A has any other structure.
        ValueError: A is not square, or is singular to working precision: a zero on a diagonal, a dense block whose
            reciprocal condition number is below the eps of its dtype, a low rank without a shift, an eigenvalue that a
            shift cancels. The message names the part that is singular.

    Example:
        >>> import torch
        >>> from frechet import identity
        >>> from frechet.operators import from_factors, inverse
        >>> A = from_factors(torch.tensor([[1.0], [1.0]], dtype=torch.float64))
        >>> inverse(A + 2.0 * identity(A.domain)).dense()
        tensor([[ 0.3750, -0.1250],
                [-0.1250,  0.3750]], dtype=torch.float64)
    """
    return structured_inverse(by_examples(A))


def structured_inverse(A: LinearOperator) -> LinearOperator:
    """As `inverse`, without any product with A or its parts: an empirical Fisher has no closed form here."""
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"inverse: A must be square, got shape {A.shape}; for least squares use lsmr(A, b)")
    match normal_form(A):
        case Sum(terms=(first, second)):
            return _inverse_of_sum(A, first, second)
        case Identity() | Restriction() | Diagonal() | Matrix() | LowRank() | Eigendecomposed() | InverseFisher() as B:
            return _inverse_of_arrays(B)
        case B:
            return _inverse_of_parts(A, B)


def _inverse_of_arrays(A: LinearOperator) -> LinearOperator:
    """The inverse of what its own entries or eigenvalues tell."""
    match A:
        case Identity():
            return A
        case Restriction(domain, codomain) if domain == codomain:
            return Identity(domain)
        case Diagonal(d, domain):
            return from_diagonal(_reciprocal(d, domain), domain=domain)
        case Matrix():
            return _dense_inverse(A)
        case LowRank():
            V, mu = orthonormal_factors(A)
            if V.shape[1] < A.shape[0]:
                raise ValueError(
                    f"inverse: A must be nonsingular, got rank {V.shape[1]} on R^{A.shape[0]}; "
                    "add c * identity(A.domain)"
                )
            return _low_rank(V, 1 / mu, A.domain)
        case Eigendecomposed(Q, values):
            return spectral(Q, _reciprocal(values, A.domain))
        case InverseFisher():
            return before_inversion(A)
        case _:
            raise no_closed_form("inverse", A)


def _inverse_of_parts(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    """The inverse of A, in normal form B, by those of the operators that it is made of."""
    match B:
        case Scaled(c, operator):
            if c == 0:
                raise ValueError(f"inverse: A must be nonsingular, got 0 times {operator!r}")
            return (1 / c) * structured_inverse(operator)
        case Adjoint(operator):
            return structured_inverse(operator).T
        case Product(factors):
            return _known(_product_inverse(A, factors), _inverse_facts(A))
        case Kronecker(left, right):
            _check_square_parts((left, right), "factor of a Kronecker product")
            return Kronecker(structured_inverse(left), structured_inverse(right))
        case BlockDiagonal(blocks, domain, codomain):
            _check_square_parts(blocks, "block")
            return BlockDiagonal(tuple(structured_inverse(b) for b in blocks), codomain, domain)
        case Permuted(operator, order, domain):
            return Permuted(structured_inverse(operator), order, domain)
        case Proved(operator):
            return _known(structured_inverse(operator), _inverse_facts(A))
        case _:
            raise no_closed_form("inverse", A)


def _inverse_of_sum(A: LinearOperator, first: LinearOperator, second: LinearOperator) -> LinearOperator:
    """The inverse of A, in normal form the sum of two terms, by Woodbury's identity or by common eigenvectors."""
    match first, second:
        case Scaled(c, Identity(domain)), LowRank() as L:
            V, mu = orthonormal_factors(L)
            _check_shift(c, mu, domain.eps)
            B = (1 / c) * Identity(domain) + _low_rank(V, -mu / (c * (c + mu)), domain)
            return _known(B, PD if c > 0 and bool((c + mu > 0).all()) else _inverse_facts(A))
        case Diagonal(d, domain), LowRank(U, s):
            if not bool((d > 0).all()):
                raise NoClosedForm(
                    f"inverse: the diagonal added to a low-rank operator must be positive, got the entry "
                    f"{float(d.min()):.3g}; use solve(A, b)"
                )
            w = d.rsqrt()
            V, mu = orthonormal_factors(LowRank(U * w[:, None], s, domain, SYMMETRIC))
            _check_shift(1.0, mu, domain.eps)
            B = from_diagonal(1 / d, domain=domain) + _low_rank(V * w[:, None], -mu / (1 + mu), domain)
            return _known(B, PD if bool((1 + mu > 0).all()) else SYMMETRIC)
        case Scaled(c), (Kronecker() | Eigendecomposed()) as K if Fact.SYMMETRIC in K.facts:
            E = eigendecomposition(K, "inverse")
            _check_shift(c, E.values, K.domain.eps)
            return spectral(E.Q, 1 / (c + E.values))
        case _:
            raise no_closed_form("inverse", A)


def square_root(A: LinearOperator) -> LinearOperator:
    """Return the symmetric positive semidefinite B with B B = A, where A's structure has one in closed form.

    A must be symmetric by its facts. Its sign is a fact, or is read from the eigenvalues: those between ``-n * eps *
    largest`` and 0 count as 0.

    Raises:
        NoClosedForm: A's structure has no closed form.
        ValueError: an eigenvalue is below ``-n * eps * largest``.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.operators import square_root
        >>> A = from_matrix(torch.tensor([[5.0, 4.0], [4.0, 5.0]]).double(), facts="positive_definite")
        >>> square_root(A).dense().round(decimals=6)
        tensor([[2., 1.],
                [1., 2.]], dtype=torch.float64)
    """
    if Fact.SYMMETRIC not in A.facts:
        raise ValueError(
            f"square_root: A must be symmetric, got {A!r}; declare it where it is, as in "
            "from_matrix(M, facts='positive_semidefinite')"
        )
    A = by_examples(A)
    match normal_form(A):
        case Identity() | Restriction() | Diagonal() | Matrix() | LowRank() as B:
            return _root_of_arrays(B)
        case Sum(terms=(Scaled(c, Identity()), LowRank() as L)):
            return _root_of_shifted(c, L)
        case Scaled(c, operator) if c >= 0:
            return math.sqrt(c) * (square_root(operator) if c else Identity(A.domain))
        case Product(factors=(B, C)) if B is C:
            if Fact.POSITIVE_SEMIDEFINITE in B.facts:
                return B
            E = eigendecomposition(B, "square_root")
            return spectral(E.Q, E.values.abs())
        case Kronecker(B, C) as K if Fact.POSITIVE_SEMIDEFINITE in K.facts:
            return Kronecker(square_root(B), square_root(C))
        case BlockDiagonal(blocks, domain, codomain):
            return BlockDiagonal(tuple(square_root(b) for b in blocks), domain, codomain)
        case Permuted(operator=operator) | Proved(operator=operator) as B:
            root = square_root(operator)
            return Permuted(root, B.order, B.domain) if isinstance(B, Permuted) else _known(root, A.facts)
        case B:
            return _root_by_eigenvectors(A, B)


def _root_of_arrays(A: LinearOperator) -> LinearOperator:
    """The square root of what its own entries tell."""
    match A:
        case Restriction(domain):
            return Identity(domain)
        case Diagonal(d, domain):
            return from_diagonal(_root(d, 0.0), domain=domain)
        case Matrix(M, domain):
            values, Q = torch.linalg.eigh((double(M) + double(M).T) / 2)
            root = _root(values, domain.eps)
            return Matrix(((Q * root) @ Q.T).to(M), domain, domain, A.facts | sign(root))
        case LowRank():
            V, mu = orthonormal_factors(A)
            return _low_rank(V, _root(mu, A.domain.eps), A.domain)
        case _:  # the identity
            return A


def _root_of_shifted(c: float, L: LowRank) -> LinearOperator:
    """The square root of c I + L."""
    V, mu = orthonormal_factors(L)
    domain = L.domain
    if c < 0 and V.shape[1] < domain.dim:
        raise ValueError(f"square_root: A must be positive semidefinite, got the eigenvalue {c:.3g}")
    low, top = math.sqrt(max(c, 0.0)), _root(c + mu, domain.eps)
    gain = top if c < 0 else mu / (top + low)  # sqrt(c + mu) - sqrt(c) without cancellation
    return _known(low * Identity(domain) + _low_rank(V, gain, domain), sign(top) if c > 0 else PSD)


def _root_by_eigenvectors(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    """The square root of A, in normal form B, where its eigenvectors are known."""
    match B:
        case InverseFisher():
            return structured_inverse(square_root(before_inversion(B)))
        case (
            Kronecker()
            | Scaled()
            | Sum(terms=(Scaled(operator=Identity()), Kronecker() | Eigendecomposed()))
            | Eigendecomposed()
        ):
            E = eigendecomposition(B, "square_root")
            return spectral(E.Q, _root(E.values, A.domain.eps))
        case _:
            raise no_closed_form("square_root", A)


# --- parts ------------------------------------------------------------------------------------------------------------


def _known(A: LinearOperator, facts: frozenset[Fact]) -> LinearOperator:
    return A if facts <= A.facts else Proved(A, facts)


def _inverse_facts(A: LinearOperator) -> frozenset[Fact]:
    return PD if Fact.POSITIVE_SEMIDEFINITE in A.facts else A.facts


def _low_rank(V: Tensor, values: Tensor, domain: Space) -> LinearOperator:
    facts = sign(values) & PSD if V.shape[1] < V.shape[0] else sign(values)
    return LowRank(V, values.to(V), domain, facts)


def _root(values: Tensor, eps: float) -> Tensor:
    """The square root of eigenvalues; rounding below 0 counts as 0."""
    if values.numel() and not float(values.min()) >= -values.numel() * eps * float(values.abs().max()):
        raise ValueError(
            f"square_root: A must be positive semidefinite, got the eigenvalue {float(values.min()):.3g} "
            f"(the largest is {float(values.max()):.3g})"
        )
    return values.clamp_min(0).sqrt()


def _reciprocal(d: Tensor, domain: Space) -> Tensor:
    inverted = 1 / d
    if not bool(inverted.isfinite().all()):
        i = int((~inverted.isfinite()).nonzero()[0])
        block = next(name for name in domain.names if domain.block(name).start <= i < domain.block(name).stop)
        place = f" (block '{block}')" if block else ""
        raise ValueError(f"inverse: A must be nonsingular, got {float(d[i]):.3g} at diagonal entry {i}{place}")
    return inverted


def _check_shift(c: float, values: Tensor, eps: float) -> None:
    cancelled = (c + values).abs() <= values.numel() * eps * values.abs().clamp_min(abs(c))
    if bool(cancelled.any()):
        raise ValueError(
            f"inverse: A must be nonsingular, got the shift {c:.6g} cancelling the eigenvalue "
            f"{float(values[cancelled][0]):.6g} of the other term"
        )


def _check_square_parts(parts: tuple[LinearOperator, ...], what: str) -> None:
    for i, part in enumerate(parts):
        if part.shape[0] != part.shape[1]:
            raise ValueError(f"inverse: A must be nonsingular, got the {what} number {i} of shape {part.shape}")


def _dense_inverse(A: Matrix) -> LinearOperator:
    M = double(A.matrix)
    definite = Fact.POSITIVE_SEMIDEFINITE in A.facts
    if definite:
        triangle, info = torch.linalg.cholesky_ex((M + M.T) / 2)
        if int(info):
            raise ValueError(
                f"inverse: {A!r} must be positive definite to working precision, got a non-positive pivot in row "
                f"{int(info) - 1} of its Cholesky factor; add c * identity(A.domain)"
            )
        B = torch.cholesky_inverse(triangle)
    else:
        B, info = torch.linalg.inv_ex(M)
        B = (B + B.T) / 2 if Fact.SYMMETRIC in A.facts else B
    norms = [float(X.abs().sum(0).max()) if X.numel() else 1.0 for X in (M, B)]
    rcond = 0.0 if int(info) else 1 / (norms[0] * norms[1]) if norms[0] else 0.0
    if not rcond >= A.domain.eps:
        raise ValueError(
            f"inverse: {A!r} must be nonsingular to working precision, got the reciprocal condition number "
            f"{rcond:.3g}; add c * identity(A.domain)"
        )
    return Matrix(B.to(A.matrix), A.codomain, A.domain, PD if definite else A.facts)


def _product_inverse(A: LinearOperator, factors: tuple[LinearOperator, ...]) -> LinearOperator:
    inner = min(f.shape[1] for f in factors)
    if inner < A.shape[0]:
        raise ValueError(f"inverse: A must be nonsingular, got a product through R^{inner} on R^{A.shape[0]}")
    if any(f.shape[0] != f.shape[1] for f in factors):
        raise no_closed_form("inverse", A)
    bases = [f.operator if isinstance(f, Adjoint) else f for f in factors]
    # one inverse per operator, so that J'C J stays recognizably symmetric
    known = {id(b): structured_inverse(b) for b in bases}
    inverses = [known[id(b)] if f is b else known[id(b)].T for f, b in zip(factors, bases, strict=True)]
    return reduce(matmul, reversed(inverses))
