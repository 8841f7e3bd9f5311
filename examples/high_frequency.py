"""Can a Gaussian process solve an equation with a hundred thousand points, and a solution with many waves?

    python examples/high_frequency.py

u_xx + u_yy + k u = f on the unit square, u given on its sides, with a solution that has a slow and a fast wave. The
matrix of covariances between all pairs of the points would have 10^10 entries. On a grid, with a kernel for each axis,
it is never made: eigenvectors of one small matrix for each axis turn the equation into a sum of two products of small
matrices, which LSMR solves in some 20 iterations, on every grid. The width of the kernel is a tenth of the fast wave's
period; nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.physics import grid_collocation

F64 = torch.float64
REACTION = 5.0  # k


@dataclass(frozen=True)
class Row:
    waves: float
    points: int  # in all
    rank: int  # eigenvectors of an axis
    iterations: int
    error: float  # relative, between the points
    seconds: float


def bent(u: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """u'' of a function of a number."""
    return torch.func.grad(torch.func.grad(u))


def scaled(u: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: REACTION * u(x)


def solution(k: float, x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x)[:, None] * torch.cos(2 * y) + 0.1 * torch.sin(k * x)[:, None] * torch.sin(k * y)


def source(k: float, x: Tensor, y: Tensor) -> Tensor:
    slow, fast = torch.sin(x)[:, None] * torch.cos(2 * y), 0.1 * torch.sin(k * x)[:, None] * torch.sin(k * y)
    return (REACTION - 5) * slow + (REACTION - 2 * k * k) * fast


def run(cases: tuple[tuple[float, int], ...] = ((50.0, 160), (100.0, 320))) -> list[Row]:
    """Solve for each pair of a frequency and the points of an axis."""
    rows = []
    for k, n in cases:
        x = torch.linspace(0, 1, n, dtype=F64)
        inside, ends = x[1:-1], x[[0, -1]]

        def kernel(a: Tensor, b: Tensor, k: float = k) -> Tensor:
            return torch.exp(-0.08 * (k * (a - b)) ** 2)

        start = time.process_time()
        u = grid_collocation(
            [kernel, kernel],
            [
                ([(bent, None), (None, bent), (scaled, None)], (inside, inside),
                 source(k, inside, inside)),
                ([(None, None)], (ends, x), solution(k, ends, x)),
                ([(None, None)], (x, ends), solution(k, x, ends)),
            ],
        )  # fmt: skip
        seconds = time.process_time() - start
        fine = torch.linspace(0, 1, 2 * n + 1, dtype=F64)
        exact = solution(k, fine, fine)
        error = float((u(fine, fine) - exact).norm() / exact.norm())
        rows.append(Row(k, n * n, len(u.coefficients), u.solution.iterations, error, seconds))
    return rows


def main() -> None:
    print("frequency   points  rank  iterations  relative error  CPU seconds")
    for r in run():
        print(f"{r.waves:9g}  {r.points:7d}  {r.rank:4d}  {r.iterations:10d}  {r.error:14.1e}  {r.seconds:11.1f}")


if __name__ == "__main__":
    main()
