"""A x = b with A = H + damping I, as exactly as is asked for: conjugate gradients, Neumann series, low rank.

    cg        to a tolerance; preconditioned by a Nystrom approximation of H where a rank is given
    neumann   sum_{i < terms} (I - scale A)^i scale b
    nystrom   (N + damping I)^{-1} b with N the random low-rank approximation of H

Whatever the way, the residual of the result is recomputed, and converged means that it is below the tolerance.

**Source.** See `hypergradient`; `linalg/systems/_cg.py` and `linalg/_precondition.py` for what is used.
**Cost.** A product per iteration, term or rank, and one for the residual.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from frechet.linalg._eigsh import eigsh
from frechet.linalg._precondition import nystrom
from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers
from frechet.linalg.systems._cg import CGState, cg
from frechet.operators._constructors import identity
from frechet.operators._operator import LinearOperator

Inverse = Literal["cg", "neumann", "nystrom"]
TERMS = 100
GROWTH = 10.0  # of a Neumann term over the right side, at which the series is given up


@dataclass(frozen=True, eq=False)
class InverseRules:
    """Which inverse, and how exactly."""

    inverse: Inverse = "cg"
    damping: float = 0.0
    rtol: float | None = None
    max_iterations: int | None = None
    rank: int | None = None
    terms: int | None = None
    scale: float | None = None
    seed: int | None = None
    observe: Callable[[CGState], bool] | None = None
    preconditioner: LinearOperator | None = None

    def checked(self) -> InverseRules:
        """These rules if they go together; raises otherwise."""
        inverse, rank, terms, scale = self.inverse, self.rank, self.terms, self.scale
        if inverse not in Inverse.__args__:
            names = ", ".join(map(repr, Inverse.__args__))
            raise ValueError(f"hypergradient: inverse must be one of {names}, got {inverse!r}")
        check_numbers("hypergradient", rtol=self.rtol or 0.0, max_iterations=self.max_iterations)
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"hypergradient: damping must be a number >= 0, got {self.damping}")
        if inverse != "neumann" and (terms is not None or scale is not None):
            raise ValueError(
                f"hypergradient: terms and scale must come with inverse='neumann', got inverse={inverse!r}"
            )
        if inverse != "cg" and self.observe is not None:
            raise ValueError(f"hypergradient: observe must come with inverse='cg', got inverse={inverse!r}")
        if self.preconditioner is not None and (inverse != "cg" or rank is not None):
            raise ValueError(
                "hypergradient: preconditioner must come with inverse='cg' and no rank, got another choice"
            )
        if inverse == "neumann" and rank is not None:
            raise ValueError("hypergradient: rank must come with inverse='cg' or 'nystrom', got inverse='neumann'")
        if (terms is not None and terms < 1) or (scale is not None and not scale > 0):
            raise ValueError(f"hypergradient: terms must be >= 1 and scale > 0, got {terms} and {scale}")
        if inverse == "nystrom" and rank is None:
            raise ValueError("hypergradient: inverse='nystrom' needs rank, got None")
        if self.seed is None and (rank is not None or (inverse == "neumann" and scale is None)):
            what = "a Nystrom approximation" if rank is not None else "the scale of the Neumann series"
            raise ValueError(f"hypergradient: seed must be given where {what} is drawn, got None")
        return self

    def solver(self, H: LinearOperator) -> tuple[Callable[[Tensor], Solution], int]:
        """b -> the approximate solution of A x = b, and the products with H that its making cost."""
        A = H + self.damping * identity(H.domain) if self.damping else H
        rtol = H.domain.eps**0.5 if self.rtol is None else self.rtol
        if self.inverse == "neumann":
            step, spent = _scale(A, self.scale, self.seed)
            return lambda b: _neumann(A, b, step, TERMS if self.terms is None else self.terms, rtol), spent
        M = self.preconditioner
        if self.rank is not None:
            assert self.seed is not None
            M = nystrom(H, rank=self.rank, damping=self.damping, seed=self.seed)
        if self.inverse == "nystrom":
            assert M is not None
            return lambda b: _applied(A, M, b, rtol), self.rank or 0

        def by_cg(b: Tensor) -> Solution:
            s = cg(A, b, preconditioner=M, rtol=rtol, max_iterations=self.max_iterations, observe=self.observe)
            name = "cg" if M is None else "preconditioned cg" if self.rank is None else "cg with nystrom"
            return replace(s, message=name + s.message.removeprefix("cg"))

        return by_cg, self.rank or 0


def _scale(A: LinearOperator, scale: float | None, seed: int | None) -> tuple[float, int]:
    """One over an upper estimate of the largest eigenvalue, where none is given, and its products."""
    if scale is not None:
        return scale, 0
    assert seed is not None
    top = eigsh(A, 1, which="largest", seed=seed, rtol=0.1)
    highest = float(top.values[0] + top.residuals[0])
    if not highest > 0:
        raise ValueError(f"hypergradient: the inner Hessian must have a positive eigenvalue, got {highest:.3g}")
    return 1 / highest, top.products


def _neumann(A: LinearOperator, b: Tensor, scale: float, terms: int, rtol: float) -> Solution:
    """x = sum_{i < terms} (I - scale A)^i scale b."""
    space = A.domain
    size = float(space.norm(b))
    p = scale * b
    x, history, products = p.clone(), [], 0
    for _ in range(terms - 1):
        p = p - scale * (A @ p)
        products += 1
        x += p
        history.append(float(space.norm(p)) / scale)  # norm(b - A x) before this term was added
        if not history[-1] <= GROWTH * size:
            break
    residual = float(space.norm(b - A @ x))
    diverged = bool(history) and not history[-1] <= GROWTH * size
    status = Status.CONVERGED if residual <= rtol * size else Status.STAGNATED if diverged else Status.MAX_ITERATIONS
    note = (
        f"neumann: the terms grow, so scale = {scale:.3g} is above 2 / the largest eigenvalue, or H is indefinite"
        if diverged
        else f"neumann: {terms} terms, scale {scale:.3g}"
    )
    return Solution(x, status, residual, len(history) + 1, products + 1, tuple(history), note)


def _applied(A: LinearOperator, M: LinearOperator, b: Tensor, rtol: float) -> Solution:
    x = M @ b
    residual = float(A.domain.norm(b - A @ x))
    status = Status.CONVERGED if residual <= rtol * float(A.domain.norm(b)) else Status.MAX_ITERATIONS
    return Solution(x, status, residual, 1, 1, (), "nystrom: the inverse of the approximation")
