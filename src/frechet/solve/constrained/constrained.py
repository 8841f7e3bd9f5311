"""Constrained minimization from products alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg.result import Status
from frechet.operators.function import frozen_point
from frechet.solve.constrained.augmented import augmented
from frechet.solve.constrained.composite import composite, pushed_inside
from frechet.solve.constrained.run import Observe, Rules
from frechet.solve.constrained.constraint import Constraints, Function, as_list, box_side, sides
from frechet.solve.constrained.kkt import Conditions, conditions
from frechet.solve.constrained.program import Parameters, Point, Program
from frechet.solve.constrained.scaling import scales
from frechet.solve.minimize_result import MinimizeSolution
from frechet.space import Space

Bound = float | Tensor | Mapping[str, float | Tensor]


def constrained(
    f: Function,
    x0: Parameters,
    constraints: Constraints = (),
    *,
    bounds: tuple[Bound, Bound] | None = None,
    method='composite', seed=None,
    gtol: float | None = None,
    ctol: float | None = None,
    max_iterations: int = 1000,
    observe: Observe | None = None,
) -> MinimizeSolution:
    items = as_list(constraints)
    blocks, single = frozen_point("constrained", x0)
    space = Space.of(blocks)
    wide = torch.device("cpu") if space.device.type == "mps" else space.device
    x = space.flatten(blocks).to(wide, torch.float64)
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds
    low = box_side(space.names, space.shapes, space.dtype, lower, "lower").to(wide)
    high = box_side(space.names, space.shapes, space.dtype, upper, "upper").to(wide)
    functions = tuple(c.function for c in items)
    nothing = torch.zeros(0, dtype=torch.float64)
    bare = Program(f, functions, space, single, low, high, nothing, nothing)
    x = bare.rounded(pushed_inside(x, low, high), strict=True)
    with torch.no_grad():
        values = [c(bare.structured(x)) for c in functions]
    row_low, row_high = sides(items, values)
    program = Program(f, functions, space, single, low, high, row_low, row_high)
    start = program.point(x)
    if start is None:
        raise NonFinite("constrained: f and the constraints must be finite at x0")
    default = 1e-8 if space.eps < 1e-10 else 1e-4
    rules = Rules(gtol or default, ctol or default, max_iterations)
    small = program.scaled(*scales(start))
    start = small.point(x)
    run = composite(small, start, rules, observe) if method=='composite' else augmented(small, start, rules, observe, seed=seed)
    point = program.point(run.x)
    found = conditions(program, point, run.y)
    status = Status.CONVERGED if found.hold(rules.gtol, rules.ctol) else run.status or Status.STAGNATED
    parts = found.y.split([v.numel() for v in values])
    at = program.structured(run.x)
    return MinimizeSolution(
        x=at if isinstance(at, Tensor) else {k: v.clone() for k, v in at.items()},
        status=status, reason="", value=point.f, gradient=point.g, residual=found.residual, iterations=run.iterations,
        evaluations=program.ledger.evaluations, gradients=program.ledger.gradients, products=program.ledger.products,
        method="composite", infeasibility=found.infeasibility, complementarity=found.complementarity,
        multipliers=tuple(p.view(v.shape) for p, v in zip(parts, values)), bound_multipliers=found.z, history=run.history,
        curvature=run.curvature)
