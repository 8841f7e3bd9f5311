"""Conjugate gradients: A x = b for A symmetric positive definite, from products with A alone.

Iterate i minimizes the energy x'Ax/2 - b'x over the Krylov space K_i(A, r_0), so the error in the A-norm falls in every
iteration. A matrix A with j distinct eigenvalues takes at most j iterations in exact arithmetic. Columns of a block b
are independent systems that share each product.

**Source.** M. R. Hestenes and E. Stiefel (1952), Methods of conjugate gradients for solving linear systems, section 3,
doi 10.6028/jres.049.044; preconditioned as in Y. Saad (2003), Iterative methods for sparse linear systems, algorithm
9.1, doi 10.1137/1.9780898718003.

**Differs from the source.**
1. The residual b - Ax is recomputed when the recurrence says that it is small: in rounding the recurrence goes on
   falling where the truth does not. A true residual that misses the tolerance restarts the method from it as long as
   each restart halves it; after that the status is `stagnated`.
2. A finished or broken column takes steps of length zero instead of leaving the block, so the decisions are needed on
   the host only every `check_every` iterations and x does not depend on that number.
3. Non-positive curvature d'Ad <= 0 ends the run and hands out d.

**Cost.** One product per iteration and column, one more to confirm; five vectors of memory per column (x, r, z, p, Ap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from frechet.linalg.systems._protocol import Course, Ending, System, iterate, system, verdict
from frechet.operators._metric import Metric
from frechet.operators._operator import LinearOperator
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class CGState:
    """One moment of `cg`: what is needed to go on from it.

    `x` has the shape of b; r and p are blocks ``(n, k)``. `residual` is the recurrence's, of the largest column.
    """

    fingerprint: Fingerprint
    iteration: int
    residual: float
    x: Tensor
    r: Tensor
    p: Tensor
    rz: Tensor  # (k,), r'Mr
    curvature: Tensor  # (k,), of the last direction: d'Ad
    norm: Tensor  # (k,), of r
    confirmed: float
    products: int
    history: tuple[float, ...] = ()
    true: tuple[float, ...] | None = None  # norms of b - A x, where they were recomputed at this x


@torch.no_grad()
def cg(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    x0: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    metric: Metric | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    check_every: int = 1,
    observe: Callable[[CGState], bool] | None = None,
    resume: CGState | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`.
        b: a vector ``(n,)``, a block ``(n, k)`` of k right-hand sides, or a dict shaped like A's domain. The solution
            has the shape of b, and is flat for a dict: ``A.domain.unflatten(s.x)`` names its blocks.
        x0: where the iteration starts, shaped like b. A column of b that is zero ignores it. Default: zero.
        preconditioner: a symmetric positive definite operator near the inverse of A. Default: none.
        metric: the inner product of x. Then b and residuals are covectors, the norms of the tolerances are their dual
            norms, and the preconditioner is the Riesz map unless one is given: the run is that in the variables in
            which the metric is the Euclidean one. Default: the Euclidean one.
        rtol: relative tolerance. Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)`` in every column, for
            the residual recomputed from its definition. Default: 1e-6.
        atol: absolute tolerance on the same norm, in the unit of b. Default: 0.
        max_iterations: the most iterations. Default: 10 n.
        check_every: how many iterations pass between two decisions. Each decision waits for the device. A larger
            number waits less and costs up to `check_every` - 1 idle products; x is the same. Default: 1.
        observe: is called with a `CGState` at each decision, and stops the run by returning True. Default: none.
        resume: a `CGState` of the same problem, from which the run goes on. Default: none.

    Returns:
        A `Solution`. Its `residual` is the recomputed norm of the largest column. Its `history` has the norm of the
            recurrence at each iteration. The status is `converged` or one of these: `indefinite` (``direction`` is a d
            with d'Ad <= 0, and x the last iterate), `stagnated` (the working precision does not reach the tolerance:
            raise rtol, precondition, or use float64), `max_iterations`, `breakdown` (the preconditioner is not
            positive definite), `nonfinite`, `stopped`.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.linalg import cg
        >>> A = from_matrix(torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64), facts="positive_definite")
        >>> s = cg(A, torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-12)
        >>> s.iterations, (11 * s.x).round(decimals=9)  # x = (1, 7) / 11
        (2, tensor([1., 7.], dtype=torch.float64))
    """
    check_symmetric("cg", A)
    check_preconditioner("cg", A, preconditioner, symmetric=True)
    check_numbers("cg", rtol=rtol, atol=atol, max_iterations=max_iterations, check_every=check_every)
    b = vector("cg", "b", A.domain, b, block=True)
    block = b.T.contiguous().T if b.ndim == 2 else b.unsqueeze(1)
    problem = system("cg", A, block, preconditioner, rtol, atol, metric=metric)
    state = _begin(problem, b, x0) if resume is None else resume
    check_resume("cg", state.fingerprint, problem.fingerprint)
    state = replace(state, x=state.x.reshape(block.shape))
    course = Course.of(state, 10 * A.domain.dim if max_iterations is None else max_iterations, observe)
    s, ending = iterate(state, partial(_judge, problem, course, _Look(check_every, b.shape)), partial(_step, problem))
    if s.true is None:
        s = _recomputed(problem, s)[0]
    x, residual, message = s.x.reshape(b.shape), max(s.true or (), default=0.0), ending.message("cg")
    history, direction = tuple(course.history), ending.direction
    return Solution(x, ending.status, residual, s.iteration, s.products, history, message, direction)


def _begin(problem: System, b: Tensor, x0: Tensor | Mapping[str, Tensor] | None) -> CGState:
    space, r = problem.space, problem.b
    x, products = space.zeros(r.shape[1]), 0
    if x0 is not None:
        x0 = vector("cg", "x0", space, x0, block=True)
        if x0.shape != b.shape:
            raise ValueError(f"cg: x0 must have the shape of b {tuple(b.shape)}, got {tuple(x0.shape)}")
        # keep a NaN in b visible: only an exact zero has the known answer
        x = torch.where((problem.norm_b == 0).to(x.device), x, x0.reshape(r.shape))
        r, products = problem.residual(x), r.shape[1]
    p = problem.preconditioned(r)
    rz = _inner(space, r, p)
    norm = _size(problem, r, rz)
    curvature = torch.ones_like(norm)
    return CGState(problem.fingerprint, 0, math.inf, x, r, p, rz, curvature, norm, math.inf, products)


def _step(problem: System, s: CGState) -> tuple[CGState, None]:
    """One iteration; columns that are finished or broken stay where they are."""
    space, x = problem.space, s.x
    Ap = problem.A @ s.p
    curvature = _inner(space, s.p, Ap)
    moving = (s.norm > problem.target) & (curvature > 0) & (s.rz > 0)
    mask = moving.to(x.device)
    alpha = torch.where(moving, s.rz / curvature, 0.0).to(x)
    x = x + alpha * s.p
    r = torch.where(mask, s.r - alpha * Ap, s.r)
    z = problem.preconditioned(r)
    rz = torch.where(moving, _inner(space, r, z), s.rz)
    beta = torch.where(moving, rz / s.rz, 0.0).to(x)
    p = torch.where(mask, z + beta * s.p, s.p)
    told = (rz, curvature, _size(problem, r, rz), s.confirmed, s.products + r.shape[1])
    return CGState(s.fingerprint, s.iteration + 1, s.residual, x, r, p, *told), None


@dataclass(frozen=True, eq=False)
class _Look:
    """When the host looks at the numbers, the shape in which it shows x, and the norms that it has not seen yet."""

    every: int
    shape: torch.Size
    unseen: list[Tensor] = field(default_factory=list)


def _judge(problem: System, course: Course[CGState], look: _Look, s: CGState) -> tuple[CGState, Ending | None]:
    look.unseen.append(s.norm)
    if s.iteration % look.every and s.iteration != course.limit:
        return s, None
    norms, rzs, curvatures = torch.stack([s.norm, s.rz, s.curvature]).tolist()  # waits for the device
    *between, residual = [max(row, default=0.0) for row in torch.stack(look.unseen).tolist()]
    course.history.extend(between)
    look.unseen.clear()
    shown = s if course.observe is None else replace(s, residual=residual, x=s.x.reshape(look.shape))
    course.record(shown, residual)
    unfinished = [j for j, goal in enumerate(problem.goals) if not norms[j] <= goal]
    bent = [j for j in unfinished if curvatures[j] <= 0]
    ending = None
    if not all(map(math.isfinite, norms + rzs + curvatures)):
        ending = Ending(Status.NONFINITE, f"{_culprit(norms, rzs, s.iteration)} is not finite")
    elif bent:
        d = s.p[:, bent[0]].clone()
        ratio = curvatures[bent[0]] / float(problem.space.inner(d, d))
        ending = Ending(Status.INDEFINITE, f"A is not positive definite, d'Ad/d'd = {ratio:.3g}", d)
    elif any(rzs[j] <= 0 for j in unfinished):
        ending = Ending(Status.BREAKDOWN, f"the preconditioner M is not positive definite, r'Mr = {min(rzs):.3g}")
    elif not unfinished:
        s, ending = _confirmed(problem, s)
    return s, ending or course.ended(s)


def _recomputed(problem: System, s: CGState) -> tuple[CGState, Tensor]:
    """The state with the true norms in it, and the true residual."""
    r = problem.residual(s.x)
    norm = problem.size(r)
    return replace(s, norm=norm, products=s.products + r.shape[1], true=tuple(norm.tolist())), r


def _confirmed(problem: System, s: CGState) -> tuple[CGState, Ending | None]:
    """The end, or the method begun again from the true residual."""
    s, r = _recomputed(problem, s)
    pairs = zip(s.true or (), problem.goals, strict=True)
    excess = max((t / g if g else math.inf for t, g in pairs if not t <= g), default=0.0)
    ending = verdict(excess == 0, excess, s.confirmed, f"the true residual is {excess:.3g} times the tolerance")
    if ending is not None:
        return s, ending
    p = problem.preconditioned(r)
    rz = _inner(problem.space, r, p)
    return replace(s, r=r, p=p, rz=rz, curvature=torch.ones_like(rz), confirmed=excess), None


def _size(problem: System, r: Tensor, rz: Tensor) -> Tensor:
    """The norms of the residuals; r'M r has the dual ones, where M is the Riesz map of the metric."""
    metric = problem.metric
    if metric is None or problem.M is not metric.inverse:
        return problem.size(r)
    return torch.where(rz >= 0, rz, math.inf).sqrt()


def _inner(space: Space, U: Tensor, V: Tensor) -> Tensor:
    """The k inner products of the columns of two blocks, in float64."""
    columns = [space.inner(u, v) for u, v in zip(U.T, V.T, strict=True)]
    return torch.stack(columns) if columns else space.norm(U)


def _culprit(norms: list[float], rzs: list[float], iterations: int) -> str:
    if iterations == 0:
        return "b or A @ x0" if not all(map(math.isfinite, norms)) else "the preconditioned residual of b"
    product = all(map(math.isfinite, norms)) and not all(map(math.isfinite, rzs))
    return f"the preconditioned residual in iteration {iterations}" if product else f"A @ p in iteration {iterations}"
