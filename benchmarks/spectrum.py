"""The trace and the top eigenpairs of a trained net's Hessian, by every library's own stopping rule, against the truth.

    python benchmarks/spectrum.py [--seeds 20] [--truth FILE] [--quick]

A small convolutional net trained on the handwritten digits (`digits.py`), in float32; the truth is the dense float64
Hessian at the same parameters. (a) the trace to 1 %; (b) the ten largest eigenpairs to a relative residual
``|H v - lambda v| <= 0.001 |lambda|``. Each method runs once per seed, in an order drawn for that seed; the seed is
that of the method's random vectors, the net is one. Seconds are of the whole call, making the operator included.

A run is right if its true error is within the tolerance: (a) the relative error of the trace, (b) the largest of the
ten relative residuals computed with the dense matrix, with all ten values within 1 % of the ten largest. An eigenvalue
is not there ("ghost") if no true one is within 1 % of it that no other reported value has taken.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timing

RTOL_TRACE, RTOL_PAIRS, MATCH = 0.01, 1e-3, 0.01


def judge(answer, truth) -> dict[str, float]:
    """The true error of an answer, whether it is right, and what it reports that is not there."""
    if answer.trace is not None:
        error = abs(answer.trace - truth.trace) / abs(truth.trace)
        return {"error": error, "right": error <= RTOL_TRACE, "ghosts": 0}
    V = answer.vectors.double()
    V = V / V.norm(dim=0)
    values = np.asarray(answer.values, dtype=float)
    residuals = (truth.H @ V - V * truth.H.new_tensor(values)).norm(dim=0).numpy() / np.abs(values)
    top = truth.values[: len(values)].numpy()
    off = np.abs(np.sort(values)[::-1] - top) / np.abs(top)
    error = float(residuals.max())
    right = error <= RTOL_PAIRS and float(off.max()) <= MATCH
    return {
        "error": error,
        "value_error": float(off.max()),
        "right": right,
        "ghosts": ghosts(values, truth.values.numpy()),
    }


def ghosts(reported: np.ndarray, true: np.ndarray) -> int:
    """How many reported values have no true one within MATCH of them that is not taken by another reported value."""
    free, missing = list(np.sort(true)[::-1]), 0
    for value in np.sort(reported)[::-1]:  # both sorted: giving each the largest free match is a best matching
        matches = [t for t in free if abs(t - value) <= MATCH * abs(value)]
        missing += not matches
        if matches:
            free.remove(matches[0])
    return missing


def compare(methods, setting, truth, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Every method's runs, interleaved: one round per seed."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, _ in methods}
    methods[0][1](setting, 0)  # warm
    for seed in range(seeds):
        for name, method in random.Random(seed).sample(methods, len(methods)):
            start = timing.now()
            answer = method(setting, seed)
            seconds = timing.now() - start
            runs[name].append({"seconds": seconds, "products": answer.products, **judge(answer, truth)})
    return runs


def show(title: str, runs: dict[str, list[dict[str, float]]]) -> None:
    heads = ("seconds", "quartiles", "products", "error", "worst", "right", "ghosts")
    print(f"\n{title}\n  {'':42}" + "".join(f"{head:>11}" for head in heads))
    medians = {}
    for name, rows in runs.items():
        column = {key: [row[key] for row in rows] for key in ("seconds", "products", "error", "right", "ghosts")}
        median, low, high = timing.quartiles(column["seconds"])
        medians[name] = (median, sum(column["right"]) / len(rows))
        cells = (
            f"{median:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{np.median(column['products']):.0f}",
            f"{np.median(column['error']):.1e}",
            f"{max(column['error']):.1e}",
            f"{sum(column['right'])}/{len(rows)}",
            f"{sum(count > 0 for count in column['ghosts'])}/{len(rows)}",
        )
        print(f"  {name:42}" + "".join(f"{cell:>11}" for cell in cells))
    ours, *others = medians
    right = {name: medians[name][0] for name in others if medians[name][1] > 0.5}
    for label, group in (("right in the median", right), ("all", {name: medians[name][0] for name in others})):
        if group:
            best = min(group, key=lambda name: group[name])
            print(f"  fastest peer, {label}: {best.strip()}, {group[best] / medians[ours][0]:.2f} times our seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=timing.cores())
    parser.add_argument("--clock", default="wall", choices=list(timing.CLOCKS), help="cpu: with --threads 1 only")
    parser.add_argument("--truth", type=Path, help="keep the dense Hessian in this file, and read it from there again")
    parser.add_argument("--quick", action="store_true", help="3 seeds")
    a = parser.parse_args()
    a.seeds = 3 if a.quick else a.seeds
    timing.restart(a.threads)
    timing.CLOCK = a.clock

    import digits
    import torch
    from methods import PAIRS, TRACE, Setting

    torch.set_num_threads(a.threads)
    problem, batches, accuracy = digits.trained()
    start = time.perf_counter()
    truth = digits.truth(problem, batches, a.truth)
    top = " ".join(f"{x:.3g}" for x in truth.values[:12].tolist())
    print(f"{problem.dim} parameters, accuracy {accuracy:.3f}, trace {truth.trace:.4g}, eigenvalues {top} ... ", end="")
    print(f"{truth.values[-1]:.3g} (dense in {time.perf_counter() - start:.0f} s); threads {a.threads}", flush=True)
    results: dict[str, Any] = {}
    for key, title, methods, rtol in (
        ("trace", f"trace to {RTOL_TRACE:.0%}", TRACE, RTOL_TRACE),
        ("pairs", f"ten largest eigenpairs to relative residual {RTOL_PAIRS}", PAIRS, RTOL_PAIRS),
    ):
        usable = [(name, method) for name, package, method in methods if importlib.util.find_spec(package)]
        results[key] = compare(usable, Setting(problem, batches, rtol), truth, a.seeds)
        show(f"{title}, {a.seeds} seeds", results[key])
        sys.stdout.flush()
    arguments = {name: value for name, value in vars(a).items() if name != "truth"}
    contents = timing.record(arguments, trace=truth.trace, eigenvalues=truth.values.tolist(), results=results)
    print(f"\nwritten: {timing.write('spectrum' + ('-quick' if a.quick else ''), contents).name}")


if __name__ == "__main__":
    main()
