"""Descent of an energy in a metric: u+ = v - step M^-1 E'(v), with or without momentum.

    variational equations    E = int L(Du) - f u, eigenvalues of D^2 L in [a, b], M = -Laplacian, step = 2 / (a + b):
                             the error falls by (b - a) / (b + a) in each step, on every grid
    convex-concave split     E = u'A u / 2 + G(u), G - c u'u / 2 concave: implicit in u'A u / 2 + c u'u / 2, explicit in
                             the rest, with time step tau, is M = A + (c + 1 / tau) I, step = 1. The energy never rises.
                             As a flow it has the time step tau / (1 + c tau), which is at most 1 / c, whatever tau is
    momentum                 v = u + j / (j + 3) (u - u_before) in step j; the energy may rise

**Source.** T. Marwah, Z. Lipton, J. Lu and A. Risteski (2022), arXiv 2210.12101; O. Akande, P. Dondl, K. Gupta,
A. Onwunta and S. Wojtowytsch (2024), arXiv 2501.00389, algorithm 1.
**Cost.** One gradient of E and one Riesz map a step; three vectors of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg import Status
from frechet.operators import Metric
from frechet.operators._metric import check_metric
from frechet.space import Point, Variables


@dataclass(frozen=True, eq=False)
class DescentState:
    """One moment of `metric_descent`: u flat ``(n,)``, the energy there, and the dual norm of its derivative at v.

    `before` is the point of the step before; `energies` and `slopes` are those so far.
    """

    iteration: int
    x: Tensor
    energy: float
    slope: float
    before: Tensor
    energies: tuple[float, ...]
    slopes: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where a descent ended.

    Attributes:
        x: the last point, in the form of the first.
        status: `converged`, `max_iterations` or `stopped`.
        residual: the dual norm of the derivative at x.
        iterations: steps.
        energies: the energies of all points, the first and the last among them.
        slopes: the dual norms of the derivatives from which steps were made.
    """

    x: Tensor | dict[str, Tensor]
    status: Status
    residual: float
    iterations: int
    energies: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED


def metric_descent(
    energy: Callable[..., Tensor],
    x0: Point,
    *,
    metric: Metric,
    step: float = 1.0,
    momentum: bool = False,
    gtol: float = 1e-8,
    max_iterations: int = 1000,
    observe: Callable[[DescentState], bool] | None = None,
    resume: DescentState | None = None,
) -> Descent:
    """Return where descent of an energy by a fixed step in a metric ends.

    `minimize` with the same metric needs fewer gradients; this follows the flow, or the damped wave, of the energy.

    Args:
        energy: E, a function of what x0 is to a scalar.
        x0: the first point, a tensor of any shape or a dict of tensors.
        metric: M.
        step: the factor of the gradient, > 0.
        momentum: whether steps start from u + j / (j + 3) (u - u_before).
        gtol: the dual norm of the derivative that ends the run.
        max_iterations: the most steps.
        observe: is called with a `DescentState` after each step, and stops the run by returning True.
        resume: a `DescentState` of the same descent, from which the run goes on with the same bits.

    Raises:
        NonFinite: the energy or its derivative is not finite; the iteration is in the message.

    Example:
        >>> import torch
        >>> from frechet.calculus.functionals import sobolev
        >>> from frechet.physics import metric_descent
        >>> def energy(u):  # int (u'^2 / 2 + sqrt(1 + u'^2)) - u, whose second variation lies between 1 and 2
        ...     p = torch.nn.functional.pad(u, (1, 1)).diff() * 50
        ...     return ((p**2 / 2 + (1 + p**2).sqrt()).sum() - u.sum()) / 50
        >>> s = metric_descent(energy, torch.zeros(49).double(), metric=sobolev(49, 0.02, mass=0.0), step=2 / 3)
        >>> s.converged, s.iterations < 20
        (True, True)
    """
    if not callable(energy):
        raise TypeError(f"metric_descent: energy must be a function, got {type(energy).__name__}")
    if not 0 < step < math.inf or gtol < 0 or max_iterations < 0:
        got = f"{step}, {gtol} and {max_iterations}"
        raise ValueError(f"metric_descent: step must be > 0, gtol and max_iterations >= 0, got {got}")
    variables = Variables.of(x0)
    metric = check_metric("metric_descent", metric, variables.space)
    u = before = variables.flatten(x0).detach()
    energies, slopes, status, j, first = [], [], Status.MAX_ITERATIONS, 0, 0
    if resume is not None:
        u, before, j = resume.x, resume.before, resume.iteration
        energies, slopes, first = list(resume.energies[:-1]), list(resume.slopes[:-1]), j
    while True:
        v = u + j / (j + 3) * (u - before) if momentum else u
        E, g = _differentiated(energy, variables, v, j)
        energies.append(_value(energy, variables, u, j) if momentum else E)
        raised = metric.inverse @ g
        slopes.append(math.sqrt(max(float(variables.space.inner(g, raised)), 0.0)))
        state = DescentState(j, u, energies[-1], slopes[-1], before, tuple(energies), tuple(slopes))
        if observe is not None and j > first and observe(state):
            status = Status.STOPPED
            break
        if slopes[-1] <= gtol:
            status = Status.CONVERGED
            break
        if j == max_iterations:
            break
        before, u, j = u, v - step * raised, j + 1
    residual = float(metric.dual_norm(_differentiated(energy, variables, u, j)[1])) if momentum else slopes[-1]
    return Descent(variables.unflatten(u), status, residual, j, tuple(energies), tuple(slopes))


def _value(energy: Callable[..., Tensor], variables: Variables, x: Tensor, iteration: int) -> float:
    with torch.no_grad():
        E = energy(variables.unflatten(x))
    _check(E, iteration)
    return float(E)


def _differentiated(
    energy: Callable[..., Tensor], variables: Variables, x: Tensor, iteration: int
) -> tuple[float, Tensor]:
    """E and its derivative, a covector."""
    with torch.enable_grad():
        leaves, point = variables.leaves(variables.space.split(x))
        E = energy(point)
        _check(E, iteration)
        slopes = torch.autograd.grad(E, leaves, materialize_grads=True)
    g = variables.space.join(slopes)
    if not variables.space.finite(g):
        raise NonFinite(f"metric_descent: the derivative must be finite, got NaN or infinity in iteration {iteration}")
    return float(E.detach()), g


def _check(E: object, iteration: int) -> None:
    if not isinstance(E, Tensor) or E.ndim:
        got = f"shape {tuple(E.shape)}" if isinstance(E, Tensor) else type(E).__name__
        raise ValueError(f"metric_descent: energy must return a scalar tensor, got {got}")
    if not math.isfinite(float(E.detach())):
        raise NonFinite(
            f"metric_descent: energy must be finite, got {float(E.detach())} in iteration {iteration}; take a shorter "
            "step"
        )
