"""Least squares in a metric M: the run in the variables y with x = R y, R R' = M^-1, in which the metric is y'y.

Damping, trust regions, scales of columns and stopping tests are then those of y. The gradient that comes back is the
covector J'r in x, R^-T of that in y, and the covariance of x is R C R'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.operators import Metric, applied
from frechet.operators._metric import check_metric
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._function import frozen_point
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution
from frechet.optimize._least_squares.residual import Parameters
from frechet.optimize._least_squares.run import LeastSquaresState
from frechet.space import Variables, like, named


@dataclass(frozen=True, eq=False)
class InMetric:
    """A residual as a function of y."""

    residual: Callable[..., object]
    variables: Variables
    metric: Metric
    factor: LinearOperator
    y0: Tensor

    @classmethod
    def of(
        cls,
        residual: Callable[..., object],
        x0: Parameters,
        metric: object,
        bounds: object,
        structure: object,
        jacobian: object,
    ) -> InMetric:
        """The problem in y; what belongs to x alone is refused."""
        own = jacobian if callable(jacobian) else None
        for name, value in (("bounds", bounds), ("structure", structure), ("a jacobian of your own", own)):
            if value is not None:
                raise ValueError(f"least_squares: {name} must be left out in a metric, whose variables are not x")
        variables, blocks = frozen_point("least_squares", like(x0, [b.detach() for b in named(x0).values()]))
        given = check_metric("least_squares", metric, variables.space)
        if given.factor is None:
            raise ValueError(f"least_squares: metric must have a factor, got {given!r}; pass Metric(..., factor=R)")
        x = variables.space.join(blocks)
        return cls(residual, variables, given, given.factor, given.factor.T @ (given.mass @ x))

    def __call__(self, y: Tensor) -> object:
        return self.residual(self.variables.unflatten(applied(self.factor, y)))

    def in_x(self, found: LeastSquaresSolution) -> LeastSquaresSolution:
        """The result in x."""
        R, M, y = self.factor, self.metric.mass, found.x
        assert isinstance(y, Tensor)
        x = R @ y
        space = self.variables.space
        covariance, null, errors = found.covariance, found.null_directions, found.standard_errors
        if null is not None:
            null = space.orthonormalize(R @ null.to(x))[0] if null.shape[1] else null
        if covariance is not None:
            covariance = (R @ (R @ covariance.to(x)).T).double()
        if covariance is not None and null is not None and errors is not None:
            loose = null.square().sum(1).sqrt() > space.eps**0.5
            errors = torch.where(loose, torch.inf, covariance.diagonal().clamp(min=0).sqrt())
        return replace(
            found,
            x=self.variables.unflatten(x),
            gradient=(M @ (R @ found.gradient.to(x))).double(),
            covariance=covariance,
            null_directions=null,
            standard_errors=errors,
            method=f"{found.method}, in a metric",
            space=space,
        )

    def observed(
        self, observe: Callable[[LeastSquaresState], bool] | None
    ) -> Callable[[LeastSquaresState], bool] | None:
        """The observer, who is shown x."""
        if observe is None:
            return None
        return lambda now: observe(replace(now, x=(self.factor @ now.x.to(self.y0)).double()))
