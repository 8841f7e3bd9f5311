"""The Frobenius norm of an operator: ||A||_F = sqrt(tr A'A) = sqrt(sum_ij A_ij^2).

Free where the structure shows it, from products with all unit vectors where the budget allows, else estimated from
E ||A z||^2 = ||A||_F^2. `hutch++` first takes the range Q of A' on r probes out, ||A||_F^2 = ||A Q||_F^2 + ||A (I -
QQ')||_F^2, and samples the second part.

**Source.** Hutchinson's estimator and Hutch++ (see `_trace.py`) of A'A. The error of the square root from that of its
argument: the delta method, e.g. van der Vaart 1998, Asymptotic Statistics, chapter 3.

**Differs from the source.** (1) The sketch is the range of A' itself and not of A'A: half of the products, and for a
symmetric A a single pass. (2) The interval is that of the norm, not of its square, with as few degrees of freedom as
one dominating singular value asks for (`_quadratic_forms.py`).

Cost: one product per probe; each of the r vectors of the sketch one product with A' and one with A. Memory: r vectors
and a block of probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg._diagonal import DEFAULT_PRODUCTS, MOST_PRODUCTS, closed_diagonal, complete
from frechet.linalg._hutchinson import complement
from frechet.linalg._quadratic_forms import dominated, length
from frechet.linalg._result import Estimate, exact_estimate
from frechet.linalg._sequential import Reading, Sampler, check_request, finite, run
from frechet.linalg._xtrace import draw
from frechet.operators._canonical import normal_form
from frechet.operators._operator import Adjoint, LinearOperator, Product, Scaled, Sum
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

PROBES = 14  # with fewer, intervals that cover are longer than twice the ideal ones (`dominated`)


def frobenius_norm(
    A: LinearOperator,
    *,
    seed: int | None = None,
    products: int | None = None,
    rtol: float | None = None,
    method: Literal["auto", "exact", "hutchinson", "hutch++"] = "auto",
    sketch: int | None = None,
    block: int = 16,
) -> Estimate:
    """Estimate the Frobenius norm of A, with a standard error (float64 scalars).

    Closed forms are free and ask for nothing.

    Args:
        A: any operator ``(m, n)``.
        seed: of the probes; required where neither a closed form nor min(m, n) products give the exact norm.
        products: the budget in operator-vector products. From min(m, n) on, unit vectors give the exact norm. Default:
            100, with `rtol` 1000.
        rtol: relative tolerance. The run stops when ``q standard_error <= rtol value``, where q is the factor of
            ``interval(0.95)``; `converged` is False where the budget ended first. Default: none, the budget is spent.
        method: "exact", "hutchinson", "hutch++" (needs products with A.T), or "auto": `hutch++` from 20 products on.
            Default: "auto".
        sketch: number of vectors of `hutch++`. Default: a third of the budget that leaves 14 probes, at most 30 with
            `rtol`.
        block: how many probes are multiplied at once. Default: 16.

    Example:
        >>> from frechet import from_callable
        >>> from frechet.linalg import frobenius_norm
        >>> A = from_callable(lambda V: 3 * V, 400, facts="symmetric")
        >>> round(float(frobenius_norm(A, seed=0, products=10)), 3)
        60.0
    """
    if method not in ("auto", "exact", "hutchinson", "hutch++"):
        raise ValueError(f"frobenius_norm: method must be 'auto', 'exact', 'hutchinson' or 'hutch++', got {method!r}")
    square = closed_square(A)
    if square is not None:
        return exact_estimate(math.sqrt(max(square, 0.0)))
    scale = 1.0
    while isinstance(A, Scaled):
        scale, A = scale * abs(A.scale), A.operator
    least = min(A.shape)
    if method == "exact" or (method == "auto" and products is not None and products >= least):
        return _by_unit_vectors(A, scale)
    seed = check_request("frobenius_norm", seed, products, rtol, block, A)
    if products is None:
        products = DEFAULT_PRODUCTS if rtol is None else MOST_PRODUCTS
        if method == "auto" and products >= least:
            return _by_unit_vectors(A, scale)
    if method == "auto":
        method = "hutch++" if products >= 20 else "hutchinson"
    if sketch is None:
        most = least - 1 if rtol is None else min(least - 1, 30)
        # at least PROBES probes are left to tell the error
        sketch = 0 if method == "hutchinson" else max(0, min(products // 3, (products - PROBES) // 2, most))
    if not 0 <= sketch < max(1, least):
        raise ValueError(f"frobenius_norm: sketch must lie between 0 and {max(1, least) - 1}, got {sketch}")
    sampler = deflated_lengths(A, seed, sketch, method, scale)
    return run("frobenius_norm", sampler, A.domain, seed=seed, products=products, rtol=rtol, block=block)


def _by_unit_vectors(A: LinearOperator, scale: float) -> Estimate:
    M = A if A.shape[1] <= A.shape[0] else A.T
    n, total = M.domain.dim, 0.0
    for a in range(0, n, 64):
        b = min(a + 64, n)
        total += float(M.codomain.norm(M @ M.domain.units(range(a, b))).square().sum())
    return exact_estimate(scale * math.sqrt(total), products=n, method="exact")


# --- closed forms -----------------------------------------------------------------------------------------------------


def closed_square(A: LinearOperator) -> float | None:
    """||A||_F^2 where the structure of A shows it without a product."""
    match A:
        case Identity(space):
            return float(space.dim)
        case Diagonal(diagonal=d) | Eigendecomposed(values=d):
            return float(A.domain.inner(d, d)) if isinstance(A, Diagonal) else float(d.square().sum())
        case Matrix(matrix=M, codomain=space):
            return float(space.norm(M).square().sum())
        case LowRank(U=U, s=s, domain=space):
            # tr(S G S G) with the Gram matrix G of U
            sG = s.to(torch.float64)[:, None] * space.gram(U, U)
            return float((sG * sG.T).sum())
        case Scaled(c, B):
            return _times(c * c, closed_square(B))
        case Adjoint(operator=B) | Permuted(operator=B):
            return closed_square(B)
        case Kronecker(B, C):
            left = closed_square(B)
            return None if left is None else _times(left, closed_square(C))
        case BlockDiagonal(blocks):
            found = complete(map(closed_square, blocks))
            return None if found is None else math.fsum(found)
        case Sum() | Product():
            return _of_normal_form(A, normal_form(A))
        case _:
            return None


def _times(c: float, square: float | None) -> float | None:
    return None if square is None else c * square


def _of_normal_form(A: LinearOperator, B: LinearOperator) -> float | None:
    match B:
        case Sum((first, second)) if (d := _of_diagonal(first)) is not None:
            # ||D + L||^2 = ||D||^2 + 2 <D, L> + ||L||^2
            square, other = closed_square(second), closed_diagonal(second)
            if square is None or other is None:
                return None
            space = A.domain
            return float(space.inner(d, d)) + 2 * float(space.inner(d, other)) + square
        case Sum() | Product():
            return None
        case _:
            return closed_square(B)


def _of_diagonal(A: LinearOperator) -> Tensor | None:
    match A:
        case Identity() | Diagonal() | Scaled(_, Identity() | Diagonal()):
            return closed_diagonal(A)
        case _:
            return None


# --- estimators -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lengths:
    """Q with orthonormal columns, ||A Q||, and the lengths of A times probes from the complement of Q."""

    Q: Tensor
    captured: float
    lengths: Tensor  # (k,) float64
    spent: int

    @property
    def products(self) -> int:
        return self.spent + self.lengths.numel()


def deflated_lengths(A: LinearOperator, seed: int, sketch: int, method: str, scale: float) -> Sampler:
    """The norm from ||A Q||^2 and samples of ||A (I - QQ') z||^2, with Q the range of A' on `sketch` probes."""
    space: Space = A.domain

    def start() -> Lengths:
        S = A.T @ draw(A.codomain, range(sketch), seed)
        Q, _ = space.orthonormalize(finite(S, "frobenius_norm", range(sketch)))
        captured = length(A.codomain, A @ Q) if Q.shape[1] else 0.0
        return Lengths(Q, captured, torch.zeros(0, dtype=torch.float64), sketch + Q.shape[1])

    def extend(now: Lengths | None, probes: range) -> Lengths:
        now = now or start()
        Z = complement(A, now.Q, range(sketch + probes.start, sketch + probes.stop), seed)
        found = A.codomain.norm(finite(A @ Z, "frobenius_norm", probes))
        return replace(now, lengths=torch.cat([now.lengths.to(found.device), found]))

    def read(now: Lengths) -> Reading:
        k = now.lengths.numel()
        # in units of the largest, whose squares are numbers
        unit = max(now.captured, float(now.lengths.max())) or 1.0
        x = (now.lengths / unit).square()
        value = ((now.captured / unit) ** 2 + x.mean()).sqrt()
        if k == 1:
            return Reading(scale * unit * value, x.new_tensor(math.inf), dominated(k))
        error = (x.var() / k).sqrt() / (2 * value.clamp(min=torch.finfo(torch.float64).tiny))
        floor = space.eps * math.sqrt(space.dim) * value
        return Reading(scale * unit * value, scale * unit * error.maximum(floor), dominated(k))

    return Sampler(method, extend, read, setup=2 * sketch)
