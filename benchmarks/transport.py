"""Entropic transport with 500 x 500 costs at a small epsilon, beside POT's Sinkhorn in the log domain.

    python benchmarks/transport.py [--cap 8000] [--size 500] [--problems assignment "digits L2" "digits L1"]

Three problems, all with epsilon = max(cost) / 1200:

    assignment   cost U[0, 1] (500 x 500), uniform masses
    digits L2    two images of scikit-learn's digits (numbers 0 and 1 of the set: a zero and a one, 8 x 8), interpolated
                 bilinearly to 28 x 28 (scipy.ndimage.zoom, order 1), the 500 brightest pixels of each as points in the
                 unit square, with masses in proportion to their brightness plus a thousandth of the brightest, so
                 that all have some; squared Euclidean distance
    digits L1    the same points, city-block distance

Each is solved to a marginal error of 1e-6 and 1e-12 (the sum over rows and columns of the distances from the masses).
POT runs ot.sinkhorn(method="sinkhorn_log") with its NumPy and its torch backend, at most `--cap` iterations, in pieces
that start from the potentials of the last; where the cap ends it, its time is a lower bound. POT stops on a Euclidean
norm; here it is stopped on the same sum as we are, computed outside of its clock. Times are of the process's CPU, with
one thread. The value is compared with that of the linear program. Writes results/transport.json.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import ot
import timing
import torch
from scipy.ndimage import zoom
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor

from frechet import sinkhorn

PIECE = 250  # iterations of POT between two looks at its error
LEVELS = (1e-6, 1e-12)


def digit(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Points (size, 2) in the unit square and masses of an image."""
    image = zoom(load_digits().images[number], 3.5, order=1).clip(min=0)
    brightest = np.argsort(-image, axis=None, kind="stable")[:size]
    points = np.stack(np.unravel_index(brightest, image.shape), 1) / (image.shape[0] - 1)
    mass = image.flat[brightest] + 1e-3 * image.max()  # a faint background, so that there are enough points with mass
    return torch.from_numpy(points), torch.from_numpy(mass / mass.sum())


def problem(name: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cost and masses."""
    if name == "assignment":
        uniform = torch.full((size,), 1 / size, dtype=torch.float64)
        return torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), uniform, uniform
    (x, a), (y, b) = digit(0, size), digit(1, size)
    d = x.unsqueeze(1) - y
    return (d * d).sum(-1) if name.endswith("L2") else d.abs().sum(-1), a, b


def error_of(P: Tensor, a: Tensor, b: Tensor) -> float:
    return float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())


def ours(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, level: float) -> dict[str, object]:
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        s = sinkhorn(cost, a, b, epsilon=epsilon, rtol=level)
        seconds.append(time.process_time() - begin)
    return {
        "seconds": float(np.median(seconds)),
        "status": s.status.value,
        "error": s.marginal_error,
        "sweeps": s.sweeps,
        "newton_steps": s.newton_steps,
        "products": s.products,
        "value": s.value,
        "gap": s.gap,
        "bounds": s.unregularized_bounds(),
    }


def pot(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, cap: int, backend: str) -> dict[str, object]:
    """Seconds to 1e-6, or to the cap."""
    C, p, q = (x.numpy() if backend == "numpy" else x for x in (cost, a, b))
    warm, seconds, iterations, error = None, 0.0, 0, math.inf
    while iterations < cap and error > LEVELS[0]:
        count = min(PIECE, cap - iterations)
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan, log = ot.sinkhorn(
                p, q, C, epsilon, method="sinkhorn_log", numItermax=count, stopThr=0, log=True, warmstart=warm
            )
        seconds += time.process_time() - begin
        iterations += count
        # its scalings in logarithms, which it starts from again: the pieces are one run
        warm = (log["log_u"], log["log_v"])
        error = error_of(torch.as_tensor(plan), a, b)
    return {"seconds": seconds, "iterations": iterations, "error": error, "reached": error <= LEVELS[0]}


def exact(cost: Tensor, a: Tensor, b: Tensor, name: str) -> float:
    """The value of the linear program."""
    if name == "assignment":
        rows, columns = linear_sum_assignment(cost.numpy())
        return float(cost[rows, columns].mean())
    return float(ot.emd2(a.numpy(), b.numpy(), cost.numpy(), numItermax=10_000_000))


def measured(name: str, size: int, cap: int, backends: list[str]) -> dict[str, object]:
    cost, a, b = problem(name, size)
    epsilon = float(cost.max()) / 1200
    print(f"\n{name}: {cost.shape[0]} x {cost.shape[1]}, epsilon {epsilon:.3e}", flush=True)
    row: dict[str, object] = {"name": name, "shape": list(cost.shape), "epsilon": epsilon}
    best = math.inf
    for level in LEVELS:
        found = ours(cost, a, b, epsilon, level)
        row[f"frechet {level:.0e}"] = found
        print(
            f"  frechet to {level:.0e}    {found['seconds']:8.3f} s   error {found['error']:.1e}   "
            f"{found['sweeps']} sweeps, {found['newton_steps']} Newton steps, {found['products']} products",
            flush=True,
        )
        best = found["seconds"] if level == LEVELS[0] else best  # pyright: ignore[reportAssignmentType]
    lp = exact(cost, a, b, name)
    at_end = row[f"frechet {LEVELS[1]:.0e}"]
    excess = (at_end["value"] - lp) / epsilon  # pyright: ignore[reportIndexIssue]
    bound = min(-float(torch.xlogy(x, x).sum()) for x in (a, b))  # the largest KL(P | a b') of a plan
    row |= {"linear_program": lp, "excess_over_epsilon": excess, "entropy_bound": bound}
    print(f"  linear program {lp:.9f}; ours is {excess:.3f} epsilon above, at most {bound:.3f} in theory")
    for backend in backends:
        found = pot(cost, a, b, epsilon, cap, backend)
        ratio = found["seconds"] / best  # pyright: ignore[reportOperatorIssue]
        row[f"pot {backend}"] = found | {"ratio": ratio}
        sign = "" if found["reached"] else "at least "
        print(
            f"  POT {backend:<6}        {found['seconds']:8.2f} s   error {found['error']:.1e}   "
            f"{found['iterations']} iterations   {sign}{ratio:.0f} times ours to 1e-06",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=int, default=8000)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", nargs="*", default=["numpy", "torch"])
    parser.add_argument("--problems", nargs="*", default=["assignment", "digits L2", "digits L1"])
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    torch.set_num_threads(arguments["threads"])
    rows = [
        measured(name, arguments["size"], arguments["cap"], arguments["backends"]) for name in arguments["problems"]
    ]
    timing.write("transport", timing.record(arguments, runs=rows))


if __name__ == "__main__":
    main()
