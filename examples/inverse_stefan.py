"""How must a melting bar be heated, so that its end moves as measured and it never gets too hot?

    python examples/inverse_stefan.py

Ice melts at the end s(t) of a bar 0 < x < s(t); heat flows in at x = 0 by the flux g(t), and sources f(x, t) take heat
away. The flux, the sources and the boundary are unknown together. Known are the temperature at the final time, the
melting temperature at s, and where s ends. On the fixed interval y = x / s

    v_t = v_yy / s^2 + y s' v_y / s - f,   v_y / s = g at y = 0,   v_y / s = -s' at y = 1

is solved by implicit Euler steps, which `march` differentiates exactly. Each control has a Sobolev space of its own,
and `Control.minimize` measures steps there. The same problem is then solved with a limit for the temperature, by the
penalty A int int (v - limit)_+^2 with growing A. `run` asks both on two grids: the answers must hardly differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.functionals import sobolev
from frechet.operators import product_metric
from frechet.optimize import MinimizeSolution
from frechet.physics import Control, march

F64 = torch.float64
ALPHA = 1e-3  # of the penalty for rough controls
LIMIT, PENALTIES = 1.06, (10.0, 1e3)  # without a limit the temperature reaches 1.2
LENGTH = 0.3  # below which controls are smoothed, in units of the final time
Fields = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    steps: int  # of the grid in time
    free: MinimizeSolution
    limited: list[MinimizeSolution]  # one for each penalty
    hottest: list[float]  # without a limit, then with each penalty
    difference: float  # the largest relative error of the gradient beside central differences


class Bar:
    """The discrete problem with M steps in time and M / 2 cells in space."""

    def __init__(self, M: int) -> None:
        self.M, self.nodes, self.dt = M, M // 2, 1 / M
        self.y, self.t = (torch.linspace(0, 1, n + 1, dtype=F64) for n in (self.nodes, M))
        self.w = torch.full_like(self.y, 1 / self.nodes)
        self.w[[0, -1]] /= 2
        cells = (M, self.nodes + 1)
        self.metric = product_metric(
            {
                "s": sobolev(M + 1, self.dt, order=2.0, boundary="neumann", length=LENGTH),
                "g": sobolev(M, self.dt, boundary="neumann", length=LENGTH),
                "f": sobolev(cells, (self.dt, 1 / self.nodes), boundary="neumann", length=LENGTH),
            }
        )
        self.truth = {
            "s": 1 + 0.3 * self.t,
            "g": -1 + 0.5 * torch.sin(3 * self.t[1:]),
            "f": 0.2 * torch.cos(4 * self.t[1:])[:, None] * (1 + self.y),
        }
        self.start = {
            "s": 1 + 0.2 * self.t,
            "g": torch.full((M,), -1.0, dtype=F64),
            "f": torch.zeros(cells, dtype=F64),
        }
        self.measured = self.state(self.truth)

    def step(self, v: Tensor, u: Fields) -> Tensor:
        """One implicit Euler step, with ghost nodes beyond both ends."""
        h, n = 1 / self.nodes, self.nodes
        at, ends, near = torch.arange(1, n), torch.tensor([0, n]), torch.tensor([1, n - 1])
        s, rate = u["s"], (u["s"] - u["before"]) / self.dt
        a, b = 1 / (s * h) ** 2, self.y * rate / s / (2 * h)
        A = torch.diag(torch.ones_like(self.y) * (1 / self.dt + 2 * a))
        A = A.index_put((at, at - 1), (b - a)[at]).index_put((at, at + 1), (-a - b)[at])
        A = A.index_put((ends, near), torch.stack([-2 * a, -2 * a]))
        ghosts = torch.stack([-2 * h * s * u["g"] * (b - a)[0], -2 * h * s * rate * (-a - b)[-1]])
        return torch.linalg.solve(A, v / self.dt - u["f"] - torch.zeros_like(self.y).index_put((ends,), ghosts))

    def state(self, x: Fields) -> Tensor:
        """The temperatures (M + 1, nodes + 1) of all times."""
        controls = {"s": x["s"][1:], "before": x["s"][:-1], "g": x["g"], "f": x["f"]}
        return march(self.step, 1 - self.y * x["s"][0], controls).outputs

    def control(self, penalty: float) -> Control:
        def cost(v: Tensor, x: Fields) -> Tensor:
            fit = (self.w * (v[-1] - self.measured[-1]).square()).sum()
            fit = fit + self.dt * (v[1:, -1] - self.measured[1:, -1]).square().sum()
            fit = fit + (x["s"][-1] - self.truth["s"][-1]).square()
            over = penalty * self.dt * (self.w * (v - LIMIT).clamp(min=0).square()).sum()
            return fit + over + ALPHA * self.metric.inner(x, x) / 2

        return Control(self.state, cost, metric=self.metric)


def gradient_error(bar: Bar) -> float:
    """The derivative along one random direction, beside a central difference of the cost."""
    control, generator = bar.control(0.0), torch.Generator().manual_seed(0)
    v = {name: torch.randn(t.shape, dtype=F64, generator=generator) for name, t in bar.start.items()}
    ahead, behind = (float(control({k: t + c * 1e-5 * v[k] for k, t in bar.start.items()})) for c in (1, -1))
    g = torch.func.grad(control)(bar.start)
    slope = sum(float((g[name] * v[name]).sum()) for name in v)
    return abs(slope - (ahead - behind) / 2e-5) / abs(slope)


def run(grids: tuple[int, ...] = (8, 16)) -> list[Found]:
    """Solve with and without the limit on each grid."""
    rows = []
    for M in grids:
        bar = Bar(M)
        free = bar.control(0.0).minimize(bar.start, gtol=1e-6)
        limited, x = [], free.x
        for penalty in PENALTIES:
            limited.append(bar.control(penalty).minimize(x, gtol=1e-6))
            x = limited[-1].x
        hottest = [float(bar.state(s.x).max()) for s in (free, *limited)]
        rows.append(Found(M, free, limited, hottest, gradient_error(bar)))
    return rows


def main() -> None:
    for row in run():
        print(f"{row.steps} steps in time; the gradient is off by {row.difference:.0e} from differences of the cost")
        print(f"  no limit: cost {row.free.value:.5f}, {row.free.iterations} steps, hottest {row.hottest[0]:.3f}")
        for penalty, s, hottest in zip(PENALTIES, row.limited, row.hottest[1:], strict=True):
            print(
                f"  penalty {penalty:g}: cost {s.value:.5f}, {s.iterations} more, hottest {hottest:.3f}, limit {LIMIT}"
            )


if __name__ == "__main__":
    main()
