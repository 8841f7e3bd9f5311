"""Whether error bars cover on random matrices: the share of seeds whose 95 % interval holds the truth.

    python benchmarks/coverage.py [--seeds 2000] [--members 2] [--kinds rank_one ...] [--quantities trace ...]

The matrices are drawn by `tests/random_spectra.py`: ten kinds that the error bars were designed with and eight that
were only measured (marked *), `members` of each, of 5 to `--most` rows. For every estimator and budget below the
number of rows: the share of seeds whose nominal 95 % interval holds the truth (of `diagonal` the mean over the entries,
of `layers` the least over the blocks), and the mean half-width over that of an oracle that knows the estimator's
standard deviation (1.96 sd). Where rounding is all that is left of the error no width is given. The table shows, for
each estimator and budget, the least and the mean coverage over all matrices, the matrix of the least, and the mean and
the largest width. Writes results/coverage.json. About an hour on one core with 2 000 seeds.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from frechet.analyze._layers import layer_traces
from frechet.linalg._diagonal import diagonal
from frechet.linalg._frobenius import frobenius_norm
from frechet.linalg._log_determinant import log_determinant
from frechet.linalg._result import Estimate
from frechet.linalg._trace import trace
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.space import Space
from random_spectra import HELD_OUT, KINDS, Drawn, draw

RESULTS = Path(__file__).parent / "results"
Ends = tuple[Tensor, Tensor, Tensor, Tensor]  # value, lower, upper, truth; each (m,)
Run = Callable[[int], Ends]


class Remembered(Space):
    """A space that keeps the probes it has drawn, so that all estimators of a seed share the cost."""

    @functools.lru_cache(maxsize=128)  # noqa: B019
    def _drawn(self, probe: int, seed: int, kind: str) -> Tensor:
        return super().random(probe, seed, kind)

    def random(self, probe, seed, kind="rademacher"):
        if isinstance(probe, range):
            columns = [self._drawn(j, seed, kind) for j in probe]
            return torch.stack(columns).T if columns else self.zeros(0)
        return self._drawn(probe, seed, kind).clone()


def operator(M: Tensor, facts: tuple[str, ...]) -> LinearOperator:
    """The matrix without its structure, on three blocks: the first has a tenth of the entries, the second half."""
    n = len(M)
    first, second = max(1, n // 10), n // 2
    sizes = ((first,), (second,), (n - first - second,))
    space = Remembered(("a.weight", "b.weight", "c.weight"), sizes, M.dtype, torch.device("cpu"))
    return from_callable(lambda V: (V.T @ M.T).T, space, rmatmat=lambda U: (U.T @ M).T, facts=facts)


def one(estimate: Estimate, truth: Tensor) -> Ends:
    low, high = estimate.interval()
    return tuple(torch.atleast_1d(t.double()) for t in (estimate.value, low, high, truth))  # type: ignore[return-value]


def runs(drawn: Drawn) -> Iterator[tuple[str, str, int, Run]]:
    """(quantity, method, budget, function of the seed) of everything that is measured on a matrix."""
    M, n = drawn.matrix, len(drawn.matrix)
    A = operator(M, drawn.facts)
    methods = {"auto": (10, 12, 16, 24, 40), "hutchinson": (10, 16, 30), "hutch++": (12, 30), "xtrace": (12, 20, 40)}
    if drawn.facts == ("positive_semidefinite",):
        methods["nystrom"] = (10, 20, 40)
    for method, budgets in methods.items():
        for p in budgets:
            yield (
                "trace",
                method,
                p,
                lambda s, m=method, p=p: one(trace(A, seed=s, products=p, method=m, block=64), M.trace()),
            )
    for p in (10, 16, 24, 48):
        yield "norm", "auto", p, lambda s, p=p: one(frobenius_norm(A, seed=s, products=p, block=64), M.norm())
    for method, budgets in (("hutchinson", (10, 30)), ("xdiag", (20, 40))):
        for p in budgets:
            yield (
                "diagonal",
                method,
                p,
                lambda s, m=method, p=p: one(diagonal(A, seed=s, products=p, method=m), M.diagonal()),
            )
    if drawn.symmetric:
        for p in (8, 16, 24, 30):
            yield "layers", "traces", p, functools.partial(layers, A, M, p)
            yield "layers", "shares", p, functools.partial(shares, A, M, p)
    if drawn.facts == ("positive_semidefinite",):
        P = M + 10 ** -(len(drawn.name) % 4) * torch.eye(n, dtype=M.dtype)  # conditions of about 1 to 1000 n
        B, target = operator(P, ("positive_definite",)), torch.logdet(P)
        for p in (150, 300):
            yield "log det", "lanczos", p, lambda s, p=p: one(log_determinant(B, seed=s, products=p), target)


def layers(A: LinearOperator, M: Tensor, probes: int, seed: int) -> Ends:
    found = layer_traces(A, seed=seed, probes=probes)
    parts = [one(m.trace, M.diagonal()[A.domain.block(m.blocks[0])].sum()) for m in found.modules]
    return tuple(torch.cat(t) for t in zip(*parts, strict=True))  # type: ignore[return-value]


def shares(A: LinearOperator, M: Tensor, probes: int, seed: int) -> Ends:
    found = layer_traces(A, seed=seed, probes=probes)
    rows = [(m.share, m.lower, m.upper, float(M.diagonal()[A.domain.block(m.blocks[0])].sum())) for m in found.modules]
    share, low, high, part = torch.tensor(rows, dtype=torch.float64).T
    return share, low, high, part / M.trace()


def measure(ends: list[Ends], rounding: float) -> tuple[float, float]:
    """Coverage, and the mean width over the ideal one (NaN where there is none)."""
    value, low, high, truth = (torch.stack(t) for t in zip(*ends, strict=True))
    inside = ((low <= truth) & (truth <= high)).double().mean(0)
    sd = (value - truth).square().mean(0).sqrt()
    width = ((high - low) / 2).mean(0) / (1.96 * sd)
    told = (sd > rounding * value.abs().mean(0)) & torch.isfinite(width)
    coverage = inside.mean() if inside.numel() > 3 else inside.min()
    return float(coverage), float(width[told].mean()) if bool(told.any()) else math.nan


def table(rows: list[dict]) -> Iterator[str]:
    yield f"{'quantity':9s} {'method':11s} {'products':>8s}  least   of             mean  width: mean  largest  of"
    keys = sorted({(r["quantity"], r["method"], r["budget"]) for r in rows})
    for key in keys:
        found = [r for r in rows if (r["quantity"], r["method"], r["budget"]) == key]
        worst = min(found, key=lambda r: r["coverage"])
        widths = [r for r in found if r["width"] is not None] or [{"width": math.nan, "matrix": ""}]
        widest = max(widths, key=lambda r: r["width"])
        yield (
            f"{key[0]:9s} {key[1]:11s} {key[2]:8d}  {worst['coverage']:.4f}  {worst['matrix']:20s} "
            f"{np.mean([r['coverage'] for r in found]):.4f}  {np.mean([r['width'] for r in widths]):5.2f}  "
            f"{widest['width']:6.2f}  {widest['matrix']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first member of each kind")
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS, *HELD_OUT])
    parser.add_argument("--quantities", nargs="*", default=["trace", "norm", "diagonal", "layers", "log det"])
    parser.add_argument("--methods", nargs="*", help="all if left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    for kind in arguments.kinds:
        for member in range(arguments.first, arguments.first + arguments.members):
            start, drawn = time.perf_counter(), draw(kind, member, arguments.most)
            asked = [
                r
                for r in runs(drawn)
                if r[0] in arguments.quantities
                and (not arguments.methods or r[1] in arguments.methods)
                and r[2] < len(drawn.matrix)
            ]
            ends: list[list[Ends]] = [[] for _ in asked]
            for seed in range(arguments.seeds):
                for kept, run in zip(ends, asked, strict=True):
                    kept.append(run[3](seed))
            for kept, (quantity, method, budget, _) in zip(ends, asked, strict=True):
                coverage, width = measure(kept, 1e-9)
                rows.append(
                    {
                        "matrix": drawn.name + ("*" if kind in HELD_OUT else ""),
                        "quantity": quantity,
                        "method": method,
                        "budget": budget,
                        "coverage": coverage,
                        "width": None if math.isnan(width) else width,
                    }
                )
            print(f"{drawn.name}: {len(asked)} estimators, {time.perf_counter() - start:.0f} s", flush=True)
            record = {"torch": torch.__version__, "seeds": arguments.seeds, "rows": rows}
            arguments.out.write_text(json.dumps(record, indent=1))  # after each matrix: a run may be cut short
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
