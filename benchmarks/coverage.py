"""Whether the error bars of the estimators cover: the share of seeds whose 95 % interval holds the true value.

    python benchmarks/coverage.py [--seeds 2000] [--matrices GGN ...] [--quantities trace ...] [--budgets 10 30 90]

Matrices of 300 or 400 rows with the spectra of machine learning, in a random basis and in one near the coordinate
axes. For each method and budget: the coverage (of `diagonal` the mean over the entries), the median half-width over
that of an oracle that knows the standard deviation (1.96 sd), and the error in units of the true value. `rtol` rows
give the coverage of the value at which the run stopped, and the mean number of products. Writes results/coverage.json.
Takes about five minutes per matrix on one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frechet.linalg.diagonal import diagonal
from frechet.linalg.frobenius import frobenius_norm
from frechet.linalg.result import Estimate
from frechet.linalg.trace import trace
from frechet.operators.operator import LinearOperator
from frechet.operators.structured import from_callable
from frechet.space import Space, euclidean

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, eq=False)
class Case:
    """A matrix with a name, as an operator without structure."""

    name: str
    operator: LinearOperator
    matrix: Tensor  # float64
    semidefinite: bool


class Remembered(Space):
    """A space that keeps the probes it has drawn, so that all matrices and methods of a seed share the cost."""

    @functools.lru_cache(maxsize=512)  # noqa: B019
    def _drawn(self, probe: int, seed: int, kind: str) -> Tensor:
        return super().random(probe, seed, kind)

    def random(self, probe, seed, kind="rademacher"):
        if isinstance(probe, range):
            columns = [self._drawn(j, seed, kind) for j in probe]
            return torch.stack(columns).T if columns else self.zeros(0)
        return self._drawn(probe, seed, kind).clone()


def spectra() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = 300
    return {
        "GGN": np.concatenate([np.linspace(100, 5, 20), 0.05 * rng.chisquare(1, n - 20)]),
        "Hessian": np.concatenate([np.geomspace(100, 5, 20), -np.linspace(1, 3, 5), 0.3 * rng.standard_normal(n - 25)]),
        "power": 1 / np.arange(1, 401),
        "flat": 1 + 0.1 * rng.random(n),
        "rank 5": np.concatenate([np.arange(1.0, 6), np.zeros(n - 5)]),
        "rank 20": np.concatenate([np.arange(1.0, 21), np.zeros(n - 20)]),
    }


def cases() -> Iterator[Case]:
    """Each spectrum in two bases in float64; two of them also in float32."""
    for name, values in spectra().items():
        n = values.size
        generator = np.random.default_rng(1)
        K = generator.standard_normal((n, n))
        skew = 0.3 * (K - K.T) / math.sqrt(n)
        near = np.linalg.solve(np.eye(n) + skew, np.eye(n) - skew)
        order = generator.permutation(n)
        for basis, U in (("rotated", np.linalg.qr(K)[0]), ("near axes", near[:, order])):
            yield make(f"{name}, {basis}", torch.from_numpy((U * values) @ U.T), values)
        if name in ("GGN", "rank 20"):
            U = np.linalg.qr(K)[0]
            yield make(f"{name}, float32", torch.from_numpy((U * values) @ U.T), values, torch.float32)


def make(name: str, M: Tensor, values: np.ndarray, dtype: torch.dtype = torch.float64) -> Case:
    M = ((M + M.T) / 2).to(dtype)
    plain = euclidean(M.shape[0], dtype)
    space = Remembered(plain.names, plain.shapes, plain.dtype, plain.device)
    psd = bool(values.min() >= 0)
    A = from_callable(lambda V: (V.T @ M).T, space, facts="positive_semidefinite" if psd else "symmetric")
    return Case(name, A, M.double(), psd)


Run = Callable[[LinearOperator, int], Estimate]


def questions(case: Case, quantity: str, budgets: list[int]) -> Iterator[tuple[str, Run]]:
    """(label, function of operator and seed) of every method and budget.

    Hutch++, XTrace and its Nystrom form draw probes whose distribution no rotation changes: one basis is enough.
    """
    all_methods = {
        "trace": (trace, ("hutchinson", "hutch++", "xtrace", "nystrom")),
        "diagonal": (diagonal, ("hutchinson", "xdiag")),
        "frobenius": (frobenius_norm, ("hutchinson", "hutch++")),
    }
    invariant = ("hutch++", "xtrace", "nystrom") if quantity != "frobenius" else ("hutchinson", "hutch++")
    skipped = [*(invariant if "near axes" in case.name else ()), *(() if case.semidefinite else ("nystrom",))]
    if quantity != "rtol":
        estimator, methods = all_methods[quantity]
        for method in methods:
            for m in budgets if method not in skipped else ():
                yield f"{method} {m}", functools.partial(with_probes, estimator, products=m, method=method)
        return
    for method, rtol in (("hutchinson", 0.3), ("hutch++", 0.1), ("xtrace", 0.1), ("nystrom", 0.1)):
        if method not in skipped:
            label = f"{method} rtol {rtol}"
            yield label, functools.partial(with_probes, trace, products=250, rtol=rtol, method=method)
    for rtol in (0.1, 0.02) if "near axes" not in case.name else ():  # XTrace, then probes behind its sketch
        yield f"auto rtol {rtol}", functools.partial(with_probes, trace, products=250, rtol=rtol, method="auto")
    label = "diagonal rtol 0.5"
    yield label, functools.partial(with_probes, diagonal, products=250, rtol=0.5, method="hutchinson")


def with_probes(estimator: Callable[..., Estimate], A: LinearOperator, seed: int, **arguments: object) -> Estimate:
    """One estimate, with all probes in one block: in small dimensions a call costs more than a product."""
    return estimator(A, seed=seed, block=128, **arguments)


def truth(case: Case, label: str, quantity: str) -> Tensor:
    if quantity == "diagonal" or label.startswith("diagonal"):
        return case.matrix.diagonal()
    return (case.matrix * case.matrix).sum().sqrt() if quantity == "frobenius" else case.matrix.trace()


def measure(case: Case, quantity: str, runs: dict[str, Run], seeds: int) -> list[dict]:
    """One row per run; the seed is the outer loop, because its probes are shared."""
    estimates: dict[str, list[Estimate]] = {label: [] for label in runs}
    for seed in range(seeds):
        for label, run in runs.items():
            estimates[label].append(run(case.operator, seed))
    rows = []
    for label, found in estimates.items():
        target = truth(case, label, quantity)
        values = torch.stack([e.value.double() for e in found])
        halves = torch.stack([(e.interval()[1] - e.value).double() for e in found])
        errors = values - target
        sd = errors.square().mean(0).sqrt()
        scale = float(target.square().sum().sqrt())
        oracle = (halves.median(0).values / (1.96 * sd)).median()
        rows.append(
            {
                "matrix": case.name,
                "quantity": quantity,
                "run": label,
                "coverage": float((errors.abs() <= halves).double().mean()),
                "width": float(oracle),
                "error": float(errors.square().sum(-1).mean().sqrt() if target.ndim else sd) / scale,
                "products": float(np.mean([e.products for e in found])),
                "converged": float(np.mean([e.converged is not False for e in found])),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--matrices", nargs="*", help="parts of names; all if left out")
    parser.add_argument("--quantities", nargs="*", default=["trace", "diagonal", "frobenius", "rtol"])
    parser.add_argument("--methods", nargs="*", help="all if left out")
    parser.add_argument("--budgets", nargs="*", type=int, default=[10, 30, 90])
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    print(f"{'matrix':22s} {'quantity':10s} {'run':20s} coverage  width/oracle  relative error  products  converged")
    for case in cases():
        if arguments.matrices and not any(part in case.name for part in arguments.matrices):
            continue
        for quantity in arguments.quantities:
            start = time.perf_counter()
            runs = dict(questions(case, quantity, arguments.budgets))
            if arguments.methods:
                runs = {label: run for label, run in runs.items() if label.split()[0] in arguments.methods}
            for row in measure(case, quantity, runs, arguments.seeds):
                rows.append(row)
                print(
                    f"{row['matrix']:22s} {row['quantity']:10s} {row['run']:20s} {row['coverage']:8.4f}  "
                    f"{row['width']:12.2f}  {row['error']:14.2e}  {row['products']:8.1f}  {row['converged']:9.3f}",
                    flush=True,
                )
            print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    arguments.out.parent.mkdir(exist_ok=True)
    record = {"torch": torch.__version__, "seeds": arguments.seeds, "rows": rows}
    arguments.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
