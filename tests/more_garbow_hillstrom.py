"""Least-squares problems with known minima, some with bounds, each written from its formula.

J. J. More, B. S. Garbow and K. E. Hillstrom (1981), Testing unconstrained optimization software, ACM Transactions on
Mathematical Software 7, doi 10.1145/355934.355936; the bounds and the minima between them from D. M. Gay (1984), A
trust- region approach to linearly constrained optimization, Lecture Notes in Mathematics 1066, doi 10.1007/BFb0099519.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64
INF = math.inf


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


@dataclass(frozen=True, eq=False)
class Problem:
    """r with its standard start and the values of r'r at its known minima, the global one first."""

    name: str
    residual: Callable[[Tensor], Tensor]
    start: Tensor
    minima: tuple[float, ...]
    lower: Tensor | None = None
    upper: Tensor | None = None
    bounded_minimum: float | None = None


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x: Tensor) -> Tensor:
    a = x[0] - 13 + ((5 - x[1]) * x[1] - 2) * x[1]
    b = x[0] - 29 + ((x[1] + 1) * x[1] - 14) * x[1]
    return torch.stack([a, b])


def powell_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x[0]) + torch.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: Tensor) -> Tensor:
    i = torch.arange(1, 4)
    return numbers(1.5, 2.25, 2.625) - x[0] * (1 - x[1] ** i)


def jennrich_sampson(x: Tensor) -> Tensor:
    i = torch.arange(1, 11, dtype=F64)
    return 2 + 2 * i - torch.exp(i * x[0]) - torch.exp(i * x[1])


def helical_valley(x: Tensor) -> Tensor:
    turn = torch.atan(x[1] / x[0]) / (2 * math.pi) + (0.0 if x[0] > 0 else 0.5)
    return torch.stack([10 * (x[2] - 10 * turn), 10 * (torch.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])


BARD = numbers(0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)


def bard(x: Tensor) -> Tensor:
    u = torch.arange(1, 16, dtype=F64)
    return BARD - x[0] - u / ((16 - u) * x[1] + torch.minimum(u, 16 - u) * x[2])


HALF = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521)
BELL = numbers(*HALF, 0.3989, *reversed(HALF))


def gaussian(x: Tensor) -> Tensor:
    t = (7 - torch.arange(15, dtype=F64)) / 2
    return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2) - BELL


MEYER = numbers(
    *(34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872)
)


def meyer(x: Tensor) -> Tensor:
    t = 45 + 5 * torch.arange(1, 17, dtype=F64)
    return x[0] * torch.exp(x[1] / (t + x[2])) - MEYER


def gulf(x: Tensor) -> Tensor:
    t = torch.arange(1, 101, dtype=F64) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-(torch.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x: Tensor) -> Tensor:
    t = torch.arange(1, 4, dtype=F64) / 10
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


def powell_singular(x: Tensor) -> Tensor:
    squares = [(x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2]
    return torch.stack([x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), *squares])


def wood(x: Tensor) -> Tensor:
    a = [10 * (x[1] - x[0] ** 2), 1 - x[0], 90**0.5 * (x[3] - x[2] ** 2), 1 - x[2]]
    return torch.stack([*a, 10**0.5 * (x[1] + x[3] - 2), (x[1] - x[3]) / 10**0.5])


KOWALIK = numbers(0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)


def kowalik_osborne(x: Tensor) -> Tensor:
    u = numbers(4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
    return KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: Tensor) -> Tensor:
    t = torch.arange(1, 21, dtype=F64) / 5
    return (x[0] + t * x[1] - torch.exp(t)) ** 2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


OSBORNE_1 = numbers(
    *(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685, 0.658, 0.628, 0.603),
    *(0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411),
    0.406,
)


def osborne_1(x: Tensor) -> Tensor:
    t = 10 * torch.arange(33, dtype=F64)
    return OSBORNE_1 - x[0] - x[1] * torch.exp(-t * x[3]) - x[2] * torch.exp(-t * x[4])


def biggs(x: Tensor) -> Tensor:
    t = torch.arange(1, 14, dtype=F64) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y


OSBORNE_2 = numbers(
    *(1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679, 0.608, 0.655, 0.616, 0.606),
    *(0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644, 0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423),
    *(0.395, 0.375, 0.372, 0.391, 0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668),
    *(0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581, 0.428, 0.292, 0.162, 0.098),
    0.054,
)


def osborne_2(x: Tensor) -> Tensor:
    t = torch.arange(65, dtype=F64) / 10
    peaks = [x[i] * torch.exp(-((t - x[7 + i]) ** 2) * x[4 + i]) for i in (1, 2, 3)]
    return OSBORNE_2 - x[0] * torch.exp(-t * x[4]) - sum(peaks)


def watson(x: Tensor) -> Tensor:
    t, j = torch.arange(1, 30, dtype=F64) / 29, torch.arange(len(x))
    slope = (j[1:] * x[1:] * t[:, None] ** (j[1:] - 1)).sum(1)
    value = (x * t[:, None] ** j).sum(1)
    return torch.cat([slope - value**2 - 1, x[:1], (x[1] - x[0] ** 2 - 1)[None]])


def chebyquad(x: Tensor) -> Tensor:
    rows, y = [], 2 * x - 1
    before, now = torch.ones_like(x), y
    for i in range(1, len(x) + 1):
        rows.append(now.mean() + (1 / (i * i - 1) if i % 2 == 0 else 0.0))
        before, now = now, 2 * y * now - before
    return torch.stack(rows)


def brown_almost_linear(x: Tensor) -> Tensor:
    n = len(x)
    return torch.cat([x[:-1] + x.sum() - (n + 1), x.prod()[None] - 1])


def linear_full_rank(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(5)]) - 2 / 10 * x.sum() - 1  # m = 10, n = 5


def linear_rank_1(x: Tensor) -> Tensor:
    i = torch.arange(1, 11, dtype=F64)
    return i * (torch.arange(1, 6, dtype=F64) * x).sum() - 1


PROBLEMS = (
    Problem("rosenbrock", rosenbrock, numbers(-1.2, 1), (0.0,)),
    Problem("freudenstein_roth", freudenstein_roth, numbers(0.5, -2), (0.0, 48.98425368)),
    Problem(
        "powell_badly_scaled",
        powell_badly_scaled,
        numbers(0, 1),
        (0.0,),
        numbers(0, 1),
        numbers(1, 9),
        0.15125900e-9,
    ),
    Problem(
        "brown_badly_scaled",
        brown_badly_scaled,
        numbers(1, 1),
        (0.0,),
        numbers(0, 3e-5),
        numbers(1e6, 100),
        784.0,
    ),
    Problem("beale", beale, numbers(1, 1), (0.0,), numbers(0.6, 0.5), numbers(10, 100), 0.0),
    Problem("jennrich_sampson", jennrich_sampson, numbers(0.3, 0.4), (124.3621824,)),
    Problem(
        "helical_valley",
        helical_valley,
        numbers(-1, 0, 0),
        (0.0,),
        numbers(-100, -1, -1),
        numbers(0.8, 1, 1),
        0.99042212,
    ),
    Problem("bard", bard, numbers(1, 1, 1), (8.214877307e-3, 17.42869333)),
    Problem(
        "gaussian",
        gaussian,
        numbers(0.4, 1, 0),
        (1.127932770e-8,),
        numbers(0.398, 1, -0.5),
        numbers(4.2, 2, 0.1),
        1.12793e-8,
    ),
    Problem("meyer", meyer, numbers(0.02, 4000, 250), (87.94585517,)),
    Problem("gulf", gulf, numbers(5, 2.5, 0.15), (0.0,)),
    Problem("box", box, numbers(0, 10, 20), (0.0,), numbers(0, 5, 0), numbers(2, 9.5, 20), 0.30998153e-5),
    Problem("powell_singular", powell_singular, numbers(3, -1, 0, 1), (0.0,)),
    Problem(
        "wood", wood, numbers(-3, -1, -3, -1), (0.0,), numbers(*[-100] * 4), numbers(0, 10, 100, 100), 0.15567008e1
    ),
    Problem("kowalik_osborne", kowalik_osborne, numbers(0.25, 0.39, 0.415, 0.39), (3.075056039e-4, 1.02734e-3)),
    Problem(
        "brown_dennis",
        brown_dennis,
        numbers(25, 5, -5, -1),
        (85822.20163,),
        numbers(-10, 0, -100, -20),
        numbers(100, 15, 0, 0.2),
        0.88860479e5,
    ),
    Problem("osborne_1", osborne_1, numbers(0.5, 1.5, -1, 0.01, 0.02), (5.464894697e-5,)),
    Problem(
        "biggs",
        biggs,
        numbers(1, 2, 1, 1, 1, 1),
        (0.0, 5.655649926e-3),
        numbers(0, 0, 0, 1, 0, 0),
        numbers(2, 8, 1, 7, 5, 5),
        0.53209865e-3,
    ),
    Problem("osborne_2", osborne_2, numbers(1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5), (4.013773630e-2,)),
    Problem("watson_6", watson, torch.zeros(6, dtype=F64), (2.287670054e-3,)),
    Problem("watson_9", watson, torch.zeros(9, dtype=F64), (1.399760138e-6,)),
    Problem("chebyquad_8", chebyquad, torch.arange(1, 9, dtype=F64) / 9, (3.516873726e-3,)),
    Problem("brown_almost_linear", brown_almost_linear, torch.full((10,), 0.5, dtype=F64), (0.0, 1.0)),
    Problem("linear_full_rank", linear_full_rank, torch.ones(5, dtype=F64), (5.0,)),
    Problem("linear_rank_1", linear_rank_1, torch.ones(5, dtype=F64), (15 / 7,)),
)
