"""What a product costs, beside the peers in the same run.

    python benchmarks/products.py [--models mlp resnet gpt tiny] [--parts single streaming memory] [--quick]

**single**: one Hessian and one Gauss-Newton product on one batch, nothing kept, in gradients (one `autograd.grad` with
the same forward and attention kernel, MATH), and its relative difference to float64 double backward, in both dtypes.

**streaming**: a Hessian product with `--vectors` vectors over `--batches` batches, per batch, over as many products
through a kept graph of one batch (`reference.kept_hessian`, warm). The reference runs between two batches, inside the
data's iterator, so that each batch is a round; its time is not counted in the product's. Libraries that take one vector
at a time are measured with one vector against one kept product.

**memory**: the peak of the same block product over `--batches` batches and over one, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timing

BARS = {  # what the project promises: (Hessian, Gauss-Newton) in gradients
    "mlp": (2.7, 2.3),
    "resnet": (4.0, 2.3),
    "gpt": (3.4, 2.3),
    "tiny": (2.0, 1.6),
}
OPERATORS = ("hessian", "gauss_newton")
STREAMING_BAR, MEMORY_BAR = 1.25, 1.3
PEER_BATCHES = 15


class Stream:
    """Batches 0 .. count - 1 of a problem, made one at a time; `seconds[i]` is what the consumer spent on batch i.

    `pause` runs before each batch while `active`.
    """

    def __init__(self, problem, count: int, pause: Callable[[], object] | None = None, device: str = "cpu") -> None:
        self.problem, self.count, self.pause, self.device = problem, count, pause, device
        self.active, self.seconds, self.inside = False, [], 0.0

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            timing.synchronize(self.device)
            start = timing.now()
            batch = self.problem.batch(number)
            if self.active and self.pause is not None:
                self.pause()
            timing.synchronize(self.device)
            out = timing.now()
            yield batch
            timing.synchronize(self.device)
            self.inside += out - start
            self.seconds.append(timing.now() - out)


def single(problem, libraries, rounds: int, seed: int, device: str) -> dict[str, Any]:
    """Ratios and errors of one-batch products."""
    import torch
    from reference import KEPT, gradient

    batch, exact = problem.batch(), problem.to(torch.float64)
    v = torch.randn(problem.dim, generator=torch.Generator().manual_seed(seed)).to(batch[0].device)
    functions: dict[str, Callable[[], object]] = {"gradient": lambda: gradient(problem, batch)}
    errors: dict[str, dict[str, float]] = {}
    for operator in OPERATORS:
        truth = KEPT[operator](exact, exact.batch())(v.double())
        for library in libraries:
            adapter = getattr(library, operator)
            if adapter is None:
                continue
            product = adapter(problem, [batch])
            name = f"{operator}: {library.name}"
            errors[name] = {
                "float32": relative_difference(product(v).double(), truth),
                "float64": relative_difference(adapter(exact, [exact.batch()])(v.double()), truth),
            }
            functions[name] = lambda product=product: product(v)
        problem.model.zero_grad()
    times = timing.interleave(functions, rounds=rounds, seed=seed, device=device)
    return {"seconds": times, "ratios": timing.ratios(times, "gradient"), "errors": errors}


def relative_difference(a, b) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def streaming(problem, libraries, batches: int, vectors: int, seed: int, device: str) -> dict[str, Any]:
    """Each library's seconds per batch over those of as many kept-graph products."""
    import torch
    from peers import OURS
    from reference import kept_hessian

    V = torch.randn(vectors, problem.dim, generator=torch.Generator().manual_seed(seed)).to(problem.batch()[0].device).T
    results = {}
    for library in libraries:
        if library.keeps:
            continue
        columns = vectors if library.blocks else 1
        kept, reference = kept_hessian(problem, problem.batch()), []

        def pause(kept=kept, reference=reference, columns=columns) -> None:
            start = timing.now()
            for j in range(columns):
                kept(V[:, j])
            timing.synchronize(device)
            reference.append(timing.now() - start)

        ours = library.name in OURS
        stream = Stream(problem, batches if ours else min(batches, PEER_BATCHES), pause, device)
        product = library.hessian(problem, stream)
        block = V if library.blocks else V[:, 0]
        stream.count, count = 2, stream.count
        pause(), product(block)  # warm
        stream.count, stream.active, stream.seconds, stream.inside = count, True, [], 0.0
        reference.clear()
        start = timing.now()
        product(block)
        timing.synchronize(device)
        rest = timing.now() - start - stream.inside - sum(stream.seconds)
        times = {"product": [s + rest / count for s in stream.seconds], "kept": reference}
        results[library.name] = {
            "seconds": times,
            "ratios": timing.ratios(times, "kept")["product"],
            "vectors": columns,
        }
        del kept, product
        problem.model.zero_grad()
    return results


def memory(model: str, libraries, batches: int, vectors: int, threads: int, device: str) -> dict[str, Any]:
    """Bytes of the peak above the state before: ours over one and over all batches, the peers' over one."""
    from peers import OURS

    results: dict[str, Any] = {}
    for library in libraries:
        for count in (1, batches) if library.name in OURS else (1,):
            flags = {"model": model, "library": library.name, "batches": count, "vectors": vectors, "threads": threads}
            command = [sys.executable, str(Path(__file__).parent / "memory.py"), "--device", device]
            command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.setdefault(library.name, {})[str(count)] = json.loads(done.stdout.splitlines()[-1])
    return results


def show_single(model: str, result: dict[str, Any]) -> None:
    from peers import OURS

    unit = timing.quartiles(result["seconds"]["gradient"])[0]
    print(f"\n{model}: one-batch product in gradients (one gradient: {1000 * unit:.2f} ms)")
    print(f"  {'':42}{'median':>8}{'quartiles':>16}{'error f64':>12}{'error f32':>12}")
    for name, values in result["ratios"].items():
        if name in result["errors"]:
            median, low, high = timing.quartiles(values)
            error = result["errors"][name]
            print(
                f"  {name:42}{median:8.2f}{f'{low:.2f}-{high:.2f}':>16}{error['float64']:12.0e}{error['float32']:12.0e}"
            )
    for operator, bar in zip(OPERATORS, BARS[model], strict=True):
        ratios = {n.split(": ")[1]: v for n, v in result["ratios"].items() if n.startswith(operator)}
        for name in OURS:
            ours = ratios.pop(name, None)
            if ours is None:
                continue
            line = f"  {operator}, {name}: {timing.quartiles(ours)[0]:.2f}, bar {bar}"
            for peer, values in ratios.items():
                if peer not in OURS:
                    median, low, high = timing.quartiles([p / o for p, o in zip(values, ours, strict=True)])
                    line += f"; {peer} {median:.2f} times that ({low:.2f}-{high:.2f})"
            print(line)


def show_streaming(model: str, result: dict[str, Any]) -> None:
    print(
        f"\n{model}: Hessian product over a stream, per batch, over as many kept-graph products (bar {STREAMING_BAR})"
    )
    for name, row in result.items():
        median, low, high = timing.quartiles(row["ratios"])
        total = sum(row["seconds"]["product"]) / sum(row["seconds"]["kept"])
        count = f"{len(row['ratios'])} batches, {row['vectors']} vectors"
        print(f"  {name:24}{median:8.2f}{f'{low:.2f}-{high:.2f}':>16}   total {total:.2f}   {count}")


def show_memory(model: str, result: dict[str, Any]) -> None:
    print(
        f"\n{model}: peak of a Hessian block product above the state before it, MiB (bar {MEMORY_BAR} times one batch)"
    )
    for name, row in result.items():
        one, *more = [entry["above"] / 2**20 for entry in row.values()]
        rest = f"   {list(row)[-1]} batches {more[0]:8.1f}   ratio {more[0] / one:.2f}" if more else ""
        print(f"  {name:24}{one:10.1f}{rest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--parts", nargs="+", default=["single", "streaming", "memory"])
    parser.add_argument("--libraries", nargs="+", help="names as in the table; all that are installed by default")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--vectors", type=int, default=8)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--clock", default="wall", choices=list(timing.CLOCKS), help="cpu: with --threads 1 only")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 rounds and 5 batches: to see that it runs")
    a = parser.parse_args()
    if a.quick:
        a.rounds, a.batches = 5, 5
    timing.restart(a.threads)
    timing.CLOCK = a.clock

    import torch
    from models import PROBLEMS
    from peers import LIBRARIES
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(a.threads)
    libraries = [row for row in LIBRARIES if row.name in (a.libraries or [row.name]) and row.installed]
    contents = timing.record(vars(a))
    print(f"{contents['machine']}\n{contents['versions']}\nthreads {a.threads}, allocator {contents['allocator']}")
    results: dict[str, Any] = {}
    for model in a.models:
        problem = PROBLEMS[model]().to(a.device)
        found = results[model] = {}
        with sdpa_kernel([SDPBackend.MATH]):
            if "single" in a.parts:
                found["single"] = single(problem, libraries, a.rounds, a.seed, a.device)
                show_single(model, found["single"])
            if "streaming" in a.parts:
                found["streaming"] = streaming(problem, libraries, a.batches, a.vectors, a.seed, a.device)
                show_streaming(model, found["streaming"])
        if "memory" in a.parts:
            found["memory"] = memory(model, libraries, a.batches, a.vectors, a.threads, a.device)
            show_memory(model, found["memory"])
        sys.stdout.flush()
    name = f"products-{a.device}" + ("-quick" if a.quick else "")
    print(f"\nwritten: {timing.write(name, timing.record(vars(a), results=results)).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
