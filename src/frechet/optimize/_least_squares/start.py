"""Where a least-squares run begins: the residual at x0, in a unit in which its squares are numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.optimize._least_squares.residual import WITHOUT_GRAPH, Linearization, Point, Residual, doubled


def begin(residual: Residual, x: Tensor) -> tuple[Residual, Point]:
    """The residual at the start, with the precision and the order of derivatives that its result calls for."""
    x = residual.rounded(x)
    residual.ledger.residuals += 1
    with torch.no_grad():
        y = residual.flat(residual.function(residual.structured(x)))
    r = doubled(y)
    if not r.numel():
        raise ValueError("least_squares: residual must have at least one entry, got an empty tensor")
    bad = r.isfinite().logical_not().nonzero()
    if bad.numel():
        i = int(bad[0])
        raise NonFinite(
            f"least_squares: residual must be finite at x0, got {float(r[i])} in entry {i} ({len(bad)} of {r.numel()} "
            "are not finite); start where the model is defined"
        )
    largest = float(r.abs().max())
    if residual.rho is None and not 1e-100 < largest < 1e100 and largest > 0:
        residual = replace(residual, unit=2.0 ** (math.frexp(largest)[1] - 1))
        r = r / residual.unit
    cost = residual.cost(r)
    eps = max(residual.space.eps, torch.finfo(y.dtype).eps if y.dtype.is_floating_point else 0.0)
    rows = residual.route == "columns" and residual.space.dim > r.numel()
    return replace(residual, eps=eps, route="rows" if rows else residual.route), Point(x, r, cost)


def first_linearization(residual: Residual, start: Point) -> tuple[Residual, Linearization]:
    """J at the start, by rows where an operation has no second derivative."""
    try:
        linear = residual.linearized(start)
    except NotDifferentiable:
        if residual.route != "columns":
            raise
        residual = replace(residual, route="rows")
        linear = residual.linearized(start)
    except RuntimeError as error:
        if "numpy() on Tensor that requires grad" not in str(error):
            raise
        raise NotDifferentiable(WITHOUT_GRAPH) from error
    if residual.ledger.constant:
        raise NotDifferentiable(WITHOUT_GRAPH)
    if linear is None:
        raise NonFinite(
            "least_squares: the Jacobian must be finite at x0, got NaN or infinity; start off the kinks of sqrt, abs, "
            "or give jacobian='3-point'"
        )
    return residual, linear
