"""A mesh that puts equally much of a monitor into each cell: x = xi + grad phi with m(x) det(I + D^2 phi) = theta.

phi lives on cell centres of the unit cube, even at its sides, so that n . grad phi = 0 and the sides stay sides. The
unknowns are phi, with mean zero, and log theta. Newton's method starts from the uniform mesh. A step is halved until
the map stays convex, all I + D^2 phi positive definite, so that no cell folds, and the residual falls.

**Source.** C. Budd and J. Williams (2009), Moving mesh generation using the parabolic Monge-Ampere equation, doi
10.1137/080716773. **Differs from the source:** Newton's method on the elliptic equation, without a time of its own.
**Cost.** A sparse factorization of (n + 1)^2 a step, whose entries come from 3^d + 1 products of columns that share no
row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged

SHORTEST = 2.0**-20  # part of a Newton step
ENOUGH = 1e-4  # of the residual that a step promises to take off


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mapped mesh.

    Attributes:
        x: the places of the cell centres ``(..., d)``.
        potential: phi ``(...)``, with mean zero.
        jacobian: det(I + D^2 phi) ``(...)``, the volume of a cell in multiples of what it was.
        equidistribution: max / min - 1 of the monitor times the volume, which is zero where each cell has its share.
        residual: the largest entry of m det - theta, over theta.
        iterations: Newton steps.
    """

    x: Tensor
    potential: Tensor
    jacobian: Tensor
    equidistribution: float
    residual: float
    iterations: int


def monge_ampere_mesh(
    monitor: Callable[[Tensor], Tensor],
    shape: int | Sequence[int],
    *,
    rtol: float = 1e-11,
    max_iterations: int = 50,
    start: Tensor | None = None,
) -> Mesh:
    """Return the mesh of the unit interval or square that equidistributes a monitor.

    Args:
        monitor: m, positive, a function of points ``(..., d)`` to ``(...)``: large where cells shall be small.
        shape: cells of each axis, one or two axes.
        rtol: the largest entry of m det - theta over theta that is small enough.
        max_iterations: the most Newton steps.
        start: a potential to start from, as that of a similar monitor. Default: zero.

    Raises:
        NotConverged: no part of a Newton step keeps all cells from folding and reduces the residual, or
            `max_iterations` were not enough. `result` is the last mesh, which is not folded.
        ValueError: the monitor is not positive, or `start` is folded.

    Example:
        >>> import torch
        >>> from frechet.physics import monge_ampere_mesh
        >>> mesh = monge_ampere_mesh(lambda x: 1 + 20 * torch.exp(-100 * ((x - 0.4) ** 2).sum(-1)), (16, 16))
        >>> mesh.residual < 1e-11, bool(mesh.jacobian.min() > 0)
        (True, True)
    """
    cells = _cells(monitor, shape, rtol, max_iterations, start)
    grid = _Grid.of(cells, monitor)
    phi = torch.zeros(cells, dtype=torch.float64) if start is None else start.detach().double()
    if phi.shape != cells:
        raise ValueError(f"monge_ampere_mesh: start must have the shape {cells}, got {tuple(phi.shape)}")
    phi = phi - phi.mean()
    if not grid.convex(phi):
        raise ValueError(
            "monge_ampere_mesh: start must be the potential of a mesh without folds, got one with folded cells"
        )
    log_theta = grid.density(phi).log().mean()
    z = torch.cat([phi.reshape(-1), log_theta[None]])
    r = grid.residual(z)
    for iteration in range(max_iterations + 1):
        if grid.size(r, z) <= rtol:
            return grid.mesh(z, r, iteration)
        if iteration == max_iterations:
            break
        found = _newton_step(grid, z, r)
        if found is None:
            raise NotConverged(
                f"monge_ampere_mesh: no part of Newton step {iteration} keeps the cells from folding and reduces the "
                f"residual of {grid.size(r, z):.3g}; take more cells, or a smoother monitor",
                grid.mesh(z, r, iteration),
            )
        z, r = found
    raise NotConverged(
        f"monge_ampere_mesh: {max_iterations} Newton steps left a residual of {grid.size(r, z):.3g}; raise "
        "max_iterations or start from the potential of a similar monitor",
        grid.mesh(z, r, max_iterations),
    )


def _cells(
    monitor: object, shape: int | Sequence[int], rtol: float, max_iterations: int, start: object
) -> tuple[int, ...]:
    """The cells of each axis, of checked arguments."""
    if not callable(monitor):
        raise TypeError(f"monge_ampere_mesh: monitor must be a function of points, got {type(monitor).__name__}")
    if not rtol > 0 or max_iterations < 0:
        raise ValueError(f"monge_ampere_mesh: rtol must be > 0, max_iterations >= 0, got {rtol} and {max_iterations}")
    if not isinstance(shape, int | Sequence) or isinstance(shape, str):
        raise TypeError(f"monge_ampere_mesh: shape must be one or two counts of cells, got {type(shape).__name__}")
    if start is not None and not isinstance(start, Tensor):
        raise TypeError(f"monge_ampere_mesh: start must be a potential, a tensor, got {type(start).__name__}")
    cells = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if len(cells) not in (1, 2) or min(cells) < 3:
        raise ValueError(f"monge_ampere_mesh: shape must have one or two axes of at least 3 cells, got {cells}")
    return cells


def _newton_step(grid: _Grid, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor] | None:
    """The next z and its residual, None where no part of the step is allowed."""
    step = torch.from_numpy(scipy.sparse.linalg.splu(grid.jacobian(z)).solve(-r.numpy()))
    size, part = float(r.square().sum()), 1.0
    while part >= SHORTEST:
        moved = z + part * step
        if grid.convex(moved[:-1].view(grid.cells)):
            after = grid.residual(moved)
            if float(after.square().sum()) <= (1 - ENOUGH * part) ** 2 * size:
                return moved, after
        part /= 2
    return None


@dataclass(frozen=True, eq=False)
class _Grid:
    cells: tuple[int, ...]
    monitor: Callable[[Tensor], Tensor]
    centres: Tensor

    @classmethod
    def of(cls, cells: tuple[int, ...], monitor: Callable[[Tensor], Tensor]) -> _Grid:
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in cells]
        return cls(cells, monitor, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))

    def slopes(self, phi: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """grad phi ``(..., d)`` and the entries of D^2 phi, with phi even at the sides."""
        for axis in range(len(self.cells)):
            last = phi.shape[axis] - 1
            phi = torch.cat([phi.narrow(axis, 0, 1), phi, phi.narrow(axis, last, 1)], axis)
        d = len(self.cells)

        def at(*shift: int) -> Tensor:
            return phi[tuple(slice(1 + s, 1 + s + n) for s, n in zip(shift, self.cells, strict=True))]

        def unit(i: int, s: int = 1) -> list[int]:
            return [s if j == i else 0 for j in range(d)]

        n, zero = self.cells, at(*[0] * d)
        gradient = torch.stack([(at(*unit(i)) - at(*unit(i, -1))) * (n[i] / 2) for i in range(d)], -1)
        second = [[zero] * d for _ in range(d)]
        for i in range(d):
            second[i][i] = (at(*unit(i)) - 2 * zero + at(*unit(i, -1))) * n[i] ** 2
        for i, j in itertools.combinations(range(d), 2):
            corners = [(s * t, [s * (k == i) + t * (k == j) for k in range(d)]) for s in (1, -1) for t in (1, -1)]
            mixed = torch.stack([sign * at(*shift) for sign, shift in corners]).sum(0) * (n[i] * n[j] / 4)
            second[i][j] = second[j][i] = mixed
        return gradient, second

    def volume(self, second: list[list[Tensor]]) -> Tensor:
        """det(I + D^2 phi)."""
        if len(self.cells) == 1:
            return 1 + second[0][0]
        return (1 + second[0][0]) * (1 + second[1][1]) - second[0][1] ** 2

    def convex(self, phi: Tensor) -> bool:
        """Whether no cell is folded: I + D^2 phi is positive definite in each."""
        _, second = self.slopes(phi)
        first = 1 + second[0][0]
        return bool(((self.volume(second) > 0) & (first > 0)).all())

    def density(self, phi: Tensor) -> Tensor:
        """m(x) det(I + D^2 phi)."""
        gradient, second = self.slopes(phi)
        m = self.monitor(self.centres + gradient)
        if not isinstance(m, Tensor) or m.shape != self.cells:
            got = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
            points = (*self.cells, len(self.cells))
            raise ValueError(f"monge_ampere_mesh: monitor must map points {points} to {self.cells}, got {got}")
        if not bool(m.detach().isfinite().all()):
            raise NonFinite("monge_ampere_mesh: monitor must be finite, got NaN or infinity")
        if not bool((m > 0).all()):
            raise ValueError(f"monge_ampere_mesh: monitor must be positive, got {float(m.detach().min()):.3g}")
        return m * self.volume(second)

    def residual(self, z: Tensor) -> Tensor:
        """m det / theta - 1 in each cell, then the mean of phi."""
        phi = z[:-1].view(self.cells)
        return torch.cat([(self.density(phi) * (-z[-1]).exp() - 1).reshape(-1), phi.mean()[None]])

    def size(self, r: Tensor, z: Tensor) -> float:
        return float(r[:-1].abs().max())

    def jacobian(self, z: Tensor) -> scipy.sparse.csc_array:
        """The Jacobian of `residual`: columns three cells apart share no row, so one product tells all of them."""
        n = math.prod(self.cells)
        index = np.arange(n).reshape(self.cells)
        rows, columns, values = [], [], []
        for offset in itertools.product(range(3), repeat=len(self.cells)):
            where = np.zeros(self.cells)
            where[tuple(slice(o, None, 3) for o in offset)] = 1.0
            v = torch.cat([torch.from_numpy(where).reshape(-1), torch.zeros(1, dtype=torch.float64)])
            found = torch.func.jvp(self.residual, (z,), (v,))[1][:-1].numpy()
            # the column that a row sees: the one of this colour within one cell of it
            near = [
                np.abs(np.arange(m)[:, None] - np.arange(o, m, 3)[None]).argmin(1) * 3 + o
                for m, o in zip(self.cells, offset, strict=True)
            ]
            close = [np.abs(np.arange(m) - c) <= 1 for m, c in zip(self.cells, near, strict=True)]
            seen = np.ix_(*near)
            mask = close[0] if len(close) == 1 else close[0][:, None] & close[1][None]
            rows.append(index[mask])
            columns.append(index[seen][mask])
            values.append(found.reshape(self.cells)[mask])
        last = torch.func.jvp(self.residual, (z,), (torch.eye(n + 1, dtype=torch.float64)[-1],))[1][:-1].numpy()
        rows += [np.arange(n), np.full(n, n)]
        columns += [np.full(n, n), np.arange(n)]
        values += [last, np.full(n, 1 / n)]
        triples = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.csc_array(triples, shape=(n + 1, n + 1))

    def mesh(self, z: Tensor, r: Tensor, iterations: int) -> Mesh:
        phi = z[:-1].view(self.cells)
        gradient, second = self.slopes(phi)
        share = self.density(phi)
        return Mesh(
            x=self.centres + gradient,
            potential=phi.clone(),
            jacobian=self.volume(second),
            equidistribution=float(share.max() / share.min()) - 1,
            residual=self.size(r, z),
            iterations=iterations,
        )
