"""The result of many small least-squares problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg._result import Status
from frechet.optimize._least_squares.batched_triangles import length, lengths, substituted, triangle, units


@dataclass(frozen=True, eq=False)
class LeastSquaresBatch:
    """Where `least_squares_batch` ended, per problem; everything is recomputed at `x` from the definition.

    `standard_errors` ``(b, n)`` are those of the covariance norm(r)^2 / (m - rank) (J'J)^-1, or (J'J)^-1 with
    ``absolute_sigma=True``. They are infinite where J lacks rank or, unless sigma is absolute, no degree of freedom is
    left, zero where a bound holds the parameter, and NaN where the problem is not converged. m counts the residuals
    that are not missing: a residual is missing if it and its derivatives are exactly zero.
    """

    x: Tensor  # (b, n)
    status: tuple[Status, ...]
    converged: Tensor  # (b,), bool
    cost: Tensor  # (b,), norm(r)^2 / 2
    residuals: Tensor  # (b, m)
    optimality: Tensor  # (b,), the largest cosine between r and a free column of J
    iterations: Tensor  # (b,), accepted steps
    evaluations: Tensor  # (b,), of residual and Jacobian each
    standard_errors: Tensor  # (b, n)

    def checked(self) -> LeastSquaresBatch:
        """This result if every problem converged; raises `NotConverged` otherwise."""
        if bool(self.converged.all()):
            return self
        first = int((~self.converged).nonzero()[0])
        raise NotConverged(
            f"least_squares_batch: {int(self.converged.sum())} of {len(self.converged)} problems converged; problem "
            f"{first} stopped with status '{self.status[first]}' at cost {float(self.cost[first]):.6g}: "
            f"{self.message(first)}",
            self,
        )

    def message(self, i: int) -> str:
        """Why problem `i` stopped, as a sentence."""
        cosine, spent = float(self.optimality[i]), int(self.evaluations[i])
        match self.status[i]:
            case Status.CONVERGED:
                return f"no step can reduce the cost by more than rounding errors, largest cosine {cosine:.3g}"
            case Status.MAX_ITERATIONS:
                return f"the limit was reached after {spent} residuals, largest cosine {cosine:.3g}"
            case _ if cosine == 0:
                return "the residual does not depend on a parameter where this ended: the model is flat there"
            case _:
                return (
                    f"no step reduces the cost, but the largest cosine is {cosine:.3g}: the residual may be "
                    "discontinuous or noisy, or have run to where a parameter no longer matters"
                )


@dataclass(frozen=True, eq=False)
class Ends:
    """The last good point of every problem of a run."""

    x: Tensor
    low: Tensor
    high: Tensor
    status: list[Status]
    counts: Tensor  # (2, b): accepted steps, evaluations

    def keep(self, which: Tensor, who: Tensor, x: Tensor, steps: Tensor, taken: int) -> None:
        self.counts[1, who] = taken + 1  # one more at the end
        if not bool(which.all()):
            who, x, steps = who[which], x[:, which], steps[which]
        self.x[:, who], self.counts[0, who] = x, steps

    def mark(self, which: Tensor, who: Tensor, status: Status) -> None:
        for i in who[which].tolist():
            self.status[i] = status

    def refuse(self, which: Tensor) -> None:
        for i in which.nonzero()[:, 0].tolist():
            if self.status[i] is Status.CONVERGED:
                self.status[i] = Status.STAGNATED

    def accept(self, which: Tensor) -> None:
        for i in which.nonzero()[:, 0].tolist():
            self.status[i] = Status.CONVERGED

    def result(self, r: Tensor, J: Tensor, absolute: bool) -> LeastSquaresBatch:
        x, n = self.x, len(J)
        m = ((r != 0) | (J != 0).any(0)).sum(0)
        gradient, columns, size = (J * r).sum(1), lengths(J), length(r)
        held = ((x <= self.low) & (gradient >= 0)) | ((x >= self.high) & (gradient <= 0))
        D = torch.where(columns > 0, columns, 1.0)
        R, _ = triangle(torch.where(held[:, None], 0.0, J / D[:, None]), r)
        rank = sum((row[0] > 0 for row in R), start=torch.zeros_like(x[0]))
        eye = torch.eye(n, dtype=x.dtype, device=x.device)[..., None].expand(n, n, x.shape[1])
        inverse = torch.stack([substituted(R, eye[k]) for k in range(n)])
        sigma = torch.ones_like(size) if absolute else size / (m - rank).clamp(min=1).sqrt()
        errors = inverse.square().sum(0).sqrt() / D * sigma
        unknown = (rank < n - held.sum(0)) | ((m <= rank) & (not absolute))
        errors = torch.where(held, 0.0, torch.where(unknown, math.inf, errors))
        unit = units(r, 0)
        slopes = (J / columns.where(columns > 0, 1.0)[:, None] * (r / unit)).sum(1).abs()
        cosines = torch.where(~held & (columns > 0) & (size > 0), slopes / (size / unit), 0.0)
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
            standard_errors=torch.where(done, errors, math.nan).T.contiguous(),
        )
