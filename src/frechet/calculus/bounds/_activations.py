"""The activations that the bounds know, by torch's module."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frechet.calculus.bounds._elementwise import Elementwise, PiecewiseLinear, Smooth

RECTIFIER = PiecewiseLinear((0.0,), (0.0, 1.0), 0.0)
ABSOLUTE = PiecewiseLinear((0.0,), (-1.0, 1.0), 0.0)


def _density(x: Tensor) -> Tensor:
    return (-x * x / 2).exp() / math.sqrt(2 * math.pi)


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * _density(x)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _silu_slope(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _sigmoid_slope(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (1 - s)


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


# sup |f''| and sup |f'''|, each the closed form or a maximum over a fine grid, rounded up in the last digit shown
TANH = Smooth(torch.tanh, lambda x: 1 - torch.tanh(x).square(), 0.7699, 2.0, increasing=True)
SIGMOID = Smooth(torch.sigmoid, _sigmoid_slope, 0.0963, 0.125, increasing=True)
ARCTAN = Smooth(torch.atan, lambda x: 1 / (1 + x * x), 0.6496, 2.0, increasing=True)
GELU = Smooth(lambda x: x * torch.special.ndtr(x), _gelu_slope, 0.798, 0.779)
GELU_TANH = Smooth(lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh_slope, 0.798, 0.777)
SILU = Smooth(F.silu, _silu_slope, 0.5, 0.3082)
SINE = Smooth(torch.sin, torch.cos, 1.0, 1.0)
COSINE = Smooth(torch.cos, lambda x: -torch.sin(x), 1.0, 1.0)


def softplus(beta: float) -> Smooth:
    """log(1 + exp(beta x)) / beta, without torch's threshold, at which the function jumps by 2e-9."""
    return Smooth(
        lambda x: torch.logaddexp(beta * x, _zero(x)) / beta,
        lambda x: torch.sigmoid(beta * x),
        beta / 4,
        0.0963 * beta * beta,
        increasing=True,
        slope_increasing=True,
    )


def exponential_unit(alpha: float) -> Smooth:
    """x above 0, alpha (exp(x / alpha) - 1) below: torch's CELU, and its ELU for alpha = 1."""
    return Smooth(
        lambda x: x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0) / alpha),
        lambda x: (x.clamp(max=0) / alpha).exp(),
        1 / alpha,
        math.inf,
        increasing=True,
        slope_increasing=True,
    )


def clipped(low: float, high: float) -> PiecewiseLinear:
    """x between low and high, constant outside."""
    return PiecewiseLinear((low, high), (0.0, 1.0, 0.0), low)


def leaky(slope: float) -> PiecewiseLinear:
    """x above 0, slope x below."""
    return PiecewiseLinear((0.0,), (slope, 1.0), 0.0)


HARD_SIGMOID = PiecewiseLinear((-3.0, 3.0), (0.0, 1 / 6, 0.0), 0.0)
PLAIN: dict[type[nn.Module], Elementwise] = {
    nn.ReLU: RECTIFIER,
    nn.ReLU6: clipped(0.0, 6.0),
    nn.Hardsigmoid: HARD_SIGMOID,
    nn.Tanh: TANH,
    nn.Sigmoid: SIGMOID,
    nn.SiLU: SILU,
}


def of_module(m: nn.Module) -> Elementwise | None:
    """The function of an activation module, None for what is none that is known."""
    match m:
        case nn.LeakyReLU():
            return leaky(m.negative_slope)
        case nn.Hardtanh() if not isinstance(m, nn.ReLU6):
            return clipped(m.min_val, m.max_val)
        case nn.GELU():
            return GELU if m.approximate == "none" else GELU_TANH
        case nn.Softplus():
            return softplus(m.beta)
        case nn.CELU() | nn.ELU() if m.alpha > 0 and (isinstance(m, nn.CELU) or m.alpha == 1):
            return exponential_unit(m.alpha)
        case nn.PReLU() if m.num_parameters == 1:
            return leaky(float(m.weight))
    return PLAIN.get(type(m))
