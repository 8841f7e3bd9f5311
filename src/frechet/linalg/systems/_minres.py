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
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import (
    Fingerprint,
    check_numbers,
    check_preconditioner,
    check_resume,
    check_symmetric,
    vector,
)
from frechet.linalg.systems._protocol import Course, Ending, System, iterate, origin, system, verdict
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
    products: int
    scalars: Scalars | None = None  # None where a Lanczos process is to begin
    norm_A: float = 0.0
    confirmed: float = math.inf
    doubt: float = 0.0
    best: tuple[float, Tensor, float] | None = None  # norm(A r) / norm(r), x and norm(r)
    direction: Tensor | None = None
    curvature: float = 0.0
    history: tuple[float, ...] = ()
    true: bool = False  # whether `residual` was recomputed from its definition at this x


@torch.no_grad()
def minres(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    x0: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    stop_at_negative_curvature: bool = False,
    observe: Callable[[MinresState], bool] | None = None,
    resume: MinresState | None = None,
) -> Solution:
    """Solve A x = b for a symmetric A, or its least-squares problem where there is no solution.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`. It may be indefinite or singular.
        b: a vector ``(n,)`` or a dict shaped like A's domain. The solution is flat.
        x0: where the iteration starts, shaped like b. A zero b ignores it. Default: zero.
        preconditioner: a symmetric positive definite operator. Default: none.
        rtol: relative tolerance. Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)``, for the residual
            recomputed from its definition. Default: 1e-6.
        atol: absolute tolerance on the same norm, in the unit of b. Default: 0.
        max_iterations: the most iterations. Default: 10 n.
        stop_at_negative_curvature: whether a direction of negative curvature ends the run. Default: False.
        observe: is called with a `MinresState` after each iteration. The run stops if it returns True. Default: none.
        resume: a `MinresState` of the same problem, from which the run goes on. Default: none.

    Returns:
        A `Solution`. Its `residual` is recomputed. Its `history` has the norm of the recurrence at each iteration. Its
            ``direction`` is the first d met with d'Ad < 0, if any, whatever the status. The status is `converged` or
            one of these: `singular` (``norm(A r) <= max(rtol, 4 sqrt(eps)) * norm(A) * norm(r)`` came first, with r
            recomputed and norm(A) estimated from below: within that tolerance A is singular and b outside its range,
            and x solves the least-squares problem as well as rounding allows; `lsmr` does better, and gives the
            solution of least norm), `indefinite` (only with `stop_at_negative_curvature`), `stagnated` (the working
            precision does not reach the tolerance), `max_iterations`, `breakdown` (the preconditioner is not positive
            definite), `nonfinite`, `stopped`.

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
    problem = system("minres", A, vector("minres", "b", A.domain, b), preconditioner, rtol, atol)
    state = _begin(problem, x0) if resume is None else resume
    check_resume("minres", state.fingerprint, problem.fingerprint)
    course = Course.of(state, 10 * A.domain.dim if max_iterations is None else max_iterations, observe)
    s, ending = iterate(state, partial(_judge, problem, course), partial(_step, problem, stop_at_negative_curvature))
    if not s.true:
        s = _recomputed(problem, s)
    message = ending.message("minres")
    if s.direction is not None:
        message = f"{message}{';' if ':' in message else ':'} A is indefinite, d'Ad/d'd = {s.curvature:.3g}"
    return Solution(
        s.x, ending.status, s.residual, s.iteration, s.products, tuple(course.history), message, s.direction
    )


def _begin(problem: System, x0: Tensor | Mapping[str, Tensor] | None) -> MinresState:
    x, r, products = origin("minres", problem.A, problem.b, float(problem.norm_b), x0)
    residual = float(problem.space.norm(r))
    return MinresState(problem.fingerprint, 0, residual, x, r, (x, x, x), (x, x, x), products)


def _judge(problem: System, course: Course[MinresState], s: MinresState) -> tuple[MinresState, Ending | None]:
    course.record(s, s.residual)
    if not math.isfinite(s.residual):
        return s, Ending(Status.NONFINITE, "b - A @ x0 is not finite")
    target, ending = problem.goals[0], None
    if s.residual <= target:
        s = _recomputed(problem, s)
        excess = s.residual / target if target else math.inf
        told = f"the true residual is {excess:.3g} times the tolerance"
        ending = verdict(s.residual <= target, excess, s.confirmed, told)
        s = s if ending else replace(s, confirmed=excess, scalars=None)
    return s, ending or course.ended(s)


def _recomputed(problem: System, s: MinresState) -> MinresState:
    r = problem.residual(s.x)
    return replace(s, r=r, residual=float(problem.space.norm(r)), products=s.products + 1, true=True)


@dataclass(frozen=True, eq=False)
class _Column:
    """The newest column of T and of its reduction, before the new reflection; q and z = M q are not normalized yet."""

    q: Tensor
    z: Tensor
    beta: float  # of the next Lanczos vector
    delta: float
    gamma_bar: float
    delta_next: float
    epsilon_next: float
    norm_A: float


def _step(problem: System, stop_if_bent: bool, s: MinresState) -> tuple[MinresState, Ending | None]:
    if s.scalars is None:
        begun = _lanczos_begun(problem, s)
        if isinstance(begun, Ending):
            return s, begun
        s = begun
    now = s.scalars
    assert now is not None
    new = _lanczos(problem, s, now)
    if not isinstance(new, Ending):
        s = _curvature(problem, s, now, new)
        bent = s.direction is not None and stop_if_bent
        s, ending = (s, Ending(Status.INDEFINITE)) if bent else _least_squares(problem, s, new)
        if ending is None:
            return _reflected(problem, s, now, new), None
        new = ending
    return replace(s, products=s.products + 1), new


def _lanczos_begun(problem: System, s: MinresState) -> MinresState | Ending:
    z, zero = problem.preconditioned(s.r), problem.space.zeros()
    square = float(problem.space.inner(s.r, z))
    if not square > 0:
        return _unusable(square, s.iteration)
    phi = math.sqrt(square)
    return replace(s, scalars=Scalars(phi), lanczos=(z / phi, s.r / phi, zero), basis=(s.x, zero, zero))


def _lanczos(problem: System, s: MinresState, now: Scalars) -> _Column | Ending:
    """One step of the Lanczos process."""
    space, (v, u, u_before) = problem.space, s.lanczos
    q = problem.A @ v
    alpha = float(space.inner(v, q))
    q = q - alpha * u - now.beta * u_before
    z = problem.preconditioned(q)
    square = float(space.inner(q, z))
    if not (math.isfinite(alpha) and square >= 0):
        return _unusable(square if math.isfinite(alpha) else math.nan, s.iteration + 1)
    beta = math.sqrt(square)
    # the last left reflection, applied to the new column (beta, alpha, beta_next) of T
    delta, gamma_bar = now.c * now.delta + now.s * alpha, now.s * now.delta - now.c * alpha
    norm_A = max(s.norm_A, math.hypot(now.beta, alpha, beta))
    return _Column(q, z, beta, delta, gamma_bar, -now.c * beta, now.s * beta, norm_A)


def _curvature(problem: System, s: MinresState, now: Scalars, new: _Column) -> MinresState:
    """The state with r as its direction, where a product confirms that the curvature there is negative."""
    space, bent = problem.space, -now.c * new.gamma_bar  # the curvature of r per squared length
    # the margin is the rounding of the recurrences
    if s.direction is not None or not bent < min(-100 * space.eps * new.norm_A, s.doubt):
        return s
    d = problem.preconditioned(s.r)
    curvature = float(space.inner(d, problem.A @ d)) / float(space.inner(d, d))
    s = replace(s, curvature=curvature, products=s.products + 1)
    return replace(s, direction=d) if curvature < 0 else replace(s, doubt=-2 * now.c * new.gamma_bar)


def _least_squares(problem: System, s: MinresState, new: _Column) -> tuple[MinresState, Ending | None]:
    """The end at a least-squares solution, where norm(A r) / norm(r) of the current x falls towards 0.

    Below sqrt(eps) rounding makes the zero eigenvalue a tiny one, and the ratio rises again while r stays: the best x
    is kept for that moment.
    """
    space, floor = problem.space, 4 * math.sqrt(problem.space.eps)
    level, best = math.hypot(new.gamma_bar, new.delta_next), s.best
    if best is not None and s.residual <= 0.9 * best[2]:
        best = None
    if level <= floor * new.norm_A and (best is None or level < best[0]):
        best = (level, s.x, s.residual)
    risen = best is not None and level > 30 * best[0]
    if not (level <= problem.rtol * new.norm_A or risen):
        return (s if best is s.best else replace(s, best=best)), None
    s = _recomputed(problem, replace(s, x=best[1]) if best is not None and risen else s)
    z = problem.preconditioned(s.r)
    g = problem.A @ z
    normal = math.sqrt(max(float(space.inner(g, problem.preconditioned(g))), 0.0))
    allowed = max(problem.rtol, floor) * new.norm_A * math.sqrt(max(float(space.inner(s.r, z)), 0.0))
    status = Status.SINGULAR if normal <= allowed else Status.STAGNATED
    told = f"A is singular and b outside its range, norm(Ar) = {normal:.3g}"
    return replace(s, products=s.products + 1), Ending(status, told)


def _reflected(problem: System, s: MinresState, now: Scalars, new: _Column) -> MinresState:
    """The next iterate: T is reduced by one reflection from the left and two from the right, and L u = tau solved."""
    v, u, _ = s.lanczos
    c, sine, gamma = _reflection(new.gamma_bar, new.beta)
    tau, phi = c * now.phi, sine * now.phi
    # P_{t-2,t}, then P_{t-1,t}, from the right
    c2, s2 = now.right
    theta_1, delta = c2 * now.thetas[0] + s2 * new.delta, s2 * now.thetas[0] - c2 * new.delta
    eta, gamma = s2 * gamma, -c2 * gamma
    c1, s1, gamma_1 = _reflection(now.gammas[0], delta)
    theta, gamma = s1 * gamma, -c1 * gamma
    # L u = tau; a negligible pivot leaves its coordinate out, which keeps x short
    smallest = problem.space.eps * new.norm_A
    (tau_1, tau_2), (eta_1, eta_2), (u3, u4) = now.taus, now.etas, now.us
    u2 = _quotient(tau_2 - eta_2 * u4 - now.thetas[1] * u3, now.gammas[1], smallest)
    u1 = _quotient(tau_1 - eta_1 * u3 - theta_1 * u2, gamma_1, smallest)
    u0 = _quotient(tau - eta * u2 - theta * u1, gamma, smallest)
    settled, w1, w2 = s.basis
    w0 = s2 * w2 - c2 * v
    settled = settled + u2 * (c2 * w2 + s2 * v)
    w1, w0 = c1 * w1 + s1 * w0, s1 * w1 - c1 * w0
    x = settled + u1 * w1 + u0 * w0

    zero = problem.space.zeros
    lanczos = (new.z / new.beta, new.q / new.beta, u) if new.beta > 0 else (zero(), zero(), u)
    r = sine * sine * s.r - phi * c * lanczos[1]
    c2, s2, gamma_1 = _reflection(gamma_1, new.epsilon_next)
    diagonals = ((gamma, gamma_1), (theta, theta_1), (eta, eta_1))
    scalars = Scalars(phi, new.beta, c, sine, new.delta_next, (c2, s2), *diagonals, (tau, tau_1), (u2, u3))
    told = (s.confirmed, s.doubt, s.best, s.direction, s.curvature)
    return MinresState(
        s.fingerprint, s.iteration + 1, float(problem.space.norm(r)), x, r, lanczos, (settled, w0, w1),
        s.products + 1, scalars, new.norm_A, *told,
    )  # fmt: skip


def _reflection(a: float, b: float) -> tuple[float, float, float]:
    """c, s, rho with c a + s b = rho >= 0 and s a - c b = 0."""
    rho = math.hypot(a, b)
    return (a / rho, b / rho, rho) if rho > 0 else (-1.0, 0.0, 0.0)


def _quotient(a: float, b: float, smallest: float) -> float:
    return a / b if abs(b) > smallest else 0.0


def _unusable(square: float, iteration: int) -> Ending:
    if math.isfinite(square):
        return Ending(Status.BREAKDOWN, f"the preconditioner M is not positive definite, r'Mr = {square:.3g}")
    return Ending(Status.NONFINITE, f"a product in iteration {iteration} is not finite")
