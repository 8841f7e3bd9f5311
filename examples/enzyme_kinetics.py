"""How sure are the constants of an enzyme, and which of them can the data not tell apart?

    python examples/enzyme_kinetics.py [picture.png]

Eleven measured velocities of an enzyme reaction (J. S. Kowalik and M. R. Osborne 1978; data set MGH09 of NIST, with
certified constants) are fitted by the rate law v = b1 (x^2 + b2 x) / (x^2 + b3 x + b4) from a start a hundred times too
far. The covariance at the minimum gives the band of the curve and the standard errors. Then b1 is written as turnover
times concentration, as a chemist would: the Jacobian loses rank, and the result names the combination that no such data
determine. The picture shows the fit with its 95 % band, and the way of the iteration in the plane of b3 and b4.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from frechet import LeastSquaresSolution, jacobian, least_squares
from frechet.optimize import LeastSquaresState

SUBSTRATE = torch.tensor(
    [4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
    dtype=torch.float64,
)
VELOCITY = torch.tensor(
    [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
    dtype=torch.float64,
)
CERTIFIED = torch.tensor([0.19280693458, 0.19128232873, 0.12305650693, 0.13606233068], dtype=torch.float64)
START = torch.tensor([25.0, 39.0, 41.5, 39.0], dtype=torch.float64)


@dataclass(frozen=True)
class Found:
    fit: LeastSquaresSolution
    digits: float  # of the certified constants, in the worst of them
    path: Tensor  # (steps, 4)
    curve: Tensor  # x, v and half the width of its 95 % band
    split: LeastSquaresSolution  # with b1 as a product of two constants


def rate(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3])


def run() -> Found:
    path: list[Tensor] = []

    def remember(state: LeastSquaresState) -> bool:
        path.append(state.x)
        return False

    fit = least_squares(lambda b: rate(b, SUBSTRATE) - VELOCITY, START, observe=remember).checked()
    assert isinstance(fit.x, Tensor)
    assert fit.covariance is not None
    error = float(((fit.x - CERTIFIED) / CERTIFIED).abs().max())

    x = torch.logspace(-1.4, 0.7, 200, dtype=torch.float64)
    slopes = jacobian(lambda b: rate(b, x), fit.x).dense()
    deviation = torch.einsum("ij,jk,ik->i", slopes, fit.covariance, slopes).sqrt()
    half = float(stats.t.ppf(0.975, len(VELOCITY) - 4)) * deviation

    start = {"turnover": torch.tensor(2.0), "concentration": torch.tensor(0.1), "others": fit.x[1:].float()}
    start = {name: block.double() for name, block in start.items()}
    split = least_squares(
        lambda p: rate(torch.cat([(p["turnover"] * p["concentration"])[None], p["others"]]), SUBSTRATE) - VELOCITY,
        start,
    ).checked()
    return Found(
        fit, -torch.tensor(error).log10().item(), torch.stack(path), torch.stack([x, rate(fit.x, x), half]), split
    )


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, v, half = found.curve
    left.fill_between(x, v - half, v + half, alpha=0.25, label="95 % band")
    left.plot(x, v, label="fit")
    left.plot(SUBSTRATE, VELOCITY, "k.", label="measured")
    left.set(xscale="log", xlabel="substrate", ylabel="velocity", title="The rate law and what the data leave open")
    left.legend()
    right.plot(found.path[:, 2], found.path[:, 3], ".-", lw=0.8, label="iterations")
    right.plot(*CERTIFIED[2:].tolist(), "k*", ms=10, label="certified")
    right.set(xlabel="b3", ylabel="b4", title="The way from the far start")
    right.set_xscale("symlog", linthresh=0.1)
    right.set_yscale("symlog", linthresh=0.1)
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    print(found.fit.report())
    print(f"\ndigits of the certified constants: {found.digits:.1f}\n")
    print("with b1 = turnover * concentration:\n")
    print(found.split.report())
    path = Path(next(iter(sys.argv[1:]), "enzyme_kinetics.png"))
    with mpl.rc_context({"font.size": 9}):
        picture(found, path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
