"""Where should more collocation points lie? Where an adversary would put them, who may not be too rough.

    python examples/adversarial_sampling.py

Collocation sees its points alone. An adversary chooses the density p of further points to make the squared residual r^2
large, and pays for roughness:

    max over p   int p r^2 - beta int p'^2,   int p = 1

The maximum is p = 1 + g, where g is the Riesz representative of r^2 minus its mean in the metric 2 beta int g'h': one
solve by a cosine transform, without a network for p. Solver and adversary take turns on -u'' = f on [0, 1], whose
solution has two narrow peaks. The solver is a Gaussian process with a kernel of about their width. Beside it stand as
many rounds in which the further points are uniform. A draw may be lucky, so the median of several is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from frechet.calculus.functionals import sobolev
from frechet.physics import operator_collocation

F64 = torch.float64
GRID, SHARPNESS, CENTRES = 200, 1000.0, (0.3, 0.75)


@dataclass(frozen=True)
class Found:
    adversarial: Tensor  # (draws, rounds), the largest error after each round, with points from the adversary
    uniform: Tensor
    nearby: float  # the share of the adversary's points within 0.08 of a peak; 32 % of the interval is


def exact(x: Tensor) -> Tensor:
    return torch.exp(-SHARPNESS * (x - torch.tensor(CENTRES, dtype=F64)) ** 2).sum(-1)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-SHARPNESS / 2 * (x - y).square().sum())


def bent(u: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """-u'', a function of a point (1,)."""
    one = torch.ones(1, dtype=F64)
    return lambda x: -torch.func.jvp(lambda x: torch.func.jvp(u, (x,), (one,))[1], (x,), (one,))[1]


def adversary(square: Tensor, share: float = 0.1) -> Tensor:
    """The density on the cells, for the beta with which its least value is `share`."""
    R = sobolev(GRID, 1 / GRID, boundary="neumann", mass=1e-6).inverse  # of beta = 1 / 2
    g = R @ ((square - square.mean()) / GRID)
    return 1 + (1 - share) * g / -g.min()


def played(moves: bool, rounds: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The largest errors after each round, and the points that were added."""
    generator = torch.Generator().manual_seed(seed)
    cells = ((torch.arange(GRID, dtype=F64) + 0.5) / GRID)[:, None]
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    points, errors = torch.rand(2 * count, 1, dtype=F64, generator=generator), []
    for _ in range(rounds):
        u = operator_collocation(
            kernel, [(bent, points, vmap(bent(exact))(points)), (lambda u: u, ends, vmap(exact)(ends))], jitter=1e-10
        )
        errors.append(float((u(cells) - vmap(exact)(cells)).abs().max()))
        mean = lambda x, u=u: u(x[None])[0]  # noqa: E731
        square = vmap(lambda x, mean=mean: bent(mean)(x) - bent(exact)(x))(cells).square()
        density = adversary(square) if moves else torch.ones_like(square)
        cell = torch.multinomial(density, count, replacement=True, generator=generator)
        points = torch.cat([points, cells[cell] + (torch.rand(count, 1, dtype=F64, generator=generator) - 0.5) / GRID])
    return torch.tensor(errors), points[2 * count :]


def run(draws: int = 5, rounds: int = 5, count: int = 12) -> Found:
    """Play from several starts with the adversary, and as often with uniform points."""
    games = [[played(moves, rounds, count, seed) for seed in range(draws)] for moves in (True, False)]
    added = torch.cat([points for _, points in games[0]])
    near = (added - torch.tensor(CENTRES, dtype=F64)).abs().amin(1) < 0.08
    errors = [torch.stack([e for e, _ in game]) for game in games]
    return Found(errors[0], errors[1], float(near.double().mean()))


def main() -> None:
    found = run()
    print("largest error after each round, median of the draws")
    for name, errors in (("points of the adversary", found.adversarial), ("uniform points", found.uniform)):
        print(f"  {name:24s}" + "  ".join(f"{float(e):.1e}" for e in errors.median(0).values))
    print(f"{found.nearby:.0%} of the adversary's points lie near a peak, on 32 % of the interval")


if __name__ == "__main__":
    main()
