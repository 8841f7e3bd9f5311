"""Proofs that a residual is what collocation takes it for: a differentiable function of one point and the parameters.

They run once, at the first evaluation, on a few points that are drawn with a fixed seed and on parameters that are
moved by up to a tenth, where the residual is not small by accident.

1. The residual of one point, called alone, is that of the same point among others, and of a second call.
2. It is finite at all points.
3. It changes with the parameters. The second derivatives of a piecewise linear network are zero everywhere.
4. Two conditions at one point do not ask for different values of the same quantity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.physics._conditions import Condition
from frechet.physics._piecewise import PiecewiseLinear
from frechet.physics._rows import rows_at
from frechet.space import Point, Variables, like, named

MOVED = 0.1  # of each parameter, at most
ALONE, SLOPES, SHARED = 2, 8, 8  # points that are looked at


def proved(conditions: Sequence[Condition], variables: Variables, parameters: Point) -> tuple[int, ...]:
    """Raise unless all conditions pass; return the number of residuals at a point, for each."""
    draw = torch.Generator().manual_seed(0)
    _same_dtype(conditions, variables)
    moved, entries = _moved(parameters, draw), []
    for c in conditions:
        with _explained(c):
            entries.append(_entries(c, parameters))
            _finite(c, parameters)
            some = torch.randperm(len(c), generator=draw)[:SLOPES].to(c.columns[0].device)
            _alone(c, moved, some[:ALONE])
            _depends(c, variables, moved, some)
    _consistent(conditions, entries, variables, moved)
    return tuple(entries)


@contextmanager
def _explained(c: Condition) -> Iterator[None]:
    """Add to an error of the user's function which condition it belongs to, and how the function is called."""
    try:
        yield
    except Exception as error:
        told = str(error)
        if told.startswith("collocation:"):
            raise
        hint = "write x[0] for x[:, 0]; " if isinstance(error, IndexError) else ""
        if "does not require grad" in told or "does not have a grad_fn" in told:
            hint = "take derivatives by frechet.calculus.taylor or torch.func, not by torch.autograd.grad; "
        if "more than 1 value per channel" in told or "randomness" in told:
            hint = "put batch normalization and dropout into evaluation mode; "
        shapes = ", ".join(str(tuple(t.shape[1:])) for t in c.columns)
        error.add_note(
            f"collocation: {hint}residual_at of condition '{c.name}' is called with the parameters and one point, of "
            f"shape {shapes}"
        )
        raise


def _same_dtype(conditions: Sequence[Condition], variables: Variables) -> None:
    space = variables.space
    for c in conditions:
        for t in c.columns:
            if t.is_floating_point() and (t.dtype != space.dtype or t.device != space.device):
                raise TypeError(
                    f"collocation: points of '{c.name}' must be {space.dtype} on {space.device} as the parameters, got "
                    f"{t.dtype} on {t.device}; convert them (float64 for more than six digits)"
                )


def _entries(c: Condition, parameters: Point) -> int:
    """The number of residuals at a point; one call at one point."""
    x = tuple(t[0] for t in c.columns)
    with torch.no_grad(), PiecewiseLinear(c.name):
        y = c.f(parameters, *x)
    if not isinstance(y, Tensor) or not y.is_floating_point() or not y.numel():
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"collocation: residual_at of condition '{c.name}' must return a real tensor, a number or several a point, "
            f"got {got}; use torch.stack for a system"
        )
    return y.numel()


def _moved(parameters: Point, draw: torch.Generator) -> Point:
    blocks = [
        t.detach() * (1 + MOVED * (2 * torch.rand(t.shape, generator=draw, dtype=torch.float64) - 1).to(t))
        for t in named(parameters).values()
    ]
    return like(parameters, blocks)


def _finite(c: Condition, parameters: Point) -> None:
    with torch.no_grad():
        bad = c.values(parameters).isfinite().logical_not().any(1).nonzero()
    if len(bad):
        i = int(bad[0])
        at = ", ".join(str(t[i].tolist()) for t in c.columns)
        raise NonFinite(
            f"collocation: the residual of condition '{c.name}' must be finite at the start, got NaN or infinity at "
            f"{len(bad)} of {len(c)} points, the first of them {at}; move the points off singularities, or start where "
            "the residual is defined"
        )


def _alone(c: Condition, moved: Point, some: Tensor) -> None:
    with torch.no_grad():
        together = torch.vmap(c.f, c.axes)(moved, *c.rows(some))
        alone = torch.stack([c.f(moved, *(t[i] for t in c.columns)) for i in some.tolist()])
    together, alone = together.reshape(len(some), -1), alone.reshape(len(some), -1)
    size, off = float(together.abs().max()), float((together - alone).abs().max())
    if math.isfinite(size) and not off <= torch.finfo(alone.dtype).eps ** 0.5 * size:
        raise NotDifferentiable(
            f"collocation: the residual of condition '{c.name}' at one point must not depend on other points or on the "
            f"call, got values that differ by {off:.3g} of {size:.3g} between a point alone and the same among others; "
            "put batch normalization into evaluation mode, leave out dropout and what is kept between calls"
        )


def _depends(c: Condition, variables: Variables, moved: Point, some: Tensor) -> None:
    J = rows_at(c, variables, moved, some)
    if bool((J == 0).all()) and bool((c.factors[some] > 0).any()):
        raise NotDifferentiable(
            f"collocation: the residual of condition '{c.name}' must change with the parameters, got derivatives that "
            "are all zero; the second derivatives of a piecewise linear network (ReLU) are zero everywhere: take tanh, "
            "sin, softplus or gelu, and check that residual_at uses the parameters it is given"
        )


def _consistent(conditions: Sequence[Condition], entries: Sequence[int], variables: Variables, moved: Point) -> None:
    """Two conditions with proportional derivatives at one point must be zero together."""
    plain = [c for c, k in zip(conditions, entries, strict=True) if k == 1 and len(c.columns) == 1]
    for i, a in enumerate(plain):
        for b in plain[i + 1 :]:
            for p, q in _shared(a.columns[0], b.columns[0]):
                one, other = torch.tensor([p]), torch.tensor([q])
                rows = [rows_at(c, variables, moved, j.to(c.columns[0].device))[0] for c, j in ((a, one), (b, other))]
                with torch.no_grad():
                    values = [c.values(moved, j.to(c.columns[0].device))[0, 0] for c, j in ((a, one), (b, other))]
                if not float(rows[1].norm()):
                    continue
                ratio = float(rows[0] @ rows[1] / (rows[1] @ rows[1]))
                eps = torch.finfo(rows[0].dtype).eps ** 0.5
                parallel = float((rows[0] - ratio * rows[1]).norm()) <= eps * float(rows[0].norm())
                gap = abs(float(values[0]) - ratio * float(values[1]))
                if parallel and gap > eps * max(abs(float(v)) for v in values):
                    raise ValueError(
                        f"collocation: conditions '{a.name}' and '{b.name}' must agree where they share a point, got "
                        f"residuals at {a.columns[0][p].tolist()} that are never zero together; leave the point out of "
                        "one of them"
                    )


def _shared(X: Tensor, Y: Tensor) -> list[tuple[int, int]]:
    """Some rows of X that are rows of Y."""
    if X.shape[1:] != Y.shape[1:]:
        return []
    where = {tuple(row): i for i, row in enumerate(X.reshape(len(X), -1).tolist())}
    pairs = ((where.get(tuple(row)), j) for j, row in enumerate(Y.reshape(len(Y), -1).tolist()))
    return [(i, j) for i, j in pairs if i is not None][:SHARED]
