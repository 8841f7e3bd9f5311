"""Conjugate gradients: A x = b for A symmetric positive definite, from products with A alone.

Iterate i minimizes the energy x'Ax/2 - b'x over the Krylov space K_i(A, r_0), so the error in the A-norm falls in every
iteration, and A with j distinct eigenvalues takes at most j iterations in exact arithmetic. Columns of a block b are
independent systems that share each product.

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
    rz: Tensor
    curvature: Tensor
    confirmed: float
    products: int
    history: tuple[float, ...]


@torch.no_grad()
def cg(
    A: LinearOperator,
    b: Tensor | Mapping[str, Tensor],
    *,
    start: Tensor | Mapping[str, Tensor] | None = None,
    preconditioner: LinearOperator | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    max_iterations: int | None = None,
    check_every: int = 1,
    observe: Callable[[CGState], bool] | None = None,
    resume: CGState | None = None,
) -> Solution:
    """The solution of A x = b for symmetric positive definite A.

    `b` is a vector ``(n,)``, a block ``(n, k)`` of k right-hand sides, or a dict shaped like A's domain; ``x`` has the
    shape of b, flat for a dict (``A.domain.unflatten(s.x)`` names its blocks). `preconditioner` is a symmetric positive
    definite operator near the inverse of A.

    Converged means ``norm(b - A x) <= max(rtol * norm(b), atol)`` in every column, for the residual recomputed from its
    definition; `Solution.residual` is that norm (the largest column's), `history` the recurrence's, one per iteration.
    A zero right-hand side has the solution zero, whatever the start.

    Other statuses: `indefinite` (``direction`` d with d'Ad <= 0, x the last iterate), `stagnated` (the tolerance is
    below what the working precision reaches: raise rtol, precondition, or use float64), `max_iterations` (10 n if left
    out), `breakdown` (the preconditioner is not positive definite), `nonfinite`, `stopped`.

    Decisions are taken every `check_every` iterations, each a wait for the device: up to check_every - 1 idle products
    are the price of fewer waits; x is the same. `observe` is called then, too.

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
    space = A.domain
    b = vector("cg", "b", space, b, block=True)
    B = b.T.contiguous().T if b.ndim == 2 else b.unsqueeze(1)
    k = B.shape[1]
    norm_b = space.norm(B)
    target = torch.clamp(rtol * norm_b, min=atol)
    goals = target.tolist()
    limit = 10 * space.dim if max_iterations is None else max_iterations
    problem = fingerprint("cg", A, norm_b.tolist(), preconditioner)

    if resume is None:
        x, r, products = space.zeros(k), B, 0
        if start is not None:
            x0 = vector("cg", "start", space, start, block=True)
            if x0.shape != b.shape:
                raise ValueError(f"cg: start must have the shape of b {tuple(b.shape)}, got {tuple(x0.shape)}")
            # keep a NaN in b visible: only an exact zero has the known answer
            x = torch.where((norm_b == 0).to(x.device), x, x0.reshape(B.shape))
            r, products = B - A @ x, k
        p = r if preconditioner is None else preconditioner @ r
        rz, curvature, confirmed = _inner(space, r, p), torch.ones_like(norm_b), math.inf
        iterations, history = 0, []
    else:
        check_resume("cg", resume.fingerprint, problem)
        x, r, p, rz, curvature = resume.x.reshape(B.shape), resume.r, resume.p, resume.rz, resume.curvature
        confirmed, iterations, products = resume.confirmed, resume.iteration, resume.products
        history = list(resume.history)

    first, pending, status, message, direction = iterations, [], None, "cg", None
    true: list[float] | None = None
    while True:
        norm = space.norm(r)
        pending.append(norm)
        if iterations % check_every == 0 or iterations == limit:
            norms, rzs, curvatures = torch.stack([norm, rz, curvature]).tolist()  # waits for the device
            history.extend(max(row, default=0.0) for row in torch.stack(pending).tolist())
            pending.clear()
            stop = False
            if observe is not None and iterations > first:
                carried = (r, p, rz, curvature, confirmed, products, tuple(history[:-1]))
                stop = observe(CGState(problem, iterations, history[-1], x.reshape(b.shape), *carried))
            unfinished = [j for j in range(k) if not norms[j] <= goals[j]]
            bent = [j for j in unfinished if curvatures[j] <= 0]
            if not all(map(math.isfinite, norms + rzs + curvatures)):
                status = Status.NONFINITE
                message = f"cg: {_culprit(norms, rzs, iterations)} is not finite"
            elif bent:
                status, direction = Status.INDEFINITE, p[:, bent[0]].clone()
                ratio = curvatures[bent[0]] / float(space.inner(direction, direction))
                message = f"cg: A is not positive definite, d'Ad/d'd = {ratio:.3g}"
            elif any(rzs[j] <= 0 for j in unfinished):
                status = Status.BREAKDOWN
                message = f"cg: the preconditioner M is not positive definite, r'Mr = {min(rzs):.3g}"
            elif not unfinished:
                r = B - A @ x
                products += k
                norm = space.norm(r)
                true = norm.tolist()
                excess = max((t / g if g else math.inf for t, g in zip(true, goals, strict=True) if t > g), default=0.0)
                if excess == 0:
                    status = Status.CONVERGED
                elif not excess < confirmed / 2:
                    status = Status.STAGNATED
                    message = f"cg: the true residual is {excess:.3g} times the tolerance"
                else:
                    confirmed = excess
                    p = r if preconditioner is None else preconditioner @ r
                    rz, curvature = _inner(space, r, p), torch.ones_like(norm_b)
            if status is None and iterations >= limit:
                status = Status.MAX_ITERATIONS
            if status is None and stop:
                status = Status.STOPPED
            if status is not None:
                break
        Ap = A @ p
        products += k
        iterations += 1
        curvature = _inner(space, p, Ap)
        moving = (norm > target) & (curvature > 0) & (rz > 0)
        mask = moving.to(x.device)
        step = torch.where(moving, rz / curvature, 0.0).to(x)
        x = x + step * p
        r = torch.where(mask, r - step * Ap, r)
        z = r if preconditioner is None else preconditioner @ r
        rz, rz_old = torch.where(moving, _inner(space, r, z), rz), rz
        p = torch.where(mask, z + torch.where(moving, rz / rz_old, 0.0).to(x) * p, p)
        true = None

    if true is None:
        true = space.norm(B - A @ x).tolist()
        products += k
    residual = max(true, default=0.0)
    return Solution(x.reshape(b.shape), status, residual, iterations, products, tuple(history), message, direction)


def _inner(space: Space, U: Tensor, V: Tensor) -> Tensor:
    """The k inner products of the columns of two blocks, in float64."""
    columns = [space.inner(u, v) for u, v in zip(U.T, V.T, strict=True)]
    return torch.stack(columns) if columns else space.norm(U)


def _culprit(norms: list[float], rzs: list[float], iterations: int) -> str:
    if iterations == 0:
        return "b or A @ start" if not all(map(math.isfinite, norms)) else "the preconditioned residual of b"
    product = all(map(math.isfinite, norms)) and not all(map(math.isfinite, rzs))
    return f"the preconditioned residual in iteration {iterations}" if product else f"A @ p in iteration {iterations}"
