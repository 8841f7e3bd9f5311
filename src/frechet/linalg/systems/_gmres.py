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
from functools import partial

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
    vector,
)
from frechet.linalg.systems._protocol import Course, Ending, System, iterate, origin, system
from frechet.operators._operator import LinearOperator
from frechet.space import Space


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
    history: tuple[float, ...] = ()
    exhausted: bool = False  # whether the Krylov space of the cycle before ended


@torch.no_grad()
def gmres(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    x0: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    restart: int = 30,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    observe: Callable[[GmresState], bool] | None = None,
    resume: GmresState | None = None,
) -> Solution:
    """Solve A x = b for a square A.

    Args:
        A: the operator ``(n, n)``.
        b: a vector ``(n,)`` or a dict shaped like A's domain. The solution is flat.
        x0: where the iteration starts, shaped like b. A zero b ignores it. Default: zero.
        preconditioner: an operator near the inverse of A, not necessarily symmetric. Default: none.
        restart: the length m of a cycle. A larger m takes more memory and fewer iterations. Default: 30.
        rtol: relative tolerance. Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)``, for the residual
            recomputed from its definition. Default: 1e-6.
        atol: absolute tolerance on the same norm, in the unit of b. Default: 0.
        max_iterations: the most iterations. Default: 10 n.
        observe: is called with a `GmresState` after each iteration, and stops the run by returning True. Default: none.
        resume: a `GmresState` of the same problem, from which the run goes on. Default: none.

    Returns:
        A `Solution`. Its `residual` is recomputed. Its `history` has the norm of the recurrence at each iteration. The
            status is `converged` or one of these: `stagnated` (a cycle lowered the residual by less than a thousandth:
            a longer cycle, a preconditioner, or a tolerance within the working precision helps), `breakdown` (the
            Krylov space is exhausted and holds no solution: A is singular), `max_iterations`, `nonfinite`, `stopped`.

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
    b = vector("gmres", "b", A.domain, b)
    problem = system("gmres", A, b, preconditioner, rtol, atol, f"restart = {restart}")
    state = _begin(problem, x0) if resume is None else resume
    check_resume("gmres", state.fingerprint, problem.fingerprint)
    course = Course.of(state, 10 * A.domain.dim if max_iterations is None else max_iterations, observe)
    # a cycle begins at its first iteration
    state = replace(state, iteration=state.begun, residual=float(A.domain.norm(state.r)))
    cycle = partial(_cycle, problem, min(restart, A.domain.dim), course)
    s, ending = iterate(state, partial(_judge, problem, course), cycle)
    message = ending.message("gmres")
    return Solution(s.x, ending.status, s.residual, s.iteration, s.products, tuple(course.history), message)


def _begin(problem: System, x0: Tensor | Mapping[str, Tensor] | None) -> GmresState:
    x, r, products = origin("gmres", problem.A, problem.b, float(problem.norm_b), x0)
    return GmresState(problem.fingerprint, 0, math.inf, 0, x, r, math.inf, products)


def _judge(problem: System, course: Course[GmresState], s: GmresState) -> tuple[GmresState, Ending | None]:
    target = problem.goals[0]
    if not math.isfinite(s.residual):
        return s, Ending(Status.NONFINITE, f"the residual after {s.iteration} iterations is not finite")
    if s.residual <= target:
        return s, Ending(Status.CONVERGED)
    if not s.residual < 0.999 * s.previous:
        status = Status.BREAKDOWN if s.exhausted else Status.STAGNATED
        reason = "the Krylov space is exhausted, A is singular" if s.exhausted else "the last cycle brought nothing"
        excess = s.residual / target if target else math.inf
        return s, Ending(status, f"{reason}, residual {excess:.3g} times the tolerance")
    return s, course.ended(s)


def _cycle(problem: System, m: int, course: Course[GmresState], s: GmresState) -> tuple[GmresState, Ending | None]:
    """At most m iterations, then x and the true residual."""
    begun = replace(s, begun=s.iteration, history=tuple(course.history))
    if not course.history:
        course.history.append(s.residual)
    K = _Krylov.of(problem.space, s.r, s.residual, m)
    limit, broken = min(m, course.limit - s.iteration), False
    while K.j < limit and K.estimate > problem.goals[0] and not (K.exhausted or course.stopped or broken):
        broken = not K.extend(problem)
        if not broken:
            course.history.append(K.estimate)
            if course.observe is not None:
                course.watch(replace(begun, iteration=s.iteration + K.j, residual=K.estimate))
    x = s.x + problem.preconditioned(K.correction())
    r = problem.residual(x)
    residual, products = float(problem.space.norm(r)), s.products + K.j + broken + 1
    iteration = s.iteration + K.j
    s = GmresState(s.fingerprint, iteration, residual, iteration, x, r, s.residual, products, (), K.exhausted)
    told = f"a product in iteration {iteration + 1} is not finite"
    return s, Ending(Status.NONFINITE, told) if broken else None


@dataclass(eq=False)
class _Krylov:
    """The first j vectors of the Krylov space, A M V = V H, and Q H = R by rotations, Q (norm(r), 0, ...) = g."""

    space: Space
    V: Tensor
    H: np.ndarray
    R: np.ndarray
    g: np.ndarray
    rotations: list[tuple[float, float]]
    size: float  # norm of r
    estimate: float  # norm of the residual
    j: int = 0
    exhausted: bool = False

    @classmethod
    def of(cls, space: Space, r: Tensor, residual: float, m: int) -> _Krylov:
        V, g = space.zeros(m + 1), np.zeros(m + 1)
        V[:, 0], g[0] = r / residual, residual
        return cls(space, V, np.zeros((m + 1, m)), np.zeros((m + 1, m)), g, [], residual, residual)

    def extend(self, problem: System) -> bool:
        """One more vector; False where the product is not finite."""
        V, H, R, g, j = self.V, self.H, self.R, self.g, self.j
        w = problem.A @ problem.preconditioned(V[:, j])
        size = float(self.space.norm(w))
        if not math.isfinite(size):
            return False
        for _ in range(2):
            coefficients = self.space.gram(V[:, : j + 1], w.unsqueeze(1))[:, 0]
            w = w - V[:, : j + 1] @ coefficients.to(w)
            H[: j + 1, j] += coefficients.cpu().numpy()
        H[j + 1, j] = float(self.space.norm(w))
        self.exhausted = bool(H[j + 1, j] <= 10 * self.space.eps * size)
        if not self.exhausted:
            V[:, j + 1] = w / H[j + 1, j]
        R[:, j] = H[:, j]
        for i, (c, s) in enumerate(self.rotations):
            R[i, j], R[i + 1, j] = c * R[i, j] + s * R[i + 1, j], c * R[i + 1, j] - s * R[i, j]
        rho = math.hypot(R[j, j], R[j + 1, j])
        c, s = (R[j, j] / rho, R[j + 1, j] / rho) if rho > 0 else (0.0, 1.0)
        self.rotations.append((c, s))
        g[j], g[j + 1] = c * g[j], -s * g[j]
        self.estimate, self.j = abs(float(g[j + 1])), j + 1
        return True

    def correction(self) -> Tensor:
        """V y with norm(g_0 e_1 - H y) least."""
        j, rhs = self.j, np.zeros(self.j + 1)
        rhs[0] = self.size
        y = torch.from_numpy(np.linalg.lstsq(self.H[: j + 1, :j], rhs, rcond=None)[0])
        return self.V[:, :j] @ y.to(self.V)
