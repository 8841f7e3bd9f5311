"""Many small independent least-squares problems at once: min norm(r(x_i, data_i))^2 / 2 for each i.

All problems that are still running take one step together: one evaluation of the residual and one of the Jacobian for
all of them, and a QR factorization in which each column is one operation on the whole batch. Every problem has its own
damping, accepts or refuses on its own, and leaves the batch when it is done, by the tests of `optimality` and with the
last steps of `polish`.

**Source.** H. B. Nielsen (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05 (the update of the damping);
A. Bjorck (1967), Solving linear least squares problems by Gram-Schmidt orthogonalization, doi 10.1007/BF01934122
(modified Gram-Schmidt with the right-hand side as a last column is as stable as Householder's).

**Differs from the source.** Columns are scaled as in `levenberg_marquardt`; the first damping is the smallest of a
sequence whose step stays within 3 norm(D x0).

**Cost.** A residual and a Jacobian of the running problems per step; memory m (n + 3) numbers per problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg.result import Status
from frechet.operators.products import second_order
from frechet.solve.least_squares_batch_result import LeastSquaresBatch

FADE, LEAST = 0.9, 0.1  # as in levenberg_marquardt
FALLS = 0.9  # as in polish
FIRST, ACCEPT = 3.0, 1e-4


def least_squares_batch(
    residual: Callable[..., Tensor],
    x0: Tensor,
    *data: Tensor,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    max_evaluations: int | None = None,
) -> LeastSquaresBatch:
    """The minimizers of norm(residual(x_i, *data_i))^2 / 2, i = 1..b, in the rows of x.

    `residual` is written for one problem: x ``(n,)`` and one slice of each of `data`, to a vector ``(m,)``; it is
    batched by `torch.func.vmap`, so it must not branch on values. `x0` is ``(b, n)`` or, one start for all, ``(n,)``;
    each of `data` has b slices along its first dimension. `bounds` are numbers or tensors that fit ``(b, n)``.

    The tests are those of `least_squares` at its defaults. A problem whose residual is not finite at its start raises
    `NonFinite`; others end as `stagnated` or, after `max_evaluations` residuals (100 (n + 10) if left out), as
    `max_iterations`, and do not disturb the rest.

    Example:
        >>> import torch
        >>> from frechet import least_squares_batch
        >>> t = torch.linspace(0, 3, 8, dtype=torch.float64)
        >>> rates = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
        >>> y = 3 * torch.exp(-rates * t)
        >>> x0 = torch.tensor([1.0, 0.1], dtype=torch.float64)
        >>> s = least_squares_batch(lambda x, y: x[0] * torch.exp(-x[1] * t) - y, x0, y).checked()
        >>> s.x[:, 1].round(decimals=12)
        tensor([0.5000, 1.0000, 2.0000], dtype=torch.float64)
    """
    x0, low, high = _arguments(x0, data, bounds)
    b, n = x0.shape
    eps, limit = torch.finfo(x0.dtype).eps, 100 * (n + 10) if max_evaluations is None else max_evaluations
    batched = torch.func.vmap(residual, in_dims=(1, *[0] * len(data)))
    x = torch.minimum(torch.maximum(x0, low), high).T.contiguous()  # the problems along the last dimension: (n, b)
    low, high = low.T, high.T
    r, J = _linearized(batched, x, data)
    good = _finite(r, J)
    if not bool(good.all()):
        raise NonFinite(
            "least_squares_batch: residual and Jacobian must be finite at the starts, got NaN or infinity in problem "
            f"{int((~good).nonzero()[0])}"
        )
    first = _lengths(J)
    boxed = bool((low > -math.inf).any() or (high < math.inf).any())
    ends = _Ends(x.clone(), low, high, [Status.MAX_ITERATIONS] * b, torch.zeros_like(x0[:, :1].expand(b, 2).T))
    every = data
    who, sizes, seen = torch.arange(b, device=x.device), torch.where(x != 0, x, x.abs().amax(0)).abs(), _lengths(J)
    damping, growth, steps = torch.zeros_like(x[0]), torch.full_like(x[0], 2.0), torch.zeros_like(x[0])
    last = torch.full_like(x[0], math.inf)  # the reduction at the point before, while polishing
    polishing, taken = torch.zeros_like(who, dtype=torch.bool), 1
    while True:
        columns = _lengths(J)
        seen = torch.maximum(columns, FADE * seen)
        D = torch.where(seen > 0, seen, 1.0)
        least = torch.maximum(x.abs(), sizes)
        D = torch.where(sizes > 0, torch.maximum(D, LEAST * _length(D * x) / least), D)
        gradient = (J * r).sum(1)
        size, cost = _length(r), 0.5 * r.square().sum(0)
        noise = eps * (_length((J.abs() * x.abs()[:, None]).sum(0)) + size)
        scaled = J / D[:, None]
        free = torch.ones_like(x, dtype=torch.bool)
        if boxed:
            free = ~(((x <= low) & (gradient >= 0)) | ((x >= high) & (gradient <= 0)) | (low >= high))
            scaled = torch.where(free[:, None], scaled, 0.0)
        R, z = _triangle(scaled, r)
        reduction = 0.5 * z.square().sum(0)
        full = _substituted(R, z) / D
        cosine = torch.where(free & (columns > 0), gradient.abs() / (columns * size), 0.0).amax(0)
        solved = (size <= noise) | (cosine <= eps) | (reduction <= noise * size)
        solved = solved | (_length(columns * full) <= eps * _length(columns * x))
        # where r depends on no parameter there is no gradient to be zero
        solved = solved & ((size <= noise) | (columns.amax(0) > 0) | ~free.any(0))
        worse = polishing & (reduction > FALLS * last)
        ends.keep(~worse, who, x, steps, taken)
        polishing = polishing | solved
        last = torch.where(polishing, reduction, last)
        if taken == 1:
            damping = _first_damping(R, z, FIRST * torch.where((reach := _length(D * x)) > 1e-3 * size, reach, size))
        p = torch.where(polishing, full, _substituted(*_damped(R, z, damping)) / D)
        if boxed:
            p = _boxed(J, r, D, free, p, torch.where(polishing, 0.0, damping), low - x, high - x)
        trial = torch.minimum(torch.maximum(x + p, low), high) if boxed else x + p
        still = (trial == x).all(0)
        exact = polishing & (2 * reduction <= noise.square())  # the part of r that a step could remove is rounding
        finished = worse | still | exact
        if taken >= limit or bool(finished.any()):
            ends.mark(finished & polishing, who, Status.CONVERGED)
            ends.mark(finished & ~polishing, who, Status.STAGNATED)
            if taken >= limit or bool(finished.all()):
                ends.mark(polishing, who, Status.CONVERGED)
                break
            stay = ~finished
            kept = (who, x, r, J, low, high, sizes, seen, damping, growth, last, polishing, steps, trial)
            who, x, r, J, low, high, sizes, seen, damping, growth, last, polishing, steps, trial = _kept(stay, *kept)
            p, cost, noise, size, gradient, D, *R = _kept(stay, p, cost, noise, size, gradient, D, *R)
            data = tuple(d[stay] for d in data)
        taken += 1
        r_new, J_new = _linearized(batched, trial, data)
        cost_new, slack = 0.5 * r_new.square().sum(0), noise * size
        image = (J * p[:, None]).sum(0) if boxed else _product(R, D * p)
        predicted = -(gradient * p).sum(0) - 0.5 * image.square().sum(0)
        gain = (cost - cost_new + slack) / (predicted.clamp(min=0) + slack)
        usable = _finite(r_new, J_new)
        level = cost_new <= cost * (1 + 1e-10) + 10 * slack
        accepted = usable & torch.where(polishing, level, (gain > ACCEPT) & (predicted > 0))
        eased = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 10)
        damping = torch.where(accepted, damping * eased, damping * growth)
        growth = torch.where(accepted, 2.0, 2 * growth)
        last = torch.where(polishing & ~accepted, -1.0, last)  # which ends the problem in the next round
        if bool(accepted.all()):
            x, r, J = trial, r_new, J_new
        else:
            x, r, J = (torch.where(accepted, new, old) for new, old in ((trial, x), (r_new, r), (J_new, J)))
        steps = steps + accepted
    r, J = _linearized(batched, ends.x, every)
    ends.refuse(_ran_away(batched, every, ends, first, r, J))
    return ends.result(r, J)


def _ran_away(
    batched: Callable[..., Tensor], data: tuple[Tensor, ...], ends: _Ends, first: Tensor, r: Tensor, J: Tensor
) -> Tensor:
    """The problems ``(b,)`` with a parameter that r depended on at the start and no longer does, a tenth up or down."""
    x, size = ends.x, _length(r)
    noise = torch.finfo(x.dtype).eps * (_length((J.abs() * x.abs()[:, None]).sum(0)) + size)
    lost = (_lengths(J) <= torch.finfo(x.dtype).eps * first) & (first > 0) & (x != 0) & (size > noise)
    lost = lost & (x > ends.low) & (x < ends.high)
    gone = torch.zeros_like(lost[0])
    for j in lost.any(1).nonzero()[:, 0].tolist():
        same = lost[j]
        for factor in (1.1, 0.9):
            trial = x.clone()
            trial[j] *= factor
            trial = torch.minimum(torch.maximum(trial, ends.low), ends.high)
            with torch.no_grad():
                same = same & (_length(batched(trial, *data).T - r) <= noise)
        gone = gone | same
    return gone


def _kept(stay: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [t[..., stay] for t in tensors]


def _finite(r: Tensor, J: Tensor) -> Tensor:
    # a sum is finite where all its terms are, or it overflows, which is no better
    return (r.sum(0) + J.sum((0, 1))).isfinite()


def _linearized(batched: Callable[..., Tensor], x: Tensor, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """r ``(m, b)`` and J ``(n, m, b)``."""
    with second_order("least_squares_batch", x.device), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        r = batched(leaf, *data)
        if r.ndim != 2:
            raise ValueError(f"least_squares_batch: residual must return a vector, got shape {tuple(r.shape[1:])}")
        r = r.T
        n, m = len(x), len(r)
        if m < n:
            rows = [
                torch.autograd.grad(r[i].sum(), leaf, retain_graph=True, materialize_grads=True)[0] for i in range(m)
            ]
            return r.detach().contiguous(), torch.stack(rows, 1)
        u = torch.zeros_like(r).requires_grad_()
        (transposed,) = torch.autograd.grad(r, leaf, u, create_graph=True)
        if not transposed.requires_grad:
            return r.detach().contiguous(), r.new_zeros(n, m, r.shape[1])
        # J'u of each problem is linear in u: its k-th entry has the k-th column as gradient
        units = torch.eye(n, dtype=r.dtype, device=r.device)[..., None].expand(n, n, r.shape[1])
        (columns,) = torch.autograd.grad(transposed, u, units, is_grads_batched=True)
        return r.detach().contiguous(), columns


# --- small dense algebra, one operation for the whole batch -----------------------------------------------------------


def _length(v: Tensor) -> Tensor:
    """The norms of the columns of ``(m, b)``."""
    return v.square().sum(0).sqrt()


def _lengths(J: Tensor) -> Tensor:
    """The norms ``(n, b)`` of the columns of each matrix."""
    return J.square().sum(1).sqrt()


def _triangle(A: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
    """The rows of R, from the diagonal on, and z = Q'c of A = Q R by modified Gram-Schmidt.

    A is ``(n, m, b)``. A column that depends on the ones before has a zero row.
    """
    n, m, _ = A.shape
    W = torch.cat([A, c[None]])
    floor = max(m, n) * torch.finfo(A.dtype).eps * A.square().sum((0, 1)).sqrt()
    rows = []
    for _ in range(n):
        pivot = W[0].square().sum(0).sqrt()
        alive = pivot > floor
        q = W[0] * torch.where(alive, 1 / pivot, 0.0)
        row = (W[1:] * q).sum(1)
        W = W[1:] - row[:, None] * q
        rows.append(torch.cat([(pivot * alive)[None], row]))
    return [row[:-1] for row in rows], torch.stack([row[-1] for row in rows])


def _product(R: list[Tensor], v: Tensor) -> Tensor:
    """R v."""
    return torch.stack([(row * v[k:]).sum(0) for k, row in enumerate(R)])


def _damped(R: list[Tensor], z: Tensor, damping: Tensor) -> tuple[list[Tensor], Tensor]:
    """The triangle of [R; sqrt(damping) I] and its right-hand side."""
    n, b = z.shape
    A = torch.zeros(n, 2 * n, b, dtype=z.dtype, device=z.device)
    root = damping.sqrt()
    for k in range(n):
        A[k:, k] = R[k]
        A[k, n + k] = root
    return _triangle(A, torch.cat([z, torch.zeros_like(z)]))


def _substituted(R: list[Tensor], z: Tensor) -> Tensor:
    """q with R q = -z, zero where a pivot is."""
    q: list[Tensor] = []
    for k in reversed(range(len(z))):
        rest = z[k] - sum((R[k][j] * q[-j] for j in range(1, len(R[k]))), start=torch.zeros_like(z[k]))
        q.append(torch.where(R[k][0] > 0, rest / R[k][0], 0.0))
    return -torch.stack(q[::-1])


def _first_damping(R: list[Tensor], z: Tensor, radius: Tensor) -> Tensor:
    """The smallest of 1e-8, 1e-7, ... (the columns have norm one) whose step stays within the radius."""
    damping = torch.full_like(radius, 1e-3)
    for _ in range(30):
        far = _length(_substituted(*_damped(R, z, damping))) > radius
        if not bool(far.any()):
            break
        damping = torch.where(far, 10 * damping, damping)
    return damping


def _boxed(
    J: Tensor, r: Tensor, D: Tensor, free: Tensor, p: Tensor, damping: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """`p` made feasible: entries that leave the box stop at its side, and the others are solved for again."""
    for _ in range(len(p)):
        out = free & ((p < low) | (p > high))
        if not bool(out.any()):
            break
        free = free & ~out
        held = torch.where(free, 0.0, torch.minimum(torch.maximum(p, low), high))
        R, z = _triangle(torch.where(free[:, None], J / D[:, None], 0.0), r + (J * held[:, None]).sum(0))
        p = held + _substituted(*_damped(R, z, damping)) / D
    return torch.minimum(torch.maximum(p, low), high)


@dataclass(frozen=True, eq=False)
class _Ends:
    """The last good point of every problem."""

    x: Tensor
    low: Tensor
    high: Tensor
    status: list[Status]
    counts: Tensor  # (2, b): accepted steps, evaluations

    def keep(self, which: Tensor, who: Tensor, x: Tensor, steps: Tensor, taken: int) -> None:
        self.counts[1, who] = taken + 1  # one more at the end
        if not bool(which.all()):
            who, x, steps = who[which], *_kept(which, x, steps)
        self.x[:, who], self.counts[0, who] = x, steps

    def mark(self, which: Tensor, who: Tensor, status: Status) -> None:
        for i in who[which].tolist():
            self.status[i] = status

    def refuse(self, which: Tensor) -> None:
        for i in which.nonzero()[:, 0].tolist():
            if self.status[i] is Status.CONVERGED:
                self.status[i] = Status.STAGNATED

    def result(self, r: Tensor, J: Tensor) -> LeastSquaresBatch:
        x = self.x
        n, m, _ = J.shape
        gradient, columns, size = (J * r).sum(1), _lengths(J), _length(r)
        held = ((x <= self.low) & (gradient >= 0)) | ((x >= self.high) & (gradient <= 0))
        D = torch.where(columns > 0, columns, 1.0)
        R, _ = _triangle(torch.where(held[:, None], 0.0, J / D[:, None]), r)
        rank = sum((row[0] > 0 for row in R), start=torch.zeros_like(x[0]))
        unit = torch.eye(n, dtype=x.dtype, device=x.device)[..., None].expand(n, n, x.shape[1])
        inverse = torch.stack([_substituted(R, unit[k]) for k in range(n)])
        errors = inverse.square().sum(0).sqrt() / D * size / (m - rank).clamp(min=1).sqrt()
        unknown = (rank < n - held.sum(0)) | (m <= rank)
        errors = torch.where(held, 0.0, torch.where(unknown, math.inf, errors))
        cosines = torch.where(~held & (columns > 0) & (size > 0), gradient.abs() / (columns * size), 0.0)
        done = torch.tensor([s is Status.CONVERGED for s in self.status], device=x.device)
        steps, taken = self.counts.long()
        return LeastSquaresBatch(
            x=x.T.contiguous(),
            status=tuple(self.status),
            converged=done,
            cost=0.5 * r.square().sum(0),
            residuals=r.T.contiguous(),
            optimality=cosines.amax(0),
            iterations=steps,
            evaluations=taken,
            standard_errors=errors.T.contiguous(),
        )


def _arguments(
    x0: Tensor, data: tuple[Tensor, ...], bounds: tuple[float | Tensor, float | Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Starts and bounds, each ``(b, n)``."""
    if not isinstance(x0, Tensor) or x0.ndim not in (1, 2) or not x0.dtype.is_floating_point:
        got = f"{x0.dtype} of shape {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"least_squares_batch: x0 must be a real tensor (b, n) or (n,), got {got}")
    counts = {len(d) for d in data} | ({len(x0)} if x0.ndim == 2 else set())
    if len(counts) != 1:
        listed = ", ".join(map(str, sorted(counts))) or "none"
        raise ValueError(
            f"least_squares_batch: x0 and data must have one length along the first dimension, got {listed}"
        )
    x = x0.detach().expand(counts.pop(), -1) if x0.ndim == 1 else x0.detach()
    if not x.shape[1]:
        raise ValueError("least_squares_batch: x0 must have at least one parameter, got none")
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds
    low, high = (torch.as_tensor(side, dtype=x.dtype, device=x.device).expand(x.shape) for side in (lower, upper))
    if bool((low > high).any()):
        i, j = (low > high).nonzero()[0].tolist()
        raise ValueError(
            f"least_squares_batch: bounds must leave a point between them, got lower {float(low[i, j]):.6g} > upper "
            f"{float(high[i, j]):.6g} in entry {j} of problem {i}"
        )
    return x, low, high
