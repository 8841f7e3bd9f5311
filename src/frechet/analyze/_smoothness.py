"""How curvature grows with the gradient along a run: |H| = L0 + L1 |g|^a.

With L1 = 0 the loss is smooth in the usual sense. With L1 > 0 a constant rate is too short far from a minimum or too
long near it; the step x - c g / |g|^b with b between a and 1 fits.

Both numbers fall with time in most runs. So a fit shows that they fall together, not that one follows from the other.
`partial` is the correlation of their logarithms with the measurement's number taken out of both.

**Source.** Chen, Zhou, Liang and Lu, "Generalized-smooth nonconvex optimization is as efficient as smooth nonconvex
optimization" (2023), arXiv 2303.02854: the powers a. Zhang, He, Sra and Jadbabaie (2020), arXiv 1905.11881: a = 1.
**Differs from the source.** Curvature at a point in place of a Lipschitz constant on a segment; standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.optimize._least_squares.least_squares import least_squares

TINY = torch.finfo(torch.float64).tiny
BOUND = 1e-8  # of a number of order 1: nearer to its bound it counts as there
SPAN = 10.0  # the least ratio of the largest to the smallest gradient norm that tells the three numbers apart


@dataclass(frozen=True, eq=False)
class Smoothness(Result):
    """|H| = L0 + L1 |g|^power with standard errors; `scatter` is the standard deviation of log |H| about it."""

    L0: float
    L1: float
    power: float
    standard_errors: tuple[float, ...]  # of L0, L1 and the power; nan where it was given or ends at a bound
    scatter: float
    partial: float  # correlation of log |H| and log |g| with the number of the measurement taken out
    degrees_of_freedom: int

    def curvature(self, gradient_norm: float) -> float:
        """The fitted curvature where the gradient has this norm."""
        return self.L0 + self.L1 * gradient_norm**self.power


def fit_smoothness(gradient_norms: Tensor, curvatures: Tensor, *, power: float | None = None) -> Smoothness:
    """Fit the growth of curvature with the gradient's norm along a run.

    Args:
        gradient_norms: positive norms of gradients ``(N,)``, in the order of the run. The largest must be at least
            ten times the smallest.
        curvatures: the largest eigenvalues there ``(N,)``, positive.
        power: the exponent a where it is known, between 0 and 2. Default: it is fitted.

    Example:
        >>> import torch
        >>> from frechet.analyze import fit_smoothness
        >>> g = torch.logspace(-2, 1, 20)
        >>> fit = fit_smoothness(g, 0.5 + 3 * g)
        >>> round(fit.L0, 4), round(fit.L1, 4), round(fit.power, 4)
        (0.5, 3.0, 1.0)
    """
    g, h = gradient_norms.detach().double().cpu(), curvatures.detach().double().cpu()
    if g.ndim != 1 or g.shape != h.shape:
        raise ValueError(
            f"fit_smoothness: gradient_norms and curvatures must be (N,), got {tuple(g.shape)} and {tuple(h.shape)}"
        )
    if power is not None and not 0 < power <= 2:
        raise ValueError(f"fit_smoothness: power must lie between 0 and 2, got {power}")
    free = 3 if power is None else 2
    if len(g) <= free:
        raise ValueError(f"fit_smoothness: {free} numbers need more than {free} measurements, got {len(g)}")
    if not bool((torch.isfinite(g) & torch.isfinite(h) & (g > 0) & (h > 0)).all()):
        raise ValueError("fit_smoothness: gradient_norms and curvatures must be positive and finite")
    if float(g.max() / g.min()) < SPAN:
        raise ValueError(
            f"fit_smoothness: gradient_norms must span a factor of {SPAN:g} to tell L0 from L1, got "
            f"{float(g.max() / g.min()):.3g}; take measurements from more of the run"
        )
    unit_g, unit_h = g.log().mean().exp(), h.log().mean().exp()  # so that all three numbers are of order 1
    logs, target = (g / unit_g).log(), (h / unit_h).log()

    def law(q: Tensor) -> Tensor:
        exponent = q[2] if power is None else power
        return (q[0] + q[1] * torch.exp(exponent * logs) + TINY).log()

    upper = torch.tensor([math.inf, math.inf, 2.0], dtype=torch.float64)[:free]
    start = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)[:free]
    found = least_squares(lambda q: law(q) - target, start, bounds=(torch.zeros_like(start), upper)).checked()
    q = found.x
    assert isinstance(q, Tensor)
    if power is None and q[2] <= BOUND:  # no growth: both numbers are one
        q = torch.stack([q[0] + q[1], torch.zeros_like(q[1]), q[2]])
    residual = law(q) - target
    scatter = math.sqrt(float(residual.square().sum()) / (len(g) - free))
    a = float(q[2]) if power is None else power
    inside = (q > BOUND) & (q < upper - BOUND)
    if power is None and not inside[1]:
        inside[2] = False  # without growth the power means nothing
    errors = torch.full((3,), torch.nan, dtype=torch.float64)
    J = torch.func.jacfwd(law)(q)[:, inside]
    places = torch.arange(free)[inside]
    errors[places] = scatter * torch.linalg.pinv(J.T @ J).diagonal().sqrt()
    units = torch.stack([unit_h, unit_h / unit_g**a, torch.ones_like(unit_h)])
    L0, L1 = (float(v) for v in (q * units[:free])[:2])
    return Smoothness(
        L0, L1, a, tuple((errors * units).tolist()), scatter, _partial(logs, target), len(g) - free
    )  # fmt: skip


def _partial(a: Tensor, b: Tensor) -> float:
    """The correlation of a and b after a straight line in their number is taken out of both."""
    t = torch.arange(len(a), dtype=a.dtype)
    line = torch.stack([torch.ones_like(t), t], 1)
    rest = [v - line @ torch.linalg.lstsq(line, v[:, None]).solution[:, 0] for v in (a, b)]
    return float(torch.corrcoef(torch.stack(rest))[0, 1])
