"""Minimization on the CUTEst collection: problems without constraints and with bounds, beside SciPy's methods.

    python benchmarks/cutest.py [--largest 200] [--seconds 20] [--kinds u b] [--draw K] [--only NAME ...] [--rows FILE]

With `--draw` K of the problems of each kind are drawn, with the seed 12. The values and derivatives are those that the
collection writes out, assembled as sparse matrices (separable.py) where that agrees with the collection at the start.
All get these exact derivatives and are asked for as much as they can give. A run is solved if the largest entry of the
projected gradient is at most 1e-6 max(1, |f|) and f is above the best that any method found by at most 1e-6
max(1, |best|). Each run has `--seconds` of processor time; what did not end is unsolved. Counted are values, gradients
and products with the Hessian, a Hessian matrix as n. The profile shows for how many of the problems a method is solved
within 1, 2, 4, ... times the fewest values and gradients of any. With `--rows` every run is appended to that file, and
those found in it are not run again. Writes results/cutest.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing
from separable import Separable, separable

from frechet import LinearOperator, from_matrix, minimize
from frechet.errors import NonFinite
from s2mpj import Problem, names, problem

TOLERANCE = 1e-6


class OutOfTime(BaseException):
    """Not an Exception: the collection catches those."""


@dataclass
class Counts:
    values: int = 0
    gradients: int = 0
    products: int = 0


@dataclass(frozen=True)
class Row:
    problem: str
    n: int
    solver: str
    value: float
    residual: float  # of the projected gradient, over max(1, |f|)
    claimed: bool
    values: int
    gradients: int
    products: int
    seconds: float
    reason: str


Solver = Callable[[Problem, Counts], tuple[Tensor, bool, str]]


@dataclass(frozen=True, eq=False)
class Assembled:
    """What `Problem.raw` offers, faster."""

    separable: Separable

    def fun(self, x: np.ndarray) -> float:
        return self.separable.value_and_gradient(np.array(x, dtype=float))[0]

    def grad(self, x: np.ndarray) -> np.ndarray:
        return self.separable.value_and_gradient(np.array(x, dtype=float))[1]

    def hess(self, x: np.ndarray) -> np.ndarray:
        product = self.separable.hessian(np.array(x, dtype=float))
        return np.array(product(np.eye(len(x))))


@cache
def fast(name: str) -> Problem:
    """The problem, assembled here if that agrees with the collection."""
    try:
        return replace(problem(name), raw=Assembled(separable(name, None)))
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        print(f"{name}: the collection's own evaluation is used ({type(error).__name__})", flush=True)
        return problem(name)


def hessian_of(p: Problem, x: np.ndarray) -> np.ndarray:
    return np.array(p.raw.hess(x), dtype=float).reshape(len(x), len(x))


def ours(method: str) -> Solver:
    def run(p: Problem, counts: Counts) -> tuple[Tensor, bool, str]:
        def curvature(x: Tensor) -> LinearOperator:  # the whole matrix at once: a product of its own would cost as much
            return from_matrix(torch.from_numpy(hessian_of(p, x.numpy())), facts="symmetric")

        s = minimize(
            p.f,
            p.x0,
            method=method,  # pyright: ignore[reportArgumentType]
            bounds=(p.lower, p.upper) if p.bounded else None,
            hessian=curvature,
        )
        counts.values, counts.gradients, counts.products = s.evaluations, s.gradients, s.products
        return s.x, s.converged, s.message

    return run


def scipys(method: str) -> Solver:
    def run(p: Problem, counts: Counts) -> tuple[Tensor, bool, str]:
        def value(x: np.ndarray) -> float:
            counts.values += 1
            return float(p.raw.fun(x))

        def gradient(x: np.ndarray) -> np.ndarray:
            counts.gradients += 1
            return np.atleast_1d(np.array(p.raw.grad(x), dtype=float))

        def hessian(x: np.ndarray) -> np.ndarray:
            counts.products += len(x)
            return hessian_of(p, x)

        options: dict[str, float] = {"gtol": 1e-10, "maxiter": 2000}
        if method == "L-BFGS-B":
            options = {"gtol": 1e-10, "ftol": 0, "maxiter": 20000, "maxfun": 20000}
        elif method == "trust-constr":
            options = {"gtol": 1e-10, "xtol": 1e-13, "maxiter": 2000}
        bounds = optimize.Bounds(p.lower.numpy(), p.upper.numpy()) if p.bounded else None
        found = optimize.minimize(
            value,
            p.x0.clamp(p.lower, p.upper).numpy(),
            jac=gradient,
            hess=None if method == "L-BFGS-B" else hessian,
            method=method,
            bounds=bounds,
            options=options,
        )
        return torch.from_numpy(found.x), bool(found.success), str(found.message)

    return run


SOLVERS: dict[str, dict[str, Solver]] = {
    "u": {
        "frechet trust-region": ours("trust-region"),
        "frechet gradient-regularized": ours("gradient-regularized"),
        "scipy trust-exact": scipys("trust-exact"),
        "scipy trust-krylov": scipys("trust-krylov"),
        "scipy L-BFGS-B": scipys("L-BFGS-B"),
    },
    "b": {
        "frechet projected-newton": ours("projected-newton"),
        "scipy trust-constr": scipys("trust-constr"),
        "scipy L-BFGS-B": scipys("L-BFGS-B"),
    },
}


def projected(p: Problem, x: Tensor) -> float:
    """The largest entry of the gradient that no bound holds."""
    g = torch.from_numpy(np.atleast_1d(np.array(p.raw.grad(x.numpy()), dtype=float)))
    held = ((x <= p.lower) & (g >= 0)) | ((x >= p.upper) & (g <= 0))
    return float(torch.where(held, 0.0, g.abs()).max())


def ran(name: str, p: Problem, solver: str, run: Solver, limit: float) -> Row:
    counts, begin, x, claimed = Counts(), time.process_time(), None, False
    signal.setitimer(signal.ITIMER_VIRTUAL, limit, 0.5)
    try:
        x, claimed, reason = run(p, counts)
    except OutOfTime:
        reason = "out of time"
    except (ValueError, ArithmeticError, NonFinite, np.linalg.LinAlgError) as error:
        reason = f"{type(error).__name__}: {error}"[:150]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    seconds, value, residual = time.process_time() - begin, math.inf, math.inf
    if x is not None:
        inside = bool(((x >= p.lower) & (x <= p.upper)).all())
        value = float(p.raw.fun(x.numpy())) if inside else math.inf
        residual = projected(p, x) / max(1.0, abs(value))
    spent = (counts.values, counts.gradients, counts.products)
    return Row(name, len(p.x0), solver, value, residual, claimed, *spent, seconds, reason)


def read(kept: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in kept.read_text().splitlines()]


def solved(row: Row, best: float) -> bool:
    return row.residual <= TOLERANCE and row.value <= best + TOLERANCE * max(1.0, abs(best))


def summary(rows: list[Row], solvers: list[str]) -> list[dict[str, object]]:
    by = {(r.problem, r.solver): r for r in rows}
    problems = sorted({r.problem for r in rows})
    best = {
        p: min((by[p, s].value for s in solvers if by[p, s].residual <= TOLERANCE), default=math.inf) for p in problems
    }
    cost = {k: r.values + r.gradients if solved(r, best[r.problem]) else math.inf for k, r in by.items()}
    least = {p: min(cost[p, s] for s in solvers) for p in problems}
    factors, table = (1, 2, 4, 8, 16), []
    print(
        f"\n{len(problems)} problems{'':<19}{'solved':>7}{'stationary':>12}{'wrong':>7}{'values':>9}{'gradients':>11}",
        end="",
    )
    print(f"{'products':>10}{'seconds':>9}   within " + " ".join(f"{f}x".rjust(5) for f in factors))
    for s in solvers:
        mine = [by[p, s] for p in problems]
        done = [r for r in mine if solved(r, best[r.problem])]
        shares = [sum(cost[p, s] <= f * least[p] < math.inf for p in problems) for f in factors]
        line = {
            "solver": s,
            "solved": len(done),
            "stationary": sum(r.residual <= TOLERANCE for r in mine),
            "wrong": sum(r.claimed and not r.residual <= TOLERANCE for r in mine),
            "values": sum(r.values for r in done),
            "gradients": sum(r.gradients for r in done),
            "products": sum(r.products for r in done),
            "seconds": sum(r.seconds for r in mine),
            "within": dict(zip(map(str, factors), shares, strict=True)),
        }
        table.append(line)
        print(f"{s:<30}{len(done):>7}{line['stationary']:>12}{line['wrong']:>7}{line['values']:>9}", end="")
        print(f"{line['gradients']:>11}{line['products']:>10}{line['seconds']:>9.0f}          ", end="")
        print(" ".join(f"{share:>5}" for share in shares))
    for s in solvers:
        missed = [p for p in problems if not solved(by[p, s], best[p]) and best[p] < math.inf]
        print(f"{s} did not solve: {' '.join(missed)}")
    print(f"solved by none: {' '.join(p for p in problems if best[p] == math.inf)}", flush=True)
    return table


def drawn(kind: str, largest: int, count: int | None) -> list[str]:
    """The names of the problems to run."""
    all_of = names(kind, largest)
    return all_of if count is None else sorted(random.Random(12).sample(all_of, min(count, len(all_of))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--kinds", nargs="*", default=["u", "b"])
    parser.add_argument("--draw", type=int, help="how many problems of each kind")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rows", type=Path, help="a file of finished runs, one JSON object a line")
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    kept: Path | None = arguments.pop("rows")
    done = {} if kept is None or not kept.exists() else {(r.problem, r.solver): r for r in read(kept)}

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    signal.signal(signal.SIGVTALRM, ring)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    tables, everything = {}, []
    for kind in arguments["kinds"]:
        rows: list[Row] = []
        for name in arguments["only"] or drawn(kind, arguments["largest"], arguments["draw"]):
            for solver, run in SOLVERS[kind].items():
                if (name, solver) in done:
                    rows.append(done[name, solver])
                    continue
                rows.append(ran(name, fast(name), solver, run, arguments["seconds"]))
                r = rows[-1]
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps(asdict(r)) + "\n")
                print(
                    f"{name:<12}{r.n:4d} {solver:<30}{r.value:18.9g}{r.residual:10.1e}{r.values:6d}{r.gradients:6d}"
                    f"{r.products:7d}{r.seconds:7.1f} {r.message[:60]}",
                    flush=True,
                )
        tables[kind] = summary(rows, list(SOLVERS[kind]))
        everything += [asdict(r) for r in rows]
    timing.write("cutest", timing.record(arguments, tables=tables, runs=everything))


if __name__ == "__main__":
    main()
