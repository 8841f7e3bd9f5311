"""LSMR: least squares min norm(b - A x)^2 + damping^2 norm(x)^2 for any A (m, n), from products with A and A'.

Golub-Kahan bidiagonalization of A started at b; iterate k minimizes norm(A'r) over the Krylov space K_k(A'A, A'b), so
norm(A'r) never grows, and neither does norm(r). In exact arithmetic it is MINRES on the normal equations, without
squaring A. Started at zero it tends to the solution of least norm where there are many.

**Source.** D. C.-L. Fong and M. Saunders (2011), LSMR: an iterative algorithm for sparse least-squares problems,
sections 2-5 and table 5.1 (stopping rules), doi 10.1137/10079687X.

**Differs from the source.**
1. The stopping rules are checked again on r and A'r recomputed from their definitions; a miss asks more of the
   recurrences and goes on, and a second one that has not halved the excess is `stagnated`.
2. norm(A) is estimated by the largest column of the bidiagonal matrix, a lower bound, instead of its Frobenius norm,
   which may be sqrt(n) times too large and would loosen the rules.

**Cost.** Two products per iteration (one with A, one with A'), two more to confirm; seven vectors of memory.
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
    check_operator_type,
    check_resume,
    fingerprint,
    vector,
)
from frechet.operators._operator import LinearOperator


@dataclass(frozen=True)
class Scalars:
    """The numbers that `lsmr` carries from one iteration to the next, in the letters of the source."""

    alpha: float
    alpha_bar: float
    zeta_bar: float
    beta_dd: float
    beta_d: float = 0.0
    rho: float = 1.0
    rho_bar: float = 1.0
    c_bar: float = 1.0
    s_bar: float = 0.0
    zeta: float = 0.0
    rho_dot: float = 1.0
    tau_tilde: float = 0.0
    theta_tilde: float = 0.0
    d: float = 0.0
    norm_A: float = 0.0
    largest: float = 0.0  # of the diagonal of the triangle, for the condition number
    smallest: float = math.inf
    condition: float = 1.0


@dataclass(frozen=True, eq=False)
class LsmrState:
    """One moment of `lsmr`: what is needed to go on from it. `residual` is norm(r), `normal` norm(A'r)."""

    fingerprint: Fingerprint
    iteration: int
    residual: float
    normal: float
    x: Tensor
    u: Tensor
    v: Tensor
    h: Tensor
    h_bar: Tensor
    scalars: Scalars
    confirmed: float
    products: int
    history: tuple[float, ...]


@torch.no_grad()
def lsmr(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    damping: float = 0.0,
    start: Tensor | Mapping[str, Tensor] | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    condition_limit: float | None = None,
    max_iterations: int | None = None,
    observe: Callable[[LsmrState], bool] | None = None,
    resume: LsmrState | None = None,
) -> Solution:
    """The x that minimizes norm(b - A x)^2 + damping^2 norm(x)^2; of least norm where there are many and start is None.

    `b` is a vector ``(m,)`` or a dict shaped like A's codomain; ``x`` ``(n,)`` is flat. To precondition from the right
    with P, solve ``lsmr(A @ P, b)`` for y and take x = P @ y.

    Converged means, for r = b - A x recomputed from its definition and norm(A) estimated from below, either
    ``norm(r) <= max(rtol * (norm(b) + norm(A) * norm(x)), atol)`` (A x = b is solved) or
    ``norm(A'r - damping^2 x) <= rtol * norm(A) * norm(r)`` (least squares is solved); with damping, r also counts
    damping * x, and norm(A) the damping. `Solution.residual` is norm(b - A x), `history` norm(A'r) of the recurrence;
    the message has the recomputed norm(A'r) and the estimated condition number.

    Other statuses: `singular` (the estimated condition number reached `condition_limit`, 1 / eps if left out: more
    damping, or fewer unknowns), `stagnated` (the tolerance is below what the working precision reaches),
    `max_iterations` (4 max(m, n) if left out), `nonfinite`, `stopped`.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import lsmr
        >>> A = from_matrix(torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64))
        >>> s = lsmr(A, torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
        >>> s.x.round(decimals=9), round(s.residual**2, 9)  # the mean, and the sum of squares about it
        (tensor([3.], dtype=torch.float64), 14.0)
    """
    check_operator_type("lsmr", A)
    check_numbers("lsmr", rtol=rtol, atol=atol, max_iterations=max_iterations)
    if not 0 <= damping < math.inf:
        raise ValueError(f"lsmr: damping must be a number >= 0, got {damping}")
    if start is not None and damping > 0:
        raise ValueError(
            "lsmr: start must be None where damping > 0, got a tensor; the damping would pull towards it, not towards 0"
        )
    space, image = A.domain, A.codomain
    b = vector("lsmr", "b", image, b)
    norm_b = float(image.norm(b))
    limit = 4 * max(A.shape) if max_iterations is None else max_iterations
    worst_condition = 1.0 / space.eps if condition_limit is None else condition_limit
    problem = fingerprint("lsmr", A, [norm_b], None, f"damping = {damping}")

    if resume is None:
        x, u, products = space.zeros(), b, 0
        if start is not None:
            x0 = vector("lsmr", "start", space, start)
            if norm_b != 0:
                x, u, products = x0, b - A @ x0, 1
        beta = float(image.norm(u))
        u = u / beta if beta > 0 else u
        v = A.T @ u
        alpha = float(space.norm(v))
        v = v / alpha if alpha > 0 else v
        products += 1
        h, h_bar = v, space.zeros()
        scalars = Scalars(alpha, alpha, alpha * beta, beta, norm_A=math.hypot(alpha, damping))
        iterations, residual, confirmed, history = 0, beta, 0.0, []
    else:
        check_resume("lsmr", resume.fingerprint, problem)
        x, u, v, h, h_bar, scalars = resume.x, resume.u, resume.v, resume.h, resume.h_bar, resume.scalars
        iterations, residual, confirmed = resume.iteration, resume.residual, resume.confirmed
        products, history = resume.products, list(resume.history)

    first, status, verdict, known = iterations, None, "", None
    while True:
        normal = abs(scalars.zeta_bar)
        stop = False
        if observe is not None and iterations > first:
            carried = (x, u, v, h, h_bar, scalars, confirmed, products, tuple(history))
            stop = observe(LsmrState(problem, iterations, residual, normal, *carried))
        history.append(normal)
        if not math.isfinite(residual + normal):
            status, verdict = Status.NONFINITE, "b, A @ start or A'b is not finite; "
            break
        goals = (max(rtol * (norm_b + scalars.norm_A * float(space.norm(x))), atol), rtol * scalars.norm_A)
        strict = 1 / (2 * confirmed) if confirmed > 0 else 1.0  # what an earlier miss asks of the recurrences
        if residual <= strict * goals[0] or normal <= strict * goals[1] * residual:
            known, products = _recomputed(A, b, x, damping), products + 2
            size = math.hypot(known[0], damping * float(space.norm(x)))
            excess = min(_ratio(size, goals[0]), _ratio(known[1], goals[1] * size))
            if excess <= 1:
                status = Status.CONVERGED
                break
            if confirmed > 0 and not excess < confirmed / 2:
                status, verdict = Status.STAGNATED, f"the recomputed residuals are {excess:.3g} times the tolerance; "
                break
            confirmed = excess
        if scalars.condition >= worst_condition:
            status, verdict = Status.SINGULAR, f"the condition number reached its limit {worst_condition:.3g}; "
            break
        if iterations >= limit or stop:
            status = Status.MAX_ITERATIONS if iterations >= limit else Status.STOPPED
            break

        alpha = scalars.alpha
        u_next = A @ v - alpha * u
        beta = float(image.norm(u_next))
        u = u_next / beta if beta > 0 else u_next
        v_next = A.T @ u - beta * v
        alpha_next = float(space.norm(v_next))
        products += 2
        if not math.isfinite(beta + alpha_next):
            status, verdict = Status.NONFINITE, f"a product in iteration {iterations + 1} is not finite; "
            break
        v = v_next / alpha_next if alpha_next > 0 else v_next

        # damping, then the triangle R, then the triangle R bar
        c_hat, s_hat, alpha_hat = _rotation(scalars.alpha_bar, damping)
        c, s, rho = _rotation(alpha_hat, beta)
        theta, alpha_bar = s * alpha_next, c * alpha_next
        theta_bar, rho_temp = scalars.s_bar * rho, scalars.c_bar * rho
        c_bar, s_bar, rho_bar = _rotation(rho_temp, theta)
        c_tilde, s_tilde, rho_tilde = _rotation(scalars.rho_dot, theta_bar)
        if min(rho, rho_bar, rho_temp, rho_tilde) == 0.0:
            status, verdict = Status.STAGNATED, "the Krylov space is exhausted; "
            break
        zeta, zeta_bar = c_bar * scalars.zeta_bar, -s_bar * scalars.zeta_bar
        # ratio by ratio: products of two such numbers may leave the range
        h_bar = h - (theta_bar / scalars.rho) * (rho / scalars.rho_bar) * h_bar
        x = x + (zeta / rho / rho_bar) * h_bar
        h = v - (theta / rho) * h

        # norm(r), by a third triangle
        beta_acute, beta_check = c_hat * scalars.beta_dd, -s_hat * scalars.beta_dd
        beta_hat, beta_dd = c * beta_acute, -s * beta_acute
        theta_tilde, rho_dot = s_tilde * rho_bar, c_tilde * rho_bar
        beta_d = c_tilde * beta_hat - s_tilde * scalars.beta_d
        tau_tilde = (scalars.zeta - scalars.theta_tilde * scalars.tau_tilde) / rho_tilde
        tau_dot = (zeta - theta_tilde * tau_tilde) / rho_dot
        d = scalars.d + beta_check**2
        residual = math.sqrt(d + (beta_d - tau_dot) ** 2 + beta_dd**2)

        norm_A = max(scalars.norm_A, math.hypot(alpha, beta, damping))
        largest = max(scalars.largest, scalars.rho_bar if iterations else 0.0)
        smallest = min(scalars.smallest, scalars.rho_bar if iterations else math.inf)
        condition = max(largest, rho_temp) / min(smallest, rho_temp)
        shape = (beta_d, rho, rho_bar, c_bar, s_bar, zeta, rho_dot, tau_tilde, theta_tilde, d)
        scalars = Scalars(alpha_next, alpha_bar, zeta_bar, beta_dd, *shape, norm_A, largest, smallest, condition)
        iterations, known = iterations + 1, None

    if known is None:
        known, products = _recomputed(A, b, x, damping), products + 2
    message = f"lsmr: {verdict}norm(A'r) = {known[1]:.3g}, condition estimate {scalars.condition:.3g}"
    return Solution(x, status, known[0], iterations, products, tuple(history), message)


def _recomputed(A: LinearOperator, b: Tensor, x: Tensor, damping: float) -> tuple[float, float]:
    """norm(r) and norm(A'r - damping^2 x) for r = b - A x."""
    r = b - A @ x
    return float(A.codomain.norm(r)), float(A.domain.norm(A.T @ r - damping**2 * x))


def _rotation(a: float, b: float) -> tuple[float, float, float]:
    """c, s, rho with c a + s b = rho >= 0 and c b - s a = 0."""
    rho = math.hypot(a, b)
    return (a / rho, b / rho, rho) if rho > 0 else (1.0, 0.0, 0.0)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (0.0 if a == 0 else math.inf)
