"""How exactly does a network of 257 parameters solve Poisson's equation, when the weights of the loss are badly chosen?

    python examples/poisson_network.py [seconds]

u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its sides, which u = sin(pi x) sin(pi y) solves.
The network and its residuals are the user's own, some ten lines. The first guess gives the boundary a thousandth of the
weight of the equation; `balanced` replaces it, once, by weights that give the rows of all conditions one size. The
plain call of `least_squares` then goes on for as many seconds of processor time as are given, 60 by default.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from frechet import LeastSquaresSolution, least_squares
from frechet.calculus.taylor import laplacian
from frechet.physics import Conflict, collocation, conflict

F64 = torch.float64


@dataclass(frozen=True)
class Found:
    solution: LeastSquaresSolution
    error: float  # relative, in L2
    before: Conflict
    boundary_weight: float  # after balancing


def run(seconds: float = 60.0, width: int = 64, points: int = 900, goal: float = 1e-12, seed: int = 0) -> Found:
    """Train until the norm of the residual is `goal`, or the time is over."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).to(F64)

    def u(p: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: functional_call(net, p, (x,)).squeeze(-1)

    def equation(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return laplacian(u(p))(x) + 2 * math.pi**2 * torch.sin(math.pi * x).prod(-1)

    def boundary(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return u(p)(x)

    inside, sides = torch.rand(points, 2, dtype=F64), torch.rand(points // 8, 2, dtype=F64)
    k = torch.arange(len(sides))
    sides[k, k % 4 // 2] = (k % 2).to(F64)
    residual = collocation(
        {"equation": equation, "boundary": boundary},
        {"equation": inside, "boundary": sides},
        weights={"boundary": 1e-3},
        domain=(0.0, 1.0),
    )
    start = dict(net.named_parameters())
    before, residual = conflict(residual, start), residual.balanced(start)
    end = time.process_time() + seconds
    solution = least_squares(
        residual, start, observe=lambda s: time.process_time() > end or math.sqrt(2 * s.cost) < goal
    )
    assert isinstance(solution.x, dict)
    net.load_state_dict(solution.x)
    test = torch.rand(9000, 2, dtype=F64)
    exact = torch.sin(math.pi * test).prod(-1)
    with torch.no_grad():
        error = float((net(test).squeeze(-1) - exact).norm() / exact.norm())
    weight = residual.conditions[1].weight
    return Found(solution, error, before, float(weight))


def main(seconds: float | None = None) -> None:
    found = run() if seconds is None else run(seconds)
    print(f"before, with the boundary at a thousandth: {found.before}")
    print(f"weight of the boundary after balancing: {found.boundary_weight:.3g}")
    print(f"{found.solution.method}: {found.solution.iterations} steps, norm(r) = {found.solution.residual:.1e}")
    print(f"relative error {found.error:.1e}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else None)
