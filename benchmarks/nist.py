"""The 27 nonlinear regressions of NIST from both starts: certified digits, evaluations and seconds beside SciPy's.

    python benchmarks/nist.py [--methods auto ...] [--peers scipy torchmin optimistix]

All get the same residual and the same Jacobian by automatic differentiation, and tolerances at rounding. A run counts
as solved with 4 digits in the worst parameter; the mean is over the worst parameter of each run, at most 11, which is
what NIST certifies. An evaluation is one of the residual or one of the Jacobian; for frechet also second derivatives
count as a Jacobian. `--minimize` runs the sum of squares as any function, counting values and gradients; torchmin's
minimizers, with at most 500 iterations and 20 seconds a run, are counted likewise. optimistix gets the same formulas
over jax.numpy; what is counted for it are its steps, each at most one residual and one Jacobian; its seconds contain
its compilation. Peers that are not installed (peers.txt) are left out and named. Writes results/nist.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import timing

from frechet import least_squares, minimize
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


class OutOfTime(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def ring(number: int, frame: types.FrameType | None) -> None:
    raise OutOfTime


def torchmin(method: str) -> Callable[[Regression, Tensor], Run]:
    """Its trust region of least squares (`trf`, dense), or one of its minimizers on half the sum of squares."""
    package = importlib.import_module("torchmin")

    def run(regression: Regression, start: Tensor) -> Run:
        counts = [0, 0]
        if method == "trf":

            def residual(x: Tensor) -> Tensor:  # its Jacobian is taken through this: a call that records is one more
                counts[0] += 1
                return regression.residual(x)

            found = package.least_squares(residual, start, method="trf", tr_solver="exact", max_nfev=2000, **TIGHT)
            return found.x, counts[0], bool(found.success)

        def value(x: Tensor) -> Tensor:
            counts[0] += 1
            return 0.5 * regression.residual(x).square().sum()

        signal.signal(signal.SIGVTALRM, ring)
        signal.setitimer(signal.ITIMER_VIRTUAL, 20)
        try:
            found = package.minimize(value, start, method=method, max_iter=500, tol=1e-15)
        except (OutOfTime, torch.linalg.LinAlgError):
            return start, 2 * counts[0], False
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return found.x, 2 * counts[0], bool(found.success)

    return run


def optimistix(solver: str) -> Callable[[Regression, Tensor], Run]:
    jax, package = importlib.import_module("jax"), importlib.import_module("optimistix")
    jax.config.update("jax_enable_x64", True)
    namespace = types.SimpleNamespace(
        exp=jax.numpy.exp, cos=jax.numpy.cos, sin=jax.numpy.sin, atan2=jax.numpy.arctan2, Tensor=Tensor
    )

    def over_jax(model: Callable[..., object]) -> types.FunctionType:
        """The same formula with jax.numpy in the place of torch."""
        assert isinstance(model, types.FunctionType)
        return types.FunctionType(model.__code__, {**model.__globals__, "torch": namespace})

    def run(regression: Regression, start: Tensor) -> Run:
        model = over_jax(regression.model)
        x, y = jax.numpy.asarray(regression.x.numpy()), jax.numpy.asarray(regression.y.numpy())
        found = package.least_squares(
            lambda b, _: model(b, x) - y,
            getattr(package, solver)(rtol=1e-15, atol=1e-15),
            jax.numpy.asarray(start.numpy()),
            max_steps=2000,
            throw=False,
        )
        finite = torch.from_numpy(np.array(found.value))
        return finite, 2 * int(found.stats["num_steps"]), bool(found.result == package.RESULTS.successful)

    return run


PEERS: dict[str, dict[str, Callable[[], Callable[[Regression, Tensor], Run]]]] = {
    "scipy": {"scipy trf": lambda: scipys("trf"), "scipy lm": lambda: scipys("lm")},
    "torchmin": {
        "torchmin trf": lambda: torchmin("trf"),
        "torchmin trust-exact": lambda: torchmin("trust-exact"),
        "torchmin newton-exact": lambda: torchmin("newton-exact"),
    },
    "optimistix": {
        "optimistix LM": lambda: optimistix("LevenbergMarquardt"),
        "optimistix dogleg": lambda: optimistix("Dogleg"),
    },
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["auto", "interior", "dogleg"])
    parser.add_argument("--minimize", nargs="*", default=["trust-region"], help="methods of minimize")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    print(f"{'':<28}{'solved':>9}{'digits':>10}{'evaluations':>12}{'seconds':>10}   unsolved")
    rows = [measured(f"frechet {method}", ours(method)) for method in arguments["methods"]]
    rows += [measured(f"frechet minimize {method}", minimized(method)) for method in arguments["minimize"]]
    for package in arguments["peers"]:
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out")
            continue
        rows += [measured(name, run()) for name, run in PEERS[package].items()]
    timing.write("nist", timing.record(arguments, runs=rows))


if __name__ == "__main__":
    main()
