"""Stochastic prox-linear steps: the loss of the linearized model on a batch is minimized, and not its quadratic model.

    d = argmin_d  (sum of terms of z + J d) / count + |d|^2 / (2 t),     x+ = x + d

with the outputs z and their Jacobian J at x on the batch. Where the criterion is the squared error this is a damped
Gauss-Newton step. With any other convex criterion it does not overshoot where the curvature at z misleads. norm(d) / t
is the gradient of the Moreau envelope of the linearized loss: the measure of stationarity of the method.

**Source.** D. Davis, D. Drusvyatskiy (2019), Stochastic model-based minimization of weakly convex functions, arXiv
1803.06523; for networks: N. Abreu et al. (2025), The potential of second-order optimization for LLMs, arXiv 2510.09378.
**Differs from the source.** The convex problem is solved by Newton's method with conjugate gradients.
**Cost** in gradients: two, and for each Newton step about two for each iteration of conjugate gradients and two more.
For criteria with kinks take `frechet.optimize.stochastic_prox_linear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frechet.linalg import cg
from frechet.objective import Objective
from frechet.objective.criteria import Criterion
from frechet.operators import LinearOperator, from_callable, identity
from frechet.operators.derivatives import jacobian
from frechet.space import Space

HALVINGS = 20
ARMIJO = 1e-4


@dataclass(frozen=True)
class ProxLinearStep:
    """How a step went. `model` is the loss of the linearized model at its end, `stationarity` is norm(d) / t.

    `converged` says whether the convex problem was solved to its tolerance in `iterations` Newton steps.
    """

    loss: float
    model: float
    stationarity: float
    iterations: int
    products: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Piece:
    """The criterion on the outputs of one batch, a part ``[first, first + size)`` of all outputs."""

    criterion: Criterion
    targets: Any
    shape: torch.Size
    first: int
    scale: float

    def outputs(self, z: Tensor) -> Tensor:
        return z[self.first : self.first + math.prod(self.shape)].view(self.shape)


@torch.no_grad()
def prox_linear_step(
    objective: Objective, x: Tensor, *, t: float, rtol: float = 1e-3, max_iterations: int = 20, max_products: int = 50
) -> tuple[Tensor, ProxLinearStep]:
    """Return the point after one prox-linear step on a batch.

    Args:
        objective: the objective on the batch, with a convex criterion, without penalty.
        x: the point ``(n,)``.
        t: the length of the step, in the unit of 1 / curvature; let it shrink with the number of steps, as 1 / sqrt(k).
        rtol: of the gradient of the convex problem, relative to that at d = 0.
        max_iterations: of Newton's method.
        max_products: of conjugate gradients in a Newton step.

    Returns:
        The next point, and how the step went.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.train import prox_linear_step
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
        >>> objective = Objective(torch.nn.Linear(4, 3).double(), cross_entropy(), [(X, y)])
        >>> x, info = prox_linear_step(objective, objective.point, t=10.0)
        >>> info.converged, bool(objective.value(x) < objective.value())
        (True, True)
    """
    _check(objective, t)
    J: LinearOperator = jacobian(objective, x)
    z, pieces = _outputs(objective, x)
    space = objective.space
    d, Jd, products, iteration, first = torch.zeros_like(x), torch.zeros_like(z), 0, 0, math.inf
    loss = value = _value(pieces, z, d, space, t)
    while True:
        g = J.T @ _each(pieces, z + Jd, lambda c, y, targets: c.score(y, targets)) + d / t
        size = float(space.norm(g))
        first = size if iteration == 0 else first
        if size <= rtol * first or iteration == max_iterations:
            break
        H = _curvature(J, pieces, z + Jd)
        s = cg(H + (1 / t) * identity(space), -g, rtol=min(0.1, size / first), max_iterations=max_products)
        Js, slope, step = J @ s.x, float(space.inner(g, s.x)), 1.0
        products, iteration = products + s.products + 2, iteration + 1
        for _ in range(HALVINGS):
            trial = _value(pieces, z + Jd + step * Js, d + step * s.x, space, t)
            if trial <= value + ARMIJO * step * slope:
                break
            step /= 2
        else:
            break  # down to rounding
        d, Jd, value = d + step * s.x, Jd + step * Js, trial
    model = value - float(space.norm(d)) ** 2 / (2 * t)
    done = size <= rtol * first
    return x + d, ProxLinearStep(loss, model, float(space.norm(d)) / t, iteration, products, done)


def _outputs(objective: Objective, x: Tensor) -> tuple[Tensor, list[_Piece]]:
    """The outputs on all batches as one vector, and the criterion on each."""
    snapshot = objective.snapshot(x)
    blocks, found, pieces, first = snapshot.space.unflatten(snapshot.x), [], [], 0
    with snapshot.installed(blocks):
        for part in snapshot.parts:
            here, terms = [], 0.0
            with snapshot.running():
                for batch in part.batches(snapshot.space.device):
                    y = snapshot.forward(blocks, batch)
                    here.append(_Piece(snapshot.criterion(part, batch), batch.targets, y.shape, first, part.weight))
                    found.append(y.reshape(-1))
                    first, terms = first + y.numel(), terms + float(snapshot.count(part, batch))
            pieces += [replace(p, scale=p.scale / terms) for p in here]
    return torch.cat(found), pieces


def _value(pieces: list[_Piece], z: Tensor, d: Tensor, space: Space, t: float) -> float:
    total = sum(p.scale * float(p.criterion.terms(p.outputs(z), p.targets).double().sum()) for p in pieces)
    return total + float(space.norm(d)) ** 2 / (2 * t)


def _each(pieces: list[_Piece], z: Tensor, act: Callable[[Criterion, Tensor, Any], Tensor]) -> Tensor:
    return torch.cat([p.scale * act(p.criterion, p.outputs(z), p.targets).reshape(-1) for p in pieces])


def _curvature(J: LinearOperator, pieces: list[_Piece], z: Tensor) -> LinearOperator:
    """J'H J with the criterion's Hessian at z."""

    def product(V: Tensor) -> Tensor:
        U = J @ V
        columns = []
        for u in U.T:
            parts = [
                p.scale * p.criterion.hessian_product(p.outputs(z), p.targets, p.outputs(u)).reshape(-1) for p in pieces
            ]
            columns.append(torch.cat(parts))
        return J.T @ torch.stack(columns, 1)

    return from_callable(product, domain=J.domain, facts="positive_semidefinite")


def _check(objective: Objective, t: float) -> None:
    if not 0 < t < math.inf:
        raise ValueError(f"prox_linear_step: t must be a number > 0, got {t}")
    if objective.penalties or objective.group is not None:
        raise ValueError("prox_linear_step: must be an objective of one process without penalty, got another one")
    for part in objective.parts:
        if not part.criterion.convex or part.weight < 0 or part.head is not None:
            raise ValueError(
                "prox_linear_step: the criterion must be convex, with a weight >= 0 and without head=, got "
                f"{type(part.criterion).__name__}"
            )
