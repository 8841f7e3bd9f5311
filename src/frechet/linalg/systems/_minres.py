"""MINRES-QLP: A x = b for A symmetric, definite or not, singular or not, from products with A alone.

Iterate t minimizes norm(b - A x) over the Krylov space K_t(A, r_0), so the residual never grows: the Lanczos process
makes A tridiagonal, reflections from the left and from the right make that lower triangular. Where b is outside the
range of a singular A, the iterates tend to a least-squares solution (A r = 0). The reflections also tell the curvature
of the residuals; unless one of them is exactly zero, it turns negative as soon as the Krylov space holds a direction of
negative curvature.

**Source.** S.-C. T. Choi, C. C. Paige and M. A. Saunders (2011), MINRES-QLP: a Krylov subspace method for indefinite or
singular symmetric systems, table 3.1, doi 10.1137/100787921. The negative curvature is from Y. Liu and F. Roosta
(2022), MINRES: from negative curvature detection to monotonicity properties, algorithm 1, doi 10.1137/21M143666X.

**Differs from the source.**
1. The right reflections run from the first iteration. The cheaper updates of MINRES lose digits like cond(A)^2, these
   like cond(A): in float32 that can be the difference between a solution and none.
2. Residuals are recomputed from the definition before success is claimed, and a miss restarts the method from the true
   residual as long as each restart halves it (see `cg`).
3. Negative curvature is confirmed by a product before it is reported, and does not end the run unless asked to.
4. At a least-squares solution the best iterate is kept and the run ends when norm(A r) has risen thirtyfold from its
   least value with norm(r) unchanged: further iterations would only resolve the rounding errors in the null space.
5. The stopping test is on the Euclidean norm of the residual also with a preconditioner M (which must be positive
   definite); the method then minimizes the norm (r'Mr)^(1/2), and so does its least-squares solution.

**Cost.** One product per iteration, one more to confirm (two for a least-squares solution, one for a direction); ten
vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import (
    Fingerprint,
    check_numbers,
    check_preconditioner,
    check_resume,
    check_symmetric,
    fingerprint,
    vector,
)
from frechet.operators._operator import LinearOperator


@dataclass(frozen=True)
class Scalars:
    """The numbers that `minres` carries from one iteration to the next; in pairs, the newer first.

    T is the tridiagonal matrix of Lanczos, Q T = R its reduction by left reflections (c, s), and R P = L the lower
    triangle that right reflections make of R; u are the coordinates of x in the basis W = V P, L u = tau.
    """

    phi: float  # (r'Mr)^(1/2)
    beta: float = 0.0  # couples the two newest Lanczos vectors
    c: float = -1.0  # the newest left reflection
    s: float = 0.0
    delta: float = 0.0  # the entry of the next column of R above its diagonal
    right: tuple[float, float] = (-1.0, 0.0)  # P_{t-1,t+1}
    gammas: tuple[float, float] = (0.0, 0.0)  # diagonal of L: t, t-1
    thetas: tuple[float, float] = (0.0, 0.0)  # first subdiagonal of L: t, t-1
    etas: tuple[float, float] = (0.0, 0.0)  # second subdiagonal of L: t, t-1
    taus: tuple[float, float] = (0.0, 0.0)
    us: tuple[float, float] = (0.0, 0.0)  # the coordinates t-1, t-2: those that still change are recomputed


@dataclass(frozen=True, eq=False)
class MinresState:
    """One moment of `minres`: what is needed to go on from it."""

    fingerprint: Fingerprint
    iteration: int
    residual: float
    x: Tensor
    r: Tensor
    lanczos: tuple[Tensor, Tensor, Tensor]  # v, u and the u before
    basis: tuple[Tensor, Tensor, Tensor]  # the settled part of x, w and the w before
    scalars: Scalars | None  # None where a Lanczos process is to begin
    norm_A: float
    confirmed: float
    doubt: float
    best: tuple[float, Tensor, float] | None  # norm(A r) / norm(r), x and norm(r)
    direction: Tensor | None
    curvature: float
    products: int
    history: tuple[float, ...]


@torch.no_grad()
def minres(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    start: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    stop_at_negative_curvature: bool = False,
    observe: Callable[[MinresState], bool] | None = None,
    resume: MinresState | None = None,
) -> Solution:
    """The solution of A x = b for symmetric A, or a least-squares solution where there is none.

    `b` is a vector ``(n,)`` or a dict shaped like A's domain; ``x`` is flat. `preconditioner` is a symmetric positive
    definite operator.

    Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)`` for the residual recomputed from its definition,
    which is `Solution.residual`; `history` holds the recurrence's, one per iteration. Status `singular` means
    ``norm(A r) <= max(rtol, 4 sqrt(eps)) * norm(A) * norm(r)`` first, with r recomputed and norm(A) estimated from
    below: within that tolerance A is singular and b outside its range, and x solves the least-squares problem (rounding
    allows no more; `lsmr` does better, and gives the solution of least norm).

    ``direction`` is the first d met with d'Ad < 0, if any, whatever the status; with `stop_at_negative_curvature` the
    run ends there, status `indefinite`. Other statuses: `stagnated` (the tolerance is below what the working precision
    reaches), `max_iterations` (10 n if left out), `breakdown` (the preconditioner is not positive definite),
    `nonfinite`, `stopped`.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import minres
        >>> A = from_matrix(torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64), facts="symmetric")
        >>> s = minres(A, torch.tensor([4.0, -2.0], dtype=torch.float64))
        >>> s.x.round(decimals=9), bool(s.direction @ (A @ s.direction) < 0)
        (tensor([-1.,  2.], dtype=torch.float64), True)
    """
    check_symmetric("minres", A)
    check_preconditioner("minres", A, preconditioner, symmetric=True)
    check_numbers("minres", rtol=rtol, atol=atol, max_iterations=max_iterations)
    space = A.domain
    b = vector("minres", "b", space, b)
    norm_b = float(space.norm(b))
    target, floor = max(rtol * norm_b, atol), 4 * math.sqrt(space.eps)
    limit = 10 * space.dim if max_iterations is None else max_iterations
    problem = fingerprint("minres", A, [norm_b], preconditioner)

    scalars, direction = None, None
    if resume is None:
        x, r, products = space.zeros(), b, 0
        if start is not None:
            x0 = vector("minres", "start", space, start)
            if norm_b != 0:
                x, r, products = x0, b - A @ x0, 1
        norm_A, confirmed, doubt, curvature, best = 0.0, math.inf, 0.0, 0.0, None
        lanczos, basis = (x, x, x), (x, x, x)
        iterations, history = 0, []
    else:
        check_resume("minres", resume.fingerprint, problem)
        x, r, lanczos, basis, scalars = resume.x, resume.r, resume.lanczos, resume.basis, resume.scalars
        norm_A, confirmed, doubt, best = resume.norm_A, resume.confirmed, resume.doubt, resume.best
        direction, curvature = resume.direction, resume.curvature
        iterations, products, history = resume.iteration, resume.products, list(resume.history)

    first, status, message = iterations, None, "minres"
    while True:
        residual, known = float(space.norm(r)), False
        stop = False
        if observe is not None and iterations > first:
            carried = (norm_A, confirmed, doubt, best, direction, curvature, products, tuple(history))
            stop = observe(MinresState(problem, iterations, residual, x, r, lanczos, basis, scalars, *carried))
        history.append(residual)
        if not math.isfinite(residual):
            status, message = Status.NONFINITE, "minres: b - A @ start is not finite"
            break
        if residual <= target:
            r, products = b - A @ x, products + 1
            residual, known = float(space.norm(r)), True
            excess = residual / target if target else math.inf
            if residual <= target:
                status = Status.CONVERGED
                break
            if not excess < confirmed / 2:
                status = Status.STAGNATED
                message = f"minres: the true residual is {excess:.3g} times the tolerance"
                break
            confirmed, scalars = excess, None
        if iterations >= limit or stop:
            status = Status.MAX_ITERATIONS if iterations >= limit else Status.STOPPED
            break

        if scalars is None:
            z = r if preconditioner is None else preconditioner @ r
            square = float(space.inner(r, z))
            if not square > 0:
                status, message = _unusable(square, iterations)
                break
            scalars, zero = Scalars(math.sqrt(square)), space.zeros()
            lanczos, basis = (z / scalars.phi, r / scalars.phi, zero), (x, zero, zero)
        v, u, u_before = lanczos
        beta, c, s, phi = scalars.beta, scalars.c, scalars.s, scalars.phi
        q = A @ v
        products += 1
        alpha = float(space.inner(v, q))
        q = q - alpha * u - beta * u_before
        z = q if preconditioner is None else preconditioner @ q
        square = float(space.inner(q, z))
        if not (math.isfinite(alpha) and square >= 0):
            status, message = _unusable(square if math.isfinite(alpha) else math.nan, iterations + 1)
            break
        beta_next = math.sqrt(square)
        # the last left reflection, applied to the new column (beta, alpha, beta_next) of T
        delta, epsilon_next = c * scalars.delta + s * alpha, s * beta_next
        gamma_bar, delta_next = s * scalars.delta - c * alpha, -c * beta_next
        norm_A = max(norm_A, math.hypot(beta, alpha, beta_next))

        # the curvature of r is -c gamma_bar per squared length; the margin is the rounding of the recurrences
        if direction is None and -c * gamma_bar < min(-100 * space.eps * norm_A, doubt):
            d = r if preconditioner is None else preconditioner @ r
            curvature = float(space.inner(d, A @ d)) / float(space.inner(d, d))
            products += 1
            direction, doubt = (d, doubt) if curvature < 0 else (None, -2 * c * gamma_bar)
        if direction is not None and stop_at_negative_curvature:
            status = Status.INDEFINITE
            break
        # norm(A r) / norm(r) of the current x falls towards 0 where b is outside the range. Below sqrt(eps) rounding
        # makes the zero eigenvalue a tiny one, and it rises again while r stays: the best x is kept for that moment
        level = math.hypot(gamma_bar, delta_next)
        if best is not None and residual <= 0.9 * best[2]:
            best = None
        if level <= floor * norm_A and (best is None or level < best[0]):
            best = (level, x, residual)
        risen = best is not None and level > 30 * best[0]
        if level <= rtol * norm_A or risen:
            x = best[1] if best is not None and risen else x
            r = b - A @ x
            z = r if preconditioner is None else preconditioner @ r
            g = A @ z
            products += 2
            residual, known = float(space.norm(r)), True
            normal = math.sqrt(max(float(space.inner(g, g if preconditioner is None else preconditioner @ g)), 0.0))
            allowed = max(rtol, floor) * norm_A * math.sqrt(max(float(space.inner(r, z)), 0.0))
            status = Status.SINGULAR if normal <= allowed else Status.STAGNATED
            message = f"minres: A is singular and b outside its range, norm(Ar) = {normal:.3g}"
            break

        c, s, gamma = _reflection(gamma_bar, beta_next)
        tau, phi = c * phi, s * phi
        # P_{t-2,t}, then P_{t-1,t}, from the right
        c2, s2 = scalars.right
        theta_1, delta = c2 * scalars.thetas[0] + s2 * delta, s2 * scalars.thetas[0] - c2 * delta
        eta, gamma = s2 * gamma, -c2 * gamma
        c1, s1, gamma_1 = _reflection(scalars.gammas[0], delta)
        theta, gamma = s1 * gamma, -c1 * gamma
        # L u = tau; a negligible pivot leaves its coordinate out, which keeps x short
        smallest = space.eps * norm_A
        (tau_1, tau_2), (eta_1, eta_2), (u3, u4) = scalars.taus, scalars.etas, scalars.us
        u2 = _quotient(tau_2 - eta_2 * u4 - scalars.thetas[1] * u3, scalars.gammas[1], smallest)
        u1 = _quotient(tau_1 - eta_1 * u3 - theta_1 * u2, gamma_1, smallest)
        u0 = _quotient(tau - eta * u2 - theta * u1, gamma, smallest)
        settled, w1, w2 = basis
        w0 = s2 * w2 - c2 * v
        settled = settled + u2 * (c2 * w2 + s2 * v)
        w1, w0 = c1 * w1 + s1 * w0, s1 * w1 - c1 * w0
        x = settled + u1 * w1 + u0 * w0
        basis = (settled, w0, w1)

        lanczos = (z / beta_next, q / beta_next, u) if beta_next > 0 else (space.zeros(), space.zeros(), u)
        r = s * s * r - phi * c * lanczos[1]
        c2, s2, gamma_1 = _reflection(gamma_1, epsilon_next)
        diagonals = ((gamma, gamma_1), (theta, theta_1), (eta, eta_1))
        scalars = Scalars(phi, beta_next, c, s, delta_next, (c2, s2), *diagonals, (tau, tau_1), (u2, u3))
        iterations += 1

    if not known:
        residual, products = float(space.norm(b - A @ x)), products + 1
    if direction is not None:
        message = f"{message}{';' if ':' in message else ':'} A is indefinite, d'Ad/d'd = {curvature:.3g}"
    return Solution(x, status, residual, iterations, products, tuple(history), message, direction)


def _reflection(a: float, b: float) -> tuple[float, float, float]:
    """c, s, rho with c a + s b = rho >= 0 and s a - c b = 0."""
    rho = math.hypot(a, b)
    return (a / rho, b / rho, rho) if rho > 0 else (-1.0, 0.0, 0.0)


def _quotient(a: float, b: float, smallest: float) -> float:
    return a / b if abs(b) > smallest else 0.0


def _unusable(square: float, iteration: int) -> tuple[Status, str]:
    if math.isfinite(square):
        return Status.BREAKDOWN, f"minres: the preconditioner M is not positive definite, r'Mr = {square:.3g}"
    return Status.NONFINITE, f"minres: a product in iteration {iteration} is not finite"
