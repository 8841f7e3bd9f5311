"""The loss over a training run as a function of its learning-rate schedule, fitted on curves and predicting others.

    L(s) = L0 + A S1(s)^-alpha - C S2(s),    S1 = sum_i eta_i,    S2 = sum_i m_i
    m_i = lam m_{i-1} + (eta_{i-1} - eta_i)

S1 is the area under the schedule, and S2 counts how far and how long ago the rate has fallen.

**Source.** Tissue, Wang and Wang, "Scaling law with learning rate annealing" (2024), arXiv 2408.11029.
**Differs from the source.** (1) The parameters carry a covariance. It treats the residuals as independent, and those of
one curve are not: give points that lie far apart. (2) lam is the best of a few values, without an error.
**Known.** On public curves of 100M and 400M parameters, fitted on two schedules of 24 000 steps, a third was predicted
to 0.08 % and 0.15 % on average. The final loss was too low by 0.5 % and 1.3 %: enough to see a curve coming, not to
choose between schedules that are closer than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution

LAMBDAS = (0.9, 0.95, 0.99, 0.995, 0.999)
HUBER = 1e-3  # of log losses, as in the source


@dataclass(frozen=True, eq=False)
class AnnealingLaw(Result):
    """L0, A, alpha and C of the law, with their standard errors; `covariance` is that of their logarithms."""

    L0: float
    A: float
    alpha: float
    C: float
    lam: float
    standard_errors: tuple[float, float, float, float]
    worst: float  # the largest error of log loss at a point of the fit
    covariance: Tensor = field(repr=False)

    def predict(self, rates: Tensor) -> Tensor:
        """The loss after each step of a schedule ``(T,)`` of learning rates."""
        S1, S2 = _areas(rates.double(), self.lam)
        return self.L0 + self.A * S1**-self.alpha - self.C * S2


def fit_annealing_law(
    curves: Sequence[tuple[Tensor, Tensor, Tensor]], *, lambdas: Sequence[float] = LAMBDAS
) -> AnnealingLaw:
    """Fit the annealing law to loss curves, with standard errors.

    Args:
        curves: for each run, the learning rate of every step ``(T,)``, the steps at which the loss is known ``(k,)``
            (step 1 is the first), and the losses there ``(k,)``. At least one rate must fall, or C is not determined.
        lambdas: the values of lam that are tried.

    Example:
        >>> import torch
        >>> from frechet.analyze import fit_annealing_law
        >>> steps = torch.arange(50, 1001, 50)
        >>> rates = [torch.ones(1000), torch.linspace(1, 0, 1000)]
        >>> def loss(r):
        ...     m, fallen, S2 = 0.0, 0.0, []
        ...     for a, b in zip([1.0, *r.tolist()], r.tolist()):
        ...         m = 0.99 * m + a - b
        ...         fallen += m
        ...         S2.append(fallen)
        ...     return 2 + 3 * r.double().cumsum(0) ** -0.5 - 0.002 * torch.tensor(S2, dtype=torch.float64)
        >>> law = fit_annealing_law([(r, steps, loss(r)[steps - 1]) for r in rates])
        >>> law.lam, round(law.L0, 3), round(law.alpha, 3)
        (0.99, 2.0, 0.5)
    """
    if not curves:
        raise ValueError("fit_annealing_law: curves must hold at least one run")
    for rates, steps, losses in curves:
        good = rates.ndim == 1 and steps.shape == losses.shape and steps.ndim == 1 and len(steps)
        if not good or int(steps.min()) < 1 or int(steps.max()) > len(rates) or not bool((losses > 0).all()):
            raise ValueError(
                "fit_annealing_law: a curve must be rates (T,), steps (k,) from 1 to T and positive losses (k,), got "
                f"{tuple(rates.shape)}, {tuple(steps.shape)} and {tuple(losses.shape)}"
            )
    target = torch.cat([losses.double() for _, _, losses in curves]).log()
    best, cost, lam = None, float("inf"), lambdas[0]
    for value in lambdas:
        found = _fitted(curves, target, value)
        if found is not None and found.cost < cost:
            best, cost, lam = found, found.cost, value
    if best is None or best.covariance is None:
        raise ValueError(
            "fit_annealing_law: the curves do not determine the law: at least one schedule must anneal, and the points "
            "must be more than the four parameters"
        )
    assert isinstance(best.x, Tensor)
    L0, A, alpha, C = best.x.exp().tolist()
    a, b, c, d = (best.covariance.diagonal().sqrt() * best.x.exp()).tolist()
    return AnnealingLaw(L0, A, alpha, C, lam, (a, b, c, d), float(best.residuals.abs().max()), best.covariance)


def _fitted(curves: Sequence[tuple[Tensor, Tensor, Tensor]], target: Tensor, lam: float) -> LeastSquaresSolution | None:
    """The law at one lam in the logarithms of L0, A, alpha and C; None where the fit does not converge."""
    areas = [[area[steps.long() - 1] for area in _areas(rates.double(), lam)] for rates, steps, _ in curves]
    S1, S2 = (torch.cat(parts) for parts in zip(*areas, strict=True))
    losses = target.exp()
    if len(target) <= 4 or not bool((S2 != 0).any()):
        return None

    def residual(p: Tensor) -> Tensor:
        L0, A, alpha, C = p.exp()
        # far from the solution the law may fall below 0, where it has no logarithm
        return (L0 + A * S1**-alpha - C * S2).clamp(min=1e-3 * float(losses.min())).log() - target

    best = None
    for alpha in (0.3, 0.8):  # linear least squares gives the rest of a start
        M = torch.stack([torch.ones_like(S1), S1**-alpha, -S2], 1)
        first = torch.linalg.lstsq(M, losses[:, None]).solution[:, 0]
        floor = 1e-3 * losses.min() / torch.stack([torch.ones(()).double(), (S1**-alpha).max(), S2.abs().max()])
        L0, A, C = torch.maximum(first, floor)
        start = torch.stack([L0, A, torch.tensor(alpha, dtype=torch.float64), C]).log()
        found = least_squares(residual, start, loss="huber", loss_scale=HUBER)
        if found.converged and (best is None or found.cost < best.cost):
            best = found
    return best


def _areas(rates: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    falls = (torch.cat([rates[:1], rates[:-1]]) - rates).tolist()
    m, total, out = 0.0, 0.0, []
    for fall in falls:
        m = lam * m + fall
        total += m
        out.append(total)
    return rates.cumsum(0), torch.tensor(out, dtype=torch.float64)
