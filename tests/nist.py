"""The 27 nonlinear regressions of the NIST Statistical Reference Datasets, with their certified values.

data/nist.json holds the numbers of each set (public domain, https://www.itl.nist.gov/div898/strd/): two starting
points, the parameters and their standard deviations to 11 digits, the residual sum of squares, and the columns y, x.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data" / "nist.json"
Model = Callable[[Tensor, Tensor], Tensor]
pi = math.pi


@dataclass(frozen=True, eq=False)
class Regression:
    """One data set: y against x, where to start, and what is certified."""

    name: str
    x: Tensor  # (m,), or (predictors, m)
    y: Tensor  # (m,)
    starts: tuple[Tensor, Tensor]
    certified: Tensor
    deviations: Tensor
    sum_of_squares: float
    model: Model

    def residual(self, b: Tensor) -> Tensor:
        return self.model(b, self.x) - self.y

    def digits(self, b: Tensor) -> float:
        """The log relative error of the worst parameter: at least 0, at most 11, as many digits as are certified."""
        error = float(((b.detach().double().cpu() - self.certified) / self.certified).abs().max())
        return -math.log10(min(max(error, 1e-11), 1.0)) if math.isfinite(error) else 0.0


def rational_cubic(b: Tensor, x: Tensor) -> Tensor:
    return (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3) / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def two_peaks(b: Tensor, x: Tensor) -> Tensor:
    first = b[2] * torch.exp(-((x - b[3]) ** 2) / b[4] ** 2)
    return b[0] * torch.exp(-b[1] * x) + first + b[5] * torch.exp(-((x - b[6]) ** 2) / b[7] ** 2)


def three_decays(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * torch.exp(-b[1] * x) + b[2] * torch.exp(-b[3] * x) + b[4] * torch.exp(-b[5] * x)


def seasons(b: Tensor, x: Tensor) -> Tensor:
    def wave(c: Tensor, s: Tensor, period: Tensor | float) -> Tensor:
        return c * torch.cos(2 * pi * x / period) + s * torch.sin(2 * pi * x / period)

    return b[0] + wave(b[1], b[2], 12.0) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


MODELS: dict[str, Model] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
    "Chwirut1": lambda b, x: torch.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: torch.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": seasons,
    "Eckerle4": lambda b, x: b[0] / b[1] * torch.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "Gauss3": two_peaks,
    "Hahn1": rational_cubic,
    "Kirby2": lambda b, x: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": three_decays,
    "Lanczos2": three_decays,
    "Lanczos3": three_decays,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** (-2)),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** (-0.5)),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * torch.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    # the branch of the arctangent in which the certified sum of squares is reached
    "Roszman1": lambda b, x: b[0] - b[1] * x - torch.atan2(b[2], x - b[3]) / pi,
    "Thurber": rational_cubic,
}


def load(name: str) -> Regression:
    """The data set `name`, in float64."""
    found = json.loads(DATA.read_text())[name]

    def vector(key: str) -> Tensor:
        return torch.tensor(found[key], dtype=torch.float64)

    data, starts = vector("columns"), vector("starts")
    y, x = data[0], data[1] if len(data) == 2 else data[1:]
    if name == "Nelson":
        y = y.log()  # the certified model is of log y
    squares = found["sum_of_squares"]
    return Regression(
        name, x, y, (starts[0], starts[1]), vector("certified"), vector("deviations"), squares, MODELS[name]
    )


def regressions() -> list[Regression]:
    """All 27, by name."""
    return [load(name) for name in MODELS]
