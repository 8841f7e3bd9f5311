"""Piecewise linear activations made smooth: convolved with a normal density, in closed form.

With f(x) = a + b x + sum_j c_j relu(x - t_j) + sum_j d_j step(x - t_j), and a density of standard deviation w,

    f_w(x) = a + b x + sum_j c_j w (s Phi(s) + phi(s)) + sum_j d_j Phi(s),    s = (x - t_j) / w.

All derivatives exist, and Taylor mode knows them. Where f has no steps, |f_w - f| <= w sum |c_j| / sqrt(2 pi).

**Source.** Biswas et al., "SAU: smooth activation function using convolution with approximate identities" (2021),
arXiv 2109.13210; Friedrichs (1944) for mollifiers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Mollified(nn.Module):
    """A piecewise linear function convolved with a normal density of standard deviation `width`."""

    kinks: Tensor
    bends: Tensor
    steps: Tensor

    def __init__(
        self, kinks: list[float], bends: list[float], steps: list[float], line: tuple[float, float], width: float
    ) -> None:
        super().__init__()
        self.line, self.width = line, width
        for name, values in (("kinks", kinks), ("bends", bends), ("steps", steps)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

    @property
    def distance(self) -> float:
        """A bound on the distance to the function that is smoothed. Jumps count half, whatever the width is."""
        bends, steps = float(self.bends.abs().sum()), float(self.steps.abs().sum())
        return steps / 2 + self.width * bends / math.sqrt(2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        """The smooth function."""
        a, b = self.line
        y = a + b * x
        for t, c, d in zip(self.kinks.tolist(), self.bends.tolist(), self.steps.tolist(), strict=True):
            s = (x - t) / self.width
            below = torch.erfc(s * (-1 / math.sqrt(2))) / 2
            if c:
                y = y + (c * self.width) * (s * below + torch.exp(-s * s / 2) / math.sqrt(2 * math.pi))
            if d:
                y = y + d * below
        return y

    def extra_repr(self) -> str:
        """What torch prints."""
        return f"kinks={self.kinks.tolist()}, width={self.width}"


def mollify(activation: nn.Module | str, width: float) -> Mollified:
    """Return a piecewise linear activation convolved with a normal density, so that all its derivatives exist.

    Args:
        activation: `nn.ReLU`, `LeakyReLU`, `Hardtanh`, `ReLU6`, `Hardsigmoid`, `Softshrink`, `Hardshrink`, `Threshold`
            or a `PReLU` of one parameter, as a module; or "abs", "sign" or "step".
        width: the standard deviation of the density, > 0.

    Example:
        >>> import torch
        >>> from frechet.calculus.kinks import mollify
        >>> smooth = mollify(torch.nn.ReLU(), 0.1)
        >>> smooth(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.0000, 0.0399, 1.0000])
        >>> round(smooth.distance, 4)
        0.0399
    """
    if not 0 < width < math.inf:
        raise ValueError(f"mollify: width must be positive, got {width}")
    kinks, bends, steps, line = _pieces(activation)
    return Mollified(kinks, bends, steps, line, width)


Pieces = tuple[list[float], list[float], list[float], tuple[float, float]]
NAMED: dict[str, Pieces] = {
    "abs": ([0.0], [2.0], [0.0], (0.0, -1.0)),
    "sign": ([0.0], [0.0], [2.0], (-1.0, 0.0)),
    "step": ([0.0], [0.0], [1.0], (0.0, 0.0)),
}


def _pieces(m: nn.Module | str) -> Pieces:
    """Kinks, changes of slope, jumps, and the line left of all kinks, (value at zero, slope)."""
    if isinstance(m, str) and m in NAMED:
        return NAMED[m]
    match m:
        case nn.ReLU():
            return [0.0], [1.0], [0.0], (0.0, 0.0)
        case nn.LeakyReLU():
            return [0.0], [1 - m.negative_slope], [0.0], (0.0, m.negative_slope)
        case nn.PReLU() if m.num_parameters == 1:
            slope = float(m.weight.detach())
            return [0.0], [1 - slope], [0.0], (0.0, slope)
        case nn.Hardtanh():
            return [m.min_val, m.max_val], [1.0, -1.0], [0.0, 0.0], (m.min_val, 0.0)
        case nn.Hardsigmoid():
            return [-3.0, 3.0], [1 / 6, -1 / 6], [0.0, 0.0], (0.0, 0.0)
        case nn.Softshrink():
            return [-m.lambd, m.lambd], [-1.0, 1.0], [0.0, 0.0], (m.lambd, 1.0)
        case nn.Hardshrink():
            return [-m.lambd, m.lambd], [-1.0, 1.0], [m.lambd, m.lambd], (0.0, 1.0)
        case nn.Threshold():
            return [m.threshold], [1.0], [m.threshold - m.value], (m.value, 0.0)
    kind = m if isinstance(m, str) else type(m).__name__
    raise TypeError(f"mollify: activation must be piecewise linear and known, got {kind}; see its list of modules")
