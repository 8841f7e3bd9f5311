"""Steps on a cheap proxy of an objective that is dear, corrected by one gradient of the dear one.

    x+ = argmin_z  h(z) + <grad f(x) - grad h(x), z> + |z - x|^2 / (2 eta)

f is the objective, h the proxy: a subset of the data, a coarser simulator, public beside private data. The steps depend
on how far the *Hessians* of both are apart, delta = |H_f - H_h|, and not on the curvature of f: eta is about 1 / delta.

**Source.** B. Woodworth, K. Mishchenko, F. Bach (2023), Two losses are better than one: faster optimization using a
cheaper proxy, algorithm 1, arXiv 2302.03542.
**Differs from the source.** The inner problem is lowered by gradient descent with Armijo's rule, so that no smoothness
of the proxy need be known.
**Cost** of a step: one gradient of f; on h a gradient more than inner steps, and a third for each trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg import Spectrum, eigsh
from frechet.objective import Objective
from frechet.operators.derivatives import hessian
from frechet.train._armijo import descend


@dataclass(frozen=True)
class ProxyState:
    """The length with which inner steps begin, and how many steps were taken."""

    length: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class ProxyStep:
    """How a step went.

    `gradient_norm` is that of the dear objective at the start. `residual` is the norm of the inner problem's gradient
    at its end, `inner` the gradient steps on the proxy, `values` the values of the proxy.
    """

    gradient_norm: float
    residual: float
    inner: int
    values: int


@torch.no_grad()
def proxy_step(
    objective: Objective, proxy: Objective, x: Tensor, state: ProxyState, *, eta: float, steps: int = 10
) -> tuple[Tensor, ProxyState, ProxyStep]:
    """Return the point after one approximate proximal step on a cheap proxy of an objective.

    Args:
        objective: the dear objective, on all data or on a batch. One gradient of it is taken.
        proxy: the cheap objective, on the same model.
        x: the point ``(n,)``.
        state: ``ProxyState()`` before the first step, then that of the last step.
        eta: about 1 / delta, where delta is what `hessian_similarity` finds.
        steps: how many inner steps at most, each a gradient of the proxy.

    Returns:
        The next point, the next state, and how the step went.

    Raises:
        ValueError: eta is not positive, steps is no int of at least 1, or the objectives have different parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy, l2
        >>> from frechet.train import ProxyState, proxy_step
        >>> _ = torch.manual_seed(0)
        >>> X, y = torch.randn(200, 4, dtype=torch.float64), torch.randint(0, 3, (200,))
        >>> model = torch.nn.Linear(4, 3).double()
        >>> dear = Objective(model, cross_entropy(), [(X, y)], penalty=l2(0.1))
        >>> cheap = Objective(model, cross_entropy(), [(X[:40], y[:40])], penalty=l2(0.1))
        >>> x, state = dear.point, ProxyState()
        >>> for _ in range(20):
        ...     x, state, info = proxy_step(dear, cheap, x, state, eta=10.0, steps=50)
        >>> float(dear.gradient(x).abs().max()) < 1e-6
        True
    """
    _check("proxy_step", objective, proxy)
    if not 0 < eta < math.inf:
        raise ValueError(f"proxy_step: eta must be a number > 0, got {eta}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"proxy_step: steps must be an int >= 1, got {steps!r}")
    space, g = objective.space, objective.gradient(x)
    shift = g - proxy.gradient(x)

    def value(z: Tensor) -> float:
        d = z - x
        return float(proxy.value(z)) + float(space.inner(shift, d)) + float(space.inner(d, d)) / (2 * eta)

    def gradient(z: Tensor) -> Tensor:
        return proxy.gradient(z) + shift + (z - x) / eta

    moved, length, inner, values = descend(space, value, gradient, x, state.length, steps)
    info = ProxyStep(float(space.norm(g)), float(space.norm(gradient(moved))), inner, values)
    return moved, ProxyState(length, state.steps + 1), info


def hessian_similarity(
    objective: Objective, proxy: Objective, x: Tensor | None = None, *, seed: int, rtol: float = 1e-3
) -> Spectrum:
    """Estimate both ends of the spectrum of the difference of two Hessians, H_f - H_h.

    The larger absolute value is delta, the similarity of the two objectives at x: a proxy is good where it is small
    beside the curvature of the objective.

    Args:
        objective: f.
        proxy: h, on the same model.
        x: the point ``(n,)``. Default: the model's present parameters.
        seed: of the start vector.
        rtol: of the eigenvalues.

    Raises:
        ValueError: the objectives have different parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import hessian_similarity
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> f = Objective(model, squared_error(), [(X, torch.ones(2, 1))])
        >>> h = Objective(model, squared_error(), [(X[1:], torch.ones(1, 1))])
        >>> hessian_similarity(f, h, seed=0).values.round(decimals=3)
        tensor([ 1., -9.], dtype=torch.float64)
    """
    _check("hessian_similarity", objective, proxy)
    at = objective.point if x is None else x
    return eigsh(hessian(objective, x=at) - hessian(proxy, x=at), 1, seed=seed, which="both", rtol=rtol)


def _check(name: str, objective: Objective, proxy: Objective) -> None:
    for what, given in (("objective", objective), ("proxy", proxy)):
        if not isinstance(given, Objective):
            raise TypeError(f"{name}: {what} must be an Objective, got {type(given).__name__}")
    if objective.space.names != proxy.space.names or objective.space.shapes != proxy.space.shapes:
        raise ValueError(
            f"{name}: objective and proxy must have the same parameters, got {objective.space} and {proxy.space}; "
            "make both on one model"
        )
