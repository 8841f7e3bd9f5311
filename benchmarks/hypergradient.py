"""A million hyperparameters: bytes and seconds of one hypergradient, in gradients of the inner function.

    python benchmarks/hypergradient.py [--size 1000000] [--iterations 10] [--rounds 1]

One decay for each weight of a small network on random data, and one weight for each example of a linear classifier.
Both are measured against one gradient of the inner function with respect to x and theta. Bytes are the peak of what
torch allocates above what was there before, from its profiler, so they repeat exactly; seconds are processor seconds of
one thread, medians of interleaved rounds. Writes results/hypergradient.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import timing
import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.nn.functional import cross_entropy

from frechet.calculus import hypergradient

BATCH = 50_000
Problem = tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor, Tensor]


def decays(size: int) -> Problem:
    """`size` weights of a network with one hidden layer, a decay for each."""
    hidden = size // 110
    draw = torch.Generator().manual_seed(0)
    X, y = torch.randn(256, 100, generator=draw), torch.randint(0, 10, (256,), generator=draw)
    V, z = torch.randn(256, 100, generator=draw), torch.randint(0, 10, (256,), generator=draw)

    def logits(x: Tensor, X: Tensor) -> Tensor:
        return torch.tanh(X @ x[: 100 * hidden].view(100, hidden)) @ x[100 * hidden :].view(hidden, 10)

    x = 0.02 * torch.randn(110 * hidden, generator=draw)
    return (
        lambda x, t: cross_entropy(logits(x, V), z),
        lambda x, t: cross_entropy(logits(x, X), y) + (t.exp() * x**2).sum() / 2,
        x,
        torch.full_like(x, -2.0),
    )


def cleaning(size: int) -> Problem:
    """A linear classifier of 20 classes and 50 features, with a weight for each of `size` examples."""
    draw = torch.Generator().manual_seed(0)
    X, y = torch.randn(size, 50, generator=draw), torch.randint(0, 20, (size,), generator=draw)
    V, z = torch.randn(1000, 50, generator=draw), torch.randint(0, 20, (1000,), generator=draw)

    def inner(x: Tensor, t: Tensor, rows: slice = slice(None)) -> Tensor:
        terms = cross_entropy(X[rows] @ x.view(50, 20), y[rows], reduction="none")
        return (torch.sigmoid(t[rows]) * terms).sum() / size + len(terms) / size * 1e-3 * (x**2).sum()

    return (
        lambda x, t: cross_entropy(V @ x.view(50, 20), z),
        inner,
        0.1 * torch.randn(1000, generator=draw),
        torch.zeros(size),
    )


def gradient(problem: Problem) -> None:
    _, inner, x, t = problem
    leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
    torch.autograd.grad(inner(*leaves), leaves)


WAYS = {
    "cg": {},
    "cg, with the error": {"correct": True},
    "neumann": {"inverse": "neumann", "scale": 0.1},
}


def peak(work: Callable[[], object]) -> int:
    with profile(profile_memory=True) as measured:
        kept = work()
    del kept
    now = most = 0
    results = measured.kineto_results
    assert results is not None
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    a = parser.parse_args()
    timing.restart(1)
    torch.set_num_threads(1)
    rows = []
    for name, problem in {"decays": decays(a.size), "data cleaning": cleaning(a.size)}.items():
        outer, inner, x, t = problem
        works: dict[str, Callable[[], object]] = {"gradient": partial(gradient, problem)}
        batches = [slice(i, i + BATCH) for i in range(0, a.size, BATCH)]
        ways = WAYS if name == "decays" else {**WAYS, f"cg, batches of {BATCH}": {"inner_data": batches}}
        for way, given in ways.items():
            count = {"terms": a.iterations} if "inverse" in given else {"max_iterations": a.iterations}
            works[way] = partial(hypergradient, outer, inner, x, t, **given, **count)
        bytes_of = {way: peak(work) for way, work in works.items()}
        rounds = {way: [] for way in works}
        for _ in range(a.rounds):
            for way, work in works.items():
                rounds[way].append(seconds(work))
        median = {way: statistics.median(times) for way, times in rounds.items()}
        print(f"\n{name}: {len(t)} hyperparameters, {len(x)} weights, {a.iterations} iterations")
        for way in works:
            ratio, cost = bytes_of[way] / bytes_of["gradient"], median[way] / median["gradient"]
            print(
                f"  {way:22s} {bytes_of[way] / 2**20:8.1f} MiB, {ratio:5.2f} gradients; {cost:6.1f} gradients of time"
            )
            row = {"problem": name, "way": way, "bytes": bytes_of[way], "gradients": ratio, "time": cost}
            rows.append({**row, "hyperparameters": len(t), "weights": len(x), "iterations": a.iterations})
    timing.write("hypergradient", timing.record(vars(a), runs=rows))


if __name__ == "__main__":
    main()
