"""Steps in the forward pass, slopes in the backward pass.

A step function has no useful derivative, so training replaces it: the value is hard(x), the derivative is that of
soft(x). Such a gradient is biased; `bias_and_variance` measures by how much, against enumeration or the score of the
noise.

For signs: the identity; the identity inside [-1, 1]; tanh; and the power function sign(x) |x|^(1/o), with the slope
|x|^((1-o)/o) / o, linear inside `inner` and zero beyond `outer`, which goes from the identity (o = 1) to the sign.

**Source.** Bengio, Léonard and Courville (2013), arXiv 1308.3432; Wu et al., "Estimator meets equilibrium perspective"
(ReSTE, 2023), arXiv 2308.06689, equations 8 and 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Surrogate = Literal["identity", "clipped", "tanh", "power"]
INNER, OUTER = 0.1, 1.5  # of the source's own program


def straight_through(hard: Callable[[Tensor], Tensor], soft: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function with the values of `hard`, bit for bit, and the derivatives of `soft`.

    Args:
        hard: a function whose derivative is not used, such as rounding, signs or the largest entry.
        soft: a differentiable function with outputs of the same shape.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import straight_through
        >>> rounded = straight_through(torch.round, lambda x: x)
        >>> x = torch.tensor([0.3, 1.7], requires_grad=True)
        >>> y = rounded(x)
        >>> y.sum().backward()
        >>> y.detach(), x.grad
        (tensor([0., 2.]), tensor([1., 1.]))
    """

    def function(x: Tensor) -> Tensor:
        y, s = hard(x).detach(), soft(x)
        if y.shape != s.shape:
            raise ValueError(
                f"straight_through: soft must return the shape of hard, {tuple(y.shape)}, got {tuple(s.shape)}"
            )
        return y + (s - s.detach())  # zero, with a derivative

    return function


def signs(x: Tensor, surrogate: Surrogate = "power", *, power: float = 3.0) -> Tensor:
    """Return the signs of x, 1 at zero, with the derivative of a surrogate.

    Args:
        x: real numbers.
        surrogate: "identity", "clipped" (zero outside [-1, 1]), "tanh", or "power".
        power: of "power", >= 1: 1 is the identity up to 1.5, larger is nearer to the sign.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import signs
        >>> x = torch.tensor([-2.0, -0.5, 0.5], requires_grad=True)
        >>> y = signs(x, "clipped")
        >>> y.sum().backward()
        >>> y.detach(), x.grad
        (tensor([-1., -1.,  1.]), tensor([0., 1., 1.]))
    """
    if surrogate not in ("identity", "clipped", "tanh", "power"):
        raise ValueError(f"signs: surrogate must be 'identity', 'clipped', 'tanh' or 'power', got {surrogate!r}")
    if power < 1:
        raise ValueError(f"signs: power must be >= 1, got {power}")
    hard = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    slope = _slope(x.detach(), surrogate, power)
    return hard.detach() + slope * (x - x.detach())


def _slope(x: Tensor, surrogate: Surrogate, power: float) -> Tensor:
    match surrogate:
        case "identity":
            return torch.ones_like(x)
        case "clipped":
            return (x.abs() <= 1).to(x.dtype)
        case "tanh":
            return 1 - torch.tanh(x).square()
    size = x.abs()
    outside = size.clamp(min=INNER) ** ((1 - power) / power) / power
    return torch.where(size < INNER, INNER ** (1 / power) / INNER, outside) * (size <= OUTER).to(x.dtype)
