"""What a kept linearization costs and gives, beside a kept graph, products that keep nothing, and curvlinops.

    python benchmarks/kept.py [--models mlp resnet gpt tiny] [--rounds 21] [--compile] [--quick]

**time**: one product (k = 1) on one batch in gradients (one `autograd.grad` with the same forward and attention kernel,
MATH), interleaved; and what linearizing took, in gradients. The limit is what the floating-point operations of a
product with a cached primal computation cost: 1.5, 2.0, 2.0 gradients for the Hessian, 1.17, 1.33, 1.33 for
Gauss-Newton; the bar is 10 % above it, and 1.6 times faster than curvlinops.

**memory**: (held + peak of an application - peak of a gradient) / peak of a gradient, each in a fresh process, resident
memory above that before the model has run on the batch. The bar is 3.5 for the Hessian and 1.8 for Gauss-Newton.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import timing

LIMITS = {"mlp": (1.5, 1.17), "resnet": (2.0, 1.33), "gpt": (2.0, 1.33), "tiny": (1.98, 1.33)}
OPERATORS = ("hessian", "gauss_newton")
WITHIN, FASTER, MEMORY = 1.1, 1.6, {"hessian": 3.5, "gauss_newton": 1.8}


def operator(problem, name: str):
    from peers import objective

    import frechet

    return getattr(frechet, name)(objective(problem, [problem.batch()]))


def times(problem, rounds: int, seed: int, device: str, compiled: bool) -> dict[str, Any]:
    import torch
    from peers import LIBRARIES
    from reference import KEPT, gradient

    from frechet import linearize

    batch, exact = problem.batch(), problem.to(torch.float64)
    v = torch.randn(problem.dim, generator=torch.Generator().manual_seed(seed)).to(batch[0].device)
    functions = {"gradient": lambda: gradient(problem, batch)}
    facts: dict[str, Any] = {}
    curvlinops = next((row for row in LIBRARIES if row.name == "curvlinops" and row.installed), None)
    for name in OPERATORS:
        A = operator(problem, name)
        seconds = []
        for _ in range(3):  # the first loads what torch needs
            L = linearize(A)
            seconds.append(L.seconds)
            L.release()
        L = linearize(A)
        truth = KEPT[name](exact, exact.batch())(v.double())
        error = float((L @ v - truth).norm() / truth.norm())
        facts[name] = {
            "setup": sorted(seconds)[1],
            "held": L.bytes,
            "route": L.route,
            "pays_after": L.pays_after,
            "error": error,
        }
        functions[f"{name}: frechet, kept"] = lambda L=L: L @ v
        functions[f"{name}: frechet, nothing kept"] = lambda A=A: A @ v
        kept = KEPT[name](problem, batch)
        functions[f"{name}: kept graph"] = lambda kept=kept: kept(v)
        if compiled:
            C = linearize(A, compile=True)
            facts[name]["compile"] = timing.seconds(lambda C=C: C @ v, 1, device)
            functions[f"{name}: frechet, kept and compiled"] = lambda C=C: C @ v
        if curvlinops is not None:
            product = getattr(curvlinops, name)(problem, [batch])
            functions[f"{name}: curvlinops"] = lambda product=product: product(v)
        problem.model.zero_grad()
    found = timing.interleave(functions, rounds=rounds, seed=seed, device=device)
    return {"seconds": found, "ratios": timing.ratios(found, "gradient"), "facts": facts}


def show(model: str, result: dict[str, Any]) -> None:
    unit = timing.quartiles(result["seconds"]["gradient"])[0]
    print(f"\n{model}: one product in gradients (one gradient: {1000 * unit:.2f} ms)")
    for name, values in result["ratios"].items():
        if name != "gradient":
            median, low, high = timing.quartiles(values)
            print(f"  {name:44}{median:8.2f}{f'{low:.2f}-{high:.2f}':>16}")
    for name, limit in zip(OPERATORS, LIMITS[model], strict=True):
        facts, ours = result["facts"][name], result["ratios"][f"{name}: frechet, kept"]
        line = f"  {name}: {timing.quartiles(ours)[0]:.2f}, limit {limit}, bar {WITHIN * limit:.2f}"
        peer = result["ratios"].get(f"{name}: curvlinops")
        if peer is not None:
            faster = timing.quartiles([p / o for p, o in zip(peer, ours, strict=True)])[0]
            line += f"; {faster:.2f} times faster than curvlinops (bar {FASTER})"
        line += f"; {facts['route']}, linearizing {facts['setup'] / unit:.1f} gradients, pays after "
        print(f"{line}{facts['pays_after']:.0f} products; error {facts['error']:.0e}")


def peak(model: str, what: str, device: str) -> dict[str, int]:
    """Bytes at the peak of a gradient, or held by a linearization and at the peak of an application of it."""
    import torch
    from memory import resident
    from models import PROBLEMS
    from reference import gradient
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from frechet import linearize

    problem = PROBLEMS[model]().to(device)
    inputs, targets = batch = problem.batch()
    v = torch.randn(problem.dim, generator=torch.Generator().manual_seed(1)).to(device)

    def now() -> int:
        return torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")

    def mark() -> None:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def highest() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")

    with sdpa_kernel([SDPBackend.MATH]):
        if what == "gradient":
            gradient(problem, (inputs[:1], targets[:1]))
            before = now()
            mark()
            gradient(problem, batch)
            return {"peak": highest() - before}
        from peers import objective

        import frechet

        one = linearize(getattr(frechet, what)(objective(problem, [(inputs[:1], targets[:1])])))
        one @ v
        one.release()
        A = operator(problem, what)
        before = now()
        mark()
        L = linearize(A)
        recording = highest() - before
        held = now() - before
        mark()
        L @ v
        return {"recording": recording, "held": held, "stated": L.bytes, "peak": highest() - before}


def memory(model: str, device: str) -> dict[str, Any]:
    found = {}
    for what in ("gradient", *OPERATORS):
        command = [sys.executable, __file__, "--device", device, "--peak", model, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    return found


def show_memory(model: str, found: dict[str, Any]) -> None:
    unit = found["gradient"]["peak"]
    print(f"\n{model}: memory above the state before, MiB (a gradient's peak: {unit / 2**20:.1f})")
    for what in OPERATORS:
        row = found[what]
        extra = (row["peak"] - unit) / unit
        print(
            f"  {what:14} held {row['held'] / 2**20:7.1f} (stated {row['stated'] / 2**20:7.1f}), at the peak of an "
            f"application {row['peak'] / 2**20:7.1f}, while recording {row['recording'] / 2**20:7.1f}; "
            f"extra {extra:.2f} gradients, bar {MEMORY[what]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--parts", nargs="+", default=["time", "memory"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="also through torch.compile")
    parser.add_argument("--quick", action="store_true", help="5 rounds: to see that it runs")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peak:
        from memory import ALLOCATOR

        timing.restart(a.threads, ALLOCATOR)
        print(json.dumps(peak(*a.peak, a.device)))
        return
    a.rounds = 5 if a.quick else a.rounds
    timing.restart(a.threads)

    import torch
    from models import PROBLEMS
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(a.threads)
    contents = timing.record({k: v for k, v in vars(a).items() if k != "peak"})
    print(f"{contents['machine']}\n{contents['versions']}\nthreads {a.threads}, allocator {contents['allocator']}")
    results: dict[str, Any] = {}
    for model in a.models:
        found = results[model] = {}
        if "time" in a.parts:
            with sdpa_kernel([SDPBackend.MATH]):
                found["time"] = times(PROBLEMS[model]().to(a.device), a.rounds, a.seed, a.device, a.compile)
            show(model, found["time"])
        if "memory" in a.parts:
            found["memory"] = memory(model, a.device)
            show_memory(model, found["memory"])
        sys.stdout.flush()
    contents["results"] = results
    print(f"\nwritten: {timing.write(f'kept-{a.device}' + ('-quick' if a.quick else ''), contents).name}")


if __name__ == "__main__":
    main()
