"""The products with J that find its blocks, and what checks that the declared structure holds.

Where the residual takes the declared rows of its parameters by the declared index, J comes by rows (`gathered_rows`).
Else with a color for each column and e_c the sum of the unit vectors of color c, column c of ``J [e_1 ... e_K]`` holds
in each row the entry of the only column of that color that the row reads. By automatic differentiation all K products
come from one graph of J'u; by differences each is one evaluation of the residual, two with "3-point".

The declaration is checked against the function: at the start by a product with a random vector, and at every point
by the gradient, which one backward pass gives without the structure.

**Cost.** K + 1 products for each Jacobian, or as many as a group has rows and 1; one more at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._products import grads, second_order
from frechet.optimize._least_squares.residual import WITHOUT_GRAPH, Point, Residual
from frechet.optimize._least_squares.robust import row_scales
from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.gathered_rows import row_graph
from frechet.optimize._sparse.structure import Structure
from frechet.space import Variables, euclidean

CANCELLED = 100.0  # times the rounding of the largest column that another one may have
COARSE = 1e-2  # how well differences along a random direction agree with those by columns
Compressed = list[tuple[Tensor, Tensor]]  # products (m, K), and the weight (n,) of each column in them


class Derivative(Protocol):
    """The derivative of the residual at one point, by whatever the caller gave; products in float64."""

    def blocks(self) -> BlockJacobian: ...
    def along(self, v: Tensor) -> Tensor: ...  # J v (m,)
    def gradient(self, u: Tensor) -> Tensor | None: ...  # J'u (n,), where there is a way around the structure


def derivative(problem: Residual, point: Point, structure: Structure) -> Derivative:
    """How the products at `point` are computed."""
    if problem.route in ("2-point", "3-point"):
        return Differences(problem, point, structure)
    if problem.jacobian is not None:
        return Given(problem, structure, problem.jacobian(problem.structured(point.x)))
    rows = row_graph(problem, point, structure) if structure.by_rows else None
    if rows is not None:
        problem.ledger.products += structure.groups[0].rows.shape[1]
        return rows
    return Graph(problem, replace(structure, by_rows=False), *_graph(problem, point))


def gradient(problem: Residual, point: Point) -> Tensor | None:
    """J'r of the weighted problem ``(n,)`` by one backward pass; None where there are differences or a matrix."""
    if problem.route in ("2-point", "3-point") or problem.jacobian is not None:
        return None
    leaves, y = _graph(problem, point)
    u = point.r
    if problem.rho is not None:
        factors, rows = row_scales(problem.rho, point.r, problem.rho_scale)
        u = rows * factors * u
    problem.ledger.products += 1
    with second_order("least_squares", problem.space.device):
        return problem.space.join(grads(y, leaves, [u.to(y)])).detach().double()


def expanded(structure: Structure, compressed: Compressed) -> BlockJacobian:
    """J from its products with the colors."""
    values = []
    for group in structure.groups:
        held, total = (group.columns >= 0)[:, None, :], 0.0
        for products, weights in compressed:
            found = products[group.rows[:, :, None], structure.colors[group.columns][:, None, :]]
            total = total + weights[group.columns][:, None, :] * found
        values.append(torch.where(held, cast(Tensor, total), 0.0))
    return BlockJacobian(structure, tuple(values))


def check_declared(problem: Residual, point: Point, J: BlockJacobian, d: Derivative) -> None:
    """Raise where a product with a random vector is another one by the blocks than by the function."""
    device = point.r.device
    problem.ledger.products += 1
    u = euclidean(J.structure.m, torch.float64).random(0, 0).to(device)
    gradient = d.gradient(u)
    if gradient is not None:
        check_gradient(problem, J, gradient, u)
        return
    columns = J.squares().sqrt()
    signs = problem.space.with_dtype(torch.float64).random(0, 0).to(device)
    v = signs * torch.where(columns > 0, 1 / columns.clamp(min=1e-300), problem.typical.to(device))
    rtol, atol = math.sqrt(problem.eps), torch.zeros_like(point.r)
    if isinstance(d, Differences):
        v, rtol = d.inside(signs).to(device), COARSE
        atol = 100 * problem.eps * (J.absolute().times(point.x.abs().to(device)) + point.r.abs())
    missed = (d.along(v) - J.times(v)).abs()
    excess = missed - rtol * J.absolute().times(v.abs()) - atol
    if excess.numel() and float(excess.max()) > 0:
        raise ValueError(
            "least_squares: structure must declare all that a residual reads, got one in which entry "
            f"{int(excess.argmax())} of the residual reads a parameter that is not declared for it"
        )


def check_gradient(problem: Residual, J: BlockJacobian, exact: Tensor, u: Tensor) -> None:
    """Raise where J'u by the blocks is not the one by a backward pass."""
    if not len(exact):
        return
    terms, sizes = J.absolute().transposed_times(u.abs()), problem.typical.to(u.device)
    # entries that cancel are rounded by eps of what cancels, in units of the parameters
    bound = math.sqrt(problem.eps) * terms + CANCELLED * problem.eps * (terms * sizes).max() / sizes
    missed = (exact - J.transposed_times(u)).abs()
    if bool((missed > bound).any()):
        name = _named(problem, int((missed / bound.clamp(min=1e-300)).argmax()))
        raise ValueError(
            "least_squares: structure must declare all that a residual reads, got one in which some entry of the "
            f"residual reads {name} undeclared"
        )


def _named(problem: Residual, j: int) -> str:
    """Entry j of the parameters as the caller knows it: the row of a named block."""
    for name, shape, size in zip(problem.space.names, problem.space.shapes, problem.space.sizes, strict=True):
        if j < size:
            row = f"[{j // math.prod(shape[1:])}]" if shape else ""
            return f"'{name}{row}'" if name else f"x{row}"
        j -= size
    raise IndexError(j)


@dataclass(frozen=True, eq=False)
class Graph:
    """By automatic differentiation."""

    problem: Residual
    structure: Structure
    leaves: list[Tensor]
    y: Tensor

    def blocks(self) -> BlockJacobian:
        """One pass for each color."""
        structure = self.structure
        self.problem.ledger.products += structure.count
        space, found = self.problem.space, []
        with second_order("least_squares", space.device), torch.enable_grad():
            u = torch.zeros_like(self.y).requires_grad_()
            transposed = grads(self.y, self.leaves, [u], create_graph=True)
            for c in range(structure.count):
                tangents = space.split((structure.colors == c).to(space.device, space.dtype))
                # through the parameters that have columns of this color alone
                held = [i for i, t in enumerate(tangents) if bool(t.any())]
                outputs = [transposed[i] for i in held]
                product = grads(outputs, [u], [tangents[i] for i in held], retain_graph=True)[0]
                found.append(product.detach().double())
        return expanded(structure, _weighted(structure, found))

    def along(self, v: Tensor) -> Tensor:
        raise NotImplementedError  # what has gradients is not asked

    def gradient(self, u: Tensor) -> Tensor:
        space = self.problem.space
        with second_order("least_squares", space.device):
            parts = grads(self.y, self.leaves, [u.to(self.y)], retain_graph=True)
        return space.join(parts).detach().double()


@dataclass(frozen=True, eq=False)
class Given:
    """From what the caller's function returned: a matrix, dense or sparse, of torch or SciPy, or an operator."""

    problem: Residual
    structure: Structure
    J: object

    def blocks(self) -> BlockJacobian:
        colors = self.structure.colors
        self.problem.ledger.products += self.structure.count
        seeds = colors[:, None] == torch.arange(self.structure.count, device=colors.device)
        return expanded(self.structure, _weighted(self.structure, list(self._times(seeds.double()).T)))

    def along(self, v: Tensor) -> Tensor:
        return self._times(v[:, None].double())[:, 0]

    def gradient(self, u: Tensor) -> Tensor | None:
        return None

    def _times(self, V: Tensor) -> Tensor:
        J, space = self.J, self.problem.space
        if isinstance(J, LinearOperator):
            found = J @ V.to(space.device, space.dtype)
        elif scipy.sparse.issparse(J) or isinstance(J, np.ndarray):
            found = torch.as_tensor(np.asarray(cast(np.ndarray, J) @ V.cpu().numpy()))
        elif isinstance(J, Tensor):
            found = J @ V.to(J)
        elif isinstance(J, Mapping):
            parts = zip(space.names, space.sizes, V.split(space.sizes), strict=True)
            found = cast(Tensor, sum(J[name].reshape(-1, size).double() @ part for name, size, part in parts))
        else:
            raise TypeError(f"least_squares: jacobian must return a matrix or an operator, got {type(J).__name__}")
        if len(found) != self.structure.m:
            wanted = (self.structure.m, self.structure.n)
            raise ValueError(f"least_squares: jacobian must have shape {wanted}, got {len(found)} rows")
        return found.detach().to(V) / self.problem.unit


@dataclass(frozen=True, eq=False)
class Differences:
    """By differences, all columns of a color in one evaluation; each parameter has its own step, inside the bounds."""

    problem: Residual
    point: Point
    structure: Structure

    def blocks(self) -> BlockJacobian:
        return expanded(self.structure, self._compressed())

    def _compressed(self) -> Compressed:
        problem, x = self.problem, self.point.x
        if problem.route == "2-point":
            h = self.steps()
            return [(self._shifted(h), _inverse(problem.rounded(x + h) - x))]
        # central where both sides have room, one-sided of second order elsewhere
        h, below, above = self._sizes(1 / 3), x - problem.lower, problem.upper - x
        central = torch.minimum(below, above) >= h
        side = torch.minimum(h, torch.maximum(below, above) / 2) * torch.where(above >= below, 1.0, -1.0)
        first, second = torch.where(central, h, side), torch.where(central, -h, 2 * side)
        scale = _inverse(problem.rounded(x + first) - x)
        weights = (torch.where(central, 0.5, 2.0) * scale, -0.5 * scale)
        return [(self._shifted(s), w.to(self.point.r)) for s, w in zip((first, second), weights, strict=True)]

    def steps(self) -> Tensor:
        """One step ``(n,)`` for each parameter, to a side that has room."""
        x, problem = self.point.x, self.problem
        h, below, above = self._sizes(1 / 2), x - problem.lower, problem.upper - x
        up = (above >= below) | (above >= h)
        return torch.minimum(h, torch.maximum(below, above)) * torch.where(up, 1.0, -1.0)

    def inside(self, signs: Tensor) -> Tensor:
        """Steps of random sign and of full length where both sides have room."""
        steps = self.steps()
        turned = self.point.x + signs.to(steps) * steps
        fits = (turned >= self.problem.lower) & (turned <= self.problem.upper)
        return self.problem.rounded(torch.where(fits, turned, self.point.x + steps)) - self.point.x

    def along(self, v: Tensor) -> Tensor:
        return self.problem.values(self.problem.rounded(self.point.x + v.to(self.point.x))) - self.point.r

    def gradient(self, u: Tensor) -> Tensor | None:
        return None

    def _sizes(self, power: float) -> Tensor:
        return self.problem.eps**power * torch.maximum(self.point.x.abs(), self.problem.typical)

    def _shifted(self, shifts: Tensor) -> Tensor:
        """r at x plus the shifts of one color, less r, for each color."""
        colors = self.structure.colors.cpu()
        found = [self.along(torch.where(colors == c, shifts, 0.0)) for c in range(self.structure.count)]
        return torch.stack(found, 1) if found else self.point.r.new_zeros(self.structure.m, 0)


def _graph(problem: Residual, point: Point) -> tuple[list[Tensor], Tensor]:
    """The parameters as leaves, and the residual on its graph."""
    space = problem.space
    with second_order("least_squares", space.device), torch.enable_grad():
        leaves = [b.clone().requires_grad_() for b in space.split(point.x.to(space.device, space.dtype))]
        x = Variables(space, problem.single).structured(leaves)
        y = problem.flat(problem.function(x)) / problem.unit
        if not y.requires_grad:
            raise NotDifferentiable(WITHOUT_GRAPH)
        return leaves, y


def _weighted(structure: Structure, found: list[Tensor]) -> Compressed:
    colors = structure.colors
    empty = torch.zeros(structure.m, 1, dtype=torch.float64, device=colors.device)
    products = torch.stack(found, 1) if found else empty
    return [(products, torch.ones(structure.n, dtype=torch.float64, device=colors.device))]


def _inverse(moved: Tensor) -> Tensor:
    """1 / moved; zero where a box has no width."""
    return torch.where(moved != 0, 1 / moved, 0.0)
