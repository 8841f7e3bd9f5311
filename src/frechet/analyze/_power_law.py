"""Power laws fitted to measurements, with the covariance of their exponents.

    y = c x_1^m_1 ... x_k^m_k        or, with a floor,        y = e + c x^-m

Residuals are those of log y, so an error counts relative to the value.

**Source.** Bergsma et al., "Power lines: scaling laws for weight decay and batch size in LLM pre-training" (2025),
arXiv 2505.13738: weight decay, batch size and timescale as such laws.
**Differs from the source.** Errors of the exponents come from the covariance of the fit, and predictions carry theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import scipy
import torch
from torch import Tensor

from frechet.analyze._stability import Range
from frechet.linalg._shown import Result
from frechet.optimize._least_squares.least_squares import least_squares


@dataclass(frozen=True, eq=False)
class PowerLaw(Result):
    """y = floor + coefficient prod x_i^exponents_i.

    `covariance` is that of `parameters`: log coefficient, exponents, and the logarithm of the floor where there is one.
    `scatter` is the standard deviation of log y about the law.
    """

    coefficient: float
    exponents: tuple[float, ...]
    standard_errors: tuple[float, ...]  # of the exponents
    floor: float
    scatter: float
    parameters: Tensor = field(repr=False)
    covariance: Tensor = field(repr=False)
    degrees_of_freedom: int

    def interval(self, i: int = 0, level: float = 0.95) -> tuple[float, float]:
        """The interval of exponent i."""
        half = float(scipy.stats.t.ppf(0.5 + level / 2, self.degrees_of_freedom)) * self.standard_errors[i]
        return self.exponents[i] - half, self.exponents[i] + half

    def predict(self, *x: float, level: float = 0.95) -> Range:
        """The law at x, with the interval of a new measurement there: its scatter, and the errors of the parameters."""
        if len(x) != len(self.exponents) or min(x) <= 0:
            raise ValueError(f"PowerLaw.predict: needs {len(self.exponents)} positive numbers, got {x}")
        logs = torch.tensor([math.log(v) for v in x], dtype=torch.float64)
        slope = torch.func.grad(lambda p: _log_law(p, logs[None], self.floor > 0)[0])(self.parameters)
        middle = float(_log_law(self.parameters, logs[None], self.floor > 0)[0])
        variance = float(slope @ self.covariance @ slope) + self.scatter**2
        half = float(scipy.stats.t.ppf(0.5 + level / 2, self.degrees_of_freedom)) * math.sqrt(variance)
        return Range(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def fit_power_law(x: Tensor, y: Tensor, *, floor: bool = False) -> PowerLaw:
    """Fit a power law, with the standard errors of its exponents.

    Args:
        x: the positive inputs ``(N,)``, or ``(N, k)`` for a product of powers.
        y: the positive measurements ``(N,)``.
        floor: whether the law has a positive floor e that is fitted too; with one input only.

    Example:
        >>> import torch
        >>> from frechet.analyze import fit_power_law
        >>> x = torch.tensor([1.0, 2.0, 4.0, 8.0])
        >>> law = fit_power_law(x, 3 * x**0.5)
        >>> round(law.coefficient, 6), round(law.exponents[0], 6)
        (3.0, 0.5)
    """
    X, Y = (x[:, None] if x.ndim == 1 else x).double(), y.double()
    if X.ndim != 2 or Y.shape != X.shape[:1]:
        raise ValueError(
            f"fit_power_law: x must be (N,) or (N, k) and y (N,), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not bool((X > 0).all() and (Y > 0).all() and torch.isfinite(X).all() and torch.isfinite(Y).all()):
        raise ValueError("fit_power_law: x and y must be positive and finite: a power law has a logarithm")
    if floor and X.shape[1] != 1:
        raise ValueError(f"fit_power_law: floor needs one input, got {X.shape[1]}")
    N, p = X.shape[0], X.shape[1] + 1 + floor
    if p >= N:
        raise ValueError(f"fit_power_law: needs more than {p} measurements for {p} numbers, got {N}")
    L, target = X.log(), Y.log()
    line = torch.linalg.lstsq(torch.cat([torch.ones(N, 1, dtype=torch.float64), L], 1), target[:, None]).solution[:, 0]
    start = torch.cat([line, (0.5 * Y.min()).log()[None]]) if floor else line
    found = least_squares(lambda q: _log_law(q, L, floor) - target, start).checked()
    covariance = found.covariance
    assert isinstance(found.x, Tensor)
    if covariance is None or (found.rank or 0) < p:
        raise ValueError("fit_power_law: the measurements do not determine the law: x must take different values")
    sd = covariance.diagonal().sqrt()
    rest = math.sqrt(float((_log_law(found.x, L, floor) - target).square().sum()) / (N - p))
    k = X.shape[1]
    return PowerLaw(
        math.exp(float(found.x[0])), tuple(found.x[1 : k + 1].tolist()), tuple(sd[1 : k + 1].tolist()),
        math.exp(float(found.x[-1])) if floor else 0.0, rest, found.x, covariance, N - p,
    )  # fmt: skip


def _log_law(p: Tensor, logs: Tensor, floor: bool) -> Tensor:
    """log y at the rows of log x."""
    if not floor:
        return p[0] + logs @ p[1:]
    return torch.logaddexp(p[0] + logs @ p[1:-1], p[-1].expand(logs.shape[0]))
