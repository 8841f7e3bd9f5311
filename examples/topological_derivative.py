"""A ring is found in an image by nucleating a hole: topological derivatives beside shape gradients.

    python examples/topological_derivative.py

A shape is an image of zeros and ones, seen through a blur B. Moving its border, which is what gradients of shapes do,
makes no hole: from a full disc, the descent ends at a disc. The topological derivative of J = |B shape - target|^2 / 2
at a point is the change of J for a small disc that is taken away or put there, over its area:

    T(x) = s (B r)(x),    r = B shape - target,    s = -1 inside, 1 outside,

since B is its own transpose. Where T is negative, a hole or an island lowers J. It is checked against discs that
shrink, and used in turns with the movement of the border.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

N = 96
GRID = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, N, dtype=torch.float64),) * 2, indexing="ij"))
AREA = (2 / (N - 1)) ** 2
BLUR = 0.06


def disc(radius: float, centre: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The image of a disc, with pixels on its border partly covered."""
    off = (GRID - torch.tensor(centre, dtype=torch.float64)[:, None, None]).square().sum(0).sqrt()
    return ((radius - off) * (N - 1) / 2 + 0.5).clamp(0, 1)


def blurred(image: Tensor) -> Tensor:
    """The convolution with a normal density, which is symmetric."""
    t = torch.arange(-15, 16, dtype=torch.float64) * 2 / (N - 1)
    k = torch.exp(-(t**2) / (2 * BLUR**2))
    k = k / k.sum()
    rows = torch.nn.functional.conv2d(image[None, None], k[None, None, None], padding=(0, 15))
    return torch.nn.functional.conv2d(rows, k[None, None, :, None], padding=(15, 0))[0, 0]


def misfit(shape: Tensor, target: Tensor) -> Tensor:
    """J, as an integral."""
    return (blurred(shape) - target).square().sum() * AREA / 2


def topological_derivative(shape: Tensor, target: Tensor) -> Tensor:
    """The change of J per area of a vanishing disc that flips the shape at each point."""
    leaf = shape.clone().requires_grad_()
    (g,) = torch.autograd.grad(misfit(leaf, target), leaf)
    return torch.where(shape > 0.5, -g, g) / AREA


def holes(shape: Tensor) -> int:
    """Connected parts of the background, less the outside."""
    left, count = (shape < 0.5).clone(), 0
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
    return count - 1


def border_moved(level: Tensor, target: Tensor, step: float) -> Tensor:
    """One step of the level set along the shape gradient, near the border alone."""
    shape = (level * (N - 1) / 2 + 0.5).clamp(0, 1)
    leaf = shape.clone().requires_grad_()
    (g,) = torch.autograd.grad(misfit(leaf, target), leaf)
    near = (level.abs() < 3 * 2 / (N - 1)).double()
    return redistanced(level - step * near * g / AREA)


def redistanced(level: Tensor) -> Tensor:
    """The signed distance to the zero set of `level`, from its crossings between neighbouring pixels."""
    points = []
    for axis in (0, 1):
        a, b = level.narrow(axis, 0, N - 1), level.narrow(axis, 1, N - 1)
        cross = (a > 0) != (b > 0)
        t = (a / (a - b))[cross]
        p, q = GRID.narrow(axis + 1, 0, N - 1)[:, cross], GRID.narrow(axis + 1, 1, N - 1)[:, cross]
        points.append(p + t * (q - p))
    zero = torch.cat(points, 1).T
    if len(zero) == 0:
        return level
    distance = torch.cdist(GRID.reshape(2, -1).T, zero).amin(1).reshape(N, N)
    return distance * level.sign()


@dataclass(frozen=True)
class Found:
    """J after each step and the number of holes, with nucleation and without; and the check of the derivative."""

    with_holes: list[float]
    without: list[float]
    holes: tuple[int, int]
    checks: list[tuple[float, float, float]]  # radius of a small disc, change of J per area, topological derivative
    shapes: tuple[Tensor, Tensor, Tensor]


def checked(shape: Tensor, target: Tensor) -> list[tuple[float, float, float]]:
    """Small discs taken out of the middle, against the derivative."""
    T = float(topological_derivative(shape, target)[N // 2 - 1 : N // 2 + 1, N // 2 - 1 : N // 2 + 1].mean())
    found = []
    for radius in (0.2, 0.1, 0.05):
        small = disc(radius)
        change = misfit((shape - small).clamp(min=0), target) - misfit(shape, target)
        found.append((radius, float(change / (small.sum() * AREA)), T))
    return found


def descend(target: Tensor, nucleate: bool, steps: int = 60) -> tuple[list[float], Tensor]:
    """The level set's descent, with a hole wherever the topological derivative is most negative inside."""
    level = 0.85 - GRID.square().sum(0).sqrt()
    history = []
    for step in range(steps):
        if nucleate and step % 10 == 5:
            shape = (level > 0).double()
            T = topological_derivative(shape, target)
            place = T.argmin()
            inside = float(level.flatten()[place])
            # away from the border, where moving it would do the same
            if float(T.min()) < -0.1 and abs(inside) > 0.15:
                centre = GRID.reshape(2, -1)[:, place]
                small = (GRID - centre[:, None, None]).square().sum(0).sqrt() - 0.1
                level = redistanced(torch.minimum(level, small) if inside > 0 else torch.maximum(level, -small))
        level = border_moved(level, target, 0.15)
        history.append(float(misfit((level * (N - 1) / 2 + 0.5).clamp(0, 1), target)))
    return history, level


def run() -> Found:
    """The ring from a full disc, both ways."""
    target = blurred(disc(0.7) - disc(0.35))
    start = disc(0.85)
    ours, level = descend(target, True)
    plain, other = descend(target, False)
    shapes = (level > 0).double(), (other > 0).double(), target
    return Found(ours, plain, (holes(shapes[0]), holes(shapes[1])), checked(start, target), shapes)


def main() -> None:
    """Print the checks and both descents."""
    found = run()
    for radius, change, T in found.checks:
        print(f"a hole of radius {radius:.2f} changes J by {change:+.4f} per area, topological derivative {T:+.4f}")
    print(f"border alone: J {found.without[-1]:.2e}, {found.holes[1]} holes")
    print(f"with nucleation: J {found.with_holes[-1]:.2e}, {found.holes[0]} holes")


if __name__ == "__main__":
    main()
