"""Where should a plate be heated, so that it gets a wanted temperature for the least power?

    python examples/optimal_sources.py

-Lap u = f on the unit square, u = 0 on its sides. The source f may lie between 0 and 1, and power costs:

    minimize  int (u - wanted)^2 / 2 + price f

f enters the cost only through u and by a linear term. So the derivative in f is p + price, with the adjoint state p,
-Lap p = u - wanted, and the best source takes its bounds only: heat where p < -price, none elsewhere. Nobody tells that
to the solver: projected Newton finds which of the nodes are heated. A cost of f^2 shows the contrast: there the best
source takes values in between.

A factorization of the Laplacian enters the graph by `applied`, so that derivatives are exact and each costs two solves.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from frechet.operators import LinearOperator, Metric, applied, from_callable, from_diagonal
from frechet.optimize import MinimizeSolution
from frechet.physics import Control
from frechet.space import euclidean

F64 = torch.float64
PRICE = 2e-4


@dataclass(frozen=True)
class Found:
    nodes: int  # of each axis
    solution: MinimizeSolution
    source: Tensor  # (n, n)
    between: int  # nodes at neither bound
    wrong: int  # nodes at a bound that the adjoint state contradicts
    smooth: int  # nodes at neither bound where f^2 costs


def solved(n: int) -> LinearOperator:
    """The inverse of the five-point Laplacian on n x n inner nodes."""
    T = scipy.sparse.diags([2.0, -1.0, -1.0], [0, 1, -1], shape=(n, n)) * (n + 1) ** 2
    eye = scipy.sparse.identity(n)
    factors = scipy.sparse.linalg.splu((scipy.sparse.kron(T, eye) + scipy.sparse.kron(eye, T)).tocsc())
    return from_callable(
        lambda V: torch.from_numpy(factors.solve(V.numpy())), euclidean(n * n, F64), facts="positive_definite"
    )


def run(n: int = 31) -> Found:
    """Find the best source on n x n nodes."""
    S, h = solved(n), 1 / (n + 1)
    axis = torch.arange(1, n + 1, dtype=F64) * h
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    wanted = (0.04 * torch.exp(-20 * ((x - 0.35) ** 2 + (y - 0.6) ** 2))).reshape(-1)
    L2 = Metric(from_diagonal(torch.full((n * n,), h * h, dtype=F64)))

    def control(square: float) -> Control:
        def cost(u: Tensor, f: Tensor) -> Tensor:
            return h * h * ((u - wanted).square().sum() / 2 + PRICE * f.sum() + square * f.square().sum())

        return Control(lambda f: applied(S, f), cost, metric=L2, bounds=(0.0, 1.0))

    best = control(0.0)
    s = best.minimize(torch.full((n * n,), 0.5, dtype=F64))
    assert isinstance(s.x, Tensor)
    switch = best.gradient(s.x)  # p + price
    wrong = ((s.x == 1) & (switch > 0)) | ((s.x == 0) & (switch < 0))
    other = control(1e-3).minimize(torch.full((n * n,), 0.5, dtype=F64))
    assert isinstance(other.x, Tensor)
    between, smooth = (int(((f > 0) & (f < 1)).sum()) for f in (s.x, other.x))
    return Found(n, s, s.x.view(n, n), between, int(wrong.sum()), smooth)


def main() -> None:
    found = run()
    s = found.solution
    print(f"{s.message}: {s.iterations} steps, {s.products} products with the second derivative")
    heated = float(found.source.mean())
    print(f"{heated:.1%} of the plate is heated; {found.between} of {found.nodes**2} nodes are at neither bound")
    print(f"{found.wrong} nodes are at a bound that the adjoint state contradicts")
    print(f"where f^2 costs, too, {found.smooth} nodes are at neither bound")
    for row in found.source[:: max(found.nodes // 15, 1)]:
        print("  " + " ".join("#" if f == 1 else "." if f == 0 else "o" for f in row[:: max(found.nodes // 31, 1)]))


if __name__ == "__main__":
    main()
