"""Many transport problems of one size at once, by Sinkhorn's sweeps.

    min <C, P> + epsilon KL(P | a b'/m)    for each of a batch of costs ``(..., n, m)``

Epsilon falls in stages, as in `sinkhorn`; between two passes of exponentials the sweeps are products with the plans of
all problems, on scalings that are taken into the potentials before the range of the dtype ends. A problem that has
converged goes on with the others, which only makes it better.

**Source.** As `_scaling.py`.

**Cost.** Two plans of memory; a sweep is two batched products. No Newton steps: for small epsilon and many digits solve
one by one with `sinkhorn`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged
from frechet.transport._problem import check_plain

FALL = 4.0  # of epsilon, from stage to stage
STAGE = 1e-2  # the error that ends a stage
ROUND = 25  # sweeps, at most, between two passes of exponentials


@dataclass(frozen=True, eq=False)
class TransportBatch:
    """The plans of a batch, by their potentials: P = a b'/m exp((f + g - C) / epsilon), with sum a f = sum b g.

    `marginal_error` ``(...)`` is sum |P 1 - a| + sum |P' 1 - b| of each problem, recomputed; `converged` says for each
    whether it met the tolerance.
    """

    f: Tensor  # (..., n)
    g: Tensor  # (..., m)
    cost: Tensor = field(repr=False)
    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    epsilon: float
    value: Tensor  # (...), <C, P>
    dual_value: Tensor  # (...)
    marginal_error: Tensor
    converged: Tensor  # (...), bool
    sweeps: int

    def plan(self) -> Tensor:
        """The plans ``(..., n, m)``, computed anew."""
        return _plan(self.cost, self.a, self.b, self.f, self.g, self.epsilon)

    def checked(self) -> TransportBatch:
        """This batch if every problem converged; raises `NotConverged` otherwise."""
        if bool(self.converged.all()):
            return self
        left = int((~self.converged).sum())
        raise NotConverged(
            f"sinkhorn_batch: {left} of {self.converged.numel()} problems did not converge in {self.sweeps} sweeps "
            f"(largest marginal error {float(self.marginal_error.max()):.3g}); raise epsilon or max_iterations, or "
            "solve them one by one with sinkhorn",
            self,
        )


@torch.no_grad()
def sinkhorn_batch(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float,
    rtol: float | None = None,
    max_iterations: int = 10_000,
) -> TransportBatch:
    """Estimate the plans of a batch of transport problems of one size.

    Args:
        cost: ``(..., n, m)``, finite.
        a: masses ``(..., n)``, >= 0, broadcast over the batch. Default: uniform, with sum 1.
        b: masses ``(..., m)``, with the sum of a in each problem. Default: uniform, with sum 1.
        epsilon: the weight of the entropy, > 0, in the unit of the cost, the same for all.
        rtol: relative tolerance. A problem has converged when ``marginal_error <= rtol * mass``. Default: as in
            `sinkhorn`.
        max_iterations: the most sweeps. Default: 10 000.

    Example:
        >>> import torch
        >>> from frechet.transport import sinkhorn_batch
        >>> cost = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [2.0, 0.0]]], dtype=torch.float64)
        >>> s = sinkhorn_batch(cost, epsilon=0.5).checked()
        >>> torch.allclose(s.plan()[:, 0, 0], 0.5 / (1 + torch.exp(-2 * cost[:, 0, 1])))
        True
    """
    a, b = _checked(cost, a, b, epsilon, rtol, max_iterations)
    cost, mass = cost.detach(), a.sum(-1)
    b = b * (mass / b.sum(-1)).unsqueeze(-1)
    p, q = a / mass.unsqueeze(-1), b / mass.unsqueeze(-1)
    size, info = float(cost.abs().max()), torch.finfo(cost.dtype)
    rounding = info.eps * (4 + 4 * size / epsilon)
    tolerance = max(info.eps**0.75, rounding) if rtol is None else rtol
    reach, g, spent = -math.log(info.tiny) / 8, torch.zeros_like(q), 0
    stage = max(epsilon, float((cost.amax((-2, -1)) - cost.amin((-2, -1))).max()))
    best, idle = math.inf, 0
    while True:
        f, P, sums = _point(cost, p, q, g, stage)
        worst = float((sums - q).abs().sum(-1).max())
        last = stage == epsilon
        idle = 0 if worst < 0.9 * best else idle + 1
        best = min(best, worst)
        if (last and (worst <= tolerance / 2 or idle > 8)) or spent >= max_iterations or not math.isfinite(worst):
            break
        if not last and worst <= STAGE:
            stage, best, idle = max(stage / FALL, epsilon), math.inf, 0
            continue
        v = torch.ones_like(q)
        for _ in range(min(ROUND, max_iterations - spent)):
            v = torch.where(q > 0, q / sums.clamp(min=info.tiny), 1.0)
            u = torch.where(p > 0, p / (P @ v.unsqueeze(-1))[..., 0].clamp(min=info.tiny), 1.0)
            sums = (P.mT @ u.unsqueeze(-1))[..., 0]
            spent += 1
            if not float(torch.stack([v.log().abs().amax(), u.log().abs().amax()]).max()) < reach:
                break
        g = g + stage * v.log()
    if stage != epsilon:
        f, _, _ = _point(cost, p, q, g, epsilon)
    # of the columns without mass, which no sweep has moved
    fresh = -epsilon * torch.logsumexp((f.unsqueeze(-1) - cost) / epsilon + p.log().unsqueeze(-1), -2)
    g = torch.where(q > 0, g, fresh)
    t = ((q * g).sum(-1) - (p * f).sum(-1)).unsqueeze(-1) / 2
    f, g = f + t, g - t
    P = _plan(cost, a, b, f, g, epsilon)
    error = (P.sum(-1) - a).abs().sum(-1) + (P.sum(-2) - b).abs().sum(-1)
    dual = (a * f).sum(-1) + (b * g).sum(-1) - epsilon * (P.sum((-2, -1)) - mass)
    value = (P * cost).sum((-2, -1))
    return TransportBatch(f, g, cost, a, b, epsilon, value, dual, error, error <= tolerance * mass, spent)


def _point(cost: Tensor, p: Tensor, q: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best f, the plans with exact row sums, and their column sums."""
    M = (g.unsqueeze(-2) - cost).div_(epsilon)
    top = M.amax(-1, keepdim=True)
    P = M.sub_(top).exp_().mul_(q.unsqueeze(-2))
    sums = P.sum(-1)
    f = -epsilon * (top[..., 0] + sums.log())
    P.mul_((p / sums).unsqueeze(-1))
    return f, P, P.sum(-2)


def _plan(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    weight = a.log().unsqueeze(-1) + (b / b.sum(-1, keepdim=True)).log().unsqueeze(-2)
    return torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - cost) / epsilon + weight)


def _checked(
    cost: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float, rtol: float | None, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Masses for every problem, or the error that says what is wrong."""
    if not isinstance(cost, Tensor) or not cost.dtype.is_floating_point:
        got = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
        raise TypeError(f"sinkhorn_batch: cost must be a floating-point tensor, got {got}")
    if cost.ndim < 2 or not cost.numel():
        raise ValueError(
            f"sinkhorn_batch: cost must have shape (..., n, m) with no empty axis, got {tuple(cost.shape)}"
        )
    for name, x in (("cost", cost), ("a", a), ("b", b)):
        if isinstance(x, Tensor):
            check_plain("sinkhorn_batch", name, x)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"sinkhorn_batch: epsilon must be a number > 0, got {epsilon}")
    if (rtol is not None and not 0 <= rtol < math.inf) or max_iterations < 0:
        raise ValueError(
            f"sinkhorn_batch: rtol and max_iterations must be numbers >= 0, got {rtol} and {max_iterations}"
        )
    bad = ~torch.isfinite(cost)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise NonFinite(f"sinkhorn_batch: cost must be finite, got {float(cost[bad][0])} at {where}")
    p, q = _mass("a", a, cost, cost.shape[:-1]), _mass("b", b, cost, (*cost.shape[:-2], cost.shape[-1]))
    totals = p.sum(-1), q.sum(-1)
    if not bool(((totals[0] - totals[1]).abs() <= math.sqrt(torch.finfo(cost.dtype).eps) * totals[0]).all()):
        raise ValueError("sinkhorn_batch: a and b must have the same sum in each problem; divide each by its sum")
    if not bool((totals[0] > 0).all()):
        raise ValueError("sinkhorn_batch: a must have a positive sum in each problem")
    return p, q


def _mass(name: str, x: Tensor | None, cost: Tensor, shape: tuple[int, ...]) -> Tensor:
    if x is None:
        x = torch.full((shape[-1],), 1.0 / shape[-1], dtype=cost.dtype, device=cost.device)
    if x.dtype != cost.dtype or x.device != cost.device:
        raise TypeError(f"sinkhorn_batch: {name} must be {cost.dtype} on {cost.device}, as cost is")
    batch = zip(reversed(x.shape[:-1]), reversed(shape[:-1]), strict=False)
    fits = 1 <= x.ndim <= len(shape) and x.shape[-1] == shape[-1]
    if not fits or any(k not in (1, full) for k, full in batch):
        raise ValueError(f"sinkhorn_batch: {name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if not bool((x >= 0).all() & torch.isfinite(x).all()):
        raise ValueError(f"sinkhorn_batch: {name} must be finite and >= 0")
    return x.expand(shape)
