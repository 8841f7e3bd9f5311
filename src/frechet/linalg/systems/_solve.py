"""A x = b by the method that the facts of A call for; least squares where A is not square.

    structure with a closed-form inverse     that inverse, refined where the residual asks for it
    positive definite                        cg
    symmetric                                minres
    square                                   gmres
    rectangular                              lsmr

The choice is made on facts about A, never on how a run went: nothing switches when a method fails, and the message says
what was chosen. The methods themselves return their status instead of raising.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from frechet.errors import NoClosedForm
from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers, check_operator_type, vector
from frechet.linalg.systems._cg import cg
from frechet.linalg.systems._gmres import gmres
from frechet.linalg.systems._lsmr import lsmr
from frechet.linalg.systems._minres import minres
from frechet.operators._closed_form import structured_inverse
from frechet.operators._operator import Fact, LinearOperator

REFINEMENTS = 3


@torch.no_grad()
def solve(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    x0: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
) -> Solution:
    """Solve A x = b, or its least-squares problem where A is rectangular; raise `NotConverged` otherwise.

    A closed form is used where `preconditioner` and `x0` are None. Where the structure has one but A is singular,
    the iterative method is used, and the message says why.

    Args:
        A: the operator. Its facts choose the method.
        b: a vector, or a dict shaped like A's codomain. With a closed form or a positive definite A also a block
            ``(n, k)``. The solution has the shape of b, and is flat for a dict.
        x0: where the iteration starts, shaped like x. Default: zero.
        preconditioner: an operator near the inverse of A, for a square A. Default: none.
        rtol: relative tolerance. Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)``; for a rectangular A
            the rules of `lsmr` hold. Default: 1e-6.
        atol: absolute tolerance on the same norm, in the unit of b. Default: 0.
        max_iterations: the most iterations. Default: that of the method.

    Raises:
        NotConverged: ``result`` is the `Solution` that was reached, with the status and the message of the method (see
            `cg`, `minres`, `gmres`, `lsmr`).

    Example:
        >>> import torch
        >>> from frechet import from_callable, solve
        >>> A = from_callable(lambda V: 2 * V + V.flip(0), 4, facts="positive_definite", dtype=torch.float64)
        >>> s = solve(A, torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64))
        >>> s.message, s.x.round(decimals=9) + 0.0  # + 0.0 for the sign of zero
        ('solve by cg (A is positive definite)', tensor([ 2.,  0.,  0., -1.], dtype=torch.float64))
    """
    check_operator_type("solve", A)
    check_numbers("solve", rtol=rtol, atol=atol, max_iterations=max_iterations)
    square, why = A.domain == A.codomain, ""
    if square and preconditioner is None and x0 is None:
        try:
            B = structured_inverse(A)
        except NoClosedForm:
            pass
        except ValueError as singular:
            why = f"; no closed form, {singular}"
        else:
            return _by_inverse(A, B, vector("solve", "b", A.codomain, b, block=True), rtol, atol).checked()
    if square and Fact.POSITIVE_DEFINITE in A.facts:
        choice = "cg (A is positive definite"
        s = cg(A, b, x0=x0, preconditioner=preconditioner, rtol=rtol, atol=atol, max_iterations=max_iterations)
    elif square and Fact.SYMMETRIC in A.facts:
        choice = "minres (A is symmetric"
        s = minres(A, b, x0=x0, preconditioner=preconditioner, rtol=rtol, atol=atol, max_iterations=max_iterations)
    elif square:
        choice = "gmres (A is square"
        s = gmres(A, b, x0=x0, preconditioner=preconditioner, rtol=rtol, atol=atol, max_iterations=max_iterations)
    else:
        if preconditioner is not None:
            raise ValueError(
                f"solve: preconditioner must be None for a rectangular A, got {preconditioner!r}; solve lsmr(A @ P, b) "
                "for y and take x = P @ y"
            )
        choice = "lsmr (A is rectangular: least squares"
        s = lsmr(A, b, x0=x0, rtol=rtol, atol=atol, max_iterations=max_iterations)
    detail = s.message.partition(":")[2]
    return replace(s, message=f"solve by {choice}{why}){':' if detail else ''}{detail}").checked()


def _by_inverse(A: LinearOperator, B: LinearOperator, b: Tensor, rtol: float, atol: float) -> Solution:
    """x = B b, corrected by the inverse of its own residual while that is too large and falling."""
    space, k = A.domain, 1 if b.ndim == 1 else b.shape[1]
    target = torch.clamp(rtol * space.norm(b), min=atol)
    x = B @ b
    history: list[float] = []
    while True:
        r = b - A @ x
        norm = space.norm(r)
        history.append(float(norm.max()) if norm.numel() else 0.0)
        converged = bool((norm <= target).all())
        if converged or len(history) > REFINEMENTS or (len(history) > 1 and not history[-1] < history[-2] / 2):
            break
        x = x + B @ r
    status = Status.CONVERGED if converged else Status.STAGNATED if bool(r.isfinite().all()) else Status.NONFINITE
    count = len(history)
    return Solution(x, status, history[-1], count - 1, k * count, tuple(history), "solve by a closed form")
