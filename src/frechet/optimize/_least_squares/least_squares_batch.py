"""Many small independent least-squares problems at once: min norm(r(x_i, data_i))^2 / 2 for each i.

All problems that are still running take one step together: one evaluation of the residual and one of the Jacobian for
all of them, and a QR factorization in which each column is one operation on the whole batch. Every problem has its own
damping, accepts or refuses on its own, and leaves the batch when it is done, by the tests of `optimality` and with the
last steps of `last_digits.py`.

**Source.** H. B. Nielsen (1999), Damping parameter in Marquardt's method, IMM-REP-1999-05 (the update of the damping);
see `batched_triangles` for the factorization.

**Differs from the source.** Columns are scaled as in `levenberg_marquardt`; the first damping is the smallest of a
sequence whose step stays within 3 norm(D x0).

**Cost.** A residual and a Jacobian of the running problems per step; memory m (n + 3) numbers per problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._result import Status
from frechet.operators.derivatives._products import second_order
from frechet.optimize._least_squares.batched_triangles import (
    boxed,
    damped,
    first_damping,
    length,
    lengths,
    product,
    substituted,
    triangle,
    units,
)
from frechet.optimize._least_squares.flat_model import INWARDS, ROUNDING, SHOWS
from frechet.optimize._least_squares.least_squares_batch_result import Ends, LeastSquaresBatch
from frechet.optimize._least_squares.optimality import IDLE, WORN
from frechet.optimize._stopping import leads_on

FADE, LEAST, MOST = 0.9, 0.1, 1e6  # as in levenberg_marquardt
FALLS = 0.9  # as in last_digits.py
FIRST, ACCEPT = 3.0, 1e-4


def least_squares_batch(
    residual: Callable[..., Tensor],
    x0: Tensor,
    *data: Tensor,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    max_evaluations: int | None = None,
    absolute_sigma: bool = False,
) -> LeastSquaresBatch:
    """Minimize norm(residual(x_i, *data_i))^2 / 2 for many small problems i = 1..b at once.

    The rules are those of `least_squares` at its defaults.

    Args:
        residual: the residual of one problem: a function of x ``(n,)`` and one slice of each of `data`, to a vector
            ``(m,)``. It is batched by `torch.func.vmap`, so it must not branch on values.
        x0: the starts ``(b, n)``, or one start for all ``(n,)``.
        data: tensors with b slices along their first dimension.
        bounds: a pair of lower and upper, numbers or tensors that fit ``(b, n)``.
        max_evaluations: the most residuals of each problem. Default: 100 (n + 10).
        absolute_sigma: with True, the residuals have the standard deviation one. Default: errors are estimated from
            what is left.

    Returns:
        A `LeastSquaresBatch`. Problems that end as `stagnated` or `max_iterations` do not disturb the rest.

    Raises:
        NonFinite: the residual of a problem is not finite at its start.

    Example:
        >>> import torch
        >>> from frechet.optimize import least_squares_batch
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
    limit = 100 * (n + 10) if max_evaluations is None else max_evaluations
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
    ends = Ends(x.clone(), low, high, [Status.MAX_ITERATIONS] * b, torch.zeros_like(x0[:, :1].expand(b, 2).T))
    now, taken = _started(x, r, J, low, high, data), 1
    while True:
        model = _modelled(now)
        left = model.unit * (model.reduction / FALLS).sqrt()
        worse = now.polishing & (left > now.last)
        ends.keep(~worse, now.who, now.x, now.steps, taken)
        polishing = now.polishing | model.solved
        now = replace(now, polishing=polishing, last=torch.where(polishing, FALLS**0.5 * left, now.last))
        if taken == 1:
            reach, size = length(model.D * now.x), model.size
            radius = FIRST * torch.where(reach > 1e-3 * size, reach, size)
            now = replace(now, damping=first_damping(model.R, model.z, radius))
        p = _step(now, model)
        trial = torch.minimum(torch.maximum(now.x + p, now.low), now.high)
        still = (trial == now.x).all(0)
        # the part of r that a step could remove is rounding
        exact = now.polishing & (2 * model.reduction <= model.noise.square())
        finished = worse | still | exact | (~now.polishing & (now.idle >= IDLE))
        ends.mark(finished & now.polishing, now.who, Status.CONVERGED)
        ends.mark(finished & ~now.polishing, now.who, Status.STAGNATED)
        if taken >= limit or bool(finished.all()):
            ends.mark(now.polishing, now.who, Status.CONVERGED)
            break
        if bool(finished.any()):
            stay = ~finished
            now, model, (p, trial) = now.kept(stay), model.kept(stay), _kept(stay, p, trial)
        taken += 1
        now = _moved(now, model, p, trial, *_linearized(batched, trial, now.data))
    r, J = _linearized(batched, ends.x, data)
    gone = _ran_away(batched, data, ends, r, J)
    ends.refuse(gone)
    ends.accept(_minima(residual, data, ends, r, J) & ~gone)
    return ends.result(r, J, absolute_sigma)


@dataclass(frozen=True, eq=False)
class _Running:
    """The problems that still run, along the last dimension, where they are."""

    who: Tensor  # their numbers in the batch
    x: Tensor
    r: Tensor
    J: Tensor
    low: Tensor
    high: Tensor
    sizes: Tensor  # of the parameters at the start
    seen: Tensor  # the largest lengths of the columns so far, fading
    damping: Tensor
    growth: Tensor  # of the damping after the next refusal
    last: Tensor  # norm(J p) at the point before, while polishing
    polishing: Tensor
    steps: Tensor
    idle: Tensor  # steps in a row that changed the cost by rounding only
    boxed: bool
    data: tuple[Tensor, ...]

    def kept(self, stay: Tensor) -> _Running:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: t[..., stay] for name, t in named.items() if isinstance(t, Tensor)}
        return replace(self, **chosen, data=tuple(d[stay] for d in self.data))


@dataclass(frozen=True, eq=False)
class _Model:
    """norm(r + J p) at each point, in the metric D, all in the unit of r."""

    unit: Tensor
    D: Tensor
    gradient: Tensor
    size: Tensor  # of r
    noise: Tensor  # the rounding error of r
    free: Tensor  # no bound holds the parameter
    R: list[Tensor]  # J / D on the free columns
    z: Tensor
    full: Tensor  # the Gauss-Newton step
    reduction: Tensor  # what it promises
    solved: Tensor

    def kept(self, stay: Tensor) -> _Model:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {name: t[..., stay] for name, t in named.items() if isinstance(t, Tensor)}
        return replace(self, **chosen, R=_kept(stay, *self.R))


def _started(x: Tensor, r: Tensor, J: Tensor, low: Tensor, high: Tensor, data: tuple[Tensor, ...]) -> _Running:
    one = torch.ones_like(x[0])
    return _Running(
        who=torch.arange(x.shape[1], device=x.device), x=x, r=r, J=J, low=low, high=high,
        sizes=torch.where(x != 0, x, x.abs().amax(0)).abs(), seen=lengths(J),
        damping=0 * one, growth=2 * one, last=math.inf * one, polishing=one < 0, steps=0 * one, idle=0 * one,
        boxed=bool((low > -math.inf).any() or (high < math.inf).any()), data=data,
    )  # fmt: skip


def _modelled(now: _Running) -> _Model:
    unit = units(now.r, 0)  # of r: its squares would overflow or vanish
    x, r, J, eps = now.x, now.r / unit, now.J / unit, torch.finfo(now.x.dtype).eps
    columns = lengths(J)
    D = _metric(now) / unit
    gradient, size = (J * r).sum(1), length(r)
    noise = eps * (length((J.abs() * x.abs()[:, None]).sum(0)) + size)
    scaled, free = J / D[:, None], torch.ones_like(x, dtype=torch.bool)
    if now.boxed:
        free = ~(((x <= now.low) & (gradient >= 0)) | ((x >= now.high) & (gradient <= 0)) | (now.low >= now.high))
        scaled = torch.where(free[:, None], scaled, 0.0)
    R, z = triangle(scaled, r)
    reduction, full = 0.5 * z.square().sum(0), substituted(R, z) / D
    cosine = torch.where(free & (columns > 0) & (size > 0), gradient.abs() / columns / size, 0.0).amax(0)
    solved = (size <= noise) | (cosine <= eps) | (reduction <= noise * size)
    solved = solved | (length(columns * full) <= eps * length(columns * x))
    # where r depends on no parameter there is no gradient to be zero
    solved = solved & ((size <= noise) | (columns.amax(0) > 0) | ~free.any(0))
    return _Model(unit, D, gradient, size, noise, free, R, z, full, reduction, solved)


def _metric(now: _Running) -> Tensor:
    columns = lengths(now.J)
    seen = torch.maximum(columns, FADE * now.seen)
    D = torch.where(seen > 0, seen, 1.0)
    least = torch.maximum(now.x.abs(), now.sizes)
    D = torch.where(now.sizes > 0, torch.maximum(D, LEAST * length(D * now.x) / least), D)
    return torch.where(columns > 0, torch.minimum(D, MOST * columns), D)


def _step(now: _Running, model: _Model) -> Tensor:
    p = torch.where(now.polishing, model.full, substituted(*damped(model.R, model.z, now.damping)) / model.D)
    if now.boxed:
        damping = torch.where(now.polishing, 0.0, now.damping)
        p = boxed(
            now.J / model.unit, now.r / model.unit, model.D, model.free, p, damping, now.low - now.x, now.high - now.x
        )
    return p


def _moved(now: _Running, model: _Model, p: Tensor, trial: Tensor, r: Tensor, J: Tensor) -> _Running:
    """Each problem at its trial point, r and J there given, if that is accepted."""
    cost, after = (0.5 * (v / model.unit).square().sum(0) for v in (now.r, r))
    slack = model.noise * model.size
    image = (now.J * p[:, None]).sum(0) / model.unit if now.boxed else product(model.R, model.D * p)
    predicted = -(model.gradient * p).sum(0) - 0.5 * image.square().sum(0)
    gain = (cost - after + slack) / (predicted.clamp(min=0) + slack)
    level = after <= cost * (1 + 1e-10) + 10 * slack
    accepted = _finite(r, J) & torch.where(now.polishing, level, (gain > ACCEPT) & (predicted > 0))
    eased = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 10)
    moved = replace(
        now,
        seen=torch.maximum(lengths(now.J), FADE * now.seen),
        damping=torch.where(accepted, now.damping * eased, now.damping * now.growth),
        growth=torch.where(accepted, 2.0, 2 * now.growth),
        last=torch.where(now.polishing & ~accepted, -1.0, now.last),  # which ends the problem in the next round
        steps=now.steps + accepted,
        idle=torch.where(accepted & ((cost - after).abs() <= 0.1 * slack), now.idle + 1, now.idle * ~accepted),
    )
    if bool(accepted.all()):
        return replace(moved, x=trial, r=r, J=J)
    x, r, J = (torch.where(accepted, new, old) for new, old in ((trial, now.x), (r, now.r), (J, now.J)))
    return replace(moved, x=x, r=r, J=J)


def _ran_away(batched: Callable[..., Tensor], data: tuple[Tensor, ...], ends: Ends, r: Tensor, J: Tensor) -> Tensor:
    """The problems ``(b,)`` where r does not change if a parameter, or all of them, double, but does inwards."""
    x, eps, size = ends.x, torch.finfo(ends.x.dtype).eps, length(r)
    noise = eps * (length((J.abs() * x.abs()[:, None]).sum(0)) + size)

    def change(moved: Tensor) -> Tensor:
        moved = torch.minimum(torch.maximum(moved, ends.low), ends.high)
        with torch.no_grad():
            return length(batched(moved, *data).T - r).nan_to_num(math.inf, math.inf)

    gone = torch.zeros_like(size, dtype=torch.bool)
    alone = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for part in (*alone, alone.sum(0)):
        v = part[:, None] * x
        flat = (length((J * v[:, None]).sum(0)) <= ROUNDING * noise) & (v != 0).any(0) & (size > noise)
        if not bool(flat.any()):
            continue
        flat = flat & (change(x + v) <= ROUNDING * noise)
        inwards = torch.stack([change(x - share * v) > SHOWS * noise for share in INWARDS]).any(0)
        gone = gone | (flat & inwards)
    return gone


def _minima(residual: Callable[..., Tensor], data: tuple[Tensor, ...], ends: Ends, r: Tensor, J: Tensor) -> Tensor:
    """The problems ``(b,)`` that no step improves, or that crept to the limit, and that are solved nevertheless.

    What is left of r or of the full step is little more than rounding; or a Newton step, with the second derivatives of
    the cost, would reduce it by no more than that: where J vanishes, first derivatives cannot tell a minimum.
    """
    model = _modelled(_started(ends.x, r, J, ends.low, ends.high, data))
    eps, columns = torch.finfo(r.dtype).eps, lengths(J)
    share = length(columns * model.full)
    found = (model.size <= WORN * model.noise) | ((share > 0) & (share <= WORN * eps * length(columns * ends.x)))
    rest = torch.tensor([s is not Status.CONVERGED for s in ends.status], device=r.device)
    for i in (~found & rest).nonzero()[:, 0].tolist():
        row, unit, free = [d[i] for d in data], model.unit[i], model.free[:, i]

        def cost(x: Tensor, row: list[Tensor] = row, unit: Tensor = unit) -> Tensor:
            return 0.5 * (residual(x, *row) / unit).square().sum()

        with second_order("least_squares_batch", r.device):
            slope = torch.func.grad(cost)
            H, x = torch.func.jacrev(slope)(ends.x[:, i])[free][:, free], ends.x[:, i]
        if not len(H) or not bool(H.isfinite().all()):
            continue
        scale = torch.where(H.diagonal() > 0, H.diagonal(), 1.0).sqrt()
        values, Q = torch.linalg.eigh(H / scale / scale[:, None])
        z, p = Q.T @ (model.gradient[free, i] / scale), torch.zeros_like(x)
        if not bool((values > len(values) * eps * values[-1]).all()):
            continue
        p[free] = -Q @ (z / values) / scale
        small = bool(0.5 * (z**2 / values).sum() <= model.noise[i] * model.size[i])
        found[i] = small and not leads_on(_within(slope, free), torch.dot, x, p, model.gradient[:, i] * free)
    return found & rest


def _within(slope: Callable[[Tensor], Tensor], free: Tensor) -> Callable[[Tensor], Tensor | None]:
    def evaluate(x: Tensor) -> Tensor | None:
        g = slope(x)
        return torch.where(free, g, 0.0) if bool(g.isfinite().all()) else None

    return evaluate


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
        if not r.requires_grad:
            raise NotDifferentiable(
                "least_squares_batch: residual must depend on x through torch operations, got a result without a "
                "graph; write it without .detach(), .item() and NumPy"
            )
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
