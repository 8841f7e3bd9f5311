"""The 27 nonlinear regressions of NIST from both starts: certified digits, evaluations and seconds beside SciPy's.

    python benchmarks/nist.py [--methods auto ...] [--batch 1000]

All get the same residual and the same Jacobian by automatic differentiation, and tolerances at rounding. A run counts
as solved with 4 digits in the worst parameter; the mean is over the worst parameter of each run, at most 11, which is
what NIST certifies. An evaluation is one of the residual or one of the Jacobian; for frechet also second derivatives
count as a Jacobian. `--minimize` runs the sum of squares as any function, counting values and gradients. `--batch` then
times that many small problems in one call beside loops over SciPy. Writes
results/nist.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing

from frechet import least_squares, least_squares_batch, minimize
from nist import Regression, regressions

TIGHT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
Run = tuple[Tensor, int, bool]  # the parameters, the evaluations, whether it says that it converged


def ours(method: str) -> Callable[[Regression, Tensor], Run]:
    def run(regression: Regression, start: Tensor) -> Run:
        s = least_squares(regression.residual, start, method=method)  # pyright: ignore[reportArgumentType]
        return s.x, s.residual_evaluations + s.jacobian_evaluations, s.converged

    return run


def minimized(method: str) -> Callable[[Regression, Tensor], Run]:
    """The sum of squares as any function, without what least squares know of it."""

    def run(regression: Regression, start: Tensor) -> Run:
        s = minimize(lambda x: 0.5 * regression.residual(x).square().sum(), start, method=method)  # pyright: ignore[reportArgumentType]
        return s.x, s.evaluations + s.gradients, s.converged

    return run


def scipys(method: str) -> Callable[[Regression, Tensor], Run]:
    def run(regression: Regression, start: Tensor) -> Run:
        counts = [0, 0]
        derivative = torch.func.jacfwd(regression.residual)

        def residual(x: np.ndarray) -> np.ndarray:
            counts[0] += 1
            return regression.residual(torch.from_numpy(x)).numpy()

        def jacobian(x: np.ndarray) -> np.ndarray:
            counts[1] += 1
            return derivative(torch.from_numpy(x)).numpy()

        with np.errstate(all="ignore"):
            found = scipy_least_squares(residual, start.numpy(), jacobian, method=method, max_nfev=2000, **TIGHT)
        return torch.from_numpy(found.x), sum(counts), bool(found.status > 0)

    return run


def measured(name: str, run: Callable[[Regression, Tensor], Run]) -> dict[str, object]:
    digits, evaluations, claimed, unsolved = [], 0, 0, []
    begin = time.perf_counter()
    for regression in regressions():
        for i, start in enumerate(regression.starts):
            x, spent, converged = run(regression, start)
            found = regression.digits(x)
            digits.append(found)
            evaluations += spent
            if found < 4:
                claimed += converged
                unsolved.append(f"{regression.name}/{i + 1}")
    seconds = time.perf_counter() - begin
    solved = sum(d >= 4 for d in digits)
    print(
        f"{name:<28}{solved:4d} / 54{float(np.mean(digits)):10.3f}{evaluations:12d}{seconds:10.1f}   "
        f"{' '.join(unsolved)}{f' ({claimed} said to be converged)' if claimed else ''}",
        flush=True,
    )
    return {
        "name": name,
        "solved": solved,
        "digits": digits,
        "evaluations": evaluations,
        "seconds": seconds,
        "unsolved": unsolved,
        "wrongly_converged": claimed,
    }


def batch(count: int) -> dict[str, object]:
    """`count` exponential decays with an offset, 20 points and 3 parameters each."""
    g = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 4, 20, dtype=torch.float64)
    true = torch.rand(count, 3, generator=g, dtype=torch.float64) + torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    noise = 0.01 * torch.randn(count, 20, generator=g, dtype=torch.float64)
    y = true[:, :1] * torch.exp(-true[:, 1:2] * t) + true[:, 2:] + noise
    start = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return x[0] * torch.exp(-x[1] * t) + x[2] - y

    def together() -> Tensor:
        return least_squares_batch(residual, start, y).checked().x

    T, Y = t.numpy(), y.numpy()

    def by_hand(i: int, derivative: bool, tight: bool) -> np.ndarray:
        """Residual and Jacobian written in NumPy."""

        def r(x: np.ndarray) -> np.ndarray:
            return x[0] * np.exp(-x[1] * T) + x[2] - Y[i]

        def J(x: np.ndarray) -> np.ndarray:
            e = np.exp(-x[1] * T)
            return np.stack([e, -x[0] * T * e, np.ones_like(T)], 1)

        return scipy_least_squares(r, start.numpy(), J if derivative else "2-point", **(TIGHT if tight else {})).x

    def by_torch(i: int) -> np.ndarray:
        """The same residual as ours, its Jacobian by automatic differentiation."""
        derivative = torch.func.jacfwd(residual)
        return scipy_least_squares(
            lambda x: residual(torch.from_numpy(x), y[i]).numpy(),
            start.numpy(),
            lambda x: derivative(torch.from_numpy(x), y[i]).numpy(),
            **TIGHT,
        ).x

    some = min(count, 200)
    rows = {
        "one call of frechet": (together, count),
        "scipy, same residual and autodiff": (lambda: [by_torch(i) for i in range(some // 4)], some // 4),
        "scipy, NumPy, differences": (lambda: [by_hand(i, False, True) for i in range(some)], some),
        "scipy, NumPy, its defaults": (lambda: [by_hand(i, False, False) for i in range(some)], some),
        "scipy, NumPy, Jacobian by hand": (lambda: [by_hand(i, True, True) for i in range(some)], some),
    }
    times = timing.interleave({name: f for name, (f, _) in rows.items()}, rounds=5, seed=0)
    print(f"\n{count} problems of 20 points and 3 parameters{'seconds':>22}{'over one call':>16}")
    medians = {name: timing.quartiles(times[name])[0] * count / rows[name][1] for name in rows}
    for name, seconds in medians.items():
        print(f"{name:<44}{seconds:20.4f}{seconds / medians['one call of frechet']:16.1f}")
    difference = max(np.abs(by_hand(i, True, True) - x.numpy()).max() for i, x in enumerate(together()[:some]))
    print(f"largest difference of a parameter from scipy's: {difference:.1e}")
    return {"count": count, "seconds": medians, "difference": float(difference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["auto", "interior", "dogleg"])
    parser.add_argument("--minimize", nargs="*", default=["trust-region"], help="methods of minimize")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    print(f"{'':<28}{'solved':>9}{'digits':>10}{'evaluations':>12}{'seconds':>10}   unsolved")
    rows = [measured(f"frechet {method}", ours(method)) for method in arguments["methods"]]
    rows += [measured(f"frechet minimize {method}", minimized(method)) for method in arguments["minimize"]]
    rows += [measured(f"scipy {method}", scipys(method)) for method in ("trf", "lm")]
    together = batch(arguments["batch"]) if arguments["batch"] else None
    timing.write("nist", timing.record(arguments, runs=rows, batch=together))


if __name__ == "__main__":
    main()
