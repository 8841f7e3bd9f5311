"""The result of nonlinear least squares: the minimizer, how sure it is, and a page that says how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.optimize._least_squares.damped_step import column_scale, factored
from frechet.optimize._least_squares.residual import Linearization
from frechet.space import Space

ROWS = 40  # of parameters in the report
LOOSE = math.sqrt(torch.finfo(torch.float64).eps)  # part of a parameter in the null space from which it is unknown
DEAR = 1 << 20  # entries of J from which its factors are not made for a point that is no solution
MOST = 1 << 24  # entries of a covariance or of null directions: 128 MiB


@dataclass(frozen=True, eq=False)
class LeastSquaresSolution:
    """Where `least_squares` ended. Everything but `history` is recomputed at `x`, from the definition.

    `residual` is norm(r), `optimality` the largest cosine between r and a column of J that is free to move, `cost` half
    the sum of squares (or of the robust loss). `active` has -1 and 1 where a lower and an upper bound holds a
    parameter. `covariance` ``(n, n)`` is norm(r)^2 / (observations - rank) (J'J)^-1, or (J'J)^-1 with
    ``absolute_sigma=True``. It is zero for held parameters, and the pseudo-inverse where J lacks rank; then
    `standard_errors` are infinite for the parameters that enter `null_directions` ``(n, n - rank)``, the orthonormal
    directions in which r does not change to first order. `observations` counts the residuals that are not missing: a
    residual is missing if it and its derivatives are exactly zero.

    `covariance` and `null_directions` are None where they would have more than 2^24 entries; `standard_errors` stay.
    Rank, directions, observations, covariance and errors are None for matrix-free runs, rank and directions also where
    J has more than 2^20 entries and the result is not converged. Covariance and errors are None
    as well where the result is not converged, and, unless sigma is absolute, where no degree of freedom is left.
    """

    x: Tensor | dict[str, Tensor]
    status: Status
    message: str
    cost: float
    residual: float
    optimality: float
    residuals: Tensor  # (m,), r(x)
    gradient: Tensor  # (n,), flat
    active: Tensor  # (n,), -1, 0 or 1
    iterations: int
    residual_evaluations: int
    jacobian_evaluations: int
    products: int
    method: str
    start_cost: float
    rank: int | None = None
    observations: int | None = None
    null_directions: Tensor | None = None
    covariance: Tensor | None = None
    standard_errors: Tensor | None = None
    history: tuple[float, ...] = field(default=(), repr=False)  # the cost, per iteration
    space: Space | None = field(default=None, repr=False)

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> LeastSquaresSolution:
        """This solution if it converged; raises `NotConverged` otherwise."""
        if self.converged:
            return self
        raise NotConverged(f"least_squares: {self.message} (status '{self.status}', cost {self.cost:.6g})", self)

    def report(self) -> str:
        """How it went, as a page of text."""
        fell = f"{self.start_cost:.6g} -> {self.cost:.6g}"
        lines = [
            f"least squares: {len(self.residuals)} residuals, {len(self.gradient)} parameters",
            f"  status      {self.status}: {self.message}",
            f"  method      {self.method}",
            f"  cost        {fell} in {self.iterations} iterations; norm(r) = {self.residual:.6g}",
            f"  optimality  {self.optimality:.3g} (largest cosine between r and a free column of J)",
            f"  spent       {self.residual_evaluations} residuals, {self.jacobian_evaluations} Jacobians, "
            f"{self.products} products",
        ]
        if self.rank is not None and self.null_directions is not None:
            free = int((self.active == 0).sum())
            missing = len(self.residuals) - (self.observations or 0)
            if missing:
                lines.append(
                    f"  missing     {missing} residuals: they and their derivatives are zero, and do not count as data"
                )
            lines.append(f"  rank        {self.rank} of {free} free parameters")
            loose = [_combination(column, self._names()) for column in self.null_directions.T]
            lines += [f"              undetermined: {text}" for text in loose]
        flat, errors = self._flat(), self.standard_errors
        lines += ["", f"  {'parameter':<20}{'value':>20}{'standard error':>18}  bound"]
        held = {-1: "lower", 0: "", 1: "upper"}
        for i, name in enumerate(self._names()[:ROWS]):
            error = "" if errors is None else f"{float(errors[i]):.4g}"
            lines.append(f"  {name:<20}{float(flat[i]):>20.11g}{error:>18}  {held[int(self.active[i])]}".rstrip())
        if len(flat) > ROWS:
            lines.append(f"  and {len(flat) - ROWS} more")
        return "\n".join(lines)

    def _flat(self) -> Tensor:
        return (
            torch.cat([b.reshape(-1) for b in self.x.values()]) if isinstance(self.x, Mapping) else self.x.reshape(-1)
        )

    def _names(self) -> list[str]:
        blocks = [("x", self.x)] if isinstance(self.x, Tensor) else list(self.x.items())
        return [f"{name}[{i}]" if b.ndim else name for name, b in blocks for i in range(b.numel())]


def _combination(direction: Tensor, names: list[str]) -> str:
    """The largest terms of a direction, as a sum."""
    order = direction.abs().argsort(descending=True)[:4].tolist()
    terms = [f"{float(direction[i]):+.3g} {names[i]}" for i in order if abs(float(direction[i])) > 1e-3]
    return " ".join(terms) + (" ..." if int((direction.abs() > 1e-3).sum()) > 4 else "")


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What J at the minimum says of the parameters."""

    rank: int | None
    observations: int
    null_directions: Tensor | None
    covariance: Tensor | None
    standard_errors: Tensor | None


def uncertainty(linear: Linearization, free: Tensor, sigma: float | None = None, solved: bool = True) -> Uncertainty:
    """Rank, null directions and covariance from the free columns of J, in units that give each the same norm.

    `sigma` is the standard deviation of the entries of r; it is estimated from r where it is None.
    """
    n = len(linear.x)
    # a weight of zero or a mask leaves a row of zeros, which no continuous noise would
    observations = int(((linear.point.r != 0) | (linear.J != 0).any(1)).sum())
    if not solved and linear.J.numel() >= DEAR:
        return Uncertainty(None, observations, None, None, None)
    scale = column_scale(linear.columns)
    factor = factored(linear, scale, free)
    rank = factor.rank
    V = torch.zeros(n, rank, dtype=torch.float64)
    V[free] = factor.V[:, :rank] / scale[free, None]
    # the null space of J: what is orthogonal to the rows, as an orthonormal basis in the units of x
    rows = factor.V[:, :rank] * scale[free, None]
    null, loose = None, torch.zeros(n, dtype=torch.bool)
    if n * (n - rank) <= MOST:
        complement = torch.linalg.svd(rows, full_matrices=True).U[:, rank:] if len(rows) else rows.new_zeros(0, 0)
        null = torch.zeros(n, complement.shape[1], dtype=torch.float64)
        null[free] = complement
        loose = null.square().sum(1).sqrt() > LOOSE
    else:  # what the row space leaves of each unit vector
        loose[free] = (1 - torch.linalg.svd(rows, full_matrices=False).U.square().sum(1)).clamp(0).sqrt() > LOOSE
    if sigma is None:
        if observations <= rank:
            return Uncertainty(rank, observations, null, None, None)
        sigma = linear.size / math.sqrt(observations - rank)
    half = sigma * V / factor.s[:rank]
    covariance = half @ half.T if n * n <= MOST else None
    errors = half.square().sum(1).sqrt()
    return Uncertainty(rank, observations, null, covariance, torch.where(loose, math.inf, errors))
