"""Small least-squares problems with sparse Jacobians of many shapes, each with its declared structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.optimize._sparse.structure import Structure, structured
from frechet.space import Space
from spectra import F64


@dataclass(frozen=True)
class SparseProblem:
    residual: Callable[..., object]
    x0: Tensor | dict[str, Tensor]
    structure: object
    unique: bool = True  # whether the minimizer is isolated


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def index(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randint(count, (size,), generator=torch.Generator().manual_seed(seed))


def bundle() -> SparseProblem:
    """Points seen by cameras through a bent projection; moved and turned together nothing changes."""
    seen = torch.ones(3, 7, dtype=torch.bool)
    seen[2, :3] = False
    camera, point = seen.nonzero(as_tuple=True)
    cameras, points = 0.1 * gaussian(1, 3, 6), gaussian(2, 7, 3)

    def project(x):
        c, p = x["cameras"][camera], x["points"][point]
        q = p + torch.linalg.cross(c[:, :3], p) + c[:, 3:]
        return q[:, :2] / (6 + q[:, 2:])

    data = project({"cameras": cameras, "points": points}) + 0.01 * gaussian(3, len(camera), 2)
    start = {"cameras": cameras + 0.01, "points": points + 0.05 * gaussian(4, 7, 3)}
    return SparseProblem(lambda x: project(x) - data, start, {"cameras": camera, "points": point}, unique=False)


def shared() -> SparseProblem:
    """Curves of which each has an own amplitude and rate, and all share an offset."""
    which = index(5, 40)
    t, noise = torch.linspace(0, 2, 40, dtype=F64), 0.01 * gaussian(5, 40)
    y = (1 + 0.1 * which) * torch.exp(-(0.5 + 0.2 * which) * t) + 0.3 + noise

    def residual(x):
        a = x["curves"][which]
        return a[:, 0] * torch.exp(-a[:, 1] * t) + x["offset"] - y

    start = {"offset": torch.zeros((), dtype=F64), "curves": torch.ones(5, 2, dtype=F64)}
    return SparseProblem(residual, start, {"curves": which, "offset": "all"})


def poses() -> SparseProblem:
    """Places on a line of which pairs are measured, one edge from a place to itself, the first place known."""
    ends = torch.stack([index(6, 14, 1), index(6, 14, 2)], 1)
    ends = torch.cat([ends, torch.tensor([[0, -1], [3, 3]])])
    place = torch.cumsum(torch.ones(6, 2, dtype=F64), 0)
    weight = torch.where(ends >= 0, torch.tensor([[1.0, -1.0]], dtype=F64), 0.0)

    def measured(x):
        both = x[ends.clamp(min=0)]
        return torch.sin(0.2 * both * weight[:, :, None]).sum(1) + 0.1 * weight.sum(1)[:, None] * both[:, 0]

    data = measured(place) + 0.01 * gaussian(3, 16, 2)
    return SparseProblem(lambda x: measured(x) - data, 0.8 * place, ends)


def independent() -> SparseProblem:
    """Curves that share nothing, read as one problem."""
    which = torch.arange(6).repeat_interleave(5)
    t = torch.linspace(0.1, 2, 30, dtype=F64)
    y = (1 + 0.2 * which) * torch.exp(-0.7 * t)
    return SparseProblem(lambda x: x[which, 0] * torch.exp(-x[which, 1] * t) - y, torch.ones(6, 2, dtype=F64), which)


def priors() -> SparseProblem:
    """A residual of two tensors: differences of a chain with landmarks, and a prior on each link of the chain."""
    link, mark = index(6, 25, 3), index(4, 25, 4)
    chain = torch.linspace(0, 1, 18, dtype=F64).view(6, 3)
    marks = gaussian(1, 4, 3)

    def residual(x):
        seen = torch.tanh(x["chain"][link] - x["marks"][mark]) - torch.tanh(chain[link] - marks[mark])
        return {"seen": seen + 0.01, "prior": 0.1 * (x["chain"] - chain)}

    start = {"chain": chain + 0.1, "marks": marks - 0.1, "unread": torch.ones(3, dtype=F64)}
    declared = {"seen": {"chain": link, "marks": mark}, "prior": {"chain": torch.arange(6)}}
    return SparseProblem(residual, start, declared)


def two_kinds() -> SparseProblem:
    """Points and lines seen by frames: two parameters that never meet, of different width."""
    frame, point, line = index(4, 36, 1), torch.arange(36) % 8, torch.arange(20) % 5
    other = index(4, 20, 2)

    def residual(x):
        p = x["frames"][frame, :2] + torch.sin(x["points"][point])
        q = x["frames"][other, 1:] * x["lines"][line, :1] + x["lines"][line, 1:3]
        return {"points": p - gaussian(3, 36, 2), "lines": q + 0.1 * x["frames"][other, 1:] ** 2 - 1}

    start = {
        "frames": torch.ones(4, 3, dtype=F64),
        "lines": 0.5 + 0.1 * gaussian(3, 5, 3),
        "points": torch.zeros(8, 2, dtype=F64),
    }
    declared = {"points": {"frames": frame, "points": point}, "lines": {"frames": other, "lines": line}}
    return SparseProblem(residual, start, declared, unique=False)


def tridiagonal() -> SparseProblem:
    """Broyden's equations, each of which reads three entries of x, by a sparse pattern."""
    n = 12
    pattern = torch.eye(n, dtype=torch.bool)
    pattern[1:] |= torch.eye(n, dtype=torch.bool)[:-1]
    pattern[:-1] |= torch.eye(n, dtype=torch.bool)[1:]

    def residual(x):
        zero = x.new_zeros(1)
        return (3 - 2 * x) * x + 1 - torch.cat([zero, x[:-1]]) - 2 * torch.cat([x[1:], zero])

    return SparseProblem(residual, -torch.ones(n, dtype=F64), pattern)


def random_pattern() -> SparseProblem:
    """Rows of any length, empty ones and an empty column among them."""
    pattern = torch.rand(30, 9, generator=torch.Generator().manual_seed(4)) < 0.3
    pattern[4], pattern[:, 6] = False, False
    A = torch.where(pattern, gaussian(1, 30, 9), 0.0)
    return SparseProblem(lambda x: A @ x + 0.1 * A**2 @ x**2 - 1, torch.zeros(9, dtype=F64), pattern.to_sparse())


PROBLEMS = {f.__name__: f for f in (bundle, shared, poses, independent, priors, two_kinds, tridiagonal, random_pattern)}


def structure_of(problem: SparseProblem) -> Structure:
    single = isinstance(problem.x0, Tensor)
    space = Space.of({"": problem.x0} if isinstance(problem.x0, Tensor) else problem.x0)
    return structured(problem.structure, space, single, problem.residual(problem.x0))
