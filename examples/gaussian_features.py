"""How many Gaussians solve Helmholtz' equation, when their centres and widths move, too?

    python examples/gaussian_features.py

u_xx + u_yy + u = f on the square [-1, 1]^2, u = 0 on its sides, with the solution sin(a pi x) sin(b pi y). The unknown
is a sum of Gaussians, each with a weight, a centre and a width per axis. Weights enter linearly; centres and widths do
not. `least_squares` moves all of them together, by exact Jacobians of a residual that sees one point at a time.
First-order training of such sums takes ten thousands of steps to an error near 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet import LeastSquaresSolution, least_squares
from frechet.calculus.taylor import laplacian
from frechet.physics import collocation

F64 = torch.float64
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    solution: LeastSquaresSolution
    error: float  # relative, in L2
    first: float  # with the weights alone fitted


def u(p: Parameters) -> Callable[[Tensor], Tensor]:
    """The sum of Gaussians, as a function of points (..., 2)."""

    def value(x: Tensor) -> Tensor:
        scaled = (x[..., None, :] - p["centre"]) * p["inverse width"]
        return (p["weight"] * torch.exp(-0.5 * scaled.square().sum(-1))).sum(-1)

    return value


def run(waves: tuple[int, int] = (2, 1), per_axis: int = 7, points: int = 24, steps: int = 40) -> Found:
    """Fit weights alone, then all parameters."""
    scale = math.pi * torch.tensor(waves, dtype=F64)

    def exact(x: Tensor) -> Tensor:
        return torch.sin(scale * x).prod(-1)

    def equation(p: Parameters, x: Tensor) -> Tensor:
        return laplacian(u(p))(x) + u(p)(x) - (1 - scale.square().sum()) * exact(x)

    def sides(p: Parameters, x: Tensor) -> Tensor:
        return u(p)(x)

    axis = torch.linspace(-1, 1, points, dtype=F64)
    inside = torch.cartesian_prod(axis[1:-1], axis[1:-1])
    ends = torch.tensor([-1.0, 1.0], dtype=F64)
    edge = torch.cat([torch.cartesian_prod(ends, axis), torch.cartesian_prod(axis, ends)])
    residual = collocation(
        {"equation": equation, "sides": sides}, {"equation": inside, "sides": edge}, weights={"sides": 30.0}
    )
    centres = torch.linspace(-1, 1, per_axis, dtype=F64)
    start = {
        "weight": torch.zeros(per_axis**2, dtype=F64),
        "centre": torch.cartesian_prod(centres, centres),
        "inverse width": torch.full((per_axis**2, 2), per_axis / 2.0, dtype=F64),
    }
    test = 2 * torch.rand(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) - 1

    def error(p: Parameters) -> float:
        return float((u(p)(test) - exact(test)).norm() / exact(test).norm())

    fixed = {k: t for k, t in start.items() if k != "weight"}
    linear = least_squares(lambda w: residual({"weight": w, **fixed}), start["weight"])
    assert isinstance(linear.x, Tensor)
    start["weight"] = linear.x
    s = least_squares(residual, start, observe=lambda state: state.iteration >= steps)
    assert isinstance(s.x, dict)
    return Found(s, error(s.x), error(start))


def main() -> None:
    found = run()
    print(f"weights alone: relative error {found.first:.1e}")
    print(f"weights, centres and widths, {found.solution.iterations} steps: relative error {found.error:.1e}")


if __name__ == "__main__":
    main()
