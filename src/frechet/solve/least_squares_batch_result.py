"""The result of many small least-squares problems."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from frechet.errors import NotConverged
from frechet.linalg.result import Status


@dataclass(frozen=True, eq=False)
class LeastSquaresBatch:
    """Where `least_squares_batch` ended, per problem; everything is recomputed at `x` from the definition.

    `standard_errors` ``(b, n)`` are those of the covariance norm(r)^2 / (m - rank) (J'J)^-1, infinite where J lacks
    rank or no degree of freedom is left, zero where a bound holds the parameter.
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
            f"{self.reason(first)}",
            self,
        )

    def reason(self, i: int) -> str:
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
