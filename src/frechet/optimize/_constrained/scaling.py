"""Units in which the algorithms see a problem: f divided by its gradient at the start, each row by its own.

A row in units of its gradient is, to first order, a distance in x: slacks and variables then move alike. Row norms are
exact from products with unit vectors on the smaller side up to `EXACT`, else estimated by E (J z)_i^2 = norm(J_i)^2
with `EXACT` random sign vectors z of a fixed stream.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from frechet.operators._operator import LinearOperator
from frechet.optimize._constrained.kkt import violation
from frechet.optimize._constrained.program import Point
from frechet.optimize._constrained.raw import DenseRows

EXACT = 32
STREAM = 0  # scales come within 25 %, whatever is drawn
STEEPEST, FLAT = 100.0, 1e-3  # gradients of f between these are left as they are
USUAL = 0.05  # a parameter between this and its inverse is left as it is
LEAST, MOST = 1e-3, 1e150
ROUNDING = 1e-8  # about sqrt(eps): a parameter that falls below this part of its size may be a zero


def row_norms(J: LinearOperator | DenseRows) -> Tensor:
    """The norms of the rows ``(m,)``."""
    m, n = J.shape
    if m <= min(n, EXACT):
        return J.domain.norm(J.T @ J.codomain.units(range(m)))
    V = J.domain.units(range(n)) if n <= EXACT else J.domain.random(range(EXACT), STREAM)
    squares = (J @ V).square().sum(1)
    return (squares if n <= EXACT else squares / EXACT).sqrt()


def scales(point: Point, *, mild: bool = False) -> tuple[float, Tensor]:
    """The unit of f and the units of the rows ``(m,)``, at the start.

    With `mild`, rows as f: those with a gradient of ordinary size are left as they are. A row that is divided by a
    small gradient has a large curvature, which stops a line search.
    """
    steep = float(point.g.abs().max()) if len(point.g) else 0.0
    if 0 < steep < FLAT:
        steep = max(steep, _steep_on_rows(point))
    unit = steep / STEEPEST if steep > STEEPEST else steep if 0 < steep < FLAT else 1.0
    if not len(point.c):
        return unit, point.c
    norms = row_norms(point.J)
    norms = torch.where((norms > 0) & torch.isfinite(norms), norms, 1.0)
    if mild:
        usual = (norms >= FLAT) & (norms <= STEEPEST)
        norms = torch.where(usual, 1.0, torch.where(norms > STEEPEST, norms / STEEPEST, norms))
    # a row that is small as a whole is in other units; one with a small gradient alone is not
    whole = torch.maximum(norms, point.c.abs().clamp_max(1.0 if mild else LEAST))
    return unit, torch.where(norms < LEAST, whole, norms.clamp_max(MOST))


def _steep_on_rows(point: Point) -> float:
    """The largest entry of the gradient of f where the linearized rows hold: a start far from them may be flat."""
    program, step = point.program, _to_rows(point)
    if step is None:
        return 0.0
    there = program.point(program.rounded(point.x + step, strict=True))
    return 0.0 if there is None else float(there.g.abs().max())


def _to_rows(point: Point) -> Tensor | None:
    """The least-norm step to where the linearized rows hold; None where they hold, and where no matrix is kept."""
    v = violation(point.program, point.x, point.c)
    if not isinstance(point.J, DenseRows) or not bool(v.any()):
        return None
    step = -torch.from_numpy(np.linalg.pinv(point.J.matrix.cpu().numpy())).to(v) @ v
    return step if point.program.domain.finite(step) else None


def reaching(point: Point, sizes: Tensor) -> Tensor:
    """Longer lengths, up to 1, for parameters that start near zero and have to go far for the rows to hold.

    A start of 1e-30 is a zero, and no size; in units of 1e-30 the rows ask for steps of that size. Where one such start
    is a zero, others that are as small are zeros, too: the rows at zero do not show what a product of them will be.
    """
    step = _to_rows(point) if bool((sizes < USUAL).any()) else None
    if step is None:
        return sizes
    asked = (step.abs() * sizes).clamp_max(1.0)
    longest, longer = asked.max(), torch.where(asked > sizes / FLAT, _powers(asked), sizes)
    zeros = sizes[asked > sizes / ROUNDING]
    if not len(zeros):
        return longer
    as_small = (sizes <= zeros.max()) & (asked <= ROUNDING * longest)
    return torch.where(as_small, _powers(longest), longer)


def bending(point: Point) -> float:
    """The size of f by its Hessian and the parameters: the largest change of its gradient as x changes by its size."""
    space = point.J.domain
    V = torch.stack([point.x, space.random(0, STREAM) * point.x.abs().clamp_min(1.0)], 1)
    found = (point.hessian(torch.zeros_like(point.c)) @ V).abs()
    return float(found.max()) if found.numel() and space.finite(found) else 0.0


def measures(point: Point, unit: float, units: float | Tensor, bent: float = 0.0) -> tuple[float, Tensor]:
    """The sizes of f and of the rows ``(m,)`` at a point, by their gradients: 1 where these are of ordinary size.

    `unit` and `units` are those in which the point is given; `bent` is the size of f by its Hessian, for a solution at
    which its gradient vanishes.
    """
    slopes = row_norms(point.J) * units if len(point.c) else point.c
    values = torch.maximum(slopes, (point.c * units).abs())
    steep = float(point.g.abs().max()) * unit if len(point.g) else 0.0
    return _measure(max(steep, bent)), torch.tensor(
        [_measure(v if s < 1 else s) for s, v in zip(slopes.tolist(), values.tolist(), strict=True)],
        dtype=point.c.dtype,
        device=point.c.device,
    )


def _measure(size: float) -> float:
    if not 0 < size < math.inf or FLAT <= size <= 1 / FLAT:
        return 1.0
    return size


def lengths(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The sizes ``(n,)`` of the parameters, as powers of two: 1 where they are ordinary.

    By x; by the nearer side where an entry is zero, or by the largest of all.
    """
    sizes = x.abs()
    sides = torch.minimum(*(torch.where((s == 0) | s.isinf(), math.inf, s.abs()) for s in (lower, upper)))
    sizes = torch.where((sizes == 0) & sides.isfinite(), sides, sizes)
    return _powers(torch.where(sizes == 0, sizes.max() if len(x) else 0.0, sizes))


def without_zeros(point: Point, before: Tensor) -> Tensor:
    """x in the units of the caller, with exact zeros for entries that are zeros to rounding, at the end of a run.

    A zero of a solution is some 1e-16, or 1e-40 at a bound, which is no size of a parameter. It is known from a small
    number by what it fell from, its length `before`, and by f and the rows: in each that has other parameters, these
    must change it by more than 1 / `ROUNDING` times as much, and there must be one.
    """
    x = point.x * point.program.lengths
    fallen = (x.abs() <= ROUNDING * before) & (x != 0)
    if not bool(fallen.any()):
        return x
    changes = torch.cat([s.abs() for s in _slopes(point)], 1) * point.x.abs()[:, None]
    largest_two = changes.topk(min(2, len(x)), 0).values
    others = torch.where(changes == largest_two[0], largest_two[-1] if len(x) > 1 else 0.0, largest_two[0])
    told = others > 0
    agree = (~told | (changes <= ROUNDING * others)).all(1) & told.any(1)
    return torch.where(fallen & agree, 0.0, x)


def _slopes(point: Point) -> list[Tensor]:
    """The gradients of f and of the rows ``(n, k)``, or of random sums of rows where these are many."""
    slopes = [point.g.unsqueeze(1)]
    if m := len(point.c):
        space = point.J.codomain
        exact = m <= EXACT
        Z = space.units(range(m)) if exact else space.random(range(EXACT), STREAM)
        slopes.append((point.J.T @ Z) / (1.0 if exact else EXACT**0.5))
    return slopes


def mattering(point: Point, sizes: Tensor) -> Tensor:
    """Larger lengths for parameters that are near zero by chance, and matter less than a thousandth of others.

    `point` is in the given lengths. What f and the rows change by where a parameter changes by its size is the same in
    all units, so that a small unit is told from a small number. None becomes longer than the largest.
    """
    if not len(sizes):
        return sizes
    change = torch.cat([s / (float(s.abs().max()) or 1.0) for s in _slopes(point)], 1).square().sum(1).sqrt() * (
        point.x != 0
    )
    by_change = FLAT * change.max() / torch.where(change > 0, change, math.inf) * sizes
    return _powers(torch.minimum(torch.maximum(sizes, by_change), sizes.max()))


def _powers(sizes: Tensor) -> Tensor:
    ordinary = (sizes == 0) | ((sizes >= USUAL) & (sizes <= 1 / USUAL))
    return torch.where(ordinary, 1.0, torch.exp2(torch.where(ordinary, 1.0, sizes).log2().round()))
