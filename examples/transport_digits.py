"""How does a handwritten digit move into another at least cost?

    python examples/transport_digits.py [picture.png]

Two real 8 x 8 images of scikit-learn's digits are interpolated to 28 x 28; their brightness is mass on points of the
unit square. The plan of entropic transport for the squared distance, at an epsilon of a thousandth of the largest cost,
comes from `sinkhorn` in a fraction of a second; every pixel of the first moves along it to the second. On the way the
stroke of the one opens into the ring of the zero, where in the mean of the two images both fade. The certificate says
how far the plan can be from the best, and between which numbers the cost of transport without entropy lies.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from torch import Tensor

from frechet import TransportSolution, sinkhorn
from frechet.transport import TransportState

SIDE = 28
FIRST, SECOND = 1, 0  # numbers in the data set: a one and a zero
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Found:
    solution: TransportSolution
    states: list[TransportState]
    along: list[Tensor]  # images (SIDE, SIDE) on the way along the plan
    across: list[Tensor]  # means of the two images


def image(number: int) -> Tensor:
    """One digit, (SIDE, SIDE), with sum one."""
    found = torch.from_numpy(zoom(load_digits().images[number], SIDE / 8, order=1).clip(min=0))
    return found / found.sum()


def splat(points: Tensor, mass: Tensor) -> Tensor:
    """An image of masses at points of the unit square, each shared by the four pixels around it."""
    x = points.clamp(0, 1) * (SIDE - 1)
    low = x.floor().clamp(max=SIDE - 2)
    part, found = x - low, torch.zeros(SIDE * SIDE, dtype=mass.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (part[:, 0] if dy else 1 - part[:, 0]) * (part[:, 1] if dx else 1 - part[:, 1])
            found.index_add_(0, ((low[:, 0] + dy) * SIDE + low[:, 1] + dx).long(), mass * weight)
    return found.view(SIDE, SIDE)


def run() -> Found:
    one, other = image(FIRST), image(SECOND)
    x, y = one.nonzero() / (SIDE - 1), other.nonzero() / (SIDE - 1)
    x, y = x.double(), y.double()
    a, b = one[one > 0], other[other > 0]
    cost = (x.unsqueeze(1) - y).square().sum(-1)
    states: list[TransportState] = []
    s = sinkhorn(
        cost, a, b, epsilon=1e-3 * float(cost.max()), rtol=1e-12, observe=lambda t: bool(states.append(t))
    ).checked()
    P = s.plan()
    i, j = (1e-9 * P.max() < P).nonzero(as_tuple=True)
    along = [splat((1 - t) * x[i] + t * y[j], P[i, j]) for t in TIMES]
    return Found(s, states, along, [(1 - t) * one + t * other for t in TIMES])


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(3, len(TIMES), height_ratios=[1, 1, 1.2])
    for row, (name, images) in enumerate((("along the plan", found.along), ("mean of the images", found.across))):
        for column, (t, pixels) in enumerate(zip(TIMES, images, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(pixels.numpy(), cmap="magma", vmin=0, vmax=float(images[0].max()))
            axes.set(xticks=[], yticks=[], title=f"t = {t}" if row == 0 else "")
            if column == 0:
                axes.set_ylabel(name)
    axes = figure.add_subplot(grid[2, :])
    for kind, name, mark in (("sweeps", "Sinkhorn sweeps", "o"), ("newton", "Newton step", "D")):
        at = [(k, s.marginal_error) for k, s in enumerate(found.states) if s.kind == kind]
        axes.plot(*zip(*at, strict=True), mark, ms=4, label=name)
    axes.plot([s.marginal_error for s in found.states], "k-", lw=0.5)
    axes.set(yscale="log", xlabel="round", ylabel="marginal error", title="epsilon falls in stages, then Newton")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    s = found.solution
    lower, upper = s.unregularized_bounds()
    print(f"{s.cost.shape[0]} pixels to {s.cost.shape[1]}: {s.status}, {s.message}")
    print(f"  cost of the plan      {s.value:.6f}, at most {s.gap:.1e} from the best of the regularized problem")
    print(f"  without entropy       between {lower:.6f} and {upper:.6f}")
    print(f"  marginal error        {s.marginal_error:.1e} after {s.sweeps} sweeps and {s.newton_steps} Newton steps")
    path = Path(next(iter(sys.argv[1:]), "transport_digits.png"))
    with mpl.rc_context({"font.size": 9}):
        picture(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
