"""Can an image be seen from intensities alone, when every seventh of them is garbage?

    python examples/phase_retrieval.py [picture.png]

A detector measures b_i = (a_i'x)^2 and no signs: the a_i are random masks, x is a handwritten digit (8 x 8 pixels, of
scikit-learn's copy of the UCI set). A share of the measurements is replaced by large random numbers. Minimizing sum_i
|(a_i'x)^2 - b_i| finds the image exactly, to the last digit, because a sum of absolute values does not care how wrong
a wrong measurement is; least squares from the same start does not. The start is the direction that small intensities
shun: the eigenvector of the least eigenvalue of the sum of a_i a_i' over the smaller half.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from frechet import eigsh, from_matrix, least_squares
from frechet.optimize import ProxLinearSolution, ProxLinearState, prox_linear

MEASUREMENTS, OUTLIERS, IMAGE = 512, 0.15, 3


@dataclass(frozen=True)
class Found:
    image: Tensor  # (64,)
    start: Tensor
    squares: Tensor  # by least squares
    solution: ProxLinearSolution
    errors: list[float]  # of the iterates, relative
    outliers: int


def distance(x: Tensor, image: Tensor) -> float:
    """The relative error, up to the sign that intensities cannot tell."""
    return float(torch.minimum((x - image).norm(), (x + image).norm()) / image.norm())


def run() -> Found:
    g = torch.Generator().manual_seed(0)
    image = torch.from_numpy(load_digits().data[IMAGE]).double() / 16
    A = torch.randn(MEASUREMENTS, len(image), generator=g, dtype=torch.float64)
    b = (A @ image) ** 2
    wrong = torch.rand(MEASUREMENTS, generator=g) < OUTLIERS
    b[wrong] = 10 * b.max() * torch.rand(int(wrong.sum()), generator=g, dtype=torch.float64)

    small = A[b <= b.median()]
    spectrum = eigsh(from_matrix(small.T @ small, facts="symmetric"), 1, which="smallest", seed=0).checked()
    length = (b.median() / 0.455).sqrt()  # the median of the square of a normal number of variance 1 is 0.455
    start = length * spectrum.vectors[:, 0]

    def c(x: Tensor) -> Tensor:
        return ((A @ x) ** 2 - b) / MEASUREMENTS

    errors: list[float] = []

    def remember(state: ProxLinearState) -> bool:
        errors.append(distance(state.x, image))
        return False

    solution = prox_linear("l1", c, start, observe=remember).checked()
    assert isinstance(solution.x, Tensor)
    errors.append(distance(solution.x, image))
    squares = least_squares(c, start).x
    assert isinstance(squares, Tensor)
    return Found(image, start, squares, solution, errors, int(wrong.sum()))


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.6])
    assert isinstance(found.solution.x, Tensor)
    shown = {
        "image": found.image,
        "start": found.start,
        "least squares": found.squares,
        "sum of absolute values": found.solution.x,
    }
    for axis, (name, x) in zip(axes, shown.items(), strict=False):
        x = x if float(x @ found.image) > 0 else -x
        axis.imshow(x.view(8, 8).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{name}\nerror {distance(x, found.image):.1e}", xticks=[], yticks=[])
    axes[4].semilogy(range(len(found.errors)), [max(e, 1e-17) for e in found.errors], ".-")
    axes[4].set(xlabel="step", ylabel="relative error", title=f"{found.outliers} of {MEASUREMENTS} measurements wrong")
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    print(f"{found.outliers} of {MEASUREMENTS} measurements are wrong")
    print(f"{'step':>6}{'relative error':>18}")
    for step, error in enumerate(found.errors):
        print(f"{step:>6}{error:>18.2e}")
    print(f"least squares from the same start: {distance(found.squares, found.image):.2e}")
    print(f"{found.solution.status.value}: {found.solution.message}")
    path = Path(next(iter(sys.argv[1:]), "phase_retrieval.png"))
    with mpl.rc_context({"font.size": 9}):
        picture(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
