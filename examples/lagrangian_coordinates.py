"""Why does a network fail on convection, and what do coordinates that move along change?

    python examples/lagrangian_coordinates.py

u_t + c u_x = 0 on a circle with u = sin x at first carries a wave around 5 times where c = 30 and 8 times where c = 50.
A network in x and t has to learn all of these waves. In Lagrangian coordinates the unknowns are the place X(a, t) of
what started at a, and the value u(a, t) there:

    X_t = c,   u_t = 0,   X(a, 0) = a,   u(a, 0) = sin a

These functions are simple whatever c is. Both are solved by the same solver, with networks of about as many parameters
and as many points; errors are those of u(x, t), the exact solution being sin(x - c t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from frechet import least_squares
from frechet.physics import collocation

F64 = torch.float64
POINTS, STEPS = 20, 60
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    speed: float
    eulerian: float  # relative errors
    lagrangian: float
    parameters: tuple[int, int]


def network(outputs: int, width: int, seed: int) -> nn.Sequential:
    """A network of (cos x, sin x, t), periodic in x."""
    torch.manual_seed(seed)
    inner = (nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(*inner, nn.Linear(width, outputs)).to(F64)


def circle(z: Tensor) -> Tensor:
    return torch.stack([torch.cos(z[..., 0]), torch.sin(z[..., 0]), z[..., 1]], -1)


def grid(n: int) -> tuple[Tensor, Tensor]:
    """Points (x, t) inside, and at t = 0."""
    x, t = 2 * math.pi * torch.arange(n, dtype=F64) / n, torch.linspace(0, 1, n, dtype=F64)
    inside = torch.stack(torch.meshgrid(x, t, indexing="ij"), -1).reshape(-1, 2)
    return inside, torch.stack([x, torch.zeros_like(x)], 1)


def fitted(net: nn.Module, conditions: dict[str, Callable[..., Tensor]], points: dict[str, Tensor]) -> Parameters:
    r = collocation(conditions, points)
    s = least_squares(r, dict(net.named_parameters()), observe=lambda state: state.iteration >= STEPS)
    assert isinstance(s.x, dict)
    return s.x


def eulerian(c: float, seed: int) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """u as a function of x and t."""
    net = network(1, 13, seed)

    def u(p: Parameters) -> Callable[[Tensor], Tensor]:
        return lambda z: functional_call(net, p, (circle(z),)).squeeze(-1)

    def equation(p: Parameters, z: Tensor) -> Tensor:
        along = torch.tensor([c, 1.0], dtype=F64)
        return torch.func.jvp(u(p), (z,), (along,))[1]

    def start(p: Parameters, z: Tensor) -> Tensor:
        return u(p)(z) - torch.sin(z[0])

    inside, first = grid(POINTS)
    p = fitted(net, {"equation": equation, "start": start}, {"equation": inside, "start": first})
    return (lambda x, t: u(p)(torch.stack([x, t], -1)).detach()), sum(t.numel() for t in p.values())


def lagrangian(c: float, seed: int) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """The displacement X - a and the value u as functions of a and t."""
    net = network(2, 13, seed)

    def both(p: Parameters) -> Callable[[Tensor], Tensor]:
        return lambda z: functional_call(net, p, (circle(z),))

    def equation(p: Parameters, z: Tensor) -> Tensor:
        slopes = torch.func.jvp(both(p), (z,), (torch.tensor([0.0, 1.0], dtype=F64),))[1]
        return slopes - torch.tensor([c, 0.0], dtype=F64)

    def start(p: Parameters, z: Tensor) -> Tensor:
        return both(p)(z) - torch.stack([torch.zeros_like(z[0]), torch.sin(z[0])])

    inside, first = grid(POINTS)
    p = fitted(net, {"equation": equation, "start": start}, {"equation": inside, "start": first})

    def u(x: Tensor, t: Tensor) -> Tensor:
        """The value at the particle that is at x, found by fixed-point steps for where it started."""
        a = x - c * t
        for _ in range(20):
            a = x - both(p)(torch.stack([a, t], -1))[..., 0].detach()
        return both(p)(torch.stack([a, t], -1))[..., 1].detach()

    return u, sum(t.numel() for t in p.values())


def run(speeds: tuple[float, ...] = (30.0, 50.0), seed: int = 0) -> list[Row]:
    """Fit both for each speed."""
    rows = []
    generator = torch.Generator().manual_seed(1)
    z = torch.rand(2000, 2, dtype=F64, generator=generator) * torch.tensor([2 * math.pi, 1.0], dtype=F64)
    for c in speeds:
        exact = torch.sin(z[:, 0] - c * z[:, 1])
        found = [kind(c, seed) for kind in (eulerian, lagrangian)]
        errors = [float((u(z[:, 0], z[:, 1]) - exact).norm() / exact.norm()) for u, _ in found]
        rows.append(Row(c, errors[0], errors[1], (found[0][1], found[1][1])))
    return rows


def main() -> None:
    print("speed  relative error in x, t (parameters)  along the flow")
    for r in run():
        print(f"{r.speed:5g}  {r.eulerian:18.1e} ({r.parameters[0]})  {r.lagrangian:25.1e} ({r.parameters[1]})")


if __name__ == "__main__":
    main()
