"""A field learns points of two circles through its zero set: derivatives of extracted vertices by the field.

    python examples/iso_surface.py

Vertices of an iso-surface are found by marching along grid edges, which has no derivative. Each vertex v moves with the
parameters p of the field so that f(v, p) stays zero; along the normal n = grad f / |grad f|,

    dv/dp = -n (df/dp) / |grad f|.

It is written as v - n (f(v, p) - stop(f(v, p))) / |grad f|: the value is v, the derivative the one above. The zero set
may change its topology: it starts as one circle and ends as two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

N = 40
AXIS = torch.linspace(-2, 2, N, dtype=torch.float64)
GRID = torch.stack(torch.meshgrid(AXIS, AXIS, indexing="ij"), -1)
Field = Callable[[Tensor], Tensor]


def crossings(f: Field) -> Tensor:
    """Points of f = 0 on grid edges, by linear interpolation and one step of Newton along the gradient."""
    with torch.no_grad():
        values = f(GRID.reshape(-1, 2)).reshape(N, N)
        found = []
        for axis in (0, 1):
            a, b = values.narrow(axis, 0, N - 1), values.narrow(axis, 1, N - 1)
            cross = (a > 0) != (b > 0)
            t = (a / (a - b))[cross].unsqueeze(-1)
            found.append(torch.lerp(GRID.narrow(axis, 0, N - 1)[cross], GRID.narrow(axis, 1, N - 1)[cross], t))
    v = torch.cat(found)
    for _ in range(2):
        value, slope = with_gradient(f, v)
        v = v - slope * (value / slope.square().sum(-1).clamp(min=1e-12)).unsqueeze(-1)
    return v


def with_gradient(f: Field, v: Tensor) -> tuple[Tensor, Tensor]:
    """The field and its gradient at points, as constants."""
    leaf = v.detach().requires_grad_()
    value = f(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def vertices(f: Field) -> Tensor:
    """Points of the zero set that carry the derivative of their place by the field's parameters."""
    v = crossings(f)
    _, slope = with_gradient(f, v)
    value = f(v)
    return v - slope * ((value - value.detach()) / slope.square().sum(-1).clamp(min=1e-12)).unsqueeze(-1)


def derivative_error() -> float:
    """The radius of a circle |x| - r: each vertex moves outward at unit speed; and of an ellipse's half axis."""
    r = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    v = vertices(lambda x: x.square().sum(-1).sqrt() - r)
    direction = v.detach() / v.detach().square().sum(-1, keepdim=True).sqrt()
    (g,) = torch.autograd.grad((v * direction).sum(-1).mean(), r)
    a = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    f = lambda x: (x[:, 0] / a) ** 2 + x[:, 1] ** 2 - 1  # noqa: E731
    w = vertices(f)
    _, slope = with_gradient(f, w)
    (moved,) = torch.autograd.grad((w * slope).sum(), a)  # n |grad f| . dv/da = -df/da
    exact = (2 * w.detach()[:, 0] ** 2 / a.detach() ** 3).sum()
    return max(abs(float(g) - 1), abs(float(moved / exact) - 1))


def cloud() -> Tensor:
    """Points on two circles."""
    t = torch.linspace(0, 2 * torch.pi, 61, dtype=torch.float64)[:-1]
    circle = 0.5 * torch.stack([t.cos(), t.sin()], -1)
    shift = torch.tensor([0.9, 0.0], dtype=torch.float64)
    return torch.cat([circle - shift, circle + shift])


def parts(f: Field) -> int:
    """Connected parts of f < 0 on the grid."""
    with torch.no_grad():
        left = f(GRID.reshape(-1, 2)).reshape(N, N) < 0
    count = 0
    while bool(left.any()):
        part = torch.zeros_like(left)
        first = left.nonzero()[0]
        part[first[0], first[1]] = True
        while True:
            grown = torch.nn.functional.max_pool2d(part.double()[None, None], 3, 1, 1)[0, 0].bool() & left
            if bool((grown == part).all()):
                break
            part = grown
        left, count = left & ~part, count + 1
    return count


@dataclass(frozen=True)
class Found:
    """The error of the derivative, distances of vertices and points before and after, and the number of parts."""

    derivative_error: float
    distances: list[float]
    parts: tuple[int, int]


def chamfer(v: Tensor, target: Tensor) -> Tensor:
    """Mean squared distances to the nearest, both ways."""
    d = (v[:, None] - target[None]).square().sum(-1)
    return d.amin(0).mean() + d.amin(1).mean()


def run(steps: int = 150) -> Found:
    """Fit a small network whose zero set starts as a circle."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 48), nn.Softplus(beta=5), nn.Linear(48, 48), nn.Softplus(beta=5), nn.Linear(48, 1))
    net = net.double()
    with torch.no_grad():
        net[4].weight.mul_(0.3)

    def f(x: Tensor) -> Tensor:
        return x.square().sum(-1).add(1e-6).sqrt() - 1.2 + net(x).squeeze(-1) - offset

    offset = net(torch.zeros(1, 2, dtype=torch.float64)).detach().squeeze()
    target, before = cloud(), 0
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    distances = []
    for step in range(steps):
        if step == 0:
            before = parts(f)
        loss = chamfer(vertices(f), target)
        # a slope near one keeps the field from folding where no vertex is
        x = GRID.reshape(-1, 2)[step % 7 :: 7].clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        eikonal = (slope.square().sum(-1).add(1e-9).sqrt() - 1).square().mean()
        optimizer.zero_grad()
        (loss + 0.02 * eikonal).backward()
        optimizer.step()
        distances.append(float(loss.detach()))
    return Found(derivative_error(), distances, (before, parts(f)))


def main() -> None:
    """Print what was found."""
    found = run()
    print(f"derivative of vertices off by {found.derivative_error:.0e} from the closed forms")
    print(f"squared distance {found.distances[0]:.4f} to {found.distances[-1]:.5f}")
    print(f"parts of the inside: {found.parts[0]} at first, {found.parts[1]} at the end")


if __name__ == "__main__":
    main()
