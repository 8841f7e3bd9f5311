"""Whether an operator keeps what algorithms take for granted.

Every algorithm here relies on: ``<u, A v> = <A'u, v>``, linearity, blocks acting column by column, the facts that the
operator claims, the same answer to the same question, inputs left alone, and results without an autograd graph.
`check_operator` tests each with random vectors and reports a relative error per law. A hand-written product that is
wrong in a way that matters fails with near certainty; a fault in few of many entries can stay below the tolerance.

The sign of a claimed semidefinite operator is tested on the Krylov space of the random vectors, not on them alone: the
smallest Ritz value finds one negative eigenvalue among many positive ones where ``v'Av`` of random v does not. It
proves an operator indefinite, never definite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.operators._operator import Adjoint, Fact, LinearOperator
from frechet.space import Space

_ADVICE = {
    "kind": "the result must have the codomain's shape, dtype and device, and finite entries",
    "linearity": "A(2u - 0.7v) = 2Au - 0.7Av fails: an offset, a finite difference or a product that depends on v",
    "columns": "A @ V must act on each column alone: A @ V[:, j] differs from (A @ V)[:, j]",
    "adjoint": "<u, Av> = <A'u, v> fails: _rmatmat is not the transpose of _matmat",
    "symmetry": "<u, Av> = <v, Au> fails: drop the fact 'symmetric'",
    "sign": "v'Av < 0 for some v: drop the fact 'positive_semidefinite' (or 'positive_definite')",
    "repeatability": "two products with one vector differ: turn off dropout, sampling and training-mode statistics",
    "input": "the product changes its argument: work on a copy",
    "graph": "the result carries an autograd graph: compute it under torch.no_grad() or detach it",
}

_KRYLOV_STEPS = 4


@dataclass(frozen=True)
class OperatorCheck:
    """The relative error per law that was tested, and the laws whose error is not within the tolerance."""

    operator: str
    errors: Mapping[str, float]
    tolerance: float
    failed: tuple[str, ...]
    products: int
    seed: int

    def checked(self) -> OperatorCheck:
        """This check if every law holds; raises `ValueError` naming each law that failed and by how much."""
        if not self.failed:
            return self
        listed = "; ".join(f"{law} (error {self.errors[law]:.2g}): {_ADVICE[law]}" for law in self.failed)
        raise ValueError(f"check_operator: {self.operator} fails, tolerance {self.tolerance:.2g}: {listed}")


def check_operator(
    A: LinearOperator, *, seed: int, probes: int = 3, rtol: float | None = None, transpose: bool = True
) -> OperatorCheck:
    """Test the laws that `A` must keep by random products.

    ``check_operator(A, seed=0).checked()`` raises where a law fails.

    The laws and their errors, each compared with `rtol`:

    - ``kind``: the result has the right shape, dtype and device, and is finite (0 or infinity).
    - ``linearity``: ``|A(2u - 0.7v) - 2Au + 0.7Av| / (|2Au| + |0.7Av|)``, and ``|A(1024 v) - 1024 Av| / |1024 Av|``.
    - ``columns``: ``|(A V)_j - A v_j| / |A v_j|``, also of A'.
    - ``adjoint``: ``|<u, Av> - <A'u, v>| / max(|u||Av|, |A'u||v|)``.
    - ``symmetry``, where the facts claim it: ``|<u, Av> - <v, Au>| / max(|u||Av|, |v||Au|)``.
    - ``sign``, where the facts claim it: minus the smallest over the largest Ritz value on a Krylov space, and infinity
      where a definite A has ``v'Av <= 0``.
    - ``repeatability``: ``|A v - A v| / |A v|`` with another product in between.
    - ``input``, ``graph``: 0, or infinity where the input changed, or the result requires a gradient.

    Cost: about ``20 * probes`` products, and ``10 * probes`` vectors of memory.

    Args:
        A: the operator.
        seed: the seed of the random vectors.
        probes: how many vectors each law is tested with.
        rtol: the largest error of a law that holds. Default: ``eps ** (2/3)`` of the dtype, 2.4e-5 in float32.
        transpose: with False, the adjoint is left out, for an operator made without its transpose.

    Example:
        >>> import torch
        >>> from frechet import check_operator, from_callable
        >>> right = from_callable(lambda V: V.flip(0), 3, facts="symmetric")
        >>> check_operator(right, seed=0).failed
        ()
        >>> wrong = from_callable(lambda V: V.roll(1, 0), 3, facts="symmetric")
        >>> check_operator(wrong, seed=0).failed
        ('adjoint', 'symmetry')
    """
    if probes < 1:
        raise ValueError(f"check_operator: probes must be at least 1, got {probes}")
    tolerance = A.domain.eps ** (2 / 3) if rtol is None else rtol
    V = A.domain.random(range(probes), seed, "gaussian")
    W = A.domain.random(range(probes, 2 * probes), seed, "gaussian")
    product = _Counted(A)
    AV = product(V)
    errors = {"kind": _kind(A.codomain, AV, probes)}
    if errors["kind"] == 0:
        AW = product(W)
        errors["linearity"] = _linearity(product, V, W, AV, AW)
        errors["columns"] = _columns(product, V, AV)
        if transpose:
            U = A.codomain.random(range(2 * probes, 3 * probes), seed, "gaussian")
            # not A.T, which is A itself where A claims to be symmetric: _rmatmat is what is tested
            transposed = _Counted(Adjoint(A))
            AU = transposed(U)
            errors["adjoint"] = _mismatch(A, U, V, AV, AU)
            errors["columns"] = _worst(errors["columns"], _columns(transposed, U, AU))
            product.count += transposed.count
        if Fact.SYMMETRIC in A.facts:
            errors["symmetry"] = _mismatch(A, W, V, AV, AW)
        if Fact.POSITIVE_SEMIDEFINITE in A.facts:
            errors["sign"] = _sign(product, V, AV)
        errors["repeatability"] = _difference(A.codomain, AV, product(V))
    errors |= {"input": _input(product, V), "graph": _graph(product, V)}
    # written so that a NaN fails
    failed = tuple(law for law, error in errors.items() if not error <= tolerance)
    return OperatorCheck(repr(A), errors, tolerance, failed, product.count, seed)


class _Counted:
    """Counts products; takes them of copies, so that a product that changes its input does not spoil other laws."""

    def __init__(self, A: LinearOperator) -> None:
        self.A, self.count = A, 0

    def __call__(self, V: Tensor) -> Tensor:
        self.count += V.shape[1] if V.ndim == 2 else 1
        return (self.A @ V.clone()).detach()


def _ratio(error: Tensor, size: Tensor) -> float:
    """The largest quotient; 0 / 0 counts as 0, and a NaN stays."""
    quotients = torch.where(error == 0, torch.zeros_like(error), error / size)
    return float(quotients.max()) if quotients.numel() else 0.0


def _worst(*errors: float) -> float:
    """The largest, or NaN where one is: Python's max may drop a NaN."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def _difference(space: Space, X: Tensor, Y: Tensor) -> float:
    return _ratio(space.norm(X - Y), space.norm(X))


def _mismatch(A: LinearOperator, U: Tensor, V: Tensor, AV: Tensor, AU: Tensor) -> float:
    """How far <u, Av> is from <A'u, v>, column by column."""
    left = torch.stack([A.codomain.inner(u, av) for u, av in zip(U.T, AV.T, strict=True)])
    right = torch.stack([A.domain.inner(au, v) for au, v in zip(AU.T, V.T, strict=True)])
    sizes = torch.maximum(A.codomain.norm(U) * A.codomain.norm(AV), A.domain.norm(AU) * A.domain.norm(V))
    return _ratio((left - right).abs(), sizes)


def _kind(space: Space, AV: Tensor, probes: int) -> float:
    right = tuple(AV.shape) == (space.length, probes) and AV.dtype == space.dtype and AV.device == space.device
    return 0.0 if right and bool(AV.isfinite().all()) else math.inf


def _linearity(product: _Counted, V: Tensor, W: Tensor, AV: Tensor, AW: Tensor) -> float:
    space = product.A.codomain
    error = space.norm(product(2.0 * V - 0.7 * W) - (2.0 * AV - 0.7 * AW))
    combination = _ratio(error, 2.0 * space.norm(AV) + 0.7 * space.norm(AW))
    return _worst(combination, _difference(space, 1024.0 * AV, product(1024.0 * V)))


def _columns(product: _Counted, V: Tensor, AV: Tensor) -> float:
    return _difference(product.A.codomain, torch.stack([product(v) for v in V.T], dim=1), AV)


def _sign(product: _Counted, V: Tensor, AV: Tensor) -> float:
    A, space = product.A, product.A.domain
    if not space.dim:
        return 0.0
    definite = Fact.POSITIVE_DEFINITE in A.facts
    if definite and any(float(space.inner(v, av)) <= 0 for v, av in zip(V.T, AV.T, strict=True)):
        return math.inf
    last, _ = space.orthonormalize(V)
    basis = last
    for _ in range(_KRYLOV_STEPS):
        image = product(last)
        if not bool(image.isfinite().all()):
            return math.nan
        last, _ = space.orthonormalize(_against(space, basis, image))
        basis = torch.cat([basis.T, last.T]).T
    Q, _ = space.orthonormalize(basis)
    T = space.gram(Q, product(Q))
    if not bool(T.isfinite().all()):
        return math.nan
    ritz = torch.linalg.eigvalsh((T + T.T) / 2)
    return _ratio((-ritz[0]).clamp_min(0), ritz.abs().max())


def _against(space: Space, Q: Tensor, V: Tensor) -> Tensor:
    """V less its part in the span of Q, twice for accuracy."""
    for _ in range(2):
        V = V - Q @ space.gram(Q, V).to(V)
    return V


def _input(product: _Counted, V: Tensor) -> float:
    block, vector = V.clone(), V[:, 0].clone()
    product.count += block.shape[1] + 1
    for argument in (block, vector):
        product.A @ argument  # pyright: ignore[reportUnusedExpression]  (wanted: what it does to its argument)
    return 0.0 if torch.equal(block, V) and torch.equal(vector, V[:, 0]) else math.inf


def _graph(product: _Counted, V: Tensor) -> float:
    with torch.enable_grad():
        result = product.A @ V.clone().requires_grad_()
    product.count += V.shape[1]
    return math.inf if result.requires_grad else 0.0
