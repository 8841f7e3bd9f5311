"""Whether `plan` predicts: memory and products of three jobs, on five models and two operators, beside what they took.

    python benchmarks/plan.py [--models mlp ...]

Each job runs in this process after the plan, with the peak measured as the plan measures it. Memory is that above what
was in use before. Writes results/plan.json.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math

import torch
from timing import record, write
from torch import nn

from frechet.analyze._plan import plan
from frechet.linalg import eigsh, spectral_density, trace
from frechet.objective import Objective
from frechet.objective.criteria import cross_entropy
from frechet.operators import LinearOperator
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.recording import peak_above, start_peak

CPU = torch.device("cpu")


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, layers), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip
    return {
        "mlp, 0.4 M": (mlp(64, 512, 512, 10), torch.randn(512, 64)),
        "mlp, 4 M": (mlp(64, 2000, 1900, 10), torch.randn(128, 64)),
        "wide batch": (mlp(100, 200, 200, 10), torch.randn(8000, 100)),
        "convolutions": (conv, torch.randn(128, 3, 16, 16)),
        "transformer": (Encoder(128, 2), torch.randn(32, 20, 128)),
    }


def job(name: str, A: LinearOperator) -> int:
    if "eigenpairs" in name:
        return eigsh(A, 10, seed=0).products
    return trace(A, seed=0).products if name == "trace" else spectral_density(A, seed=0).products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[""], help="only models whose name contains one of these")
    arguments = parser.parse_args()
    rows = []
    head = f"{'model':14s} {'operator':13s} {'job':22s} {'MiB':>7s} {'told':>7s} {'ratio':>6s}"
    print(f"{head} {'products':>8s} {'told':>6s}")
    for name, (model, x) in models().items():
        if not any(part in name for part in arguments.models):
            continue
        objective = Objective(model, cross_entropy(), [(x, torch.randint(0, 10, (len(x),)))])
        for operator in (hessian, gauss_newton):
            A = operator(objective)
            told = plan(A)
            for j in told.jobs:
                gc.collect()
                before = start_peak(CPU)
                products = job(j.name, A)
                peak = peak_above(before, CPU)
                ratio = math.nan if not peak or j.bytes is None else j.bytes / peak
                rows.append([name, operator.__name__, j.name, peak, j.bytes, ratio, products, j.products])
                print(
                    f"{name:14s} {operator.__name__:13s} {j.name:22s} {(peak or 0) / 2**20:7.1f} "
                    f"{(j.bytes or 0) / 2**20:7.1f} {ratio:6.2f} {products:8d} {j.products:6d}",
                    flush=True,
                )
    print(write("plan", record(vars(arguments), rows=rows)))


if __name__ == "__main__":
    main()
