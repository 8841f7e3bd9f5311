"""When may three numbers stand for a whole field? A reduced model that says how much it misses.

    python examples/reduced_model.py

A pulse drifts, spreads and decays on a line: u_t = -c u_x + nu u_xx - k u. Its state is described by three latents,
the mass, the centre and the logarithm of the width of a Gaussian. Their velocity is the one whose image under the
decoder's Jacobian is nearest to the full equation's; what no velocity reaches is the defect. The Gaussian solves this
equation exactly, so that the defect is zero and the reduced run ends where the full one does. With a term -u u_x
the pulse leans over, which no Gaussian does: the defect says so before the first step, and the error follows it. Runs
are differentiable: the last line finds the speed c from one measured field by `least_squares` through the reduced one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet import least_squares
from frechet.physics import galerkin_velocity, march

F64 = torch.float64
N, LENGTH, TIME, STEPS = 64, 6.0, 0.3, 10
X = torch.arange(N, dtype=F64) * (LENGTH / N)
K = 2 * math.pi * torch.fft.rfftfreq(N, LENGTH / N, dtype=F64)
START = torch.tensor([1.0, 2.0, math.log(0.3)], dtype=F64)
PARAMETERS = torch.tensor([2.0, 0.05, 0.1], dtype=F64)  # c, nu, k


@dataclass(frozen=True)
class Row:
    steepening: float  # the factor of -u u_x
    error: float  # of the field at the end, relative
    defects: tuple[float, float]  # at the start and the largest


@dataclass(frozen=True)
class Found:
    rows: list[Row]
    speed: float  # found through the reduced model


def pulse(z: Tensor) -> Tensor:
    """The Gaussian of mass z[0], centre z[1] and log width z[2]."""
    width = z[2].exp()
    return z[0] / (width * math.sqrt(2 * math.pi)) * torch.exp(-0.5 * ((X - z[1]) / width) ** 2)


def field(u: Tensor, p: Tensor, steepening: float) -> Tensor:
    """The right side of the equation, with derivatives by Fourier series."""
    hat = torch.fft.rfft(u)
    ux, uxx = torch.fft.irfft(1j * K * hat, N), torch.fft.irfft(-(K**2) * hat, N)
    return -p[0] * ux + p[1] * uxx - p[2] * u - steepening * u * ux


def runge_kutta(velocity):
    """The step of the classical fourth-order method."""

    def step(y: Tensor, h: Tensor, p: Tensor) -> Tensor:
        a = velocity(y, p)
        b = velocity(y + h / 2 * a, p)
        c = velocity(y + h / 2 * b, p)
        return y + h / 6 * (a + 2 * b + 2 * c + velocity(y + h * c, p))

    return step


def reduced(p: Tensor, steepening: float) -> Tensor:
    """The latents of all times."""
    step = runge_kutta(lambda z, p: galerkin_velocity(pulse, lambda u: field(u, p, steepening), z).velocity)
    return march(step, START, torch.full((STEPS,), TIME / STEPS, dtype=F64), parameters=p).outputs


def full(p: Tensor, steepening: float) -> Tensor:
    """The field at the end."""
    step = runge_kutta(lambda u, p: field(u, p, steepening))
    fine = 4 * STEPS
    return march(step, pulse(START), torch.full((fine,), TIME / fine, dtype=F64), parameters=p).final


def run() -> Found:
    """Compare both models with and without steepening, then fit the speed."""
    rows = []
    for steepening in (0.0, 0.3, 1.0):
        path, right = reduced(PARAMETERS, steepening), full(PARAMETERS, steepening)
        error = float((pulse(path[-1]) - right).norm() / right.norm())
        defects = [
            float(galerkin_velocity(pulse, lambda u, s=steepening: field(u, PARAMETERS, s), z).defect)
            for z in path[::2]
        ]
        rows.append(Row(steepening, error, (defects[0], max(defects))))
    measured = full(PARAMETERS, 0.0)

    def misfit(c: Tensor) -> Tensor:
        return pulse(reduced(torch.cat([c, PARAMETERS[1:]]), 0.0)[-1]) - measured

    return Found(rows, float(least_squares(misfit, torch.tensor([1.5], dtype=F64)).x[0]))


def main() -> None:
    found = run()
    print("steepening  error at the end  defect at the start, largest")
    for r in found.rows:
        print(f"{r.steepening:<10g}  {r.error:16.1e}  {r.defects[0]:.1e}, {r.defects[1]:.1e}")
    print(f"speed {found.speed:.8f}, true {float(PARAMETERS[0])}")


if __name__ == "__main__":
    main()
