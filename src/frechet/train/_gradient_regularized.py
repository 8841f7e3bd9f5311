"""Newton steps regularized by the norm of the gradient, with any curvature: (A + (norm(g) / gamma) I) d = -g.

A trial is taken where L(x) - L(x + d) >= norm(g(x + d))^2 / (8 lambda) with lambda = norm(g) / gamma; then gamma
doubles. Otherwise gamma is halved. The regularization vanishes with the gradient, and no constant of the problem is
needed. A may be the Gauss-Newton matrix, the Fisher, or the Hessian.

**Source.** A. Semenov, M. Jaggi, N. Doikov (2026), Gradient-normalized smoothness for optimization with approximate
Hessians, algorithm 1, arXiv 2506.13710.
**Differs from the source.** (1) The first gamma is the length of the step along -g to the model's minimum. (2) Systems
are solved by conjugate gradients to a residual of lambda norm(d) / 4, which the condition tolerates. (3) A refused
trial is never taken, and one with a direction of negative curvature is refused.
**Cost** in gradients: one and a third for each trial and two for each iteration of conjugate gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.linalg import Status, cg
from frechet.objective import Objective
from frechet.operators import LinearOperator, identity
from frechet.operators.derivatives import fisher, gauss_newton, hessian
from frechet.train._gauss_newton import value_of

Curvature = Literal["gauss_newton", "fisher", "hessian"]
TRIALS = 40  # the source's
ACCURACY = 0.25  # of the residual, in lambda norm(d)


@dataclass(frozen=True)
class GradientRegularizedState:
    """gamma, about the radius on which the model of the gradient is right; None before the first step."""

    gamma: float | None = None
    steps: int = 0


@dataclass(frozen=True)
class GradientRegularizedStep:
    """How a step went. `after` is `loss` where no trial was taken; `regularization` is the last lambda."""

    loss: float
    after: float
    gradient_norm: float
    regularization: float
    trials: int
    products: int
    accepted: bool


@torch.no_grad()
def gradient_regularized_step(
    objective: Objective,
    x: Tensor,
    state: GradientRegularizedState,
    *,
    curvature: Curvature = "gauss_newton",
    max_iterations: int = 250,
) -> tuple[Tensor, GradientRegularizedState, GradientRegularizedStep]:
    """Return the point after one step of Newton's method, regularized by the norm of the gradient.

    Args:
        objective: the objective, on all data or on a batch that is large enough to judge steps by.
        x: the point ``(n,)``.
        state: ``GradientRegularizedState()`` before the first step, then that of the last step.
        curvature: the matrix A: ``"gauss_newton"``, ``"fisher"`` or ``"hessian"``.
        max_iterations: of conjugate gradients in a trial.

    Returns:
        The next point, the next state, and how the step went.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy, l2
        >>> from frechet.train import GradientRegularizedState, gradient_regularized_step
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
        >>> objective = Objective(torch.nn.Linear(4, 3).double(), cross_entropy(), [(X, y)], penalty=l2(0.01))
        >>> x, state = objective.point, GradientRegularizedState()
        >>> for _ in range(12):
        ...     x, state, info = gradient_regularized_step(objective, x, state)
        >>> float(objective.gradient(x).abs().max()) < 1e-10
        True
    """
    operators = {"gauss_newton": gauss_newton, "fisher": fisher, "hessian": hessian}
    if curvature not in operators:
        raise ValueError(
            f"gradient_regularized_step: curvature must be 'gauss_newton', 'fisher' or 'hessian', got {curvature!r}"
        )
    A: LinearOperator = operators[curvature](objective, x=x)
    space, loss, g = objective.space, float(objective.value(x)), objective.gradient(x)
    size, products = float(space.norm(g)), 0
    gamma = state.gamma
    if gamma is None:
        bend, products = abs(float(space.inner(g, A @ g))), 1
        gamma = size**3 / bend if bend > 0 else 1.0
    slack = 10 * space.eps * abs(loss)
    shift, trials = math.nan, 0
    while size > 0 and trials < TRIALS:
        trials, shift = trials + 1, size / gamma
        d, spent = _solved(A, g, shift, max_iterations)
        products += spent
        after = value_of(objective, x + d) if d is not None else math.inf
        if d is not None and math.isfinite(after):
            norm = float(space.norm(objective.gradient(x + d)))
            if loss - after + slack >= norm**2 / (8 * shift):
                info = GradientRegularizedStep(loss, after, size, shift, trials, products, accepted=True)
                return x + d, GradientRegularizedState(2 * gamma, state.steps + 1), info
        gamma /= 2
    info = GradientRegularizedStep(loss, loss, size, shift, trials, products, accepted=False)
    return x, GradientRegularizedState(gamma, state.steps + 1), info


def _solved(A: LinearOperator, g: Tensor, shift: float, limit: int) -> tuple[Tensor | None, int]:
    """d with (A + shift I) d = -g to the accuracy that the condition tolerates; None at negative curvature."""
    rtol, products, d = 1e-2, 0, None
    while True:
        s = cg(A + shift * identity(A.domain), -g, x0=d, rtol=rtol, max_iterations=limit)
        d, products = s.x, products + s.products
        if s.status in (Status.INDEFINITE, Status.NONFINITE):
            return None, products
        enough = s.residual <= ACCURACY * shift * float(A.domain.norm(d))
        if enough or not s.converged or rtol <= A.domain.eps:
            return d, products
        rtol *= 1e-2
