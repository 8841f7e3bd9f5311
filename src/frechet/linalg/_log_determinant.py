"""The log-determinant of a positive definite operator: log det A = tr log A.

Free where the structure shows it (Cholesky, products and sums of eigenvalues), from n products and a Cholesky
factorization where the budget allows n, else by stochastic Lanczos quadrature: for a probe z of length sqrt(n),
z'(log A)z is n times a Gauss quadrature whose nodes and weights are those of the Lanczos matrix started from z.

**Source.** Ubaru, Chen and Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, algorithm 1, doi
10.1137/16M1104974. Golub and Meurant 2010, Matrices, Moments and Quadrature, theorem 6.3: the Gauss rule of -log is a
lower bound. Aitken 1926 for the remainder of a geometric sequence, doi 10.1017/S0370164600022070.

**Differs from the source.** (1) The rule converges geometrically in the steps; its values at m, m - s and m - 2 s steps
of the same run give the remainder, which is taken off (the rule of log is an upper bound), and 1.7 times which is added
to the half-width. Rules far from convergence, with steps much below sqrt K for a condition number K, cannot know it
better. (2) The variance of a probe is known and comes from the same quadratures. (3) Full orthogonalization
(`_krylov.py`).

Cost: `steps` products per probe; steps + 1 vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NoClosedForm
from frechet.linalg._diagonal import complete
from frechet.linalg._krylov import gauss_quadrature, lanczos
from frechet.linalg._result import Estimate, exact_estimate
from frechet.linalg._sequential import LEVEL_FACTOR, Reading, Sampler, check_request, run
from frechet.operators._canonical import normal_form
from frechet.operators._eigendecomposition import double, eigendecomposition, orthonormal_factors
from frechet.operators._inverse_fisher import InverseFisher, inverse_log_determinant
from frechet.operators._operator import Fact, LinearOperator, Scaled, Sum
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

# Of the remainder taken off, how much is added to the half-width. What was left of it was between -1 and 1.7 times it
# on eight spectra of conditions from 10 to 1e6 (20 and 30 steps)
UNSURE = 1.7
DEFAULT_PROBES = 10
MOST_PROBES = 100  # with rtol


def log_determinant(
    A: LinearOperator,
    *,
    seed: int | None = None,
    products: int | None = None,
    rtol: float | None = None,
    method: Literal["auto", "exact", "lanczos"] = "auto",
    steps: int = 30,
    block: int = 1,
) -> Estimate:
    """Estimate log det A of a positive definite A, with a standard error (float64 scalars).

    Closed forms are free and ask for nothing. The standard error holds what is left of the quadrature's error,
    estimated from its convergence; where that dominates, more `steps` help and more probes do not.

    Args:
        A: the operator ``(n, n)``, with the fact `positive_definite`.
        seed: of the probes; required where neither a closed form nor n products give the exact value.
        products: the budget in operator-vector products. From n on, the dense matrix gives the exact value. Default:
            that of 10 probes, with `rtol` of 100.
        rtol: relative tolerance, as for `trace`: relative to the log-determinant, which can be near zero. Default:
            none, the budget is spent.
        method: "exact", "lanczos", or "auto". Default: "auto".
        steps: products per probe. Default: 30.
        block: how many probes are drawn at once; the result is the same. Default: 1.

    Raises:
        ValueError: A is not known to be positive definite, or is found not to be.

    Example:
        >>> import math
        >>> from frechet import from_callable, log_determinant
        >>> A = from_callable(lambda V: 2 * V, 1000, facts="positive_definite")
        >>> round(float(log_determinant(A, seed=0, products=30)) / math.log(2), 2)
        1000.0
    """
    if Fact.POSITIVE_DEFINITE not in A.facts:
        raise ValueError(
            f"log_determinant: A must be known to be positive definite, got {A!r}; add damping (A + c * "
            "identity(A.domain) of a semidefinite A) or declare it with facts='positive_definite'"
        )
    if method not in ("auto", "exact", "lanczos"):
        raise ValueError(f"log_determinant: method must be 'auto', 'exact' or 'lanczos', got {method!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"log_determinant: steps must be a positive int, got {steps!r}")
    known = closed_log_determinant(A)
    if known is not None:
        return exact_estimate(known)
    n = A.domain.dim
    if method == "exact" or (method == "auto" and products is not None and products >= n):
        return exact_estimate(_cholesky(A.dense()), products=n, method="exact")
    seed = check_request("log_determinant", seed, products, rtol, block, A)
    if products is None:
        products = steps * (DEFAULT_PROBES if rtol is None else MOST_PROBES)
        if method == "auto" and products >= n:
            return exact_estimate(_cholesky(A.dense()), products=n, method="exact")
    sampler = quadrature(A, seed, min(steps, n))
    return run("log_determinant", sampler, A.domain, seed=seed, products=products, rtol=rtol, block=block)


# --- closed forms -----------------------------------------------------------------------------------------------------


def closed_log_determinant(A: LinearOperator) -> float | None:
    """log det A where the structure of a positive definite A shows it without a product."""
    match normal_form(A):
        case Identity():
            return 0.0
        case Diagonal(diagonal=d):
            return float(double(d).log().sum())
        case Matrix(matrix=M):
            return _cholesky(M)
        case Eigendecomposed() | InverseFisher() as B:
            return float(B.values.log().sum()) if isinstance(B, Eigendecomposed) else inverse_log_determinant(B)
        case Scaled(c, B):
            inner = closed_log_determinant(B)
            return None if inner is None else A.domain.dim * math.log(c) + inner
        case Kronecker(B, C):
            left, right = closed_log_determinant(B), closed_log_determinant(C)
            return None if left is None or right is None else C.domain.dim * left + B.domain.dim * right
        case Permuted(operator=B):
            return closed_log_determinant(B)
        case BlockDiagonal(blocks):
            found = complete(map(closed_log_determinant, blocks))
            return None if found is None else math.fsum(found)
        case Sum() as B:
            return _of_sum(B)
        case _:
            return None


def _of_sum(A: Sum) -> float | None:
    match A:
        case Sum(terms=(Scaled(c, Identity()), LowRank() as L)):
            _, mu = orthonormal_factors(L)
            return A.domain.dim * math.log(c) + float(torch.log1p(mu / c).sum())
        case Sum(terms=(Diagonal(d), LowRank(U=U, s=s) as L)):
            # D + U S U' = D^1/2 (I + D^-1/2 U S U' D^-1/2) D^1/2
            scaled = U / d.sqrt().unsqueeze(1)
            _, mu = orthonormal_factors(LowRank(scaled, s, L.domain, L.facts))
            return float(double(d).log().sum()) + float(torch.log1p(mu).sum())
        case Sum(terms=(Scaled(_, Identity()), Kronecker() | Eigendecomposed())):
            try:
                return float(eigendecomposition(A, "inverse").values.log().sum())
            except NoClosedForm:
                return None
        case _:
            return None


def _cholesky(M: Tensor) -> float:
    L, failed = torch.linalg.cholesky_ex((double(M) + double(M).T) / 2)
    if int(failed):
        raise ValueError(
            f"log_determinant: A must be positive definite, got a matrix whose leading {int(failed)} x {int(failed)} "
            "block is not; add damping (A + c * identity(A.domain))"
        )
    return 2 * float(L.diagonal().log().sum())


# --- stochastic Lanczos quadrature ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Quadratures:
    """For each probe the Gauss rule of z'(log A)z at three numbers of steps, the last being all of them."""

    x: Tensor  # (k, 3) float64
    moments: Tensor  # (k, 4): of log over the last rule's nodes, of order 1 to 4
    products: int


def quadrature(A: LinearOperator, seed: int, steps: int) -> Sampler:
    """n times the Gauss quadrature of log over the spectral measure of each probe."""
    space, n = A.domain, A.domain.dim

    def extend(now: Quadratures | None, probes: range) -> Quadratures:
        found, moments = ([], []) if now is None else ([now.x], [now.moments])
        spent = 0 if now is None else now.products
        for j in probes:
            L = lanczos(A, space.random(j, seed, "sphere"), steps=steps)
            m, spent = L.alpha.numel(), spent + L.products
            s = 0 if L.status == "breakdown" else max(1, steps // 5)
            rules = [_rule(L.alpha[:i], L.beta[: i - 1], A) for i in (max(1, m - 2 * s), max(1, m - s), m)]
            found.append(n * torch.tensor([[float(w @ logs) for w, logs in rules]], dtype=torch.float64))
            w, logs = rules[-1]
            moments.append(torch.stack([w @ logs**order for order in range(1, 5)])[None])
        return Quadratures(torch.cat(found), torch.cat(moments), spent)

    def read(now: Quadratures) -> Reading:
        x, k = now.x[:, 2], now.x.shape[0]
        early, late = (float((now.x[:, i] - now.x[:, i + 1]).mean()) for i in (0, 1))
        ratio = min(late / early, 0.95) if early > 0 < late else 0.0
        remainder = late * ratio / (1 - ratio)
        # v'F v with v on the sphere has the variance 2/(n+2) (tr F^2/n - (tr F/n)^2), and its quadrature is at hand
        one, two, three, four = now.moments.mean(0).tolist()
        second = max(two - one**2, 0.0)
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        spread = fourth - second**2
        freedom = k * (n + 2) * second**2 / spread if spread > 0 else math.inf
        floor = space.eps * math.sqrt(n) * float(x.abs().mean() + 1)
        error = max(n * math.sqrt(2 / (n + 2) * second / k), floor) + UNSURE * remainder / LEVEL_FACTOR
        return Reading(x.mean() - remainder, x.new_tensor(error), max(freedom, 1.0))

    return Sampler("lanczos", extend, read, cost=steps)


def _rule(alpha: Tensor, beta: Tensor, A: LinearOperator) -> tuple[Tensor, Tensor]:
    """The weights of the Gauss rule, and the logarithms of its nodes."""
    nodes, weights = gauss_quadrature(alpha, beta)
    if float(nodes[0]) <= 0:
        raise ValueError(
            f"log_determinant: A must be positive definite, got the Ritz value {float(nodes[0]):.3g} of {A!r}; add "
            "damping (A + c * identity(A.domain))"
        )
    return weights, nodes.log()
