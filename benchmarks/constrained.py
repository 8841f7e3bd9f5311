"""Constrained minimization on CUTEst problems: what is solved, beside SciPy's trust-constr and SLSQP.

    python benchmarks/constrained.py [--set equality | sides] [--largest 10] [--limit 10] [--names ...]

`equality` is the list of AdaSketch-Newton's authors (Hong, Na, Mahoney and Kolar 2023), the 41 of 47 that S2MPJ has.
`sides` is every S2MPJ problem with linear or nonlinear constraints of at most `largest` variables. All get the same
functions; frechet uses products alone, trust-constr exact dense first and second derivatives, SLSQP first ones. Each
run is a process of its own with `limit` seconds of processor time, after which it counts as not solved.

Judged on x alone, the same for all. `first order`: the multipliers are the least-squares ones (of the right sign, for
sides within 1e-6), and KKT = max(|grad f + J'y|, violation) in the largest entry. Equality: KKT <= 1e-8. Sides: KKT <=
1e-6 max(1, |grad f|). `value`: violation <= 1e-6, and f within 1e-4 max(1, |f|) of the least f of all solvers that have
that. Seconds count the first use of torch in each process, about half of one. Writes results/constrained_<set>.json.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from scipy import optimize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing

import s2mpj
from frechet.optimize import Constraint
from frechet.optimize._constrained.constrained import constrained

EQUALITY = [
    "HS6",
    "BT5",
    "BT9",
    "HS28",
    "BT10",
    "HIMMELBA",
    "BT12",
    "HS40",
    "BT3",
    "BT6",
    "BT11",
    "HS7",
    "GENHS28",
    "HS51",
    "BOOTH",
    "HS52",
    "HS47",
    "WAYSEA1NE",
    "HS48",
    "HS50",
    "RSNBRNE",
    "CUBENE",
    "HS77",
    "MWRIGHT",
    "ZANGWIL3",
    "BAmL1SP",
    "HS78",
    "HS56",
    "HELIXNE",
    "HS42",
    "HS79",
    "ORTHREGB",
    "HS100LNP",
    "GOTTFR",
    "WAYSEA2NE",
    "DENSCHNFNE",
    "HIMMELBC",
    "PRICE4NE",
    "INTEQNE",
    "MANCINONE",
    "BT2",
]
NEAR = 1e-6  # a side is active within


def ours(method: str, p: s2mpj.Problem) -> tuple[np.ndarray, str]:
    rows = [Constraint(p.equality)] if p.equalities else []
    rows += [Constraint(p.inequality, lower=-math.inf)] if p.inequalities else []
    bounds = (p.lower, p.upper) if p.bounded else None
    s = constrained(p.f, p.x0, rows, bounds=bounds, method=method, gtol=1e-8, ctol=1e-8)  # pyright: ignore
    return s.x.numpy(), f"{s.status} {s.iterations} {s.products}"  # pyright: ignore[reportAttributeAccessIssue]


def scipys(method: str, p: s2mpj.Problem) -> tuple[np.ndarray, str]:
    raw, none = p.raw, np.zeros(0)

    def c(kind: str, x: np.ndarray) -> np.ndarray:
        f = p.equality if kind == "eq" else p.inequality
        return f(torch.from_numpy(np.array(x))).numpy()

    def J(kind: str, x: np.ndarray) -> np.ndarray:
        return jacobian(p, kind, x)

    def H(kind: str, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        n, linear = len(x), getattr(raw, f"m_linear_{kind}")
        found = np.zeros((n, n))
        for weight, one in zip(v[linear:], getattr(raw, f"hc{kind}")(x) if len(v) > linear else none, strict=True):
            found += weight * np.asarray(one)
        return found

    bounds = optimize.Bounds(p.lower.numpy(), p.upper.numpy()) if p.bounded else None
    kinds = [k for k, count in (("eq", p.equalities), ("ub", p.inequalities)) if count]
    if method == "trust-constr":
        rows = [
            optimize.NonlinearConstraint(
                lambda x, k=k: c(k, x),
                0.0 if k == "eq" else -np.inf,
                0.0,
                lambda x, k=k: J(k, x),
                lambda x, v, k=k: H(k, x, v),
            )
            for k in kinds
        ]
        options = {"gtol": 1e-10, "xtol": 1e-12, "maxiter": 1000}
        found = optimize.minimize(
            raw.fun,
            p.x0.numpy(),
            method=method,
            jac=raw.grad,
            hess=raw.hess,
            constraints=rows,
            bounds=bounds,
            options=options,
        )
    else:
        rows = [
            {
                "type": "eq" if k == "eq" else "ineq",
                "fun": lambda x, k=k, s=s: s * c(k, x),
                "jac": lambda x, k=k, s=s: s * J(k, x),
            }
            for k, s in ((k, 1.0 if k == "eq" else -1.0) for k in kinds)
        ]
        options = {"ftol": 1e-14, "maxiter": 1000}
        found = optimize.minimize(
            raw.fun,
            np.clip(p.x0.numpy(), p.lower.numpy(), p.upper.numpy()),
            method=method,
            jac=raw.grad,
            constraints=rows,
            bounds=bounds,
            options=options,
        )
    return found.x, f"{found.status} {found.nit}"


def jacobian(p: s2mpj.Problem, kind: str, x: np.ndarray) -> np.ndarray:
    at = torch.from_numpy(np.array(x)).requires_grad_()
    rows = (p.equality if kind == "eq" else p.inequality)(at)
    units = torch.eye(rows.numel(), dtype=torch.float64)
    return np.array([torch.autograd.grad(rows, at, u, retain_graph=True)[0].numpy() for u in units]).reshape(-1, len(x))


def judged(p: s2mpj.Problem, x: np.ndarray) -> tuple[float, float, float, float]:
    """KKT, the violation, the size of the gradient, and f."""
    at = torch.from_numpy(np.array(x))
    g = np.asarray(p.raw.grad(x)).reshape(-1)
    rows, signed, violation = [], [], 0.0
    if p.equalities:
        rows.append(jacobian(p, "eq", x))
        signed += [-np.inf] * p.equalities
        violation = float(p.equality(at).abs().max())
    if p.inequalities:
        c = p.inequality(at).numpy()
        active = c >= -NEAR
        rows.append(jacobian(p, "ub", x)[active])
        signed += [0.0] * int(active.sum())
        violation = max(violation, float(c.max()))
    if p.bounded:
        low, high = p.lower.numpy(), p.upper.numpy()
        for sign, distance in ((-1.0, x - low), (1.0, high - x)):
            rows.append(sign * np.eye(len(x))[distance <= NEAR])
            signed += [0.0] * int((distance <= NEAR).sum())
            violation = max(violation, float(-distance.min()))
    A = np.concatenate(rows) if rows else np.zeros((0, len(x)))
    residual = g
    if len(A):
        y = optimize.lsq_linear(A.T, -g, (np.array(signed), np.inf), method="bvls", tol=1e-15).x
        residual = g + A.T @ y
    return max(float(np.abs(residual).max()), violation), violation, float(np.abs(g).max()), float(p.raw.fun(x))


def worker(pipe: Connection, solver: str, name: str, limit: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    p = s2mpj.problem(name)
    used = math.ceil(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 1))
    begin = time.process_time()
    library, method = solver.split()
    with np.errstate(all="ignore"):
        x, told = (ours if library == "frechet" else scipys)(method, p)
        seconds = time.process_time() - begin
        kkt, violation, size, value = judged(p, x)
    pipe.send({"kkt": kkt, "violation": violation, "gradient": size, "f": value, "seconds": seconds, "told": told})


def measured(solver: str, name: str, limit: int) -> dict[str, object]:
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=worker, args=(theirs, solver, name, limit))
    process.start()
    theirs.close()
    try:
        found = mine.recv()
    except EOFError:  # out of time, or an error that it has printed
        found = {
            "kkt": math.inf,
            "violation": math.inf,
            "gradient": 0.0,
            "f": math.nan,
            "seconds": float(limit),
            "told": "no answer",
        }
    process.join()
    return found


def reached(runs: dict[str, dict[str, dict[str, object]]], solver: str, name: str) -> bool:
    """Whether the run of `solver` is feasible, and as low as any feasible one."""
    feasible = {s: float(r[name]["f"]) for s, r in runs.items() if float(r[name]["violation"]) <= 1e-6}  # pyright: ignore
    if solver not in feasible:
        return False
    best = min(feasible.values())
    return feasible[solver] <= best + 1e-4 * max(1.0, abs(best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["equality", "sides"], default="equality")
    parser.add_argument("--largest", type=int, default=10)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--solvers", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    equality = arguments["set"] == "equality"
    names = arguments["names"] or (EQUALITY if equality else s2mpj.names("ln", arguments["largest"]))
    more = ["frechet augmented"] if equality else ["scipy SLSQP"]
    solvers = arguments["solvers"] or ["frechet composite", "scipy trust-constr", *more]
    runs: dict[str, dict[str, dict[str, object]]] = {s: {} for s in solvers}
    solved = dict.fromkeys(solvers, 0)
    for name in names:
        s2mpj.problem(name)  # loaded once, before the forks
        line = []
        for solver in solvers:
            r = runs[solver][name] = measured(solver, name, arguments["limit"])
            goal = 1e-8 if equality else 1e-6 * max(1.0, float(r["gradient"]))  # pyright: ignore[reportArgumentType]
            good = r["solved"] = float(r["kkt"]) <= goal  # pyright: ignore[reportArgumentType]
            solved[solver] += good
            line.append(f"{'' if good else '* '}{r['kkt']:.1e} f {r['f']:<12.6g} {r['seconds']:5.2f} s")
        print(f"{name:<11} " + " | ".join(f"{text:<36}" for text in line), flush=True)
    values = {solver: sum(reached(runs, solver, name) for name in names) for solver in solvers}
    for solver in solvers:
        total = sum(float(r["seconds"]) for r in runs[solver].values())  # pyright: ignore[reportArgumentType]
        print(f"{solver:<22} first order {solved[solver]}, value {values[solver]} of {len(names)}, {total:.1f} s")
    timing.write(f"constrained_{arguments['set']}", timing.record(arguments, solved=solved, values=values, runs=runs))


if __name__ == "__main__":
    main()
