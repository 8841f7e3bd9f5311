"""Dense least squares with many rows: `sketched_lstsq` beside the factorizations of torch and SciPy.

    python benchmarks/sketched.py [--rounds 3] [--condition 1e6]

Seconds are processor time with one thread, medians over the rounds; each row is divided by torch.linalg.lstsq of the
same round. A has singular values in a geometric progression, and the residual is as long as A x. The error is that of x
relative to the exact one (for "solve" it is that of the sketch), and the backward error the least change of A, relative
to norm(A), that makes x exact, by the estimate of Karlson and Walden. Writes results/sketched.json.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import scipy.linalg
import timing
import torch
from torch import Tensor

from frechet.linalg import sketched_lstsq

SIZES = ((20_000, 100), (100_000, 200), (40_000, 600))


@dataclass(frozen=True)
class Problem:
    A: Tensor
    b: Tensor
    x: Tensor
    s: Tensor  # singular values of A
    V: Tensor  # and its right singular vectors

    def backward_error(self, x: Tensor) -> float:
        r = self.b - self.A @ x
        g = self.V.T @ (self.A.T @ r)
        return float((g / (self.s**2 * (x @ x) + r @ r).sqrt()).norm() / self.s[0])


def problem(m: int, n: int, condition: float) -> Problem:
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(m, n, generator=g, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    x, r = torch.randn(n, generator=g, dtype=torch.float64), torch.randn(m, generator=g, dtype=torch.float64)
    s = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    A = (U * s) @ V.T
    r -= U @ (U.T @ r)
    b = A @ x
    return Problem(A, b + r * b.norm() / r.norm(), x, s, V)


def measured(m: int, n: int, condition: float, rounds: int) -> dict[str, object]:
    p = problem(m, n, condition)
    A, b, x = p.A, p.b, p.x
    M, c = A.numpy(), b.numpy()
    runs = {
        "torch.linalg.lstsq": lambda: torch.linalg.lstsq(A, b[:, None]).solution[:, 0],
        "scipy.linalg.lstsq (gelsd)": lambda: torch.from_numpy(scipy.linalg.lstsq(M, c)[0]),
        "scipy.linalg.lstsq (gelsy)": lambda: torch.from_numpy(scipy.linalg.lstsq(M, c, lapack_driver="gelsy")[0]),
        "sketched_lstsq": lambda: sketched_lstsq(A, b, seed=0).checked().x,
        "sketched_lstsq, Hadamard": lambda: sketched_lstsq(A, b, seed=0, sketch="hadamard").checked().x,
        "sketched_lstsq, solve": lambda: sketched_lstsq(A, b, seed=0, method="solve").x,
    }
    times = timing.interleave(runs, rounds=rounds, seed=0)
    ratios = timing.ratios(times, "torch.linalg.lstsq")
    print(f"\n{m} x {n}, condition {condition:.0e}{'seconds':>16}{'over torch':>12}{'error of x':>13}{'backward':>11}")
    rows = {}
    for name, run in runs.items():
        found = run()
        row = {
            "seconds": timing.quartiles(times[name]),
            "ratio": timing.quartiles(ratios[name]),
            "error": float((found - x).norm() / x.norm()),
            "backward_error": p.backward_error(found),
        }
        rows[name] = row
        print(
            f"{name:<34}{row['seconds'][0]:12.3f}{row['ratio'][0]:12.2f}{row['error']:13.1e}"
            f"{row['backward_error']:11.1e}",
            flush=True,
        )
    return {"m": m, "n": n, "condition": condition, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--condition", type=float, default=1e6)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    timing.restart(arguments["threads"])
    timing.CLOCK = "cpu"
    torch.set_num_threads(arguments["threads"])
    results = [measured(m, n, arguments["condition"], arguments["rounds"]) for m, n in SIZES]
    timing.write("sketched", timing.record(arguments, clock="cpu", results=results))


if __name__ == "__main__":
    main()
