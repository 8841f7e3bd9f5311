"""Newton's method on the dual function of g, each step a damped sparse system.

    (S + shift diag(b)) y = b - P'1,    g <- g + epsilon y,    shift = damping * (error of the columns)

The shift follows the error. So a group of columns that is all but cut off from the rest is not thrown far away by a
mass that it lacks, and convergence is quadratic at the end. The gain is compared with that of the model; `damping`
falls by 4 where they agree and rises by 4 where they do not. Below the rounding of the dual function a step is taken if
it lessens the error. Entries of P are dropped while their sum in a column is below a tenth of the shift.

**Source.** Z. Tang and Y. Qiu (2024), Safe and sparse Newton method for entropic-regularized optimal transport,
NeurIPS 2024; X. Tang et al. (2024), Accelerating Sinkhorn algorithms with sparse Newton iterations, arXiv
2401.12253.

**Differs from the sources.** 1. f is eliminated, so that each trial has exact row sums and Newton's model is that of g
alone. 2. The shift is relative to b. 3. Conjugate gradients, with the diagonal as preconditioner, stop at the accuracy
that the error asks for; a system that would take them longer than a factorization is factored.
4. The length of a step is bounded, by a bound that grows while long steps prove good.

**Cost.** A step: one pass of exponentials, and some ten to hundred products with what is kept of P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import from_diagonal
from frechet.transport._problem import Problem
from frechet.transport._reduced_hessian import reduced_hessian
from frechet.transport._scaling import Point, point

DROPPED = 0.1  # of the shift
LEAST, MOST = 1e-4, 1e12  # damping
NEAR = 20.0  # the largest change of a potential in a step, in units of epsilon, until longer steps have proved good
DENSE = 4096  # columns


@dataclass(frozen=True)
class Trust:
    """How far the quadratic model has proved good."""

    damping: float = 1.0
    reach: float = NEAR


@dataclass(frozen=True, eq=False)
class Step:
    """A trial: the point that it leads to, the trust after it, and what it cost."""

    point: Point  # the old one where the trial was refused
    taken: bool
    trust: Trust
    products: int


def newton_step(problem: Problem, p: Point, trust: Trust, target: float) -> Step:
    """One trial from p."""
    damping, reach = trust.damping, trust.reach
    b, lacking = problem.b, problem.b - p.columns
    shift = max(damping * p.error, 16 * torch.finfo(b.dtype).eps)
    S = reduced_hessian(p.plan, problem.a, b, DROPPED * shift, shift)
    rtol = max(min(0.1, p.error), 0.1 * target / p.error)
    limit = max(32, S.shape[0] // 4) if S.shape[0] <= DENSE else 10 * S.shape[0]
    s = cg(S, lacking, preconditioner=from_diagonal(1 / S.diagonal()), rtol=rtol, max_iterations=limit, check_every=8)
    y, products = s.x, s.products
    # other statuses say that rounding was met: the digits that there are will do
    if s.status is Status.MAX_ITERATIONS and S.shape[0] <= DENSE:
        y = cholesky_solution(p.plan, problem.a, shift * b, lacking)
    y = y - (b * y).sum()
    longest = float(y.abs().max())
    if not longest < float("inf"):
        return Step(p, False, Trust(4 * damping, NEAR), products)
    y = y * min(1.0, reach / max(longest, 1e-300))
    trial = point(problem, p.g + p.epsilon * y, p.epsilon)
    # the full curvature, without what was dropped and the shift
    flow = p.plan @ y
    model = float((lacking * y).sum() - ((p.columns * y * y).sum() - (flow * flow / problem.a).sum()) / 2)
    gain = float((problem.a * (trial.f - p.f)).sum() + (b * (trial.g - p.g)).sum()) / p.epsilon
    told = model > 4 * problem.rounding  # whether the dual function can tell the two points apart
    ratio = gain / model if told else 1.0 if trial.error < p.error else -1.0
    taken = ratio > 1e-4 and trial.error < float("inf")
    if ratio > 0.75 and longest > reach:
        trust = Trust(damping, 4 * reach)  # on its way through a region where nothing is joined yet
    elif ratio > 0.75:
        trust = Trust(max(damping / 4, LEAST), reach)
    elif not ratio > 0.25:
        trust = Trust(min(4 * damping, MOST), max(reach / 4, NEAR))
    return Step(trial if taken else p, taken, trust, products)


def cholesky_solution(P: Tensor, a: Tensor, ridge: Tensor, r: Tensor) -> Tensor:
    """y with (S + diag(ridge)) y = r for the whole plan, its diagonal summed without cancellation."""
    W = P.T @ (P / a.unsqueeze(1))
    W.fill_diagonal_(0)
    factor, failed = torch.linalg.cholesky_ex(torch.diag(W.sum(1) + ridge) - W)
    if bool(failed):
        return torch.full_like(r, float("nan"))
    return torch.cholesky_solve(r.unsqueeze(1), factor)[:, 0]
