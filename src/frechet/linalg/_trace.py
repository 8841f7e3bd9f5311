"""The trace of an operator: tr A = sum_i e_i'A e_i.

Free where the structure shows it, from n products with unit vectors where the budget allows n, else estimated from
random probes by one of four methods, each with a standard error whose interval covers.

**Source.** `hutchinson`: Girard 1989 and Hutchinson 1990, A stochastic estimator of the trace of the influence matrix,
doi 10.1080/03610919008812866. `hutch++`: Meyer, Musco, Musco and Woodruff 2021, Hutch++: Optimal stochastic trace
estimation, algorithm 1, doi 10.1137/1.9781611976496.16. `xtrace`, `nystrom`: see `_xtrace.py`.

**Differs from the source.** (1) Closed-form terms of a sum are split off first, so tr(H + c I) costs what tr(H) does.
(2) Rounding floors: where the sketch holds the whole range, the samples say 1e-16 and the arithmetic does not. (3) A
run with a tolerance starts as XTrace and goes on with probes behind the sketch (`_hutchinson.py`).

Cost: `hutchinson` one product per probe; `hutch++` two for each of r vectors of the sketch and one per probe; `xtrace`
two per probe, `nystrom` one. Memory in vectors: a block of probes; r; k; k.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from frechet.linalg._diagonal import (
    DEFAULT_PRODUCTS,
    MOST_PRODUCTS,
    combined,
    complete,
    flat_terms,
    shifted,
    unit_diagonal,
)
from frechet.linalg._hutchinson import hutch_plus_plus, hutchinson, xtrace_then_probes
from frechet.linalg._result import Estimate, exact_estimate
from frechet.linalg._sequential import EstimateState, Observe, Sampler, check_request, run
from frechet.linalg._xtrace import xnystrace, xtrace
from frechet.operators._canonical import normal_form
from frechet.operators._inverse_fisher import InverseFisher, inverse_trace
from frechet.operators._operator import Adjoint, Fact, LinearOperator, Product, Scaled, Sum
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

METHODS = ("auto", "exact", "hutchinson", "hutch++", "xtrace", "nystrom")
FEW_PRODUCTS = 20  # fewer than this cannot both sketch and test: plain probes are as good
PROBES = 6  # with fewer, intervals that cover are longer than three times the ideal ones
KEPT = 200  # "auto" keeps at most this many products' vectors; larger budgets stream behind a sketch


def trace(
    A: LinearOperator,
    *,
    seed: int | None = None,
    products: int | None = None,
    rtol: float | None = None,
    method: Literal["auto", "exact", "hutchinson", "hutch++", "xtrace", "nystrom"] = "auto",
    sketch: int | None = None,
    block: int = 16,
    observe: Observe | None = None,
    resume: EstimateState | None = None,
) -> Estimate:
    """Estimate the trace of a square A, with a standard error (float64 scalars).

    Closed forms are free and ask for nothing.

    Args:
        A: the operator ``(n, n)``.
        seed: of the probes; required where neither a closed form nor n products give the exact trace.
        products: the budget in operator-vector products. From n on, unit vectors give the exact trace. Default: 100,
            with `rtol` 1000.
        rtol: relative tolerance. The run stops when ``q standard_error <= rtol |value|``, where q is the factor of
            ``interval(0.95)``, at one of a few fixed looks whose number is paid for in the standard error; `converged`
            is False where the budget ended first. Default: none, the budget is spent.
        method: "exact", "hutchinson", "hutch++", "xtrace", "nystrom", or "auto": `nystrom` for a positive semidefinite
            A up to n/2 products, `xtrace` for others, `hutchinson` below 20 products, and `hutch++` above 200, where
            the vectors that the first two keep (one per product) would weigh; with `rtol` `xtrace` up to 200 products,
            then probes behind its sketch. Default: "auto".
        sketch: number of vectors of `hutch++`. Default: a third of the budget that leaves 6 probes, at most 30 with
            `rtol`.
        block: how many probes are multiplied at once. Default: 16.
        observe: is called with an `EstimateState` after each block. The run stops if it returns True. Default: none.
        resume: an `EstimateState` of the same call, from which the run goes on. Default: none.

    Example:
        >>> from frechet import from_callable, trace
        >>> A = from_callable(lambda V: 2 * V, 500, facts="positive_definite")
        >>> round(float(trace(A, seed=0, products=30)))
        1000
    """
    if A.domain != A.codomain:
        raise ValueError(f"trace: A must be square on one space, got {A!r}")
    if method not in METHODS:
        raise ValueError(f"trace: method must be one of {METHODS}, got {method!r}")
    known, scale, unknown = split_trace(A)
    if unknown is None:
        return exact_estimate(known)
    n = A.domain.dim
    if method == "exact" or (method == "auto" and products is not None and products >= n):
        return _by_unit_vectors(known, scale, unknown)
    seed = check_request("trace", seed, products, rtol, block, A)
    if products is None:
        products = DEFAULT_PRODUCTS if rtol is None else MOST_PRODUCTS
        if method == "auto" and products >= n:
            return _by_unit_vectors(known, scale, unknown)
    chosen = _choice(unknown, products, rtol) if method == "auto" else method
    if method == "nystrom" and Fact.POSITIVE_SEMIDEFINITE not in unknown.facts:
        raise ValueError(
            f"trace: A must be known to be positive semidefinite for method 'nystrom', got {unknown!r}; use method="
            "'xtrace'"
        )
    if sketch is None:
        # at least PROBES probes are left to tell the error
        most = n - 1 if rtol is None else min(n - 1, 30)
        sketch = max(0, min(products // 3, (products - PROBES) // 2, most))
    sampler = shifted(_sampler(unknown, chosen, seed, sketch), torch.tensor(known, dtype=torch.float64), scale)
    return run(
        "trace", sampler, A.domain, seed=seed, products=products, rtol=rtol, block=block, observe=observe, resume=resume
    )


def _choice(A: LinearOperator, products: int, rtol: float | None) -> str:
    if products > KEPT:
        return "hutch++" if rtol is None else "xtrace, then probes"
    # with more probes than half the dimension, the estimates of the Nystrom form are nearly one: the bar is too short
    if Fact.POSITIVE_SEMIDEFINITE in A.facts and FEW_PRODUCTS // 2 <= products <= A.domain.dim // 2:
        return "nystrom"
    return "xtrace" if products >= FEW_PRODUCTS else "hutchinson"


def _sampler(A: LinearOperator, method: str, seed: int, sketch: int) -> Sampler:
    match method:
        case "hutchinson":
            return hutchinson(A, seed)
        case "hutch++":
            return hutch_plus_plus(A, seed, sketch)
        case "nystrom":
            return xnystrace(A, seed)
        case "xtrace":
            return xtrace(A, seed)
        case _:
            return xtrace_then_probes(A, seed, KEPT // 2)


def _by_unit_vectors(known: float, scale: float, A: LinearOperator) -> Estimate:
    d = unit_diagonal(A)
    value = float(A.domain.inner(d, torch.ones_like(d)))
    return exact_estimate(known + scale * value, products=A.domain.dim, method="exact")


# --- closed forms -----------------------------------------------------------------------------------------------------


def closed_trace(A: LinearOperator) -> float | None:
    """The trace where the structure of A shows it without a product."""
    match A:
        case Identity(space):
            return float(space.dim)
        case Diagonal(domain=space) | Matrix(domain=space) | Eigendecomposed(Q=LinearOperator(codomain=space)):
            return _total_of(A, space)
        case LowRank(U=U, s=s):
            return float((A.domain.norm(U).square() * s.to(torch.float64)).sum()) if s.numel() else 0.0
        case InverseFisher():
            return inverse_trace(A)
        case Scaled(c, B):
            inner = closed_trace(B)
            return None if inner is None else c * inner
        case Adjoint(operator=B) | Permuted(operator=B):
            return closed_trace(B)
        case Kronecker(B, C) if B.domain == B.codomain and C.domain == C.codomain:
            left, right = closed_trace(B), closed_trace(C)
            return None if left is None or right is None else left * right
        case BlockDiagonal(parts) | Sum(parts) if all(B.domain == B.codomain for B in parts):
            found = complete(map(closed_trace, parts))
            return None if found is None else math.fsum(found)
        case Product():
            known = normal_form(A)
            return None if isinstance(known, Product) else closed_trace(known)
        case _:
            return None


def _total_of(A: Diagonal | Matrix | Eigendecomposed, space: Space) -> float:
    """The sum of the diagonal, or of the eigenvalues."""
    if isinstance(A, Eigendecomposed):
        return float(A.values.sum())
    d = A.diagonal if isinstance(A, Diagonal) else A.matrix.diagonal()
    return float(space.inner(d, torch.ones_like(d)))


def split_trace(A: LinearOperator) -> tuple[float, float, LinearOperator | None]:
    """(t, c, B) such that tr A = t + c tr B, with t all that is known; B is None where everything is."""
    known, unknown = [], []
    for c, term in flat_terms(A):
        t = closed_trace(term)
        if t is None:
            unknown.append((c, term))
        else:
            known.append(c * t)
    return math.fsum(known), *combined(unknown)
