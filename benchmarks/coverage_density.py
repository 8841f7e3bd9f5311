"""How often the error bars of `spectral_density` cover the truth, over fixed seeds and known spectra.

Probes are rotation invariant, so a diagonal operator stands for every operator with its eigenvalues. For each spectrum:
the share of grid points at which the 95 % band covers the smoothed density, over the default grid (every eighth point)
and over its points with at least a hundredth of one eigenvalue's peak, and the coverage of the 95 %
intervals of trace, squared Frobenius norm, effective dimension sum x / (x + a) and, where positive, log det (A + a).

    python benchmarks/coverage_density.py [seeds=2000] [probes=8] [steps=40]
"""

import json
import math
import platform
import sys
from pathlib import Path

import torch

from frechet.linalg._density import spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.operators._constructors import from_diagonal


def spectra(n: int = 400) -> dict[str, torch.Tensor]:
    """Known eigenvalues: the shapes that Hessians and Gauss-Newton matrices have."""
    g = torch.Generator().manual_seed(0)
    bulk = torch.randn(n, generator=g, dtype=torch.float64)
    k = torch.arange(1, n + 1, dtype=torch.float64)
    return {
        "outliers and bulk": torch.cat([torch.linspace(5, 50, 10).double(), bulk[10:].abs()]),
        "indefinite": torch.cat(
            [torch.linspace(3, 20, 6).double(), -torch.linspace(3, 8, 4).double(), 0.5 * bulk[10:]]
        ),
        "power law": 1 / k,
        "low rank, zero cluster": torch.cat([torch.linspace(0.1, 3, 40).double(), torch.zeros(n - 40).double()]),
        "flat": 1 + torch.rand(n, generator=g, dtype=torch.float64),
    }


def smoothed(values: torch.Tensor, grid: torch.Tensor, width: float) -> torch.Tensor:
    """The density that the band claims to cover."""
    z = (grid[:, None] - values) / width
    return torch.exp(-0.5 * z.square()).mean(1) / (width * math.sqrt(2 * math.pi))


def study(values: torch.Tensor, seeds: range, probes: int, steps: int, deflate: int = 0) -> dict[str, float]:
    """Shares of covered truths over `seeds`."""
    A, n = from_diagonal(values), len(values)
    known = eigsh(A, deflate, seed=0, rtol=1e-6) if deflate else None
    a = 0.1 * float(values.abs().mean())
    functions = {"trace": lambda x: x, "frobenius^2": lambda x: x**2, "effective": lambda x: x.abs() / (x.abs() + a)}
    if float(values.min()) >= 0:
        functions |= {"effective": lambda x: x / (x + a), "log det": lambda x: torch.log(x + a)}
    totals = dict.fromkeys(["band, all", "band, mass", "relative width", *functions], 0.0)
    for seed in seeds:
        density = spectral_density(A, seed=seed, probes=probes, steps=steps, deflate=known)
        width = density.width()
        grid = density.grid()[::8]
        _, low, high = density.on(grid)
        truth = smoothed(values, grid, width)
        inside = (low <= truth) & (truth <= high)
        mass = truth > 0.01 / (n * width * math.sqrt(2 * math.pi))
        totals["band, all"] += float(inside.double().mean())
        totals["band, mass"] += float(inside[mass].double().mean())
        totals["relative width"] += float(((high - low)[mass] / truth[mass]).median())
        for name, f in functions.items():
            low, high = density.trace_of(f).interval()
            totals[name] += float(low <= f(values).sum() <= high)
    return {name: total / len(seeds) for name, total in totals.items()}


def main() -> None:
    seeds, probes, steps = (int(x) for x in (sys.argv[1:] + ["2000", "8", "40"][len(sys.argv) - 1 :]))
    rows = {}
    for name, values in spectra().items():
        for deflate in (0, 10) if name in ("outliers and bulk", "power law") else (0,):
            label = f"{name}, deflated {deflate}" if deflate else name
            rows[label] = study(values, range(seeds), probes, steps, deflate)
            print(f"{label:34s}", "  ".join(f"{k} {v:.3f}" for k, v in rows[label].items()), flush=True)
    record = {"seeds": seeds, "probes": probes, "steps": steps, "torch": torch.__version__, "rows": rows}
    record["machine"] = platform.platform()
    target = Path(__file__).parent / "results" / "coverage_density.json"
    target.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
