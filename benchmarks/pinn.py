"""Networks that solve differential equations, by least squares: the plain call beside SciPy's trf and torch's L-BFGS.

    python benchmarks/pinn.py [--problems poisson burgers] [--parameters 257 481] [--seeds 0 1 2] [--seconds 60]

    poisson     u_xx + u_yy = -2 pi^2 sin(pi x) sin(pi y) on the unit square, zero on its sides
    burgers     u_t + u u_x = (0.01 / pi) u_xx on [-1, 1] x [0, 1], u = -sin(pi x) at t = 0, zero at x = -1 and 1

u is a tanh network in float64: one hidden layer for 257, 481 and 1 021 parameters, layers of 64, 64, 48 and 48 for
9 873. The residuals are the equation at 900 random points and the conditions at 120, each kind divided by the root of
its number. No setting is made for a problem. All solvers get the same start and the same seconds of processor time;
ours and trf get the same Jacobian, one gradient for each point, because a residual reads the network at one point only.
The error is relative, in L2, at 2 000 other points; Burgers' solution comes from the formula of Cole and Hopf.

Each finished run is one line of results/pinn.jsonl, with its seconds; a run that is there is not repeated. The table is
of the runs with the given seconds: the median and the worst over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import timing
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

from frechet import least_squares

WIDTHS = {257: (64,), 481: (120,), 1021: (255,), 9873: (64, 64, 48, 48)}
INSIDE, SIDES, TEST = 900, 120, 2000
NU = 0.01 / math.pi
F64 = torch.float64
FILE = timing.RESULTS / "pinn.jsonl"


class OutOfTime(BaseException):
    """Not an Exception: no solver may catch it."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The residuals of one problem and seed; `points` are two coordinates each."""

    name: str
    widths: tuple[int, ...]
    inside: Tensor
    sides: Tensor
    values: Tensor  # of u at the sides
    test: Tensor
    exact: Tensor

    def derivatives(self, x: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, its gradient (2,) and its second derivatives (2,) along both axes, at one point, layer by layer."""
        a, first, second = point, torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
        sizes, at = (2, *self.widths, 1), 0
        for i, (k, m) in enumerate(itertools.pairwise(sizes)):
            W, b = x[at : at + k * m].view(m, k), x[at + k * m : at + (k + 1) * m]
            at += (k + 1) * m
            a, first, second = W @ a + b, first @ W.T, second @ W.T
            if i < len(sizes) - 2:
                a = torch.tanh(a)
                slope = 1 - a * a
                second = slope * second - 2 * a * slope * first * first
                first = slope * first
        return a[0], first[:, 0], second[:, 0]

    def equation(self, x: Tensor, point: Tensor) -> Tensor:
        u, first, second = self.derivatives(x, point)
        if self.name == "poisson":
            return (second.sum() + 2 * math.pi**2 * torch.sin(math.pi * point).prod()) / math.sqrt(INSIDE)
        return (first[1] + u * first[0] - NU * second[0]) / math.sqrt(INSIDE)

    def condition(self, x: Tensor, point: Tensor, value: Tensor) -> Tensor:
        return (self.derivatives(x, point)[0] - value) / math.sqrt(SIDES)

    def residual(self, x: Tensor) -> Tensor:
        return torch.cat(
            [
                torch.vmap(self.equation, (None, 0))(x, self.inside),
                torch.vmap(self.condition, (None, 0, 0))(x, self.sides, self.values),
            ]
        )

    def jacobian(self, x: Tensor) -> Tensor:
        x = x.detach()
        return torch.cat(
            [
                torch.vmap(torch.func.grad(self.equation), (None, 0))(x, self.inside),
                torch.vmap(torch.func.grad(self.condition), (None, 0, 0))(x, self.sides, self.values),
            ]
        )

    def error(self, x: Tensor) -> float:
        u = torch.vmap(lambda point: self.derivatives(x, point)[0])(self.test)
        return float((u - self.exact).norm() / self.exact.norm())


def problem(name: str, parameters: int, seed: int) -> tuple[Problem, Tensor]:
    """The problem and its start: uniform weights within one over the root of the inputs, as torch's."""
    draw = np.random.default_rng(seed)
    unit = {count: draw.random((count, 2)) for count in (INSIDE, SIDES, TEST)}
    which, sides = np.arange(SIDES) % 4, unit[SIDES]
    if name == "poisson":
        sides[np.arange(SIDES), which // 2] = which % 2
        values = np.zeros(SIDES)
        exact = np.sin(math.pi * unit[TEST]).prod(1)
    else:
        for points in unit.values():
            points[:, 0] = 2 * points[:, 0] - 1
        sides[which < 2, 1] = 0
        sides[which == 2, 0], sides[which == 3, 0] = -1, 1
        values = np.where(which < 2, -np.sin(math.pi * sides[:, 0]), 0.0)
        exact = cole_hopf(unit[TEST])
    widths, parts = WIDTHS[parameters], []
    for k, m in zip((2, *widths), (*widths, 1), strict=True):
        parts.append(draw.uniform(-1, 1, (k + 1) * m) / math.sqrt(k))
    tensors = [torch.from_numpy(a) for a in (unit[INSIDE], sides, values, unit[TEST], exact)]
    return Problem(name, widths, *tensors), torch.from_numpy(np.concatenate(parts))


def cole_hopf(points: np.ndarray) -> np.ndarray:
    """Burgers' u at (x, t) from -sin(pi x): a ratio of two integrals over a Gaussian."""
    z, w = np.polynomial.hermite.hermgauss(200)
    y = points[:, :1] - z * np.sqrt(4 * NU * points[:, 1:])
    exponent = -np.cos(math.pi * y) / (2 * math.pi * NU)
    weights = w * np.exp(exponent - exponent.max(1, keepdims=True))
    return -(np.sin(math.pi * y) * weights).sum(1) / weights.sum(1)


def ours(p: Problem, x0: Tensor, late: Callable[[], bool]) -> Tensor:
    s = least_squares(p.residual, x0, jacobian=p.jacobian, max_evaluations=1_000_000, observe=lambda state: late())
    assert isinstance(s.x, Tensor)
    return s.x


def trf(p: Problem, x0: Tensor, late: Callable[[], bool]) -> Tensor:
    best = [math.inf, x0]

    def residual(x: np.ndarray) -> np.ndarray:
        if late():
            raise OutOfTime
        r = p.residual(torch.from_numpy(x))
        if float(r.norm()) < best[0]:
            best[:] = [float(r.norm()), torch.from_numpy(x.copy())]
        return r.numpy()

    def jacobian(x: np.ndarray) -> np.ndarray:
        return p.jacobian(torch.from_numpy(x)).numpy()

    with contextlib.suppress(OutOfTime):
        scipy_least_squares(
            residual,
            x0.numpy(),
            jacobian,  # pyright: ignore[reportArgumentType]
            method="trf",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=1_000_000,
        )
    return best[1]


def lbfgs(p: Problem, x0: Tensor, late: Callable[[], bool]) -> Tensor:
    x, best = x0.clone().requires_grad_(), [math.inf, x0]
    optimizer = torch.optim.LBFGS(
        [x], max_iter=10**9, max_eval=10**9, history_size=100, tolerance_grad=0, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        if late():
            raise OutOfTime
        optimizer.zero_grad()
        cost = 0.5 * p.residual(x).square().sum()
        cost.backward()
        if float(cost.detach()) < best[0]:
            best[:] = [float(cost.detach()), x.detach().clone()]
        return cost

    with contextlib.suppress(OutOfTime):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return best[1]


SOLVERS = {"frechet": ours, "scipy trf": trf, "torch L-BFGS": lbfgs}


def measured(name: str, parameters: int, seed: int, solver: str, seconds: float) -> dict[str, object]:
    p, x0 = problem(name, parameters, seed)
    begin = time.process_time()
    x = SOLVERS[solver](p, x0, lambda: time.process_time() - begin > seconds)
    return {
        "problem": name,
        "parameters": parameters,
        "seed": seed,
        "solver": solver,
        "seconds": seconds,
        "spent": time.process_time() - begin,
        "residual": float(p.residual(x).norm()),
        "error": p.error(x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=["poisson", "burgers"])
    parser.add_argument("--parameters", nargs="*", type=int, default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS))
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    timing.restart(1)
    torch.set_num_threads(1)
    done = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    keys = ("problem", "parameters", "seed", "solver", "seconds")
    for seed in arguments.seeds:
        for name in arguments.problems:
            for parameters in arguments.parameters:
                for solver in arguments.solvers:
                    cell = (name, parameters, seed, solver, arguments.seconds)
                    if any(tuple(row[key] for key in keys) == cell for row in done):
                        continue
                    done.append(measured(*cell))
                    with FILE.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
                    print(json.dumps(done[-1]), file=sys.stderr, flush=True)
    rows = [row for row in done if row["seconds"] == arguments.seconds]
    print(f"{arguments.seconds:g} s of processor time a run: median and worst over the seeds")
    print(f"{'':<10}{'':>6}  {'':<14}{'seeds':>6}{'norm(r)':>20}{'relative error':>22}")
    for name in arguments.problems:
        for parameters in arguments.parameters:
            for solver in arguments.solvers:
                mine = [r for r in rows if (r["problem"], r["parameters"], r["solver"]) == (name, parameters, solver)]
                if mine:
                    texts = [
                        f"{float(np.median(v)):.1e} / {max(v):.1e}"
                        for v in ([r["residual"] for r in mine], [r["error"] for r in mine])
                    ]
                    print(f"{name:<10}{parameters:>6}  {solver:<14}{len(mine):>6}{texts[0]:>20}{texts[1]:>22}")


if __name__ == "__main__":
    main()
