"""Can a mesh follow a front, with the same number of nodes and no cell folded?

    python examples/moving_mesh.py

A ring grows across the unit square. At each time the nodes move to where the monitor m, large at the ring, asks for
them: x = xi + grad phi with m(x) det(I + D^2 phi) = theta, the Monge-Ampere equation. Newton's method starts from the
mesh of the time before. Printed are its steps, how equal the shares of cells are, the smallest cell, and the error of
piecewise linear interpolation beside that of the uniform mesh with as many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator
from torch import Tensor

from frechet.physics import Mesh, monge_ampere_mesh

F64 = torch.float64
STEEP, TIMES = 30.0, (0.20, 0.23, 0.26, 0.29)


@dataclass(frozen=True)
class Row:
    radius: float
    mesh: Mesh
    error: float  # of interpolation, in L2
    uniform: float


def ring(x: Tensor, radius: float) -> Tensor:
    return torch.tanh(STEEP * (((x - 0.5) ** 2).sum(-1).sqrt() - radius))


def monitor(x: Tensor, radius: float) -> Tensor:
    """1 + a multiple of the root of the second derivative across the ring, smoothed at the ring itself."""
    t = ring(x, radius)
    bend = (1 - t * t) * (t * t + 0.2).sqrt()
    return 1 + 12 * bend.sqrt()


def error(x: Tensor, radius: float, n: int) -> float:
    """The L2 error of the piecewise linear interpolant away from the sides."""
    draw = np.random.default_rng(0).uniform(1 / n, 1 - 1 / n, (20_000, 2))
    found = LinearNDInterpolator(x.reshape(-1, 2).numpy(), ring(x, radius).reshape(-1).numpy())(draw)
    return float(np.sqrt(np.nanmean((found - ring(torch.from_numpy(draw), radius).numpy()) ** 2)))


def run(n: int = 24) -> list[Row]:
    """Follow the ring with n x n nodes."""
    c = (torch.arange(n, dtype=F64) + 0.5) / n
    uniform = torch.stack(torch.meshgrid(c, c, indexing="ij"), -1)
    rows: list[Row] = []
    for radius in TIMES:
        start = rows[-1].mesh.potential if rows else None
        mesh = monge_ampere_mesh(lambda x, r=radius: monitor(x, r), (n, n), start=start)
        rows.append(Row(radius, mesh, error(mesh.x, radius, n), error(uniform, radius, n)))
    return rows


def main() -> None:
    print("radius  Newton steps  equidistribution  smallest cell  error    uniform mesh")
    for r in run():
        m = r.mesh
        print(
            f"{r.radius:.2f}    {m.iterations:12d}  {m.equidistribution:16.0e}  {float(m.jacobian.min()):13.3f}  "
            f"{r.error:.1e}  {r.uniform:.1e}"
        )


if __name__ == "__main__":
    main()
