"""Whether the interval of the gradient noise scale covers: the share of data sets whose interval holds the truth.

    python benchmarks/coverage_noise.py [--seeds 2000] [--cases "mean, 1" ...] [--level 0.95]

Data sets of 100 to 300 examples are drawn afresh for every seed, and `frechet.analyze.noise_scale` runs on a
real model of them.
`mean`: a model that predicts one vector, so gradients are Gaussian, isotropic or with a decaying spectrum.
`regression`: least squares at a distance delta from the best weights, residuals from normal to lognormal, so |g|^2 is a
product of heavy-tailed factors. In both the truth is a closed form. Beside the coverage: misses on either side, the
share of intervals without an upper end, and the median ratio of the ends of the others. Writes
results/coverage_noise.json. About twenty seconds per case on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timing import record, write
from torch import Tensor, nn

from frechet.analyze._noise_scale import noise_scale
from frechet.objective import Objective
from frechet.objective.criteria import squared_error


@dataclass(frozen=True, eq=False)
class Case:
    """A population: its true noise scale, and how a data set of it becomes an objective."""

    name: str
    truth: float
    draw: Callable[[torch.Generator], Objective]


def mean_case(d: int, n: int, truth: float, decay: float = 0.0) -> Case:
    """Gradients 2/d (w - y), y normal with variances j^-decay: |G|^2 is set so that the noise scale is `truth`."""
    variances = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    shift = torch.full((d,), math.sqrt(float(variances.sum()) / truth / d), dtype=torch.float64)

    def draw(generator: torch.Generator) -> Objective:
        model = nn.Linear(1, d, bias=False).double()
        nn.init.zeros_(model.weight)
        noise = torch.randn(n, d, generator=generator, dtype=torch.float64) * variances.sqrt()
        return Objective(model, squared_error(), [(torch.ones(n, 1, dtype=torch.float64), shift + noise)])

    return Case(f"mean, {d} dimensions, decay {decay:g}, n {n}, truth {truth:g}", truth, draw)


def residuals(kind: str, n: int, generator: torch.Generator) -> Tensor:
    """n independent residuals with mean 0 and variance 1."""
    z = torch.randn(n, generator=generator, dtype=torch.float64)
    match kind:
        case "normal":
            return z
        case "exponential":
            return -torch.log(torch.rand(n, generator=generator, dtype=torch.float64)) - 1
        case "t5":
            chi = torch.randn(5, n, generator=generator, dtype=torch.float64).square().sum(0)
            return z / (chi / 5).sqrt() / math.sqrt(5 / 3)
    s = 0.75  # lognormal
    return ((s * z).exp() - math.exp(s * s / 2)) / math.sqrt((math.exp(s * s) - 1) * math.exp(s * s))


def regression_case(kind: str, d: int, n: int, delta: float) -> Case:
    """Gradients 2 (x'w - e) x with x standard normal and |w| = delta: G = 2 w."""
    trace = 4 * ((d + 2) * delta**2 + d) - 4 * delta**2

    def draw(generator: torch.Generator) -> Objective:
        model = nn.Linear(d, 1, bias=False).double()
        nn.init.constant_(model.weight, delta / math.sqrt(d))
        inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
        return Objective(model, squared_error(), [(inputs, residuals(kind, n, generator)[:, None])])

    return Case(f"regression, {kind}, {d} weights, n {n}, delta {delta:g}", trace / (4 * delta**2), draw)


def cases() -> Iterator[Case]:
    for d, decay in ((1, 0.0), (20, 0.0), (100, 1.0)):
        for truth in (1.0, 10.0, 100.0, 1000.0):
            yield mean_case(d, 100, truth, decay)
    for kind in ("normal", "exponential", "t5", "lognormal"):
        for d, n, delta in ((1, 100, 0.3), (1, 300, 1.0), (5, 300, 0.3), (20, 100, 1.0)):
            yield regression_case(kind, d, n, delta)


def coverage(case: Case, seeds: int, level: float = 0.95, first: int = 0) -> dict[str, float | str]:
    """What the intervals of `seeds` data sets did."""
    below = above = unbounded = 0
    widths = []
    for seed in range(first, first + seeds):
        found = noise_scale(case.draw(torch.Generator().manual_seed(seed)), level=level)
        below += case.truth < found.lower
        above += case.truth > found.upper
        unbounded += not found.bounded
        if found.bounded:
            widths.append(found.upper / found.lower if found.lower > 0 else math.inf)
    width = float(torch.tensor(widths).median()) if widths else math.inf  # JSON has no infinities: see main
    covered = 1 - (below + above) / seeds
    return {
        "case": case.name,
        "truth": case.truth,
        "coverage": covered,
        "below": below / seeds,
        "above": above / seeds,
        "unbounded": unbounded / seeds,
        "width": width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--cases", nargs="*", default=[""], help="only cases whose name contains one of these")
    parser.add_argument("--level", type=float, default=0.95)
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':52s} {'truth':>9s} {'cover':>7s} {'below':>7s} {'above':>7s} {'no end':>7s} {'width':>7s}")
    for case in cases():
        if not any(part in case.name for part in arguments.cases):
            continue
        row = coverage(case, arguments.seeds, arguments.level)
        rows.append(row)
        print(
            f"{row['case']:52s} {row['truth']:9.4g} {row['coverage']:7.4f} {row['below']:7.4f} {row['above']:7.4f} "
            f"{row['unbounded']:7.4f} {row['width']:7.3g}",
            flush=True,
        )
    print(f"smallest coverage: {min(row['coverage'] for row in rows):.4f}")
    finite = [{k: "inf" if v == math.inf else v for k, v in row.items()} for row in rows]
    print(write("coverage_noise", record(vars(arguments), rows=finite)))


if __name__ == "__main__":
    main()
