"""The trace of an operator: tr A = sum_i e_i'A e_i.

Free where the structure shows it, from n products with unit vectors where the budget allows n, else estimated from
random probes by one of four methods, each with a standard error whose interval covers.

**Source.** `hutchinson`: Girard 1989 and Hutchinson 1990, A stochastic estimator of the trace of the influence matrix,
doi 10.1080/03610919008812866. `hutch++`: Meyer, Musco, Musco and Woodruff 2021, Hutch++: Optimal stochastic trace
estimation, algorithm 1, doi 10.1137/1.9781611976496.16. `xtrace`, `nystrom`: see `xtrace.py`.

**Differs from the source.** (1) Closed-form terms of a sum are split off first, so tr(H + c I) costs what tr(H) does.
(2) Hutch++ scales its projected probes to their expected length (sqrt(n - r)); the bars come from the probes after the
sketch, which are independent given it. (3) Rounding floors: where the sketch holds the whole range, the samples say
1e-16 and the arithmetic does not.

Cost: `hutchinson` one product per probe; `hutch++` two for each of r vectors of the sketch and one per probe; `xtrace`
two per probe, `nystrom` one. Memory in vectors: a block of probes; r; k; k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg.diagonal import DEFAULT_PRODUCTS, MOST_PRODUCTS, combined, flat_terms, shifted, unit_diagonal
from frechet.linalg.result import Estimate, exact_estimate
from frechet.linalg.sequential import (
    EstimateState,
    Observe,
    Reading,
    Sampler,
    check_request,
    degrees_of_freedom,
    finite,
    run,
)
from frechet.linalg.xtrace import draw, xnystrace, xtrace
from frechet.operators.normal_form import normal_form
from frechet.operators.operator import Adjoint, Fact, LinearOperator, Product, Scaled, Sum
from frechet.operators.structured import BlockDiagonal, Diagonal, Identity, Kronecker, LowRank, Matrix
from frechet.space import Space

METHODS = ("auto", "exact", "hutchinson", "hutch++", "xtrace", "nystrom")
FEW_PRODUCTS = 20  # fewer than this cannot both sketch and test: plain probes are as good
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
    """The trace of a square A, with a standard error (float64 scalars).

    Closed forms are free and ask for nothing. Otherwise `products` is the budget in operator-vector products (100; with
    `rtol` 1000): from n on, unit vectors give the exact trace, below a `seed` is required. With `rtol` the run stops
    when q standard_error <= rtol |value|, q being the factor of ``interval(0.95)``, at one of a few fixed looks whose
    number is paid for in the standard error; `converged` is False where the budget ended first.

    ``method="auto"`` takes `nystrom` for a positive semidefinite A, `xtrace` for others, `hutchinson` below 20 products
    and `hutch++` above 200, where the vectors that the first two keep (one per product) would weigh. `sketch` is the
    number of vectors of `hutch++`, by default a third of the budget, at most 30 with `rtol`. `block` probes are
    multiplied at once. `observe` sees an `EstimateState` after each block and stops the run by returning True; `resume`
    goes on from such a state.

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
    if method == "auto":
        method = _choice(unknown, products)
    if method == "nystrom" and Fact.POSITIVE_SEMIDEFINITE not in unknown.facts:
        raise ValueError(
            f"trace: A must be known to be positive semidefinite for method 'nystrom', got {unknown!r}; use method="
            "'xtrace'"
        )
    match method:
        case "hutchinson":
            sampler = hutchinson(unknown, seed)
        case "hutch++":
            if sketch is None:
                sketch = max(0, min(products // 3, n - 1 if rtol is None else min(n - 1, 30)))
            sampler = hutch_plus_plus(unknown, seed, sketch)
        case "nystrom":
            sampler = xnystrace(unknown, seed)
        case _:
            sampler = xtrace(unknown, seed)
    return run(
        "trace",
        shifted(sampler, torch.tensor(known, dtype=torch.float64), scale),
        A.domain,
        seed=seed,
        products=products,
        rtol=rtol,
        block=block,
        observe=observe,
        resume=resume,
    )


def _choice(A: LinearOperator, products: int) -> Literal["hutchinson", "hutch++", "xtrace", "nystrom"]:
    if products > KEPT:
        return "hutch++"
    if Fact.POSITIVE_SEMIDEFINITE in A.facts and products >= FEW_PRODUCTS // 2:
        return "nystrom"
    return "xtrace" if products >= FEW_PRODUCTS else "hutchinson"


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
        case Diagonal(diagonal=d, domain=space):
            return float(space.inner(d, torch.ones_like(d)))
        case Matrix(matrix=M, domain=space):
            d = M.diagonal()
            return float(space.inner(d, torch.ones_like(d)))
        case LowRank(U=U, s=s, domain=space):
            return float((space.norm(U).square() * s.to(torch.float64)).sum()) if s.numel() else 0.0
        case Scaled(c, B):
            inner = closed_trace(B)
            return None if inner is None else c * inner
        case Adjoint(B):
            return closed_trace(B)
        case Kronecker(B, C) if B.domain == B.codomain and C.domain == C.codomain:
            left, right = closed_trace(B), closed_trace(C)
            return None if left is None or right is None else left * right
        case BlockDiagonal(blocks) if all(B.domain == B.codomain for B in blocks):
            return _total([closed_trace(B) for B in blocks])
        case Sum(terms):
            return _total([closed_trace(B) for B in terms])
        case Product():
            known = normal_form(A)
            return None if isinstance(known, Product) else closed_trace(known)
        case _:
            return None


def _total(parts: list[float | None]) -> float | None:
    found = [p for p in parts if p is not None]
    return math.fsum(found) if len(found) == len(parts) else None


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


# --- Hutchinson and Hutch++ -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Samples:
    """Independent samples x_1, ..., x_k of a trace, and the summed squares of the products behind them."""

    x: Tensor  # (k,) float64
    squares: float
    squared: int  # how many products `squares` adds up

    @property
    def products(self) -> int:
        return self.x.numel()


def inners(space: Space, U: Tensor, V: Tensor) -> Tensor:
    """u_j'v_j of two blocks' columns, float64 (k,)."""
    return torch.stack([space.inner(u, v) for u, v in zip(U.T, V.T, strict=True)])


def mean_of(space: Space, samples: Samples, shift: float = 0.0) -> Reading:
    x, k = samples.x, samples.x.numel()
    if k == 1:
        return Reading(shift + x[0], x.new_tensor(math.inf), degrees_of_freedom(k))
    floor = x.new_tensor(space.eps * math.sqrt(space.dim * samples.squares / samples.squared))
    return Reading(shift + x.mean(), (x.var() / k).sqrt().maximum(floor), degrees_of_freedom(k))


def hutchinson(A: LinearOperator, seed: int) -> Sampler:
    """z'A z over probes of signs z, of mean tr A and variance 2 sum_{i != j} A_ij^2 for a symmetric A."""
    space = A.domain

    def extend(now: Samples | None, probes: range) -> Samples:
        Z = space.random(probes, seed)
        Y = finite(A @ Z, "trace", probes)
        x, squares = inners(space, Z, Y), float(inners(space, Y, Y).sum())
        if now is None:
            return Samples(x, squares, len(probes))
        return Samples(torch.cat([now.x, x]), now.squares + squares, now.squared + len(probes))

    return Sampler("hutchinson", extend, lambda samples: mean_of(space, samples))


@dataclass(frozen=True, eq=False)
class Deflated:
    """Q with orthonormal columns, tr Q'A Q, and samples of the trace of A on the complement of Q."""

    Q: Tensor
    captured: float
    samples: Samples
    spent: int  # products of the sketch

    @property
    def products(self) -> int:
        return self.spent + self.samples.products


def hutch_plus_plus(A: LinearOperator, seed: int, sketch: int) -> Sampler:
    """tr(Q'A Q) + tr(P A P) with Q the range of A times `sketch` probes, P = I - QQ' and the second part sampled."""
    space = A.domain
    if not 0 <= sketch < space.dim:
        raise ValueError(f"trace: sketch must lie between 0 and {space.dim - 1}, got {sketch}")

    def start() -> Deflated:
        Y = finite(A @ draw(space, range(sketch), seed), "trace", range(sketch))
        Q, _ = space.orthonormalize(Y)
        captured = float(inners(space, Q, A @ Q).sum()) if Q.shape[1] else 0.0
        squares = float(inners(space, Y, Y).sum()) if sketch else 0.0
        none = torch.zeros(0, dtype=torch.float64)
        return Deflated(Q, captured, Samples(none, squares, sketch), sketch + Q.shape[1])

    def extend(now: Deflated | None, probes: range) -> Deflated:
        now = now or start()
        Q, seen = now.Q, now.samples
        # the sketch has used the first probes of the seed
        Z = draw(space, range(sketch + probes.start, sketch + probes.stop), seed)
        Z = Z - Q @ space.gram(Q, Z).to(Z.device, Z.dtype)
        Z = Z * (math.sqrt(space.dim - Q.shape[1]) / space.norm(Z)).to(Z.device, Z.dtype)
        Y = finite(A @ Z, "trace", probes)
        x, squares = inners(space, Z, Y), seen.squares + float(inners(space, Y, Y).sum())
        seen = Samples(torch.cat([seen.x.to(x.device), x]), squares, seen.squared + len(probes))
        return Deflated(Q, now.captured, seen, now.spent)

    return Sampler("hutch++", extend, lambda now: mean_of(space, now.samples, now.captured), setup=2 * sketch)
