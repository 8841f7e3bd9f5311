"""The diagonal of an operator: d_i = e_i'A e_i.

Free where the structure shows it, from n products with unit vectors where the budget allows n, else estimated:
`hutchinson` averages z * A z over probes of signs z, `xdiag` sketches the range of A first and needs products with A'.

**Source.** Bekas, Kokiopoulou and Saad 2007, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57, eq. 6,
doi 10.1016/j.apnum.2007.01.003. Epperly, Tropp and Webber 2024, XTrace: Making the most of every sample in stochastic
trace estimation, section 2.4 (XDiag), doi 10.1137/23M1548323.

**Differs from the source.** (1) Every entry has a standard error: of `hutchinson` from the sample variance of that
entry, of `xdiag` with the dependence of the leave-one-out estimates counted (`_exchangeable.py`). (2) Rounding floors.

Cost: `hutchinson` one product per probe and three vectors besides the block of probes; `xdiag` two products per probe,
half of them with A' where A is not symmetric, and 2k vectors for k probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from frechet.linalg._result import Estimate
from frechet.linalg._sequential import (
    EstimateState,
    Observe,
    Reading,
    Sampler,
    check_request,
    degrees_of_freedom,
    finite,
    run,
)
from frechet.linalg._xdiag import xdiag
from frechet.operators._canonical import normal_form
from frechet.operators._closed_form import Proved
from frechet.operators._constructors import from_diagonal
from frechet.operators._inverse_fisher import InverseFisher, inverse_diagonal
from frechet.operators._operator import NONE, Adjoint, LinearOperator, Product, Scaled, Sum
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
from frechet.space import Space

T = TypeVar("T")
DEFAULT_PRODUCTS = 100
MOST_PRODUCTS = 1000  # with rtol


def diagonal(
    A: LinearOperator,
    *,
    seed: int | None = None,
    products: int | None = None,
    rtol: float | None = None,
    method: Literal["auto", "exact", "hutchinson", "xdiag"] = "auto",
    block: int = 16,
    observe: Observe | None = None,
    resume: EstimateState | None = None,
) -> Estimate:
    """Estimate the diagonal of a square A: `value` and `standard_error` of shape ``(n,)`` in the dtype of A.

    Closed forms are free and ask for nothing.

    Args:
        A: the operator ``(n, n)``.
        seed: of the probes; required where neither a closed form nor n products give the exact diagonal.
        products: the budget in operator-vector products. From n on, unit vectors give the exact diagonal. Below, every
            entry has its own interval. Default: 100, with `rtol` 1000.
        rtol: relative tolerance. The run stops when ``q ||standard_error|| <= rtol ||value||``, where q is the factor
            of ``interval(0.95)``, at one of a few fixed looks whose number is paid for in the standard error;
            `converged` is False where the budget ended first. Default: none, the budget is spent.
        method: "exact", "hutchinson" (no transpose, least memory), "xdiag" (better where few eigenvalues dominate and
            the budget exceeds twice their number), or "auto", which takes `hutchinson`. Default: "auto".
        block: how many probes are multiplied at once. Default: 16.
        observe: is called with an `EstimateState` after each block. The run stops if it returns True. Default: none.
        resume: an `EstimateState` of the same call, from which the run goes on. Default: none.

    Example:
        >>> import torch
        >>> from frechet import diagonal, from_callable
        >>> A = from_callable(lambda V: 2 * V, 500, facts="symmetric")
        >>> bool(torch.allclose(diagonal(A, seed=0, products=3).value, torch.tensor(2.0)))
        True
    """
    if A.domain != A.codomain:
        raise ValueError(f"diagonal: A must be square on one space, got {A!r}")
    if method not in ("auto", "exact", "hutchinson", "xdiag"):
        raise ValueError(f"diagonal: method must be 'auto', 'exact', 'hutchinson' or 'xdiag', got {method!r}")
    known, scale, unknown = split_diagonal(A)
    if unknown is None:
        return _exact(known, 0, "closed form")
    n = A.domain.dim
    if method == "exact" or (method == "auto" and products is not None and products >= n):
        return _exact(known + scale * unit_diagonal(unknown), n, "exact")
    seed = check_request("diagonal", seed, products, rtol, block, A)
    if products is None:
        products = DEFAULT_PRODUCTS if rtol is None else MOST_PRODUCTS
        if method == "auto" and products >= n:
            return _exact(known + scale * unit_diagonal(unknown), n, "exact")
    sampler = xdiag(unknown, seed) if method == "xdiag" else hutchinson_diagonal(unknown, seed)
    sampler = shifted(sampler, known, scale)
    return run(
        "diagonal", sampler, A.domain, seed=seed, products=products, rtol=rtol, block=block, observe=observe,
        resume=resume,
    )  # fmt: skip


def _exact(value: Tensor, products: int, method: str) -> Estimate:
    return Estimate(value, torch.zeros_like(value), 0, products, None, exact=True, converged=True, method=method)


def shifted(sampler: Sampler, known: Tensor, scale: float) -> Sampler:
    """The sampler of ``known + scale * estimate``."""

    def read(carry: object) -> Reading:
        now = sampler.read(carry)
        return Reading(known + scale * now.value, abs(scale) * now.standard_error, now.degrees_of_freedom)

    return Sampler(sampler.method, sampler.extend, read, sampler.cost, sampler.setup)


# --- closed forms -----------------------------------------------------------------------------------------------------


def closed_diagonal(A: LinearOperator) -> Tensor | None:
    """The diagonal ``(n,)`` where the structure of A shows it without a product."""
    match A:
        case Scaled(operator=B) | Adjoint(operator=B) | Permuted(operator=B) | Proved(operator=B):
            return _around(A, closed_diagonal(B))
        case Kronecker(B, C) if B.domain == B.codomain and C.domain == C.codomain:
            left, right = closed_diagonal(B), closed_diagonal(C)
            return None if left is None or right is None else (left[:, None] * right).reshape(-1)
        case BlockDiagonal(parts) | Sum(parts) if all(B.domain == B.codomain for B in parts):
            found = complete(map(closed_diagonal, parts))
            whole = torch.cat if isinstance(A, BlockDiagonal) else _total
            return None if found is None else whole(found)
        case Product():
            known = normal_form(A)
            return None if isinstance(known, Product) else closed_diagonal(known)
        case _:
            return _held_diagonal(A)


def _held_diagonal(A: LinearOperator) -> Tensor | None:
    """The diagonal of what is held by its numbers."""
    match A:
        case Identity(space):
            return space.zeros() + 1.0
        case Diagonal(diagonal=d):
            return d
        case Matrix(matrix=M):
            return M.diagonal().clone()
        case LowRank(U=U, s=s):
            return (U * U) @ s
        case InverseFisher():
            return inverse_diagonal(A)
        case Eigendecomposed(Q, values):
            squares = _squared(Q)
            return None if squares is None else squares @ values.to(A.domain.dtype)
        case _:
            return None


def _squared(Q: LinearOperator) -> LinearOperator | None:
    """The matrix of the squares of a structure's entries."""
    match Q:
        case Identity():
            return Q
        case Matrix(matrix=M):
            return Matrix(M.square(), Q.domain, Q.codomain, NONE)
        case Diagonal(diagonal=d):
            return from_diagonal(d.square(), domain=Q.domain)
        case Permuted(operator, order, domain):
            inner = _squared(operator)
            return None if inner is None else Permuted(inner, order, domain)
        case Kronecker(B, C):
            left, right = _squared(B), _squared(C)
            return None if left is None or right is None else Kronecker(left, right)
        case BlockDiagonal(blocks, domain, codomain):
            found = complete(map(_squared, blocks))
            return None if found is None else BlockDiagonal(tuple(found), domain, codomain)
        case _:
            return None


def _around(A: LinearOperator, inner: Tensor | None) -> Tensor | None:
    """The diagonal of what stands around an operator with the diagonal `inner`."""
    match A:
        case Scaled(c) if inner is not None:
            return c * inner
        case Permuted(order=order) if inner is not None:
            return torch.empty_like(inner).scatter_(0, order, inner)
        case _:
            return inner


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def complete(parts: Iterable[T | None]) -> list[T] | None:
    """The parts, or None where one of them is unknown."""
    found = list(parts)
    return None if any(p is None for p in found) else [p for p in found if p is not None]


def unit_diagonal(A: LinearOperator) -> Tensor:
    """The diagonal ``(n,)`` by n products with unit vectors, 64 at a time."""
    n = A.domain.dim
    d = A.domain.zeros()
    for a in range(0, n, 64):
        b = min(a + 64, n)
        E = A.domain.units(range(a, b))
        d += (A @ E).where(E != 0, 0).sum(1)
    return d


def flat_terms(A: LinearOperator, c: float = 1.0) -> list[tuple[float, LinearOperator]]:
    """(c_i, A_i) with A = sum of c_i A_i and no A_i a sum or a multiple."""
    match A:
        case Scaled(scale, B):
            return flat_terms(B, c * scale)
        case Sum(terms):
            return [pair for term in terms for pair in flat_terms(term, c)]
        case _:
            return [(c, A)]


def combined(terms: list[tuple[float, LinearOperator]]) -> tuple[float, LinearOperator | None]:
    """(c, B) with c B the sum of the terms; B is None where there are none."""
    if len(terms) < 2:
        return terms[0] if terms else (1.0, None)
    return 1.0, Sum(tuple(A if c == 1.0 else c * A for c, A in terms))


def split_diagonal(A: LinearOperator) -> tuple[Tensor, float, LinearOperator | None]:
    """(d, c, B) such that diag(A) = d + c diag(B), with d all that is known; B is None where everything is."""
    known, unknown = A.domain.zeros(), []
    for c, term in flat_terms(A):
        d = closed_diagonal(term)
        if d is None:
            unknown.append((c, term))
        else:
            known = known + c * d
    return known, *combined(unknown)


# --- Hutchinson -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and summed squared deviations of z * A z over k probes (Welford), and the sum of squares of A z.

    All in units of `unit`, about the length of the first product, so that squares are numbers of the dtype.
    """

    k: int
    unit: float
    mean: Tensor
    deviations: Tensor
    squares: Tensor

    @property
    def products(self) -> int:
        return self.k


def hutchinson_diagonal(A: LinearOperator, seed: int) -> Sampler:
    """z * A z over probes of signs; its variance at entry i is the sum of A_ij^2 over j != i."""
    space = A.domain

    def extend(now: Moments | None, probes: range) -> Moments:
        Z = space.random(probes, seed)
        Y = finite(A @ Z, "diagonal", probes)
        now = now or Moments(0, power_of_two(float(space.norm(Y[:, 0]))), *(space.zeros() for _ in range(3)))
        Y = Y / now.unit
        X, b = Z * Y, len(probes)
        mean = X.mean(1)
        k, gap = now.k + b, mean - now.mean
        return Moments(
            k,
            now.unit,
            now.mean + gap * (b / k),
            now.deviations + (X - mean.unsqueeze(1)).square().sum(1) + gap.square() * (now.k * b / k),
            now.squares + Y.square().sum(1),
        )

    def read(now: Moments) -> Reading:
        dof = degrees_of_freedom(now.k)
        if now.k == 1:
            return Reading(now.unit * now.mean, torch.full_like(now.mean, math.inf), dof)
        error = (now.deviations / (now.k - 1) / now.k).sqrt()
        error = error.maximum(diagonal_rounding(space, now.squares / now.k))
        return Reading(now.unit * now.mean, now.unit * error, dof)

    return Sampler("hutchinson", extend, read)


def power_of_two(length: float) -> float:
    """The power of two next to a length; 1 for a length of zero. Dividing by it rounds nothing."""
    return math.ldexp(1.0, math.frexp(length)[1]) if length > 0.0 else 1.0


def diagonal_rounding(space: Space, squares: Tensor) -> Tensor:
    """The least standard error of an entry: eps sqrt(n) times the length of its row, from E (A z)^2."""
    return space.eps * math.sqrt(space.dim) * squares.sqrt()
