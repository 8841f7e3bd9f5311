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
from dataclasses import dataclass, replace
from functools import partial

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
from frechet.linalg.systems._protocol import Course, Ending, iterate, origin, verdict
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
    products: int
    confirmed: float = 0.0
    history: tuple[float, ...] = ()
    true: tuple[float, float] | None = None  # norm(r) and norm(A'r), where they were recomputed at this x


@dataclass(frozen=True, eq=False)
class _Problem:
    A: LinearOperator
    b: Tensor
    norm_b: float
    damping: float
    rtol: float
    atol: float
    worst_condition: float
    fingerprint: Fingerprint


@torch.no_grad()
def lsmr(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    damping: float = 0.0,
    x0: Tensor | Mapping[str, Tensor] | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    condition_limit: float | None = None,
    max_iterations: int | None = None,
    observe: Callable[[LsmrState], bool] | None = None,
    resume: LsmrState | None = None,
) -> Solution:
    """Solve the least-squares problem min norm(b - A x)^2 + damping^2 norm(x)^2.

    Where there are many solutions and `x0` is None, x is the one of least norm.

    Args:
        A: any operator ``(m, n)``. To precondition from the right with P, solve ``lsmr(A @ P, b)`` for y and take
            x = P @ y.
        b: a vector ``(m,)`` or a dict shaped like A's codomain. The solution ``(n,)`` is flat.
        damping: weight of norm(x), >= 0. Default: 0.
        x0: where the iteration starts, a vector ``(n,)`` or a dict shaped like A's domain; only without damping.
            Default: zero.
        rtol: relative tolerance. Converged means, for r = b - A x recomputed from its definition and norm(A) estimated
            from below, either ``norm(r) <= max(rtol * (norm(b) + norm(A) * norm(x)), atol)`` (A x = b is solved) or
            ``norm(A'r - damping^2 x) <= rtol * norm(A) * norm(r)`` (least squares is solved). With damping, r also
            counts damping * x, and norm(A) the damping. Default: 1e-6.
        atol: absolute tolerance on norm(r), in the unit of b. Default: 0.
        condition_limit: the estimated condition number that ends the run. Default: 1 / eps of the dtype.
        max_iterations: the most iterations. Default: 4 max(m, n).
        observe: is called with an `LsmrState` after each iteration, and stops the run by returning True. Default: none.
        resume: an `LsmrState` of the same problem, from which the run goes on. Default: none.

    Returns:
        A `Solution`. Its `residual` is norm(b - A x), recomputed. Its `history` has norm(A'r) of the recurrence at each
            iteration. Its message has the recomputed norm(A'r) and the estimated condition number. The status is
            `converged` or one of these: `singular` (`condition_limit` was reached: more damping, or fewer unknowns),
            `stagnated` (the working precision does not reach the tolerance), `max_iterations`, `nonfinite`, `stopped`.

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
    if x0 is not None and damping > 0:
        raise ValueError(
            "lsmr: x0 must be None where damping > 0, got a tensor; the damping would pull towards it, not towards 0"
        )
    b = vector("lsmr", "b", A.codomain, b)
    norm_b = float(A.codomain.norm(b))
    worst = 1.0 / A.domain.eps if condition_limit is None else condition_limit
    label = fingerprint("lsmr", A, [norm_b], None, f"damping = {damping}")
    problem = _Problem(A, b, norm_b, damping, rtol, atol, worst, label)
    state = _begin(problem, x0) if resume is None else resume
    check_resume("lsmr", state.fingerprint, label)
    course = Course.of(state, 4 * max(A.shape) if max_iterations is None else max_iterations, observe)
    s, ending = iterate(state, partial(_judge, problem, course), partial(_step, problem))
    (residual, normal), products = (s.true, s.products) if s.true else (_recomputed(problem, s.x), s.products + 2)
    detail = f"{ending.detail}; " if ending.detail else ""
    message = f"lsmr: {detail}norm(A'r) = {normal:.3g}, condition estimate {s.scalars.condition:.3g}"
    return Solution(s.x, ending.status, residual, s.iteration, products, tuple(course.history), message)


def _begin(problem: _Problem, x0: Tensor | Mapping[str, Tensor] | None) -> LsmrState:
    A, space = problem.A, problem.A.domain
    x, u, products = origin("lsmr", A, problem.b, problem.norm_b, x0)
    beta = float(A.codomain.norm(u))
    u = u / beta if beta > 0 else u
    v = A.T @ u
    alpha = float(space.norm(v))
    v = v / alpha if alpha > 0 else v
    scalars = Scalars(alpha, alpha, alpha * beta, beta, norm_A=math.hypot(alpha, problem.damping))
    normal = abs(scalars.zeta_bar)
    return LsmrState(problem.fingerprint, 0, beta, normal, x, u, v, v, space.zeros(), scalars, products + 1)


def _judge(problem: _Problem, course: Course[LsmrState], s: LsmrState) -> tuple[LsmrState, Ending | None]:
    course.record(s, s.normal)
    if not math.isfinite(s.residual + s.normal):
        return s, Ending(Status.NONFINITE, "b, A @ x0 or A'b is not finite")
    norm_A, norm_x = s.scalars.norm_A, float(problem.A.domain.norm(s.x))
    goals = max(problem.rtol * (problem.norm_b + norm_A * norm_x), problem.atol), problem.rtol * norm_A
    strict = 1 / (2 * s.confirmed) if s.confirmed > 0 else 1.0  # what an earlier miss asks of the recurrences
    if s.residual <= strict * goals[0] or s.normal <= strict * goals[1] * s.residual:
        residual, normal = _recomputed(problem, s.x)
        s = replace(s, true=(residual, normal), products=s.products + 2)
        size = math.hypot(residual, problem.damping * norm_x)
        excess = min(_ratio(size, goals[0]), _ratio(normal, goals[1] * size))
        if excess <= 1 or s.confirmed > 0:
            told = f"the recomputed residuals are {excess:.3g} times the tolerance"
            if ending := verdict(excess <= 1, excess, s.confirmed, told):
                return s, ending
        s = replace(s, confirmed=excess)
    if s.scalars.condition >= problem.worst_condition:
        return s, Ending(Status.SINGULAR, f"the condition number reached its limit {problem.worst_condition:.3g}")
    return s, course.ended(s)


def _step(problem: _Problem, s: LsmrState) -> tuple[LsmrState, Ending | None]:
    A, damping, now = problem.A, problem.damping, s.scalars
    u = A @ s.v - now.alpha * s.u
    beta = float(A.codomain.norm(u))
    u = u / beta if beta > 0 else u
    v = A.T @ u - beta * s.v
    alpha = float(A.domain.norm(v))
    if not math.isfinite(beta + alpha):
        return replace(s, products=s.products + 2), Ending(
            Status.NONFINITE, f"a product in iteration {s.iteration + 1} is not finite"
        )
    v = v / alpha if alpha > 0 else v

    # damping, then the triangle R, then the triangle R bar
    c_hat, s_hat, alpha_hat = _rotation(now.alpha_bar, damping)
    c, sine, rho = _rotation(alpha_hat, beta)
    theta, alpha_bar = sine * alpha, c * alpha
    theta_bar, rho_temp = now.s_bar * rho, now.c_bar * rho
    c_bar, s_bar, rho_bar = _rotation(rho_temp, theta)
    c_tilde, s_tilde, rho_tilde = _rotation(now.rho_dot, theta_bar)
    if min(rho, rho_bar, rho_temp, rho_tilde) == 0.0:
        return replace(s, products=s.products + 2), Ending(Status.STAGNATED, "the Krylov space is exhausted")
    zeta, zeta_bar = c_bar * now.zeta_bar, -s_bar * now.zeta_bar
    # ratio by ratio: products of two such numbers may leave the range
    h_bar = s.h - (theta_bar / now.rho) * (rho / now.rho_bar) * s.h_bar
    x = s.x + (zeta / rho / rho_bar) * h_bar
    h = v - (theta / rho) * s.h

    # norm(r), by a third triangle
    beta_acute, beta_check = c_hat * now.beta_dd, -s_hat * now.beta_dd
    beta_hat, beta_dd = c * beta_acute, -sine * beta_acute
    theta_tilde, rho_dot = s_tilde * rho_bar, c_tilde * rho_bar
    beta_d = c_tilde * beta_hat - s_tilde * now.beta_d
    tau_tilde = (now.zeta - now.theta_tilde * now.tau_tilde) / rho_tilde
    tau_dot = (zeta - theta_tilde * tau_tilde) / rho_dot
    d = now.d + beta_check**2
    residual = math.sqrt(d + (beta_d - tau_dot) ** 2 + beta_dd**2)

    norm_A = max(now.norm_A, math.hypot(now.alpha, beta, damping))
    largest = max(now.largest, now.rho_bar if s.iteration else 0.0)
    smallest = min(now.smallest, now.rho_bar if s.iteration else math.inf)
    condition = max(largest, rho_temp) / min(smallest, rho_temp)
    shape = (beta_d, rho, rho_bar, c_bar, s_bar, zeta, rho_dot, tau_tilde, theta_tilde, d)
    scalars = Scalars(alpha, alpha_bar, zeta_bar, beta_dd, *shape, norm_A, largest, smallest, condition)
    told = (s.iteration + 1, residual, abs(zeta_bar))
    return LsmrState(s.fingerprint, *told, x, u, v, h, h_bar, scalars, s.products + 2, s.confirmed), None


def _recomputed(problem: _Problem, x: Tensor) -> tuple[float, float]:
    """norm(r) and norm(A'r - damping^2 x) for r = b - A x."""
    A = problem.A
    r = problem.b - A @ x
    return float(A.codomain.norm(r)), float(A.domain.norm(A.T @ r - problem.damping**2 * x))


def _rotation(a: float, b: float) -> tuple[float, float, float]:
    """c, s, rho with c a + s b = rho >= 0 and c b - s a = 0."""
    rho = math.hypot(a, b)
    return (a / rho, b / rho, rho) if rho > 0 else (1.0, 0.0, 0.0)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (0.0 if a == 0 else math.inf)
