"""Optimal control and inverse problems: min J(y(x), x) for a state y that follows from a control x.

    derivative    dJ/dx, a covector, by the exact adjoint of the discrete state
    gradient      its Riesz representative in the metric of the controls: the only one of the two that is a step
    prior         |x - mean|_P^2 / 2 added to J, for inverse problems: x is normal with the precision P

The state is any function: a `march`, a solve by `applied(inverse, f)`, a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.operators import LinearOperator, Metric, applied
from frechet.operators._metric import check_metric
from frechet.operators.derivatives import hessian
from frechet.optimize import MinimizeSolution, minimize
from frechet.physics._posterior import Posterior, low_rank_posterior
from frechet.space import Point, Variables

Bounds = tuple[Any, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Control:
    """A cost of a control through the state that follows from it; a function of the control.

    Args:
        state: a function of the control to the state, of any form.
        cost: ``cost(state, control)``, a scalar; or residuals, a tensor of one axis or more, whose half sum of squares
            is the cost. Residuals of an inverse problem are divided by the standard deviation of the noise.
        metric: the inner product of the controls. Default: that of the prior, else the Euclidean one.
        bounds: lower and upper, as in `minimize`.
        prior: the precision of a normal prior, whose half square distance from `mean` is added to the cost.
        mean: the mean of the prior, in the form of the control. Default: zero.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import sobolev
        >>> from frechet.physics import Control, march
        >>> dt = torch.full((50,), 0.02, dtype=torch.float64)
        >>> def state(u):  # y' = u - y, y(0) = 0
        ...     y0 = torch.zeros((), dtype=torch.float64)
        ...     return march(lambda y, c: y + c["dt"] * (c["u"] - y), y0, {"u": u, "dt": dt}).final
        >>> H1 = sobolev(50, 0.02, boundary="neumann")
        >>> control = Control(state, lambda y, u: (y - 1) ** 2 / 2 + 1e-3 * H1.inner(u, u) / 2, metric=H1)
        >>> s = control.minimize(torch.zeros(50, dtype=torch.float64))
        >>> s.converged, bool(state(s.x) > 0.99)
        (True, True)
    """

    state: Callable[[Any], Any]
    cost: Callable[[Any, Any], Tensor]
    metric: Metric | None = None
    bounds: Bounds | None = None
    prior: Metric | None = None
    mean: Point | None = None

    def __post_init__(self) -> None:
        for name in ("state", "cost"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Control: {name} must be a function, got {type(getattr(self, name)).__name__}")
        for name in ("metric", "prior"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Metric):
                raise TypeError(f"Control: {name} must be a Metric, got {type(given).__name__}; write Metric(mass)")
        if self.mean is not None and self.prior is None:
            raise ValueError("Control: prior must be given with a mean, got None")

    def __repr__(self) -> str:
        return f"Control({self._metric!r})" if self._metric is not None else "Control()"

    @property
    def _metric(self) -> Metric | None:
        return self.prior if self.metric is None else self.metric

    def __call__(self, x: Any) -> Tensor:
        """Return the cost of a control."""
        found = self.cost(self.state(x), x)
        if not isinstance(found, Tensor):
            raise TypeError(f"Control: cost must return a tensor, got {type(found).__name__}")
        if found.is_complex():
            raise TypeError(f"Control: cost must be real, got {found.dtype}; return its real part or squares")
        value = found if not found.ndim else 0.5 * found.square().sum()
        if self.prior is None:
            return value
        d = self._from_mean(x)
        return value + 0.5 * (d * applied(self.prior.mass, d)).sum()

    def _from_mean(self, x: Point) -> Tensor:
        variables = Variables.of(x)
        assert self.prior is not None
        check_metric("Control", self.prior, variables.space)
        flat = variables.flatten(x)
        if self.mean is None:
            return flat
        mean = Variables.of(self.mean)
        if mean.space.shapes != variables.space.shapes:
            got = f"{mean.space.shapes} for {variables.space.shapes}"
            raise ValueError(f"Control: mean must have the form of the control, got {got}")
        return flat - variables.flatten(self.mean)

    def residuals(self, x: Any) -> Tensor:
        """Return the residuals ``(m,)`` at a control."""
        found = self.cost(self.state(x), x)
        if not found.ndim:
            raise ValueError(
                "Control: cost must return residuals here, got a scalar; return them before they are squared"
            )
        return found.reshape(-1)

    def derivative(self, x: Point) -> Tensor:
        """Return dJ/dx ``(n,)`` at a control, the covector that backpropagation gives."""
        variables = Variables.of(x)
        with torch.enable_grad():
            leaves, point = variables.leaves(variables.space.split(variables.flatten(x)))
            value = self(point)
            if not value.requires_grad:
                raise NotDifferentiable(
                    "Control: cost must depend on the control through torch operations, got a value without a graph; "
                    "write state and cost without .detach(), .item() and NumPy"
                )
            slopes = torch.autograd.grad(value, leaves, materialize_grads=True)
        return variables.space.join(slopes)

    def gradient(self, x: Point) -> Tensor:
        """Return the gradient ``(n,)`` in the metric: the Riesz representative of the derivative."""
        covector = self.derivative(x)
        return covector if self._metric is None else self._metric.riesz(covector)

    def hessian(self, x: Point) -> LinearOperator:
        """Return the second derivative at a control, by its products."""
        return hessian(self, x)

    def minimize(
        self,
        x0: Point,
        *,
        gtol: float | None = None,
        ftol: float | None = None,
        max_iterations: int = 1000,
        seed: int = 0,
        observe: Callable[..., bool] | None = None,
    ) -> MinimizeSolution:
        """Return a minimum near x0 between the bounds, by `minimize` in the metric.

        Args:
            x0: the first control, a tensor or a dict of tensors.
            gtol: the dual norm of the derivative that is small enough; see `minimize`.
            ftol: see `minimize`.
            max_iterations: see `minimize`.
            seed: see `minimize`.
            observe: see `minimize`.
        """
        return minimize(
            self,
            x0,
            bounds=self.bounds,
            metric=self._metric,
            gtol=gtol,
            ftol=ftol,
            max_iterations=max_iterations,
            seed=seed,
            observe=observe,
        )

    def posterior(self, x: Point, *, rank: int, seed: int, rtol: float = 1e-6) -> Posterior:
        """Return the Gaussian posterior at a control; see `low_rank_posterior`.

        Args:
            x: the most probable control.
            rank: how many directions are kept.
            seed: see `low_rank_posterior`.
            rtol: see `low_rank_posterior`.
        """
        if self.prior is None:
            raise ValueError("Control: prior must be given for a posterior, got None")
        return low_rank_posterior(self.residuals, x, self.prior, rank=rank, seed=seed, rtol=rtol)
