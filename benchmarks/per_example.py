"""What quantities of single examples cost, in gradients of the mean loss on the same examples.

    python benchmarks/per_example.py [--models mlp tiny gpt] [--rounds 5] [--clock cpu --threads 1]

The unit is one `autograd.grad` of the mean loss on the batch with the same attention kernel. Beside ours, where there
is an obvious way: one backward per example, and as many products with `ntk` as there are outputs (one is timed).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing

EXAMPLES = {"mlp": 128, "resnet": 16, "gpt": 4, "tiny": 1000}


def functions(problem, examples: int) -> dict[str, tuple[Callable[[], object], float]]:
    """What is timed, with the factor by which its time is multiplied in the table."""
    import torch

    import frechet

    X, y = (t[:examples].contiguous() for t in problem.batch())
    criterion = frechet.squared_error() if problem.name == "tiny" else frechet.cross_entropy(class_dim=-1)
    objective = frechet.Objective(problem.model, criterion, [(X, y)])
    space, parameters = objective.space, problem.parameters
    v = space.random(range(1), 0)
    outputs = problem.model(X[:1]).numel() * examples
    fisher = frechet.empirical_fisher(objective, per="example")
    rows: dict[str, tuple[Callable[[], object], float]] = {
        "gradient": (lambda: torch.autograd.grad(problem.loss(problem.model(X), y), parameters), 1.0),
        "one backward per example": (
            lambda: [
                torch.autograd.grad(problem.loss(problem.model(X[i : i + 1]), y[i : i + 1]), parameters)
                for i in range(examples)
            ],
            1.0,
        ),
        "example_gradients": (lambda: frechet.analyze.example_gradients(objective), 1.0),
        "example_slopes, one direction": (lambda: frechet.analyze.example_slopes(objective, v), 1.0),
        "example_curvatures, one pair": (lambda: frechet.analyze.example_curvatures(objective, v, v), 1.0),
        "example_frobenius, per pair of 8": (
            lambda: frechet.analyze.example_frobenius(objective, seed=0, probes=8),
            1 / 8,
        ),
        "empirical_fisher @ v": (lambda: fisher @ v, 1.0),
        "gradient_gram": (lambda: frechet.analyze.gradient_gram(objective), 1.0),
    }
    if outputs <= 2000:
        kernel, u = frechet.ntk(objective), None
        u = kernel.domain.random(0, 0)
        rows[f"ntk_matrix, {outputs} rows"] = (lambda: frechet.analyze.ntk_matrix(objective), 1.0)
        rows[f"ntk @ u, {outputs} times"] = (lambda: kernel @ u, float(outputs))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mlp", "tiny", "gpt"], choices=list(EXAMPLES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--clock", default="wall", choices=list(timing.CLOCKS), help="cpu: with --threads 1 only")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    timing.restart(a.threads)
    timing.CLOCK = a.clock

    import torch
    from models import PROBLEMS
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_num_threads(a.threads)
    results: dict[str, Any] = {}
    for model in a.models:
        problem, examples = PROBLEMS[model](), EXAMPLES[model]
        with sdpa_kernel([SDPBackend.MATH]):
            rows = functions(problem, examples)
            times = timing.interleave({n: f for n, (f, _) in rows.items()}, rounds=a.rounds, seed=a.seed)
        unit = timing.quartiles(times["gradient"])[0]
        print(f"\n{model}: {examples} examples, {problem.dim} parameters; one gradient {1000 * unit:.1f} ms")
        ratios = timing.ratios(times, "gradient")
        for name, (_, factor) in rows.items():
            median, low, high = (factor * q for q in timing.quartiles(ratios[name]))
            print(f"  {name:36}{median:10.2f}{f'{low:.2f}-{high:.2f}':>20}")
        results[model] = {
            "examples": examples,
            "seconds": times,
            "factors": {name: factor for name, (_, factor) in rows.items()},
        }
        sys.stdout.flush()
    print(f"\nwritten: {timing.write('per_example', timing.record(vars(a), results=results)).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
