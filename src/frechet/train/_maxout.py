"""Maxout units, and the initialization that keeps their outputs' size through depth.

    y_o = max_k (W_ok x + b_ok),  k = 1, ..., K       W ~ N(0, c / fan_in),   c = 1 / E max(N_1, ..., N_K)^2

With this c the size of the outputs stays that of the inputs through depth in wide networks; c is 1 for K = 2 and falls
to 0.369 for K = 10. As J(x) x = y without biases, so does |J u| along the inputs. Across them a layer multiplies
|J u|^2 by c: gradients of random directions fall, down to the share of the inputs' own direction.

**Source.** H. Tseran, G. Montúfar (2023), Expected gradients of maxout networks and consequences to parameter
initialization, arXiv 2301.06956; I. Goodfellow et al. (2013), Maxout networks, arXiv 1302.4389.
**Differs from the source.** (1) E max^2 by quadrature to 1e-12, for any K.
**Cost.** That of a linear layer with K times the outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from frechet.operators.derivatives._kfac_layers import is_transposed
from frechet.space import euclidean

STREAM = 1 << 40  # the number of the draw, far from those of probes: weights must not be the probes of an equal seed


def maxout_variance(rank: int) -> float:
    """Return c = 1 / E max(N_1, ..., N_rank)^2 of independent standard normal numbers.

    Args:
        rank: how many linear functions a unit takes the maximum of, at least 1.

    Example:
        >>> from frechet.train import maxout_variance
        >>> [round(maxout_variance(k), 3) for k in (1, 2, 3, 5, 10)]
        [1.0, 1.0, 0.784, 0.556, 0.369]
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"maxout_variance: rank must be a positive int, got {rank!r}")
    z = torch.linspace(-12, 12, 6001, dtype=torch.float64)  # the trapezoidal rule converges geometrically here
    density = rank * torch.special.ndtr(z) ** (rank - 1) * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return 1 / float((z.square() * density).sum() * (z[1] - z[0]))


class Maxout(nn.Module):
    """A layer of maxout units: the maximum of `rank` linear functions for each output."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, seed: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.linear = nn.Linear(in_features, rank * out_features, bias=bias)
        initialize_maxout(self.linear, rank, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs ``(..., out_features)`` of inputs ``(..., in_features)``."""
        return self.linear(x).unflatten(-1, (self.out_features, self.rank)).amax(-1)


def initialize_maxout(layer: nn.Module, rank: int, *, seed: int) -> None:
    """Draw a layer's weight from N(0, c / fan_in) for maxout units of this rank, and set its bias to zero.

    Args:
        layer: a linear or convolutional module, also a transposed one, whose outputs a maximum over `rank` of them
            follows. The fan-in of a transposed convolution is its mean over the outputs, away from the borders.
        rank: how many linear functions a unit takes the maximum of.
        seed: of the draws. Give each layer another one.

    Example:
        >>> import torch
        >>> from frechet.train import initialize_maxout
        >>> layer = torch.nn.Linear(400, 1000)
        >>> initialize_maxout(layer, 5, seed=0)
        >>> abs(float(layer.weight.detach().var()) * 400 - 0.556) < 0.01
        True
    """
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    fan_in = _fan_in(layer)
    if fan_in is None or not isinstance(weight, Tensor):
        raise ValueError(f"initialize_maxout: layer must be linear or convolutional, got {type(layer).__name__}")
    z = euclidean(weight.numel(), torch.float64, "cpu").random(STREAM, seed, "gaussian").view(weight.shape)
    with torch.no_grad():
        weight.copy_(z * math.sqrt(maxout_variance(rank) / fan_in))
        if isinstance(bias, Tensor):
            bias.zero_()


def _fan_in(layer: nn.Module) -> float | None:
    """How many weights an output sums over; None for other kinds of layers."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        inputs = len(layer.weight) // layer.groups
        return inputs * layer.weight[0, 0].numel() / math.prod(layer.stride)
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.weight[0].numel()
    return len(layer.weight) if is_transposed(layer) else None  # type: ignore[arg-type]
