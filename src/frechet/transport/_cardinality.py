"""Transport plans with at most k nonzeros in each column, smoothed by a square norm.

    min <C, T> + gamma/2 norm(T)^2    over T >= 0 with T 1 = a, T' 1 = b, and each column of at most k nonzeros

The cardinality makes this nonconvex. Its dual is concave and, with the potentials of the columns maximized out,

    max over alpha   a'alpha - sum_j max { t'(alpha - c_j) - gamma/2 norm(t)^2 : t in b_j simplex, at most k nonzeros }

Each inner maximum is a projection onto a simplex of the k largest entries of alpha - c_j. Where the k-th and the next
entry are apart the function is differentiable, and at such a maximum the projections meet the row sums too: they are
then a global solution. Where they are tied at the maximum, no choice of projections need meet the row sums; the dual
value remains a lower bound. Supports near them that carry a plan are then looked for (`_rounding.py`), and the best
plan on these supports, a convex problem of the same form, is what is returned.

The maximum is approached by L-BFGS and finished by semismooth Newton steps: on the support S_j of each column the
projection has the derivative (I - 1 1'/|S_j|) / gamma, so the Hessian is a graph Laplacian on the rows.

**Source.** T. Liu, J. Puigcerver and M. Blondel (2023), Sparsity-constrained optimal transport, arXiv 2209.15466; D. A.
Lorenz, P. Manns and C. Meyer (2021), Quadratically regularized optimal transport (semismooth Newton, for k = n), doi
10.1007/s00245-019-09614-w.

**Differs from the source.** Newton steps after L-BFGS; ties are counted and reported; the plan at ties.

**Cost.** An evaluation: the k largest of m columns. A Newton step: one Cholesky factorization of size n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.linalg._result import Status
from frechet.space import Space, euclidean
from frechet.transport._problem import checked
from frechet.transport._rounding import supports

LARGEST = 4096  # rows of a Newton system
ROUNDS = 3  # of L-BFGS and Newton in turn
NEWTON_STEPS = 60
SHORTEST = 2.0**-20


@dataclass(frozen=True, eq=False)
class SparseTransportState:
    """One moment of `sparse_transport`."""

    iteration: int
    alpha: Tensor  # (n,), of rows with mass
    dual_value: float
    marginal_error: float


@dataclass(frozen=True, eq=False)
class SparseTransportSolution:
    """A plan with few nonzeros per column. The columns sum to b exactly, the rows to a within `marginal_error`.

    `value` is <C, T>, `objective` adds gamma/2 norm(T)^2, and `dual_value` is a lower bound on the objective of every
    plan with these marginals and at most k nonzeros per column: with a marginal error of zero, `gap`, their difference,
    bounds what is lost, and a gap of zero proves T the best. `ties` counts the columns whose k-th and next entry are
    tied, where a solution of the dual problem need not give a plan.
    """

    plan: Tensor = field(repr=False)  # (n, m)
    alpha: Tensor = field(repr=False)  # (n,); -inf on rows without mass
    beta: Tensor = field(repr=False)  # (m,)
    status: Status
    message: str
    value: float
    objective: float
    dual_value: float
    gap: float
    marginal_error: float
    ties: int
    iterations: int
    evaluations: int
    newton_steps: int

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> SparseTransportSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(
            f"sparse_transport: {self.message} (status '{self.status}', marginal error {self.marginal_error:.3g})", self
        )


@dataclass(frozen=True, eq=False)
class _Columns:
    """The best columns at one alpha: values ``(k, m)`` of the entries `at`."""

    alpha: Tensor
    dual: float
    rows: Tensor  # (n,), sums
    t: Tensor
    at: Tensor
    threshold: Tensor  # (m,)
    count: Tensor  # (m,), of nonzeros
    margin: Tensor  # (m,), between the k-th and the next entry; inf where fewer than k are used
    error: float


@torch.no_grad()
def sparse_transport(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    cardinality: int,
    gamma: float,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    round_ties: bool = True,
    observe: Callable[[SparseTransportState], bool] | None = None,
) -> SparseTransportSolution:
    """Estimate the plan T ``(n, m)`` from a to b with few nonzeros in each column.

    Args:
        cost: what it costs to carry a unit of mass from row i to column j, ``(n, m)``, finite. Transpose it to bound
            the rows.
        a: the masses of the rows, ``(n,)``, >= 0. Default: uniform, with sum 1.
        b: the masses of the columns, ``(m,)``, with the sum of a. Default: uniform, with sum 1.
        cardinality: the most nonzeros in a column. Generic masses need ``cardinality * m >= n + m - 1``. n asks for
            quadratically regularized transport, which always converges.
        gamma: the weight of the square norm, > 0: it costs ``gamma / 2 * norm(T)^2``.
        rtol: relative tolerance. Converged means ``marginal_error <= max(rtol * mass, atol)``, where the error is the
            sum of abs(T 1 - a) (columns are exact). The plan is then a global solution. Default: eps^(3/4).
        atol: absolute tolerance on the same error, in the unit of the masses. Default: 0.
        max_iterations: the most iterations of L-BFGS and Newton together. Default: 1000.
        round_ties: whether a short search looks for a plan that meets the rows where entries are tied. Default: True.
        observe: is called with a `SparseTransportState` at each iteration. The run stops if it returns True. Default:
            none.

    Returns:
        A `SparseTransportSolution`. Its status is `converged` or one of these: `stagnated`, `max_iterations`,
            `stopped`. `stagnated` with `ties` means that the dual maximum lies where the k-th and the next entry of
            some columns are tied, and need not give a plan. If the search finds one, `marginal_error` is rounding, and
            `gap` bounds how much better another one may be; else the plan misses the rows by `marginal_error`.

    Example:
        >>> import torch
        >>> from frechet.transport import sparse_transport
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> s = sparse_transport(cost, cardinality=1, gamma=0.1).checked()
        >>> s.plan, abs(s.gap) < 1e-12
        (tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64), True)
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"sparse_transport: gamma must be a number > 0, got {gamma}")
    given = checked("sparse_transport", cost, a, b, gamma)
    n = cost.shape[0]
    if isinstance(cardinality, bool) or not isinstance(cardinality, int) or not 1 <= cardinality <= n:
        raise ValueError(f"sparse_transport: cardinality must be an int between 1 and {n}, got {cardinality!r}")
    if not bool(torch.isfinite(given.cost).all()):
        raise NonFinite("sparse_transport: cost must be finite, got inf; forbid a pair with a large cost")
    if (rtol is not None and not 0 <= rtol < math.inf) or not 0 <= atol < math.inf:
        raise ValueError(f"sparse_transport: rtol and atol must be numbers >= 0, got {rtol} and {atol}")
    if max_iterations < 0:
        raise ValueError(f"sparse_transport: max_iterations must be >= 0, got {max_iterations}")
    C = given.cost[given.rows][:, given.columns]
    p, q, k = given.a[given.rows], given.b[given.columns], min(cardinality, len(given.rows))
    tolerance = torch.finfo(C.dtype).eps ** 0.75 if rtol is None else rtol
    target = max(tolerance * given.mass, atol)
    counts = {"iterations": 0, "evaluations": 0, "newton": 0}

    def watch(c: _Columns) -> bool:
        state = SparseTransportState(counts["iterations"], c.alpha, c.dual, c.error)
        return observe is not None and observe(state)

    now, status = _maximum(C, p, q, k, gamma, target, max_iterations, watch, counts)
    ties = int((now.margin <= 1e-6 * (1 + now.threshold.abs())).sum())
    status = Status.CONVERGED if now.error <= target else status or Status.STAGNATED
    reasons = {
        Status.CONVERGED: f"the rows are met to {target:.3g}",
        Status.MAX_ITERATIONS: f"{max_iterations} iterations were not enough",
        Status.STOPPED: "observe returned True",
        Status.STAGNATED: f"the {k}-th and the next entry are tied in {ties} columns: the dual maximum gives no plan; "
        "raise cardinality or gamma"
        if ties
        else "rounding: no step gains",
    }
    columns, found = torch.zeros_like(C).scatter_(0, now.at, now.t), None
    if status is Status.STAGNATED and ties and round_ties:
        found = _rounded(C, p, q, k, gamma, target, max_iterations, now, columns, counts)
        if found is not None:
            columns = found
            reasons[status] += ", or take this one, which meets the rows and is within gap of the best"
    T = torch.zeros_like(given.cost)
    T[given.rows.unsqueeze(1), given.columns] = columns
    alpha = torch.full((n,), -math.inf, dtype=C.dtype, device=C.device).index_put((given.rows,), now.alpha)
    beta = -(alpha.unsqueeze(1) - given.cost).amax(0)  # a column without mass is worth nothing in any row
    beta[given.columns] = -now.threshold
    value = float((T * given.cost).sum())
    objective = value + gamma / 2 * float((T * T).sum())
    if status is Status.STAGNATED and found is not None and objective - now.dual <= tolerance * abs(objective):
        status = Status.CONVERGED  # the dual value is reached: no plan is better
    return SparseTransportSolution(
        T, alpha, beta, status, reasons[status], value, objective, now.dual, objective - now.dual,
        float((T.sum(1) - given.a).abs().sum()), ties, counts["iterations"], counts["evaluations"], counts["newton"],
    )  # fmt: skip


def _maximum(
    C: Tensor, p: Tensor, q: Tensor, k: int, gamma: float, target: float, limit: int,
    watch: Callable[[_Columns], bool], counts: dict[str, int],
) -> tuple[_Columns, Status | None]:  # fmt: skip
    """The maximum of the dual function, and the status if it is known."""
    space = euclidean(len(p), C.dtype, C.device)

    def at(alpha: Tensor) -> _Columns:
        counts["evaluations"] += 1
        return _columns(C, p, q, alpha, k, gamma)

    now, status = at(C.min(1).values - C.min()), None
    for _ in range(ROUNDS):
        now, status = _quasi_newton(at, watch, now, p, target, limit, counts)
        if status is None and len(p) <= LARGEST:
            now, status = _newton(at, watch, space, now, p, gamma, target, limit, counts)
        if status is not None:
            break
    return now, status


def _rounded(
    C: Tensor, p: Tensor, q: Tensor, k: int, gamma: float, target: float, limit: int,
    now: _Columns, T: Tensor, counts: dict[str, int],
) -> Tensor | None:  # fmt: skip
    """The best plan on supports of k entries that carry one; None where none is found."""
    a, b = (x.double().cpu().numpy() for x in (p, q))
    score = (now.alpha.unsqueeze(1) - C).double().cpu().numpy()
    mask = supports(score, T.double().cpu().numpy(), a, b, k, gamma)
    if mask is None:
        return None
    # a cost that no chain of exchanges pays for
    n, m = C.shape
    high = C.max() + 4 * (n + m) * (C.max() - C.min() + gamma * q.max())
    allowed = torch.from_numpy(mask).to(C.device)
    end = counts["iterations"] + limit
    found, _ = _maximum(torch.where(allowed, C, high), p, q, n, gamma, target, end, lambda _: False, counts)
    columns = torch.zeros_like(C).scatter_(0, found.at, found.t)
    fits = found.error <= target and not bool(columns[~allowed].any())
    return columns if fits else None


def _columns(C: Tensor, a: Tensor, b: Tensor, alpha: Tensor, k: int, gamma: float) -> _Columns:
    """The inner maxima: each column's k largest entries, projected onto the simplex of its mass."""
    s = alpha.unsqueeze(1) - C
    n = C.shape[0]
    top, at = s.topk(min(k + 1, n), dim=0)
    following = top[k] if k < n else torch.full_like(b, -math.inf)
    top, at = top[:k], at[:k]
    ranks = torch.arange(1, k + 1, dtype=C.dtype, device=C.device).unsqueeze(1)
    levels = (top.cumsum(0) - gamma * b) / ranks
    count = (top > levels).sum(0).clamp(min=1)
    threshold = levels.gather(0, (count - 1).unsqueeze(0))[0]
    t = (top - threshold).clamp(min=0) / gamma
    t = t * (b / t.sum(0))  # the rounding of the threshold is not left in the column
    rows = torch.zeros_like(a).index_add_(0, at.reshape(-1), t.reshape(-1))
    dual = float((a * alpha).sum() - (t * top - gamma / 2 * t * t).sum())
    margin = torch.where(count == k, top[-1] - following, math.inf)
    return _Columns(alpha, dual, rows, t, at, threshold, count, margin, float((rows - a).abs().sum()))


def _quasi_newton(
    at: Callable[[Tensor], _Columns],
    watch: Callable[[_Columns], bool],
    start: _Columns,
    a: Tensor,
    target: float,
    limit: int,
    counts: dict[str, int],
) -> tuple[_Columns, Status | None]:
    """L-BFGS from SciPy, until it says that it is done; the best point by the error where the target is met."""
    best, stopped = start, []

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        c = at(torch.from_numpy(x.copy()).to(a))
        if (c.error <= target) > (best.error <= target) or (c.dual > best.dual and best.error > target):
            best = c
        return -c.dual, (c.rows - a).double().cpu().numpy()

    def after(_: np.ndarray) -> None:
        counts["iterations"] += 1
        if watch(best):
            stopped.append(True)
        if stopped or best.error <= target or counts["iterations"] >= limit:
            raise StopIteration

    left = limit - counts["iterations"]
    if left <= 0:
        return start, Status.MAX_ITERATIONS
    options = {"maxiter": min(left, 300), "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0, "maxcor": 20}
    scipy.optimize.minimize(
        negative, start.alpha.double().cpu().numpy(), jac=True, method="L-BFGS-B", callback=after, options=options
    )
    if stopped:
        return best, Status.STOPPED
    return best, Status.MAX_ITERATIONS if counts["iterations"] >= limit and best.error > target else None


def _newton(
    at: Callable[[Tensor], _Columns],
    watch: Callable[[_Columns], bool],
    space: Space,
    now: _Columns,
    a: Tensor,
    gamma: float,
    target: float,
    limit: int,
    counts: dict[str, int],
) -> tuple[_Columns, Status | None]:
    """Semismooth Newton steps with a search along each; ends where no step gains."""
    for _ in range(NEWTON_STEPS):
        if now.error <= target:
            break
        if counts["iterations"] >= limit:
            return now, Status.MAX_ITERATIONS
        counts["iterations"] += 1
        counts["newton"] += 1
        lacking = a - now.rows
        used = (now.t > 0).to(a.dtype)
        M = torch.zeros(space.dim, now.t.shape[1], dtype=a.dtype, device=a.device).scatter_(0, now.at, used)
        W = (M / M.sum(0)) @ M.T
        W.fill_diagonal_(0)
        # a ridge that follows the error, and a floor for rows that are joined to no other
        ridge = min(1e-2, now.error) + 64 * space.eps
        H = torch.diag(W.sum(1) + ridge) - W
        step = gamma * torch.cholesky_solve(lacking.unsqueeze(1), torch.linalg.cholesky(H))[:, 0]
        slope, length, moved = float((lacking * step).sum()), 1.0, None
        while length > SHORTEST:
            trial = at(now.alpha + length * step)
            rounding = 64 * space.eps * (abs(now.dual) + float((a * now.alpha).abs().sum()))
            if trial.dual >= now.dual + 1e-4 * length * slope or (
                trial.error < 0.9 * now.error and trial.dual >= now.dual - rounding
            ):
                moved = trial
                break
            length /= 2
        if moved is None:
            break
        now = moved
        if watch(now):
            return now, Status.STOPPED
    return now, None
