"""GMRES(m): A x = b for any square A, from products with A alone.

Each cycle of at most m iterations builds an orthonormal basis V of the Krylov space K_j(A M, r_0) (Arnoldi) and
minimizes norm(b - A x) over x_0 + M K_j, for a preconditioner M from the right; then it starts again from the x found.
The residual never grows; without restarts n iterations suffice in exact arithmetic, with them a cycle may bring
nothing.

**Source.** Y. Saad and M. H. Schultz (1986), GMRES: a generalized minimal residual algorithm for solving nonsymmetric
linear systems, algorithm 4, doi 10.1137/0907058; right preconditioning as in Y. Saad (2003), Iterative methods for
sparse linear systems, algorithm 9.5, doi 10.1137/1.9780898718003.

**Differs from the source.**
1. Classical Gram-Schmidt twice (two matrix products per pass) instead of modified once: as orthogonal as Householder.
2. Convergence counts only for the residual recomputed at the end of a cycle; a cycle that lowers it by less than a
   thousandth is `stagnated`, since the next would do the same.

**Cost.** One product per iteration, one per cycle; m + 4 vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import (
    Fingerprint,
    check_numbers,
    check_preconditioner,
    check_resume,
    check_square,
    fingerprint,
    vector,
)
from frechet.operators._operator import LinearOperator


@dataclass(frozen=True, eq=False)
class GmresState:
    """One moment of `gmres`. It holds the start of the present cycle, and a resumed run does that cycle again.

    `iteration` and `residual` (the recurrence's) are of this moment, all else is of the cycle's start.
    """

    fingerprint: Fingerprint
    iteration: int
    residual: float
    begun: int
    x: Tensor
    r: Tensor
    previous: float
    products: int
    history: tuple[float, ...]


@torch.no_grad()
def gmres(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    start: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    restart: int = 30,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    observe: Callable[[GmresState], bool] | None = None,
    resume: GmresState | None = None,
) -> Solution:
    """The solution of A x = b for square A.

    `b` is a vector ``(n,)`` or a dict shaped like A's domain; ``x`` is flat. `preconditioner` is an operator near the
    inverse of A, not necessarily symmetric. `restart` is the length m of a cycle: more memory, fewer iterations.

    Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)`` for the residual recomputed from its definition,
    which is `Solution.residual`; `history` holds the recurrence's, one per iteration. A zero right-hand side has the
    solution zero, whatever the start.

    Other statuses: `stagnated` (a cycle lowered the residual by less than a thousandth: a longer cycle, a
    preconditioner, or a tolerance within the working precision helps), `breakdown` (the Krylov space is exhausted and
    holds no solution: A is singular), `max_iterations` (10 n if left out), `nonfinite`, `stopped`.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import gmres
        >>> A = from_matrix(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
        >>> s = gmres(A, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> s.x, s.iterations  # the rotation back
        (tensor([ 2., -1.], dtype=torch.float64), 2)
    """
    check_square("gmres", A)
    check_preconditioner("gmres", A, preconditioner, symmetric=False)
    check_numbers("gmres", rtol=rtol, atol=atol, max_iterations=max_iterations)
    if restart < 1:
        raise ValueError(f"gmres: restart must be >= 1, got {restart}")
    space = A.domain
    b = vector("gmres", "b", space, b)
    norm_b = float(space.norm(b))
    target = max(rtol * norm_b, atol)
    limit = 10 * space.dim if max_iterations is None else max_iterations
    m = min(restart, space.dim)
    problem = fingerprint("gmres", A, [norm_b], preconditioner, f"restart = {restart}")

    seen = 0
    if resume is None:
        x, r, products = space.zeros(), b, 0
        if start is not None:
            x0 = vector("gmres", "start", space, start)
            if norm_b != 0:
                x, r, products = x0, b - A @ x0, 1
        previous, iterations, history = math.inf, 0, []
    else:
        check_resume("gmres", resume.fingerprint, problem)
        x, r, previous, products = resume.x, resume.r, resume.previous, resume.products
        iterations, seen, history = resume.begun, resume.iteration, list(resume.history)

    exhausted, stopped, message = False, False, "gmres"
    while True:
        residual = float(space.norm(r))
        if not math.isfinite(residual):
            status = Status.NONFINITE
            message = f"gmres: the residual after {iterations} iterations is not finite"
            break
        if residual <= target:
            status = Status.CONVERGED
            break
        if not residual < 0.999 * previous:
            status = Status.BREAKDOWN if exhausted else Status.STAGNATED
            reason = "the Krylov space is exhausted, A is singular" if exhausted else "the last cycle brought nothing"
            message = f"gmres: {reason}, residual {residual / target if target else math.inf:.3g} times the tolerance"
            break
        if iterations >= limit or stopped:
            status = Status.MAX_ITERATIONS if iterations >= limit else Status.STOPPED
            break

        begun = GmresState(problem, iterations, residual, iterations, x, r, previous, products, tuple(history))
        previous, estimate, exhausted, broken = residual, residual, False, False
        V = space.zeros(m + 1)
        V[:, 0] = r / residual
        H = np.zeros((m + 1, m))
        R, g, rotations = np.zeros((m + 1, m)), np.zeros(m + 1), []
        g[0] = residual
        if not history:
            history.append(residual)
        j = 0
        while j < m and iterations < limit and estimate > target and not exhausted and not stopped:
            w = A @ (V[:, j] if preconditioner is None else preconditioner @ V[:, j])
            products += 1
            size = float(space.norm(w))
            broken = not math.isfinite(size)
            if broken:
                break
            for _ in range(2):
                coefficients = space.gram(V[:, : j + 1], w.unsqueeze(1))[:, 0]
                w = w - V[:, : j + 1] @ coefficients.to(w)
                H[: j + 1, j] += coefficients.cpu().numpy()
            H[j + 1, j] = float(space.norm(w))
            exhausted = bool(H[j + 1, j] <= 10 * space.eps * size)
            if not exhausted:
                V[:, j + 1] = w / H[j + 1, j]
            R[:, j] = H[:, j]
            for i, (c, s) in enumerate(rotations):
                R[i, j], R[i + 1, j] = c * R[i, j] + s * R[i + 1, j], c * R[i + 1, j] - s * R[i, j]
            rho = math.hypot(R[j, j], R[j + 1, j])
            c, s = (R[j, j] / rho, R[j + 1, j] / rho) if rho > 0 else (0.0, 1.0)
            rotations.append((c, s))
            g[j], g[j + 1] = c * g[j], -s * g[j]
            estimate = abs(float(g[j + 1]))
            j += 1
            iterations += 1
            history.append(estimate)
            if observe is not None and iterations > seen:
                stopped = observe(replace(begun, iteration=iterations, residual=estimate))

        rhs = np.zeros(j + 1)
        rhs[0] = residual
        y = torch.from_numpy(np.linalg.lstsq(H[: j + 1, :j], rhs, rcond=None)[0])
        correction = V[:, :j] @ y.to(V)
        x = x + (correction if preconditioner is None else preconditioner @ correction)
        r = b - A @ x
        products += 1
        if broken:
            status, residual = Status.NONFINITE, float(space.norm(r))
            message = f"gmres: a product in iteration {iterations + 1} is not finite"
            break

    return Solution(x, status, residual, iterations, products, tuple(history), message)
