"""Large problems: minimize beside SciPy's trust-krylov and L-BFGS-B, on CUTEst problems with 500 to 5 000 variables.

    python benchmarks/large.py [--seconds 10] [--kinds u b] [--only NAME ...] [--rows FILE] [--list]

The sample follows a rule that was written before anything was measured. Of the problems of the Python registry of S2MPJ
without constraints (u) and with bounds (b) those are taken that have an instance with 500 to 5 000 variables. They are
shuffled with the seed 11; each draws one of its instances; at most two names with the same first five letters are
taken, until there are 24 of u and 18 of b. The two EIGEN problems, which load for minutes, are left out.

All solvers get the same callbacks (see separable.py): one that returns f and the gradient, whose last result is kept,
and products with the Hessian, which is evaluated once per point. A run has `--seconds` of processor time, the callbacks
counted. Counted are points at which f and the gradient, and at which the Hessian was evaluated. A run is solved as in
cutest.py: if the largest entry of the projected gradient is at most 1e-6 max(1, |f|) and f is above the best that any
solver found by at most 1e-6 max(1, |best|). Of a run that is cut off the best point that it had seen is judged. With
`--rows` every run is appended to that file, and those found in it are not run again. Writes results/large.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import timing
import torch
from scipy import optimize
from separable import Separable, instances, separable
from torch import Tensor

from frechet import LinearOperator, Space, from_callable, minimize
from frechet.errors import NonFinite

TOLERANCE = 1e-6
SEED, COUNTS, ALIKE = 11, {"u": 24, "b": 18}, 2
SMALLEST, LARGEST = 500, 5000


class OutOfTime(BaseException):
    """Not an Exception: nothing may catch it on the way."""


@dataclass(frozen=True)
class Row:
    problem: str
    n: int
    solver: str
    value: float
    residual: float  # the largest entry of the projected gradient, over max(1, |f|)
    claimed: bool
    values: int
    hessians: int
    products: int
    seconds: float
    callbacks: float  # seconds of these in callbacks
    reason: str


@dataclass(eq=False)
class Callbacks:
    """One problem with what was spent on it, and the best point that was seen."""

    problem: Separable
    values: int = 0
    hessians: int = 0
    products: int = 0
    seconds: float = 0.0
    best: tuple[float, float, np.ndarray] | None = None  # f, residual, x
    last: tuple[bytes, float, np.ndarray] = (b"", 0.0, np.zeros(0))
    bent: tuple[bytes, Callable[[np.ndarray], np.ndarray]] = (b"", np.zeros_like)

    @property
    def x0(self) -> np.ndarray:
        return np.clip(self.problem.x0, self.problem.lower, self.problem.upper)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        lower, upper = self.problem.lower, self.problem.upper
        return (lower, upper) if np.isfinite(lower).any() or np.isfinite(upper).any() else None

    def at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        key = x.tobytes()
        if key != self.last[0]:
            begin = time.process_time()
            f, g = self.problem.value_and_gradient(x.copy())
            self.values += 1
            self.last = (key, f, g)
            self.note(x, f, g)
            self.seconds += time.process_time() - begin
        return self.last[1], self.last[2]

    def note(self, x: np.ndarray, f: float, g: np.ndarray) -> None:
        if not math.isfinite(f):
            return
        held = ((x <= self.problem.lower) & (g >= 0)) | ((x >= self.problem.upper) & (g <= 0))
        residual = float(np.abs(np.where(held, 0.0, g)).max()) / max(1.0, abs(f))
        if self.best is None or (residual <= TOLERANCE, -f) > (self.best[1] <= TOLERANCE, -self.best[0]):
            self.best = (f, residual, x.copy())

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        key, begin = x.tobytes(), time.process_time()
        if key != self.bent[0]:
            self.bent = (key, self.problem.hessian(x.copy()))
            self.hessians += 1
        self.products += 1
        Hv = self.bent[1](v)
        self.seconds += time.process_time() - begin
        return Hv


Solver = Callable[[Callbacks], tuple[np.ndarray, bool, str]]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, problem: Callbacks) -> Tensor:
        f, g = problem.at(x.detach().numpy())
        ctx.save_for_backward(torch.from_numpy(g.copy()))
        return torch.tensor(f, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor, None]:
        return us[0] * ctx.saved_tensors[0], None


def ours(method: str) -> Solver:
    def run(p: Callbacks) -> tuple[np.ndarray, bool, str]:
        x0 = torch.from_numpy(p.x0)
        space = Space.of({"x": x0})

        def curvature(x: Tensor) -> LinearOperator:
            at = x.numpy().copy()

            def product(V: Tensor) -> Tensor:
                return torch.stack([torch.from_numpy(p.product(at, v)) for v in V.T.numpy()]).T

            return from_callable(product, domain=space, facts="symmetric")

        sides = p.bounds
        s = minimize(
            lambda x: _Function.apply(x, p),
            x0,
            method=method,  # pyright: ignore[reportArgumentType]
            bounds=None if sides is None else (torch.from_numpy(sides[0]), torch.from_numpy(sides[1])),
            hessian=curvature,
        )
        assert isinstance(s.x, Tensor)
        return s.x.numpy(), s.converged, s.message

    return run


def scipys(method: str) -> Solver:
    def run(p: Callbacks) -> tuple[np.ndarray, bool, str]:
        options: dict[str, float] = {"gtol": 1e-8, "maxiter": 100000}
        if method == "L-BFGS-B":
            options = {"gtol": 1e-8, "ftol": 0, "maxiter": 100000, "maxfun": 100000}
        found = optimize.minimize(
            p.at,
            p.x0,
            jac=True,
            hessp=None if method == "L-BFGS-B" else p.product,
            method=method,
            bounds=None if p.bounds is None else optimize.Bounds(*p.bounds),  # pyright: ignore[reportArgumentType]
            options=options,
        )
        return found.x, bool(found.success), str(found.message)

    return run


SOLVERS: dict[str, dict[str, Solver]] = {
    "u": {
        "frechet": ours("auto"),
        "scipy trust-krylov": scipys("trust-krylov"),
        "scipy L-BFGS-B": scipys("L-BFGS-B"),
    },
    "b": {"frechet": ours("auto"), "scipy L-BFGS-B": scipys("L-BFGS-B")},
}


def sample(kind: str) -> list[str]:
    """Names with sizes, such as "WOODS_4000"."""
    draw, all_of = random.Random(SEED), instances(kind, SMALLEST, LARGEST)
    names = sorted(name for name in all_of if not name.startswith("EIGEN"))
    draw.shuffle(names)
    taken: list[str] = []
    for name in names:
        n = draw.choice(sorted(all_of[name]))
        if len(taken) < COUNTS[kind] and sum(t[:5] == name[:5] for t in taken) < ALIKE:
            taken.append(f"{name}_{n}")
    return taken


def ran(kind: str, name: str, solver: str, limit: float) -> Row:
    stem, n = name.rsplit("_", 1)
    p, claimed = Callbacks(separable(stem, instances(kind, SMALLEST, LARGEST)[stem][int(n)])), False
    begin = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, limit, 0.5)
    try:
        x, claimed, reason = SOLVERS[kind][solver](p)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        p.best, p.last = None, (b"", 0.0, np.zeros(0))
        p.at(x)
    except OutOfTime:
        reason = "out of time"
    except (ValueError, ArithmeticError, NonFinite, np.linalg.LinAlgError) as error:
        reason = f"{type(error).__name__}: {error}"[:150]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    seconds = time.process_time() - begin
    value, residual, _ = p.best or (math.inf, math.inf, p.x0)
    spent = (p.values, p.hessians, p.products)
    return Row(name, len(p.x0), solver, value, residual, claimed, *spent, seconds, p.seconds, reason)


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
    head = ("solved", "stationary", "wrong", "values", "Hessians", "products", "seconds", "callbacks")
    print(f"\n{len(problems)} problems{'':<12}" + "".join(h.rjust(12) for h in head))
    table: list[dict[str, object]] = []
    for s in solvers:
        mine = [by[p, s] for p in problems]
        done = [r for r in mine if solved(r, best[r.problem])]
        numbers = (
            len(done),
            sum(r.residual <= TOLERANCE for r in mine),
            sum(r.claimed and not r.residual <= TOLERANCE for r in mine),
            sum(r.values for r in done),
            sum(r.hessians for r in done),
            sum(r.products for r in done),
            round(sum(r.seconds for r in mine)),
            round(sum(r.callbacks for r in mine)),
        )
        print(f"{s:<23}" + "".join(str(v).rjust(12) for v in numbers))
        table.append({"solver": s, **dict(zip(head, numbers, strict=True))})
    for s in solvers:
        missed = [p for p in problems if not solved(by[p, s], best[p]) and best[p] < math.inf]
        print(f"{s} did not solve: {' '.join(missed)}")
    print(f"solved by none: {' '.join(p for p in problems if best[p] == math.inf)}", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kinds", nargs="*", default=["u", "b"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rows", type=Path, help="a file of finished runs, one JSON object a line")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    if arguments.pop("list"):
        print("\n".join(f"{kind}: {' '.join(sample(kind))}" for kind in arguments["kinds"]))
        return
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
        for name in arguments["only"] or sample(kind):
            for solver in SOLVERS[kind]:
                if (name, solver) in done:
                    rows.append(done[name, solver])
                    continue
                rows.append(r := ran(kind, name, solver, arguments["seconds"]))
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps(asdict(r)) + "\n")
                print(
                    f"{name:<14} {solver:<20}{r.value:18.9g}{r.residual:10.1e}{r.values:6d}{r.hessians:5d}"
                    f"{r.products:8d}{r.seconds:7.1f}{r.callbacks:7.1f} {r.message[:60]}",
                    flush=True,
                )
        tables[kind] = summary(rows, list(SOLVERS[kind]))
        everything += [asdict(r) for r in rows]
    timing.write("large", timing.record(arguments, tables=tables, runs=everything))


if __name__ == "__main__":
    main()
