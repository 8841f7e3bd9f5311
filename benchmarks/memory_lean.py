"""Memory and time of gradients and Hessian products with lean graphs, beside torch's own.

    python benchmarks/memory_lean.py [--seconds 120]

For each model and each choice of trainable parameters: bytes that the graph keeps, the peak of memory above the start
of one gradient, and its time, lean beside plain. Peaks are the process's: it starts anew under the allocator settings
of `memory.py`, with which they follow the tensors. Variants take turns, and the median of the rounds counts.
`--seconds` bounds the whole run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import timing
import torch
from memory import ALLOCATOR
from torch import nn

from frechet import Objective, cross_entropy, hessian
from frechet.calculus.memory import memory_lean, saved_bytes
from frechet.recording import peak_above, start_peak

LAST = "Hessian product, the last convolution"
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "memory_lean.json"


def convolutions(norm: bool) -> nn.Module:
    """Ten convolutions of 32 channels with rectifiers, batch-normalized or not, in evaluation mode."""
    layers: list[nn.Module] = []
    for i in range(10):
        layers += [nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(32)] * norm + [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


class LowRank(nn.Module):
    """A frozen linear layer and a trainable one of rank 4 beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)

    def forward(self, x):
        return self.frozen(x) + self.up(self.down(x))


def adapted() -> nn.Module:
    """Eight layers of width 512 with dropout, of which two have adapters."""
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [LowRank(512) if i in (3, 6) else nn.Linear(512, 512).requires_grad_(False)]
        layers += [nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(512, 10).requires_grad_(False))


def only(model: nn.Module, *names: str) -> nn.Module:
    for name, p in model.named_parameters():
        p.requires_grad_(any(name.startswith(n) for n in names))
    return model


def cases():
    images = torch.rand(16, 3, 64, 64)
    for norm in (False, True):
        kind = "convolutions with batch norm" if norm else "convolutions"
        last = "27." if norm else "18."
        yield kind, "all", convolutions(norm), images, False
        yield kind, "the last", only(convolutions(norm), last), images, False
        yield kind, "the first and last", only(convolutions(norm), "0.", last), images, False
        yield kind, "inputs", only(convolutions(norm)), images, True
    yield "adapters of rank 4", "adapters", adapted(), torch.rand(4096, 512), False


def gradient(model: nn.Module, x: torch.Tensor, inputs: bool):
    torch.manual_seed(0)
    x = x.clone().requires_grad_(inputs)
    y = torch.nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
    return torch.autograd.grad(y, [x] if inputs else [p for p in model.parameters() if p.requires_grad])


def measured(run) -> tuple[float, float]:
    before = start_peak(CPU)
    start = time.perf_counter()
    run()
    spent = time.perf_counter() - start
    return float(peak_above(before, CPU) or 0), spent


def row(name: str, wanted: str, plain: nn.Module, x: torch.Tensor, inputs: bool, rounds: int) -> dict:
    lean = memory_lean(plain)
    ours, theirs = gradient(lean, x, inputs), gradient(plain, x, inputs)
    size = max(float(b.abs().max()) for b in theirs)
    off = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / size
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "lean": []}
    for _ in range(rounds):
        for key, model in (("plain", plain), ("lean", lean)):
            found[key].append(measured(lambda model=model: gradient(model, x, inputs)))
    z = x.clone().requires_grad_(inputs)
    kept = {"plain": saved_bytes(plain, z), "lean": saved_bytes(lean, z)}
    return {
        "model": name,
        "wanted": wanted,
        "kept MiB": {k: v / 2**20 for k, v in kept.items()},
        "peak MiB": {k: statistics.median(p for p, _ in v) / 2**20 for k, v in found.items()},
        "time ratio": statistics.median(b[1] / a[1] for a, b in zip(found["plain"], found["lean"], strict=True)),
        "relative difference": off,
    }


def hessian_row(rounds: int) -> dict:
    model = convolutions(True)
    data = [(torch.rand(16, 3, 64, 64), torch.arange(16) % 10)]
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "lean": []}
    products = {}
    for key, m in (("plain", model), ("lean", memory_lean(model))):
        A = hessian(Objective(m, cross_entropy(), data), restrict="27.*")
        v = torch.ones(A.shape[1])
        products[key] = A, v
    size = float((products["plain"][0] @ products["plain"][1]).abs().max())
    off = float((products["lean"][0] @ products["lean"][1] - products["plain"][0] @ products["plain"][1]).abs().max())
    for _ in range(rounds):
        for key, (A, v) in products.items():
            found[key].append(measured(lambda A=A, v=v: A @ v))
    return {
        "model": "convolutions with batch norm",
        "wanted": LAST,
        "peak MiB": {k: statistics.median(p for p, _ in v) / 2**20 for k, v in found.items()},
        "time ratio": statistics.median(b[1] / a[1] for a, b in zip(found["plain"], found["lean"], strict=True)),
        "relative difference": off / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=Path, help="finished rows, one a line: a run goes on where it was stopped")
    arguments = parser.parse_args()
    timing.restart(1, ALLOCATOR)
    torch.set_num_threads(1)
    kept = arguments.lines.read_text().splitlines() if arguments.lines and arguments.lines.exists() else []
    rows = [json.loads(line) for line in kept]
    done = {(r["model"], r["wanted"]) for r in rows}
    jobs = [(case[:2], lambda case=case: row(*case, arguments.rounds)) for case in cases()]
    jobs.append((("convolutions with batch norm", LAST), lambda: hessian_row(arguments.rounds)))
    start = time.perf_counter()
    for key, job in jobs:
        if key in done or time.perf_counter() - start > arguments.seconds:
            continue
        rows.append(job())
        print(json.dumps(rows[-1]), flush=True)
        if arguments.lines:
            with arguments.lines.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(f"{len(rows)} of {len(jobs)} rows")
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rounds": arguments.rounds}
    RESULTS.write_text(json.dumps({"settings": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
