"""Gradients from values alone, and how far smoothing moves them.

With random v, E[v v'] = I, and width h,

    (f(x + h v) - f(x - h v)) / (2 h) v    or    (f(x + h v) - f(x)) / h v.

For Gaussian v its mean is the gradient of f averaged over N(x, h^2 I). For v on the sphere of radius sqrt(d) it is that
of f averaged over the ball of radius h sqrt(d). Both hold whether f has a gradient or not. With a gradient of Lipschitz
constant L, and a Hessian of Lipschitz constant M, that is off by at most

    min( L h sqrt(d), M h^2 d / 2 ),

because it is a mean of gradients at symmetric points with E|v|^2 <= d. For Rademacher v, which average over no ball,
the bounds are L h d^(3/2) / 2 and M h^2 d^2 / 6. Rounding adds eps |f| sqrt(d) / h.

**Source.** Nesterov and Spokoiny, "Random gradient-free minimization of convex functions" (2017), section 2; Flaxman,
Kalai and McMahan (2005) for the ball.
**Differs from the source:** the bounds are those of means of gradients, which are smaller than the book's
(L h (d + 3)^(3/2) / 2).
**Cost:** 2 values for each probe, or one and one more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.calculus.estimated._estimate import GradientEstimate
from frechet.calculus.estimated._forward import directions
from frechet.space import euclidean

Law = Literal["gaussian", "rademacher", "sphere"]
Scheme = Literal["central", "forward"]


def zeroth_order_gradient(
    f: Callable[[Tensor], Any],
    x: Tensor,
    *,
    probes: int,
    width: float,
    seed: int,
    law: Law = "sphere",
    scheme: Scheme = "central",
    gradient_constant: float | None = None,
    hessian_constant: float | None = None,
) -> GradientEstimate:
    """Estimate the gradient of f from its values at random points around x.

    Args:
        f: a function of one tensor that returns a number; it need not be differentiable, or made of torch functions.
        x: the point, of any shape.
        probes: how many random directions, >= 2.
        width: how far the points lie from x, in each coordinate on average, > 0.
        seed: of the directions.
        law: "sphere" or "gaussian" for the gradient of a smoothed f; "rademacher" has the least variance.
        scheme: "central" or "forward" differences. For f with jumps, "central" has half the variance.
        gradient_constant: a Lipschitz constant of the gradient, for a bound on the bias.
        hessian_constant: a Lipschitz constant of the Hessian, for a bound on the bias.

    Returns:
        A `GradientEstimate`. Without either constant its `bias_bound` is infinite, and `interval(bias=False)` covers
        the gradient of the smoothed function.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import zeroth_order_gradient
        >>> x = torch.tensor([0.3, -0.2], dtype=torch.float64)
        >>> found = zeroth_order_gradient(
        ...     lambda x: x.sin().sum(), x, probes=400, width=0.01, seed=0, gradient_constant=1.0, hessian_constant=1.0
        ... )
        >>> low, high = found.interval(0.999)
        >>> bool(((low <= x.cos()) & (x.cos() <= high)).all()), float(found.bias_bound[0]) < 1.1e-4
        (True, True)
    """
    _checked(f, x, probes, width, law, scheme, gradient_constant, hessian_constant)
    space = euclidean(x.numel(), x.dtype, x.device)
    V = directions(space, law, probes, seed, None)
    point = x.detach()

    def values(sign: float) -> Tensor:
        return torch.stack([_number(f(point + sign * width * v.reshape(x.shape)), x) for v in V])

    ahead = values(1.0)
    behind = values(-1.0) if scheme == "central" else _number(f(point), x).expand(probes)
    slopes = (ahead - behind) / (2 * width if scheme == "central" else width)
    draws = slopes[:, None] * V
    largest = float(torch.maximum(ahead.abs(), behind.abs()).max())
    bias = _bias(space.dim, width, law, scheme, gradient_constant, hessian_constant)
    rounding = 2 * torch.finfo(x.dtype).eps * largest * math.sqrt(space.dim) / width
    known = gradient_constant is not None or hessian_constant is not None
    return GradientEstimate(
        value=draws.mean(0).reshape(x.shape),
        standard_error=(draws.std(0) / math.sqrt(probes)).reshape(x.shape),
        bias_bound=torch.full_like(x, bias + rounding if known else math.inf),
        target="differences along signs" if law == "rademacher" else f"the gradient of f smoothed over {width:g}",
        samples=probes,
        evaluations=2 * probes if scheme == "central" else probes + 1,
        seed=seed,
        degrees_of_freedom=probes - 1.0,
        method=f"{scheme} differences, {law} directions",
    )


def local_perturbation_gradient(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    contributors: Tensor,
    *,
    probes: int,
    width: float,
    seed: int,
) -> GradientEstimate:
    """Estimate the gradient of the sum of f's outputs, of which each depends on few inputs that are known.

    All inputs are moved at once by random signs, and the change of an output is credited to its own inputs alone. The
    variance of an entry counts the other inputs of its outputs, not all inputs. Where every input of an output is
    credited, the bias is that of central differences.

    Args:
        f: a function of one tensor that returns a vector of outputs (outputs,).
        x: the point, of any shape.
        contributors: which inputs an output may depend on, (outputs, x.numel()), bool.
        probes: how many random signs, >= 2.
        width: how far each input is moved, > 0.
        seed: of the signs.
    """
    _checked(f, x, probes, width, "rademacher", "central", None, None)
    if contributors.ndim != 2 or contributors.shape[1] != x.numel() or contributors.dtype is not torch.bool:
        raise ValueError(
            f"local_perturbation_gradient: contributors must be bool of shape (outputs, {x.numel()}), got "
            f"{contributors.dtype} {tuple(contributors.shape)}"
        )
    space = euclidean(x.numel(), x.dtype, x.device)
    V = space.random(range(probes), seed, "rademacher").T
    mask, point = contributors.to(x.dtype), x.detach()
    draws = []
    for v in V:
        step = width * v.reshape(x.shape)
        change = (f(point + step) - f(point - step)).detach().reshape(-1) / (2 * width)
        if len(change) != len(mask):
            raise ValueError(
                f"local_perturbation_gradient: f must return {len(mask)} outputs, one for each row of contributors, "
                f"got {len(change)}"
            )
        draws.append((change @ mask) * v)
    D = torch.stack(draws)
    return GradientEstimate(
        value=D.mean(0).reshape(x.shape),
        standard_error=(D.std(0) / math.sqrt(probes)).reshape(x.shape),
        bias_bound=torch.full_like(x, math.inf),
        target="central differences along signs, credited to the contributors",
        samples=probes,
        evaluations=2 * probes,
        seed=seed,
        degrees_of_freedom=probes - 1.0,
        method="local perturbations",
    )


def _bias(d: int, h: float, law: Law, scheme: Scheme, L: float | None, M: float | None) -> float:
    """The largest bias of an entry, from the Lipschitz constants that are known."""
    L, M = (math.inf if c is None else c for c in (L, M))
    if law == "rademacher":
        first, second = L * h * d**1.5 / 2, M * h * h * d * d / 6
        return min(first, second) if scheme == "central" else first
    return min(L * h * math.sqrt(d), M * h * h * d / 2)


def _number(y: Any, x: Tensor) -> Tensor:
    y = torch.as_tensor(y, dtype=x.dtype, device=x.device).detach()
    if y.numel() != 1:
        raise ValueError(f"zeroth_order_gradient: f must return one number, got shape {tuple(y.shape)}")
    return y.reshape(())


def _checked(f: Any, x: Any, probes: Any, width: Any, law: Any, scheme: Any, L: Any, M: Any) -> None:
    if not callable(f):
        raise TypeError(f"zeroth_order_gradient: f must be a function, got {type(f).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError("zeroth_order_gradient: x must be a real tensor; flatten several with Space.of(...).flatten")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 2:
        raise ValueError(f"zeroth_order_gradient: probes must be an integer >= 2, got {probes!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"zeroth_order_gradient: width must be positive, got {width}")
    if law not in ("gaussian", "rademacher", "sphere") or scheme not in ("central", "forward"):
        raise ValueError(
            "zeroth_order_gradient: law must be 'gaussian', 'rademacher' or 'sphere', scheme 'central' or 'forward', "
            f"got {law!r}, {scheme!r}"
        )
    if any(c is not None and c < 0 for c in (L, M)):
        raise ValueError("zeroth_order_gradient: Lipschitz constants must be >= 0")
