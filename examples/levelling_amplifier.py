"""Which five numbers make a digital compressor sound like a recorded one?

    python examples/levelling_amplifier.py

A levelling amplifier turns loud passages down. Its digital model has a threshold and a ratio, which say by how much a
level shall be turned down, two coefficients with which the gain follows, one for falling and one for rising, and a
make-up gain:

    wanted  w_k = min(0, (1 - 1 / ratio) (threshold - level_k))          in decibels
    gain    g_{k+1} = g_k + (w_k < g_k ? attack : release) (w_k - g_k)
    output  y_k = x_k 10^((g_k + makeup) / 20)

The recursion is a `march` over the samples. The fit of the output is a least-squares problem in five numbers, so the
Jacobian is five forward passes, the Gauss-Newton matrix has no negative curvature, and the fit comes with standard
errors. The recording here is made by the model itself, with noise, from parameters that the fit does not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet import LeastSquaresSolution, least_squares
from frechet.physics import march

F64 = torch.float64
NAMES = ("threshold", "ratio", "attack", "release", "makeup")
TRUE = torch.tensor([-24.0, 4.0, 0.2, 0.02, 6.0], dtype=F64)
START = torch.tensor([-15.0, 2.0, 0.1, 0.05, 0.0], dtype=F64)
NOISE = 1e-3


@dataclass(frozen=True)
class Found:
    solution: LeastSquaresSolution
    parameters: Tensor  # in the order of NAMES
    errors: Tensor  # standard errors
    before: float  # root mean square of the misfit
    after: float


def inside(z: Tensor) -> Tensor:
    """Parameters of any real numbers: ratio above 1, coefficients between 0 and 1."""
    return torch.stack([z[0], 1 + z[1].exp(), torch.sigmoid(z[2]), torch.sigmoid(z[3]), z[4]])


def outside(p: Tensor) -> Tensor:
    """The inverse of `inside`."""
    return torch.stack([p[0], (p[1] - 1).log(), torch.logit(p[2]), torch.logit(p[3]), p[4]])


def follow(g: Tensor, u: dict[str, Tensor], p: Tensor) -> Tensor:
    """The gain of the next sample."""
    level = u["level"]
    w = ((1 - 1 / p[1]) * (p[0] - level)).clamp(max=0)
    return g + torch.where(w < g, p[2], p[3]) * (w - g)


def compressed(x: Tensor, level: Tensor, p: Tensor) -> Tensor:
    gains = march(follow, torch.zeros((), dtype=F64), {"level": level}, parameters=p, checkpoints=0).outputs[1:]
    return x * 10 ** ((gains + p[4]) / 20)


def run(samples: int = 300, seed: int = 0) -> Found:
    """Record bursts of a tone through the amplifier, and fit."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples, dtype=F64)
    loudness = torch.where((t // 60) % 2 == 0, 0.8, 0.05) * (1 + 0.3 * torch.sin(t / 17))
    x = loudness * torch.sin(2 * math.pi * 0.11 * t)
    level = 20 * torch.log10(loudness / math.sqrt(2))
    recorded = compressed(x, level, TRUE) + NOISE * torch.randn(samples, dtype=F64, generator=generator)

    def misfit(z: Tensor) -> Tensor:
        return (compressed(x, level, inside(z)) - recorded) / NOISE

    start = outside(START)
    s = least_squares(misfit, start, absolute_sigma=True)
    assert isinstance(s.x, Tensor)
    assert s.covariance is not None
    D = torch.func.jacrev(inside)(s.x)
    errors = (D @ s.covariance @ D.T).diagonal().sqrt()
    before, after = (NOISE * float(misfit(z).square().mean().sqrt()) for z in (start, s.x))
    return Found(s, inside(s.x), errors, before, after)


def main() -> None:
    found = run()
    print(f"{found.solution.iterations} steps; misfit {found.before:.1e}, then {found.after:.1e}, noise {NOISE:.0e}")
    for name, value, error, true in zip(NAMES, found.parameters, found.errors, TRUE, strict=True):
        print(f"{name:9s} {float(value):9.4f} +- {float(error):.4f}, true {float(true):g}")


if __name__ == "__main__":
    main()
