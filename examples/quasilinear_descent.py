"""How many steps does descent need where the equation is the minimum of an energy, and on which grid?

    python examples/quasilinear_descent.py

-div((1 + 1 / sqrt(1 + |Du|^2)) Du) = f on the unit square, u = 0 on its sides, is the Euler-Lagrange equation of

    E(u) = int L(Du) - f u,   L(p) = |p|^2 / 2 + sqrt(1 + |p|^2),   D^2 L between 1 and 2.

The derivative of E is a covector. Its Riesz representative under the inverse Laplacian is a step that shrinks the error
by (2 - 1) / (2 + 1) = 1 / 3 whatever the grid is; the derivative itself, taken for a step, shrinks it less and less as
the grid is refined. `minimize` in the same metric is Newton's method and needs fewer steps still. The last line says
that the minimum solves the equation: the functional derivative, a function, is zero inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet import minimize
from frechet.calculus.functionals import box, functional_derivative, local_functional, sobolev
from frechet.operators import Metric, from_diagonal
from frechet.physics import metric_descent

F64 = torch.float64
LEAST, MOST = 1.0, 2.0  # eigenvalues of D^2 L
GTOL = 1e-8


@dataclass(frozen=True)
class Row:
    nodes: int
    steps: int  # of descent in the metric of the Laplacian
    rate: float  # by which the slope shrinks a step
    plain: float  # the same where the derivative is the step
    newton: int  # steps of minimize in the metric
    difference: float  # of the two minima


def source(x: Tensor) -> Tensor:
    return 40 * torch.sin(3 * x[..., 0]) * torch.exp(x[..., 1])


def energy(n: int):
    """E of linear elements on n x n inner nodes."""
    h = 1 / (n + 1)
    axis = torch.arange(1, n + 1, dtype=F64) * h
    f = source(torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1))

    def E(v: Tensor) -> Tensor:
        u = torch.nn.functional.pad(v, (1, 1, 1, 1))
        dx, dy = u.diff(dim=0) / h, u.diff(dim=1) / h
        total = -(f * v).sum()
        for a, b in ((dx[:, :-1], dy[:-1]), (dx[:, 1:], dy[1:])):  # both triangles of each cell
            p = a**2 + b**2
            total = total + 0.5 * (p / 2 + (1 + p).sqrt()).sum()
        return h**2 * total

    return E, h


def rate(slopes: tuple[float, ...]) -> float:
    """The mean factor of the last ten steps."""
    return (slopes[-1] / slopes[-11]) ** 0.1


def run(grids: tuple[int, ...] = (15, 31, 63)) -> list[Row]:
    """Descend from zero on each grid."""
    rows = []
    for n in grids:
        E, h = energy(n)
        zero, H1 = torch.zeros(n, n, dtype=F64), sobolev((n, n), h, mass=0.0)
        step = 2 / (LEAST + MOST)
        found = metric_descent(E, zero, metric=H1, step=step, gtol=GTOL)
        euclidean = Metric(from_diagonal(torch.full((n * n,), 8.0, dtype=F64)))  # 8 bounds h^2 times the Laplacian
        plain = metric_descent(E, zero, metric=euclidean, step=step, gtol=0.0, max_iterations=60)
        s = minimize(E, zero, metric=H1, gtol=GTOL)
        gap = float((s.x - found.x).abs().max())
        rows.append(Row(n, found.iterations, rate(found.slopes), rate(plain.slopes), s.iterations, gap))
    return rows


def residual_of_a_function(u=lambda x: torch.sin(x[..., 0]) * x[..., 1] ** 2) -> float:
    """The functional derivative of E at a smooth u, beside the divergence in the equation written by hand."""
    square = box((0.0, 0.0), (1.0, 1.0), nodes=6)

    def density(x: Tensor, u: Tensor, p: Tensor) -> Tensor:
        q = p.square().sum(-1)
        return q / 2 + (1 + q).sqrt() - source(x) * u

    D = functional_derivative(local_functional(density, square, order=1), u)
    x = square.points
    gradient = torch.func.grad(u)

    def flux(x: Tensor) -> Tensor:
        p = gradient(x)
        return (1 + 1 / (1 + p @ p).sqrt()) * p

    by_hand = torch.func.vmap(lambda x: -torch.func.jacfwd(flux)(x).trace())(x) - source(x)
    return float((D(x) - by_hand).abs().max())


def main() -> None:
    print("nodes  steps  rate   plain rate  Newton steps")
    for r in run():
        print(f"{r.nodes:3d}^2  {r.steps:5d}  {r.rate:.3f}  {r.plain:.4f}      {r.newton}")
    print(f"the functional derivative differs from the equation by {residual_of_a_function():.0e}")


if __name__ == "__main__":
    main()
