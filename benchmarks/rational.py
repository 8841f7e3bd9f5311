"""Rational models from poor starts: how many of a grid of starts reach the best fit, beside SciPy's trf and lm.

    python benchmarks/rational.py [--models michaelis-menten ...] [--solvers frechet trf ...] [--thin 4]

Each model has synthetic data with noise of one percent (seeded) and a grid of starts: every parameter at the same
number of levels, evenly spaced in the logarithm, from 1/100 to 100 times its value (a centre: evenly over the data).
Starts at which the model overflows are left out. All solvers get exact Jacobians, tolerances at rounding, and
100 (n + 10) residuals. A start is `solved` if the cost there is within a millionth of the least cost that any solver
reached from any start. `elsewhere` counts results that say that they converged at a larger cost; a local minimum is
one. `wrong` counts those of them that are none: a cosine between r and a column of J is above 1e-4, or a parameter is
beyond a million times its value. An evaluation is one of the residual or of the Jacobian; second derivatives count as a
Jacobian.

The constants of `move_limits` were chosen on the first three models alone; the others are held out. `--thin k`
takes every k-th start. Writes results/rational.json.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares as scipy_least_squares

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing

from frechet import least_squares

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
REACH, NOISE = 100.0, 0.01
BEST, FLAT, FAR = 1e-6, 1e-4, 1e6


@dataclass(frozen=True)
class Fit:
    """A model with its data; `model` takes the parameters as a sequence and x, and works on arrays and tensors."""

    name: str
    model: Callable[..., object]
    truth: Sequence[float]
    x: np.ndarray
    levels: int
    held_out: bool = True
    centre: int | None = None  # a parameter that is a place, not a size

    @property
    def y(self) -> np.ndarray:
        exact = np.asarray(self.model(self.truth, self.x))
        noise = np.random.default_rng(0).standard_normal(len(exact))
        return exact + NOISE * np.abs(exact).max() * noise

    @property
    def starts(self) -> list[np.ndarray]:
        axes = []
        for j, value in enumerate(self.truth):
            factors = np.geomspace(1 / REACH, REACH, self.levels)
            place = np.linspace(self.x.min(), self.x.max(), self.levels)
            axes.append(place if j == self.centre else value * factors)
        return [np.array(point) for point in itertools.product(*axes)]


def _inhibited(b: Sequence[float], x: np.ndarray) -> object:
    """Two concentrations of an inhibitor, one after the other."""
    half = len(x) // 2
    inhibitor = np.repeat([0.0, 2.0], half)
    inhibitor = torch.from_numpy(inhibitor) if isinstance(x, torch.Tensor) else inhibitor
    return b[0] * x / (b[1] * (1 + inhibitor / b[3]) + x + x * x / b[2])


def _exp(z: object) -> object:
    return torch.exp(z) if isinstance(z, torch.Tensor) else np.exp(z)  # pyright: ignore[reportCallIssue,reportArgumentType]


DOSES = np.geomspace(0.25, 64, 12)
FITS = (
    Fit("michaelis-menten", lambda b, x: b[0] * x / (b[1] + x), (10.0, 5.0), DOSES, 9, held_out=False),
    Fit("hill", lambda b, x: b[0] * x ** b[2] / (b[1] ** b[2] + x ** b[2]), (1.0, 8.0, 3.0), DOSES, 5, held_out=False),
    Fit(
        "substrate inhibition",
        lambda b, x: b[0] * x / (b[1] + x + x * x / b[2]),
        (10.0, 2.0, 20.0),
        DOSES,
        5,
        held_out=False,
    ),
    Fit("substrate inhibition, inhibited", _inhibited, (10.0, 2.0, 20.0, 1.5), np.tile(DOSES, 2), 3),
    Fit("michaelis-menten + offset", lambda b, x: b[0] * x / (b[1] + x) + b[2], (10.0, 5.0, 2.0), DOSES, 5),
    Fit(
        "hill + offset",
        lambda b, x: b[0] * x ** b[2] / (b[1] ** b[2] + x ** b[2]) + b[3],
        (1.0, 8.0, 3.0, 0.2),
        DOSES,
        3,
    ),
    Fit(
        "lorentzian",
        lambda b, x: b[0] / (1 + ((x - b[1]) / b[2]) ** 2),
        (3.0, 4.0, 1.5),
        np.linspace(0, 10, 25),
        5,
        centre=1,
    ),
    Fit("gompertz", lambda b, x: b[0] * _exp(-b[1] * _exp(-b[2] * x)), (5.0, 4.0, 0.6), np.linspace(0, 10, 20), 5),
)


@dataclass(frozen=True)
class End:
    """Where a run ended."""

    x: np.ndarray
    evaluations: int
    claimed: bool


def derivative(fit: Fit, x: np.ndarray) -> np.ndarray:
    """The Jacobian by complex steps, exact to rounding."""
    columns = []
    for j in range(len(x)):
        z = x.astype(complex)
        h = 1e-30 * max(abs(x[j]), 1e-30)
        z[j] += 1j * h
        columns.append(np.imag(np.asarray(fit.model(z, fit.x))) / h)
    return np.stack(columns, 1)


def ours(fit: Fit, start: np.ndarray) -> End:
    x, y = torch.from_numpy(fit.x), torch.from_numpy(fit.y)
    s = least_squares(lambda b: fit.model(b, x) - y, torch.from_numpy(start))
    assert isinstance(s.x, torch.Tensor)
    return End(s.x.numpy(), s.residual_evaluations + s.jacobian_evaluations, s.converged)


def scipys(method: str, scale: float | str = 1.0) -> Callable[[Fit, np.ndarray], End]:
    def run(fit: Fit, start: np.ndarray) -> End:
        y = fit.y

        def residual(x: np.ndarray) -> np.ndarray:
            return np.asarray(fit.model(x, fit.x)) - y

        limit = 100 * (len(start) + 10)
        try:
            found = scipy_least_squares(
                residual,
                start,
                lambda x: derivative(fit, x),
                method=method,  # pyright: ignore[reportArgumentType]
                x_scale=scale,
                max_nfev=limit,
                **TIGHT,
            )
        except ValueError:  # a residual or a Jacobian that is not finite ends the run
            return End(start, 0, False)
        return End(found.x, int(found.nfev) + int(found.njev or 0), bool(found.status > 0))

    return run


SOLVERS: dict[str, Callable[[Fit, np.ndarray], End]] = {
    "frechet": ours,
    "trf": scipys("trf"),
    "trf jac": scipys("trf", "jac"),
    "lm": scipys("lm"),
}


def cost(fit: Fit, x: np.ndarray) -> float:
    r = np.asarray(fit.model(x, fit.x)) - fit.y
    value = 0.5 * float(r @ r)
    return value if math.isfinite(value) else math.inf


def starts_finite(fit: Fit, x: np.ndarray) -> bool:
    """Whether the model and its Jacobian are numbers: powers of a hundred times an exponent overflow."""
    return math.isfinite(cost(fit, x)) and bool(np.isfinite(derivative(fit, x)).all())


def is_wrong(fit: Fit, x: np.ndarray) -> bool:
    """Whether a point is no local minimum, or far away."""
    if bool((np.abs(x) > FAR * np.abs(np.array(fit.truth))).any()):
        return True
    J, r = derivative(fit, x), np.asarray(fit.model(x, fit.x)) - fit.y
    sizes = np.linalg.norm(J, axis=0) * np.linalg.norm(r)
    return bool((np.abs(J.T @ r) > FLAT * sizes).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[fit.name for fit in FITS])
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS))
    parser.add_argument("--thin", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    fits, rows = [fit for fit in FITS if fit.name in arguments["models"]], []
    print(f"{'':<34}{'':<10}{'solved':>12}{'elsewhere':>11}{'wrong':>7}{'evaluations':>13}")
    with np.errstate(all="ignore"):
        for fit in fits:
            starts = [x for x in fit.starts[:: arguments["thin"]] if starts_finite(fit, x)]
            ends = {name: [SOLVERS[name](fit, start) for start in starts] for name in arguments["solvers"]}
            best = min(cost(fit, end.x) for found in ends.values() for end in found)
            for name, found in ends.items():
                there = [cost(fit, end.x) <= (1 + BEST) * best for end in found]
                away = [end for end, solved in zip(found, there, strict=True) if end.claimed and not solved]
                row = {
                    "model": fit.name,
                    "held_out": fit.held_out,
                    "solver": name,
                    "starts": len(starts),
                    "solved": sum(there),
                    "elsewhere": len(away),
                    "wrong": sum(is_wrong(fit, end.x) for end in away),
                    "evaluations": sum(end.evaluations for end in found),
                    "unsolved": [list(s) for s, solved in zip(starts, there, strict=True) if not solved],
                }
                rows.append(row)
                _line(fit.name + (" (held out)" if fit.held_out else ""), row)
    for chosen, title in ((False, "all chosen on"), (True, "all held out")):
        for name in arguments["solvers"]:
            mine = [row for row in rows if row["solver"] == name and row["held_out"] is chosen]
            if mine:
                keys = ("starts", "solved", "elsewhere", "wrong", "evaluations")
                _line(title, {"solver": name, **{key: sum(row[key] for row in mine) for key in keys}})
    timing.write("rational", timing.record(arguments, runs=rows))


def _line(title: str, row: dict[str, object]) -> None:
    solved = f"{row['solved']} / {row['starts']}"
    print(
        f"{title:<46}{row['solver']:<10}{solved:>12}{row['elsewhere']:>11}{row['wrong']:>7}{row['evaluations']:>13}",
        flush=True,
    )


if __name__ == "__main__":
    main()
