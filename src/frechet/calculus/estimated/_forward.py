"""Gradients from directional derivatives alone: forward mode, with random directions and with guesses.

For random v with E[v v'] = I, (g . v) v has the mean g. The mean of m draws has the variance

    (d + 1) |g|^2 / m  (Gaussian),    (d - 1) |g|^2 / m  (Rademacher, sphere),    (d/m - 1) |g|^2  (orthogonal),

the last for m orthonormal directions times d/m. **Guesses.** On the span of given directions the gradient is found
exactly, one product each; random directions estimate what is orthogonal to it. The result stays unbiased, and its
variance counts |g - P g|^2 instead of |g|^2. The projection alone (`complement=False`) has no variance, and the bias
|g - P g|.

**Source.** Baydin et al., "Gradients without backpropagation" (2022), arXiv 2202.08587; Fournier et al., "Can forward
gradient match backpropagation?" (2023), arXiv 2306.06968.
**Differs from the source:** 1. the error is estimated with the value. 2. Guesses leave it unbiased by default.
**Cost:** `probes` products with the derivative, and one for each guess, by forward mode: no graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.calculus.estimated._estimate import GradientEstimate
from frechet.space import Space, euclidean

Law = Literal["gaussian", "rademacher", "sphere", "orthogonal"]
CustomLaw = Callable[[int, int], Tensor]


def forward_gradient(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    probes: int,
    seed: int,
    law: Law | CustomLaw = "rademacher",
    guesses: Tensor | None = None,
    complement: bool = True,
    chunk: int | None = None,
) -> GradientEstimate:
    """Estimate the gradient of f from derivatives along random directions, without backpropagation.

    Args:
        f: a function of one tensor that returns a scalar tensor.
        x: the point, of any shape.
        probes: how many random directions, >= 2; 0 is allowed where `complement` is False.
        seed: of the directions.
        law: "gaussian", "rademacher", "sphere" or "orthogonal"; or a function of (probes, seed) to
            directions (probes, d) with the identity as second moment.
        guesses: directions (k, *x.shape) along which the gradient is found exactly, such as gradients of a local loss.
        complement: whether random directions estimate the rest, so that the result is unbiased. Default: yes.
        chunk: how many directions go through f together. Default: all.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import forward_gradient
        >>> x = torch.arange(6.0, dtype=torch.float64)
        >>> f = lambda x: x.square().sum()
        >>> estimate = forward_gradient(f, x, probes=50, seed=0)
        >>> low, high = estimate.interval(0.999)
        >>> bool(((low <= 2 * x) & (2 * x <= high)).all())
        True
        >>> forward_gradient(f, x, probes=2, seed=0, guesses=x[None]).value
        tensor([ 0.0000,  2.0000,  4.0000,  6.0000,  8.0000, 10.0000],
               dtype=torch.float64)
    """
    _checked(f, x, probes, complement, guesses, chunk)
    space = euclidean(x.numel(), x.dtype, x.device)
    point = x.detach()
    found, error = space.zeros(), space.zeros()
    bases = None
    if guesses is not None:
        bases = _basis(space, guesses.detach().to(x.dtype).reshape(len(guesses), -1).T)
        found = bases @ _slopes(f, point, bases.T, chunk)
    k = 0 if bases is None else bases.shape[1]
    freedom = math.inf
    if complement and probes and k < space.dim:
        V = directions(space, law, probes, seed, bases)
        slopes = _slopes(f, point, V, chunk)
        rest, error, freedom = _mean(slopes, V, law, space.dim - k)
        found = found + rest
    share = "" if k == 0 else f" and {k} guesses"
    bias = torch.zeros_like(x) if complement else torch.full_like(x, math.inf)
    return GradientEstimate(
        value=found.reshape(x.shape),
        standard_error=error.reshape(x.shape),
        bias_bound=bias,
        target="the gradient" if complement else "its projection on the guesses",
        samples=probes,
        evaluations=(probes if complement else 0) + k,
        seed=seed,
        degrees_of_freedom=freedom,
        method=f"{law if isinstance(law, str) else 'given'} directions{share}",
    )


def directions(space: Space, law: Law | CustomLaw, probes: int, seed: int, bases: Tensor | None) -> Tensor:
    """Random directions (probes, d), orthogonal to the columns of `bases`."""
    d = space.dim
    if callable(law):
        V = torch.as_tensor(law(probes, seed)).to(space.zeros())
        if tuple(V.shape) != (probes, d):
            raise ValueError(f"forward_gradient: law must return ({probes}, {d}) directions, got {tuple(V.shape)}")
        _require_identity(V)
    elif law == "rademacher":
        V = space.random(range(probes), seed, "rademacher").T
    else:
        V = space.random(range(probes), seed, "gaussian").T
    if bases is not None:
        V = V - (V @ bases) @ bases.T
    if law == "orthogonal":
        m, free = min(probes, d if bases is None else d - bases.shape[1]), d - (0 if bases is None else bases.shape[1])
        Q = _basis(space, V[:m].T)
        return Q.T * math.sqrt(free)
    if law == "sphere":
        free = d if bases is None else d - bases.shape[1]
        return V * (math.sqrt(free) / V.square().sum(1, keepdim=True).sqrt())
    return V


def _require_identity(V: Tensor) -> None:
    """The mean of |v|^2 must be d, within what m draws can tell."""
    lengths = V.square().sum(1) / V.shape[1]
    # six standard errors, and a hundredth for laws of constant length that round
    slack = 6 * float(lengths.std() / math.sqrt(len(lengths))) + 0.01
    if abs(float(lengths.mean()) - 1) > slack:
        raise ValueError(
            "forward_gradient: law must have the second moment E[v v'] = I, else the result is biased; got a mean of "
            f"|v|^2 / d of {float(lengths.mean()):.3g}; divide the directions by its root"
        )


def _basis(space: Space, V: Tensor) -> Tensor:
    """An orthonormal basis of the span of V's columns; dependent ones are left out."""
    Q, R = space.orthonormalize(V)
    size = R.diagonal().abs()
    return Q[:, size > size.max() * V.shape[0] * torch.finfo(V.dtype).eps] if V.shape[1] else V


def _slopes(f: Any, x: Tensor, V: Tensor, chunk: int | None) -> Tensor:
    """The derivatives of f along the rows of V, in forward mode."""

    def along(v: Tensor) -> Tensor:
        y, slope = torch.func.jvp(f, (x,), (v.reshape(x.shape),))[:2]
        if not isinstance(y, Tensor) or y.ndim:
            raise ValueError(
                f"forward_gradient: f must return a scalar tensor, got {tuple(y.shape) if isinstance(y, Tensor) else y}"
            )
        return slope

    return torch.func.vmap(along, randomness="same", chunk_size=chunk)(V).detach()


def _mean(slopes: Tensor, V: Tensor, law: Law | CustomLaw, d: int) -> tuple[Tensor, Tensor, float]:
    """The mean of (g . v) v, its standard error, and the degrees of freedom; g has d free dimensions."""
    m = len(V)
    found = slopes @ V / m
    square = slopes.square().sum() / m  # unbiased for |g|^2
    if callable(law):
        return found, (slopes[:, None] * V).std(0) / math.sqrt(m), m - 1.0
    if law != "orthogonal":
        # The entries' variances are |g|^2 + g_i^2 for Gaussian directions, and at most |g|^2 for the others. Their own
        # spread says nothing where few signs happen to agree: with four probes, one entry in eight.
        return found, ((square + found.square() * (law == "gaussian")) / m).sqrt(), float(m)
    # the moments of the projection on a random subspace: E[P g g' P] = a g g' + b |g|^2 I
    second = m * (m + 2) / (d * (d + 2))
    b = (m / d - second) / max(d - 1, 1)
    a = second - b
    scale = (d / m) ** 2
    variance = max(scale * a - 1, 0.0) * found.square() + scale * b * square
    return found, variance.clamp(min=0.0).sqrt(), float(m)


def _checked(f: Any, x: Any, probes: Any, complement: bool, guesses: Any, chunk: Any) -> None:
    if not callable(f):
        raise TypeError(f"forward_gradient: f must be a function, got {type(f).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError("forward_gradient: x must be a real tensor; flatten several with Space.of(...).flatten")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < (2 if complement else 0):
        raise ValueError(f"forward_gradient: probes must be an integer >= 2, got {probes!r}")
    if guesses is not None and (not isinstance(guesses, Tensor) or guesses.shape[1:] != x.shape):
        raise ValueError(f"forward_gradient: guesses must have the shape (k, {', '.join(map(str, x.shape))})")
    if not complement and guesses is None:
        raise ValueError("forward_gradient: complement=False needs guesses; give them, or leave complement out")
