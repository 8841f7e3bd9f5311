"""What algorithms return: how it went, what it cost, how far to trust it.

`Estimate.interval` is value +- q * standard_error with q Student's quantile for `degrees_of_freedom`
(the normal quantile where that is infinite).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import scipy
import torch
from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._shown import Result, Rows, short
from frechet.space import Space


class Status(StrEnum):
    """Why an iteration stopped."""

    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    STAGNATED = "stagnated"  # the recurrence met its tolerance or stopped moving, the true residual did not
    INDEFINITE = "indefinite"  # a direction of non-positive curvature was met
    SINGULAR = "singular"  # least-squares solution of an inconsistent singular system
    BREAKDOWN = "breakdown"  # the Krylov space is exhausted
    NONFINITE = "nonfinite"
    INFEASIBLE = "infeasible"  # the violation of the constraints is at a minimum that is not zero
    UNBOUNDED = "unbounded"  # values without end below
    STOPPED = "stopped"  # observe returned True


@dataclass(frozen=True, eq=False)
class Solution(Result):
    """The result of an iterative solve. `residual` is recomputed from the definition at exit."""

    x: Tensor
    status: Status
    residual: float
    iterations: int
    products: int
    history: tuple[float, ...] = field(default=(), repr=False)
    message: str = ""
    direction: Tensor | None = None  # of non-positive curvature, where status is INDEFINITE
    evaluations: int | None = None  # of the caller's function, where there is one

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def _line(self) -> str:
        return f"x {short(self.x)}, {self.status}, residual {self.residual:.3g}, {self.products} products"

    def plot(self, axes: Any) -> Any:
        """Draw the history of the iteration into matplotlib's `axes`, on a logarithmic scale; returns them."""
        axes.semilogy(range(len(self.history)), self.history)
        axes.set_xlabel("iteration")
        axes.set_ylabel("residual")
        return axes

    def checked(self) -> Solution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(
            f"{self.message or 'solve'}: stopped with status '{self.status}' after {self.iterations} iterations, "
            f"residual {self.residual:.3g}",
            self,
        )


@dataclass(frozen=True, eq=False)
class Estimate(Result):
    """A number or a vector of numbers with its standard error. `exact` means a closed form: nothing was drawn."""

    value: Tensor
    standard_error: Tensor
    samples: int
    products: int
    seed: int | None
    exact: bool = False
    degrees_of_freedom: float = math.inf
    converged: bool | None = None  # for `rtol=`: whether the tolerance was met
    method: str = ""

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the interval that covers the true value with probability `level`."""
        if not 0 < level < 1:
            raise ValueError(f"interval: level must lie between 0 and 1, got {level}")
        q = float(scipy.stats.t.ppf(0.5 + level / 2, self.degrees_of_freedom))
        return self.value - q * self.standard_error, self.value + q * self.standard_error

    def __float__(self) -> float:
        return float(self.value)

    def _line(self) -> str:
        cost = f"{self.products} products, {self.method}"
        if self.value.ndim:
            return f"{short(self.value)}, {cost}"
        return f"{float(self.value):.6g}{'' if self.exact else f' ± {self._half():.2g}'}, {cost}"

    def _half(self) -> float:
        low, high = self.interval()
        return float(high - low) / 2

    def _table(self) -> Rows:
        rows = [("value", short(self.value)), ("standard error", short(self.standard_error))]
        if not self.value.ndim and not self.exact:
            rows.append(("95 % interval", "[{:.5g}, {:.5g}]".format(*map(float, self.interval()))))
        told = ("method", "products", "samples", "seed", "converged")
        rows += [(name, short(getattr(self, name))) for name in told if getattr(self, name) is not None]
        return ("", ""), rows


@dataclass(frozen=True, eq=False)
class Spectrum(Result):
    """Eigen- or singular values with vectors. `residuals[i]` bounds the distance of `values[i]` to the spectrum.

    `left` holds the left singular vectors of `svds` and is None for eigenpairs.
    """

    values: Tensor  # (k,), float64
    vectors: Tensor  # (n, k)
    residuals: Tensor  # (k,), float64
    converged: Tensor  # (k,), bool
    iterations: int
    products: int
    status: Status
    left: Tensor | None = None
    space: Space | None = field(default=None, repr=False)

    def _line(self) -> str:
        count, done = self.values.numel(), int(self.converged.sum())
        ends = f"{float(self.values[0]):.5g} to {float(self.values[-1]):.5g}, " if count else ""
        return f"{ends}{done} of {count} converged, {self.status}, {self.products} products"

    def _table(self) -> Rows:
        rows = [
            (f"{v:.6g}", f"{r:.2g}", "yes" if c else "no")
            for v, r, c in zip(self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True)
        ]
        return ("value", "residual", "converged"), rows

    def plot(self, axes: Any) -> Any:
        """Draw the values with their residuals into matplotlib's `axes`; returns them."""
        axes.errorbar(range(1, self.values.numel() + 1), self.values.tolist(), self.residuals.tolist(), fmt="o")
        axes.set_xlabel("number")
        axes.set_ylabel("value")
        return axes

    def checked(self) -> Spectrum:
        """This spectrum if every pair converged; raises `NotConverged` otherwise."""
        if bool(self.converged.all()):
            return self
        raise NotConverged(
            f"spectrum: {int(self.converged.sum())} of {self.values.numel()} pairs converged (status '{self.status}', "
            f"{self.products} products, largest residual {float(self.residuals.max()):.3g})",
            self,
        )


def exact_estimate(value: float | Tensor, products: int = 0, method: str = "closed form") -> Estimate:
    """An `Estimate` without error."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return Estimate(value, torch.zeros_like(value), 0, products, None, exact=True, converged=True, method=method)
