"""Differential equations by networks and `collocation`, beside published figures and first-order training.

    python benchmarks/collocation.py [--problems poisson1 poisson2 ...] [--seeds 0 1] [--seconds 60]
                                     [--solvers frechet balanced adam lbfgs trf]

    poisson1    u'' = -pi^2 sin(pi x), tanh 1-32-1 (97 parameters), 60 + 2 points
    poisson2    sin sin on the unit square, tanh 2-64-1 (257), 900 + 120 points
    heat        u_t = u_xx / 4 on [0, 1]^2, tanh 2-64-1, 900 + 120
    poisson5    sum of cosines in 5 dimensions, tanh 5-64-1 (449), 3000 + 500; method="target-ratio"
    deep        poisson2 with tanh 2-64-64-48-48-1 (9 873)
    poisson10   u = sum of x_{2i-1} x_{2i} in 10 dimensions, tanh 10-80-80-30-1 (9 821), 3000 + 1000
    helmholtz3  u_xx + u_yy + u_zz + k^2 u = f with k = 4 pi, u = product of sin(pi x_i), tanh 3-84-84-24-1 (9 541)

No setting is made for a problem but the method of poisson5. Seconds are of processor time on one thread; they and the
steps to an error are taken at each step of the run. The error is relative, in L2, at other points; published errors of
the 2-D and 5-D problems are absolute root mean squares, on a GPU, each with a damping tuned by sweeps. The last two
problems have more residuals than a factorization should hold: ours takes 700 + 300 of their points, anew every 4 steps.

Each finished run is one line of results/collocation.jsonl; a run that is there is not repeated. A run that SIGTERM or
SIGINT ends is kept with what it reached, and repeated by the next call. The line has the least error after each of
`MARKS` seconds, which is printed where several solvers share a problem.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import timing
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor, nn
from torch.func import functional_call

from frechet import least_squares
from frechet.calculus.taylor import differential_operator, laplacian
from frechet.optimize import LeastSquaresState
from frechet.physics import Collocation, collocation
from frechet.space import Variables

FILE = timing.RESULTS / "collocation.jsonl"
ERRORS = [10.0**-k for k in range(2, 13)]
MARKS = [5, 10, 20, 30, 45, 60, 90, 120, 150, 200, 250, 300, 400, 500, 600]
# absolute root mean squares at the end of the best runs of the official files, and their seconds on a GPU
PUBLISHED = {
    "poisson2": "ENGD 6.2e-8, KFAC 2.0e-7, Adam 9.4e-5, L-BFGS 1.8e-4 in 1000 s (absolute; twice that is relative)",
    "heat": "ENGD 3.1e-8, KFAC 8.8e-7, Adam 1.2e-4, L-BFGS 2.7e-4 in 1000 s (absolute)",
    "poisson5": "ENGD 5.6e-8, KFAC 2.7e-6, Adam 1.1e-3, L-BFGS 8.9e-4 in 3000 s (absolute; new points each step)",
    "deep": "KFAC 7.9e-7, Hessian-free 1.3e-6, Adam 2.1e-4, L-BFGS 3.4e-4 in 1000 s (absolute)",
}


class OutOfTime(BaseException):
    """Not an Exception: no solver may catch it. The argument says whether the run was ended from outside."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A residual, a start, and where the error is measured."""

    residual: Collocation
    net: nn.Sequential
    test: Tensor
    exact: Tensor
    method: Literal["auto", "target-ratio"] = "auto"
    part: dict[str, int] | None = None  # points of a step, where not all

    @property
    def start(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def error(self, p: dict[str, Tensor]) -> float:
        with torch.no_grad():
            u = functional_call(self.net, p, (self.test,)).squeeze(-1)
        return float((u - self.exact).norm() / self.exact.norm())


def network(*sizes: int) -> nn.Sequential:
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def on_sides(points: Tensor) -> Tensor:
    """The points moved to the sides of the unit cube in turn."""
    n, d = points.shape
    k, points = torch.arange(n), points.clone()
    points[k, k % (2 * d) // 2] = (k % 2).to(points)
    return points


def problem(name: str, seed: int) -> Problem:
    torch.manual_seed(seed)
    sizes = {
        "poisson1": (1, 32, 1), "poisson2": (2, 64, 1), "heat": (2, 64, 1), "poisson5": (5, 64, 1),
        "deep": (2, 64, 64, 48, 48, 1), "poisson10": (10, 80, 80, 30, 1), "helmholtz3": (3, 84, 84, 24, 1),
    }[name]  # fmt: skip
    net, d = network(*sizes), sizes[0]
    inside, sides = {1: (60, 2), 2: (900, 120), 5: (3000, 500)}.get(d, (3000, 1000))
    X, B, E = torch.rand(inside, d), on_sides(torch.rand(sides, d)), torch.rand(9000, d)
    if name == "poisson1":
        X, E = torch.linspace(0, 1, inside)[:, None], torch.linspace(0, 1, 2001)[:, None]
        with torch.no_grad():  # slopes of the scale of the solution, as the source of this problem has them
            for p in net[0].parameters():
                p.uniform_(-3, 3)
    if name == "heat":
        k = torch.arange(sides)
        B = torch.rand(sides, 2)
        B[k % 3 == 0, 0], B[k % 3 == 1, 1], B[k % 3 == 2, 1] = 0.0, 0.0, 1.0
    exact = {
        "heat": lambda x: torch.exp(-(math.pi**2) * x[..., 0] / 4) * torch.sin(math.pi * x[..., 1]),
        "poisson5": lambda x: torch.cos(math.pi * x).sum(-1),
        "poisson10": lambda x: (x[..., 0::2] * x[..., 1::2]).sum(-1),
    }.get(name, lambda x: torch.sin(math.pi * x).prod(-1))

    def u(p: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: functional_call(net, p, (x,)).squeeze(-1)

    def equation(p: dict[str, Tensor], x: Tensor) -> Tensor:
        if name == "heat":
            return differential_operator(u(p), "u_t - 0.25*u_xx", variables="tx")(x)
        if name == "poisson10":
            return laplacian(u(p))(x)
        if name == "poisson5":
            return laplacian(u(p))(x) + math.pi**2 * exact(x)
        if name == "helmholtz3":
            k2 = 16 * math.pi**2
            return laplacian(u(p))(x) + k2 * u(p)(x) - (k2 - 3 * math.pi**2) * exact(x)
        return laplacian(u(p))(x) + d * math.pi**2 * exact(x)

    def boundary(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return u(p)(x) - exact(x)

    residual = collocation({"equation": equation, "boundary": boundary}, {"equation": X, "boundary": B})
    part = {"equation": 700, "boundary": 300} if d in (3, 10) else None
    return Problem(residual, net, E, exact(E), "target-ratio" if name == "poisson5" else "auto", part)


# --- solvers: each yields the parameters at its steps -----------------------------------------------------------------


def frechet_steps(p: Problem, seen: Callable[[dict[str, Tensor]], None]) -> None:
    x, variables, last = p.start, Variables.of(p.start), None

    def blocks(flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(variables.space.names, variables.space.split(flat), strict=True))

    def observe(state: LeastSquaresState) -> bool:
        nonlocal last
        seen(blocks(state.x))
        last = state
        return p.part is not None and state.iteration >= 4

    for seed in itertools.count():
        residual = p.residual if p.part is None else p.residual.sample(p.part, seed=seed)
        s = least_squares(residual, x, method=p.method, max_evaluations=10**6, observe=observe, resume=last)
        x = blocks(variables.flatten(s.x))
        if p.part is None:
            seen(x)
            return


def adam(p: Problem, seen: Callable[[dict[str, Tensor]], None]) -> None:
    x = {name: t.requires_grad_() for name, t in p.start.items()}
    optimizer = torch.optim.Adam(x.values(), lr=1e-3)
    for k in itertools.count():
        optimizer.zero_grad()
        cost(p, x).backward()
        optimizer.step()
        if k % 50 == 0:
            seen({name: t.detach() for name, t in x.items()})


def lbfgs(p: Problem, seen: Callable[[dict[str, Tensor]], None]) -> None:
    x = {name: t.requires_grad_() for name, t in p.start.items()}
    optimizer = torch.optim.LBFGS(x.values(), max_iter=20, history_size=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cost(p, x)
        value.backward()
        return value

    while True:
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        seen({name: t.detach() for name, t in x.items()})


def trf(p: Problem, seen: Callable[[dict[str, Tensor]], None]) -> None:
    variables = Variables.of(p.start)

    def at(x: np.ndarray) -> dict[str, Tensor]:
        return variables.unflatten(torch.from_numpy(x.copy()))  # type: ignore[return-value]

    def values(x: np.ndarray) -> np.ndarray:
        seen(at(x))
        with torch.no_grad():
            return torch.cat([r.reshape(-1) for r in p.residual(at(x)).values()]).numpy()

    def jacobian(x: np.ndarray) -> np.ndarray:
        return p.residual.jacobian(at(x)).numpy()

    options = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 10**6}
    x0 = variables.flatten(p.start).numpy()
    scipy_least_squares(values, x0, jacobian, method="trf", tr_solver="lsmr", **options)  # pyright: ignore


def cost(p: Problem, x: dict[str, Tensor]) -> Tensor:
    return torch.stack([r.square().sum() for r in p.residual(x).values()]).sum()


def balanced(p: Problem, seen: Callable[[dict[str, Tensor]], None]) -> None:
    """Ours, with the weights of the conditions that `Collocation.balanced` finds at the start."""
    frechet_steps(replace(p, residual=p.residual.balanced(p.start)), seen)


SOLVERS = {"frechet": frechet_steps, "balanced": balanced, "adam": adam, "lbfgs": lbfgs, "trf": trf}


def measured(name: str, seed: int, solver: str, seconds: float) -> dict[str, object]:
    p = problem(name, seed)
    begin, steps, least, reached, trace, cut = time.process_time(), 0, math.inf, {}, {}, False

    def seen(x: dict[str, Tensor]) -> None:
        nonlocal steps, least
        now, error = time.process_time() - begin, p.error(x)
        trace.update((str(t), least) for t in MARKS if str(t) not in trace and t <= now)
        least = min(least, error)
        for e in ERRORS:
            if error <= e:
                reached.setdefault(f"{e:.0e}", [steps, round(now, 1)])
        steps += 1
        if now > seconds or error <= 1e-13:
            raise OutOfTime(False)

    try:
        SOLVERS[solver](p, seen)
    except OutOfTime as end:
        cut = bool(end.args[0])
    spent = time.process_time() - begin
    cell = {"problem": name, "seed": seed, "solver": solver, "seconds": seconds, "cut": cut}
    return {**cell, "spent": round(spent, 1), "steps": steps - 1, "error": least, "reached": reached, "trace": trace}


def ended(*_: object) -> None:
    raise OutOfTime(True)


def cells(a: argparse.Namespace) -> Iterator[tuple[str, int, str, float]]:
    yield from ((p, s, solver, a.seconds) for p in a.problems for s in a.seeds for solver in a.solvers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=["poisson1", "poisson2", "heat", "poisson5", "deep"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--solvers", nargs="*", default=["frechet"], choices=list(SOLVERS))
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    timing.restart(1)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, ended)
    done = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    for cell in cells(arguments):
        if not any((r["problem"], r["seed"], r["solver"], r["seconds"]) == cell and not r.get("cut") for r in done):
            done.append(measured(*cell))
            with FILE.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), file=sys.stderr, flush=True)
            if done[-1]["cut"]:
                break
    print("relative error: the least of the run; steps and processor seconds at which it fell below")
    for name in arguments.problems:
        print(f"{name}: published {PUBLISHED.get(name, 'nothing comparable')}")
        rows = [r for r in done if r["problem"] == name]
        for r in rows:
            marks = "  ".join(f"{e} {k}/{t}s" for e, (k, t) in list(r["reached"].items())[::2])
            print(
                f"  {r['solver']:<8} seed {r['seed']}  {r['error']:.1e} in {r['steps']} steps, {r['spent']} s  {marks}"
            )
        if len({r["solver"] for r in rows}) > 1:
            curves(rows)


def curves(rows: list[dict[str, Any]]) -> None:
    """The least error after each number of seconds, a column for each run."""
    shown = [r for r in rows if r.get("trace")]
    print("    seconds" + "".join(f"{r['solver'] + ' ' + str(r['seed']):>13}" for r in shown))
    for t in map(str, MARKS):
        if any(t in r["trace"] for r in shown):
            print(f"    {t:>7}" + "".join(f"{r['trace'][t]:>13.1e}" if t in r["trace"] else f"{'':>13}" for r in shown))


if __name__ == "__main__":
    main()
