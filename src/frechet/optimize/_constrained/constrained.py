"""Constrained minimization: min f(x) with low <= c(x) <= high and lower <= x <= upper.

    method="auto"                "interior" for small problems, then "composite" where it stagnates; else "composite"
    "interior"                   interior points and a filter line search on dense matrices: interior_point.py
    "composite"                  composite steps in a trust region, a barrier for sides and bounds: composite.py
    "augmented"                  Newton on an exact augmented Lagrangian, equalities alone: augmented.py

The last two use products only: with the Hessian of the Lagrangian, the Jacobian of the constraints and its transpose.
What is kept is at most a basis of the range of the Jacobian, and nothing where that would be large (`projection.py`).
f and each row are divided by their gradients at the start; all that is reported is in the units of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_start
from frechet.objective import Objective
from frechet.operators.derivatives._function import frozen_point
from frechet.operators.derivatives._products import second_order
from frechet.optimize._box import Bound, check_pair, side
from frechet.optimize._constrained.augmented import augmented
from frechet.optimize._constrained.composite import composite
from frechet.optimize._constrained.constraint import Constraints, Function, as_list, sides
from frechet.optimize._constrained.frame import pushed_inside
from frechet.optimize._constrained.graphs import require_graphs
from frechet.optimize._constrained.in_turn import interior_then_composite, interior_twice
from frechet.optimize._constrained.judged import judged_by_sizes, lengthened, reached
from frechet.optimize._constrained.kkt import (
    Conditions,
    largest,
    violation,
)
from frechet.optimize._constrained.program import SMALL, Parameters, Point, Program
from frechet.optimize._constrained.raw import row_values, scalar
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.optimize._constrained.scaling import (
    lengths,
    measures,
    scales,
)
from frechet.optimize._smooth.minimize_result import MinimizeSolution

Method = Literal["auto", "composite", "interior", "augmented"]
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
RESTORE = 200  # iterations towards the constraints alone
MEASURES = 50  # runs, each from the result of the last, with tolerances by sizes there
LESS = 0.9  # of a violation that was stationary: else another run ends where it did
RUNAWAY = 1e8  # multipliers above this, for f and rows in units of their gradients at x0, bound nothing


@dataclass(frozen=True)
class Way:
    """An algorithm: its name in the result, its loop, and whether it scales f and rows mildly."""

    name: str
    loop: Callable[[Program, Point, Rules, Observe | None], Run]
    mild: bool = False


FILTER = "interior point with a filter line search"
COMPOSITE = "composite steps in a trust region"
AUGMENTED = "Newton on an exact augmented Lagrangian"
WAYS = {
    "auto": Way(FILTER, interior_then_composite, mild=True),
    "interior": Way(FILTER, interior_twice, mild=True),
    "composite": Way(COMPOSITE, composite),
    "augmented": Way(AUGMENTED, augmented),
}


def constrained(
    f: Function | Objective,
    x0: Parameters,
    constraints: Constraints = (),
    *,
    bounds: tuple[Bound, Bound] | None = None,
    method: str = "auto",
    gtol: float | None = None,
    ctol: float | None = None,
    max_iterations: int = 1000,
    observe: Observe | None = None,
) -> MinimizeSolution:
    """A local minimum of f where every constraint holds, with its multipliers; see `MinimizeSolution`.

    `x0` is a tensor of any shape or a dict of tensors, and f and the constraints are functions of the like; f returns a
    scalar, or is an `Objective`, whose x is flat or a dict by parameter. `constraints` is one item or a sequence: a
    `Constraint`, or a function c, which stands for c(x) = 0. `bounds` is a pair of lower and upper, each a number, a
    tensor like x0, or a dict by block. x0 may violate constraints; one outside of the bounds or on them is moved
    inside. Nothing is evaluated outside of the bounds.

    Converged means, at x, for the multipliers reported, and in the largest entries,
    ``|grad f + J'y + z| <= gtol max(u, |grad f|)``, ``violation <= ctol u_i`` and ``complementarity <= gtol u``; the
    run goes on until the first holds without the maximum, where it can. u and u_i are 1 where the gradients of f and of
    row i at x are between 1e-3 and 1e3, else their sizes. A parameter below 1/20 or above 20 is measured in
    units of its size. So units of f, of constraints and of parameters do not matter; `residual` and
    `bound_multipliers` are those of the caller's units. `gtol` and `ctol` are 1e-8 if left out, 1e-4 in float32.

    Other statuses, each with a sentence in `message`: `infeasible` (no direction reduces the violation to first order:
    there may be feasible points elsewhere), `unbounded` (f below -1e20 in the units of its gradient at x0, where the
    constraints hold), `stagnated` (no step gains: kinks, wrong derivatives, or a point at which the gradients of the
    active constraints vanish or are dependent, so that multipliers grow without bound), `max_iterations`, `stopped`. A
    trial point where f or c is not finite is refused; at x0 it raises `NonFinite`.

    `observe` is called once per iteration; True stops.

    Example:
        >>> import torch
        >>> from frechet.optimize._constrained.constrained import constrained
        >>> a = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> s = constrained(lambda x: ((x - a) ** 2).sum(), torch.ones_like(a), lambda x: x @ x - 1.0)
        >>> s.status.value, s.x.round(decimals=8), s.multipliers[0].round(decimals=8)
        ('converged', tensor([0.6000, 0.8000], dtype=torch.float64), tensor(4., dtype=torch.float64))
    """
    if method not in Method.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"minimize: method must be one of {', '.join(map(repr, Method.__args__))}, got {method!r}")
    program, x, shapes = problem_of(f, x0, constraints, bounds)
    if method == "augmented":
        require_equalities(program, "minimize: method must be 'composite' with {met}, got 'augmented'")
    chosen = "composite" if method == "auto" and not program.small else method
    return minimized(program, x, shapes, tolerances(program, gtol, ctol, max_iterations), WAYS[chosen], observe)


def minimized(
    program: Program,
    x: Tensor,
    shapes: list[tuple[int, ...]],
    rules: Rules,
    way: Way,
    observe: Observe | None,
) -> MinimizeSolution:
    """The minimum by one way; `shapes` are those of the constraints."""
    assert program.asked is not None
    with program.asked.held_open() if program.small else nullcontext():
        return _minimized(program, x, shapes, rules, way, observe)


def _minimized(
    program: Program,
    x: Tensor,
    shapes: list[tuple[int, ...]],
    rules: Rules,
    way: Way,
    observe: Observe | None,
) -> MinimizeSolution:
    program, start = lengthened(*reached(program, _start(program, x)))

    def shown(state: ConstrainedState) -> bool:
        assert observe is not None
        return observe(replace(state, x=state.x * program.lengths))

    watch = None if observe is None else shown
    iterations, history, begun, least, loose = 0, (), 0, math.inf, 0.0
    sized = torch.as_tensor(program.lengths)
    while True:  # tolerances are relative to sizes at the result, which may not be those at the start
        measure, sizes = measures(start, 1.0, 1.0)
        measure = loose or measure
        begun += 1
        small = replace(program, measure=measure, measures=sizes).scaled(*scales(start, mild=way.mild))
        begin = small.point(start.x)
        assert begin is not None  # finite a moment ago, in other units
        left = replace(rules, max_iterations=rules.max_iterations - iterations)
        run = _restored(small, way.loop(small, begin, left, watch), left, watch, way)
        iterations, history = iterations + run.iterations, (*history, *run.history[bool(history) :])
        judged = judged_by_sizes(program, run, sized, rules, way.mild)
        run, loose = judged.run, judged.next_measure(rules) if judged.loose else 0.0
        grown = largest(judged.found.y * small.units) / max(small.unit, largest(judged.point.g))
        again = judged.again(rules) if grown <= RUNAWAY and judged.found.infeasibility <= LESS * least else None
        least = judged.found.infeasibility if run.status is Status.INFEASIBLE else math.inf
        if again is not None and iterations >= rules.max_iterations:
            run = replace(run, status=Status.MAX_ITERATIONS)
            break
        if again is None or begun == MEASURES:
            break
        program, start = judged.other, again
    program, point, found = judged.program, judged.point, judged.found
    bent = None if run.curvature is None else run.curvature * program.lengths
    run = replace(run, iterations=iterations, history=history, curvature=bent)
    return _solution(program, point, run, found, judged.holds(rules), grown, rules, way, shapes)


def _restored(program: Program, run: Run, rules: Rules, observe: Observe | None, way: Way) -> Run:
    """A run that ended at a violation goes on from a point where it is least: that is zero, or the verdict."""
    if run.status not in (Status.STAGNATED, Status.MAX_ITERATIONS):
        return run
    point = program.point(run.x)
    if point is None:
        return run
    if largest(violation(program, point.x, point.c) * program.units) <= rules.ctol:
        return run
    still = replace(program, f=lambda _: torch.zeros((), dtype=program.space.dtype, device=program.space.device))
    begin = still.point(program.rounded(point.x, strict=True))
    if begin is None:
        return run
    nearest = composite(still, begin, replace(rules, max_iterations=RESTORE), None)
    history, iterations = run.history, run.iterations + nearest.iterations
    if nearest.status is Status.INFEASIBLE:
        if program.point(nearest.x) is None:  # where f is not defined: nothing can be said of such a point
            return run
        return replace(nearest, history=history, iterations=iterations)
    left = rules.max_iterations - iterations
    start = program.point(program.rounded(nearest.x, strict=True))
    if nearest.status is not None or start is None or left <= 0:
        return run
    again = way.loop(program, start, replace(rules, max_iterations=left), observe)
    return replace(again, history=(*history, *again.history), iterations=iterations + again.iterations)


def require_equalities(program: Program, sentence: str) -> None:
    """Refuse inequalities and bounds by `sentence`, in which {met} stands for what was met."""
    sided = bool((program.low != program.high).any())
    if sided or bool((program.lower > -math.inf).any() or (program.upper < math.inf).any()):
        raise ValueError(sentence.format(met="inequalities" if sided else "bounds"))


def tolerances(program: Program, gtol: float | None, ctol: float | None, max_iterations: int) -> Rules:
    for name, value in (("gtol", gtol), ("ctol", ctol)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"minimize: {name} must lie in (0, 1), got {value}")
    if max_iterations < 0:
        raise ValueError(f"minimize: max_iterations must be >= 0, got {max_iterations}")
    usual: float = TOLERANCES.get(program.space.dtype, 1e-2)
    return Rules(usual if gtol is None else gtol, usual if ctol is None else ctol, max_iterations)


def problem_of(
    f: Function | Objective, x0: Parameters, constraints: Constraints, bounds: tuple[Bound, Bound] | None
) -> tuple[Program, Tensor, list[tuple[int, ...]]]:
    """The problem, a start strictly inside the bounds, and the shapes of the constraints."""
    if not isinstance(f, Objective) and not callable(f):
        raise TypeError(f"minimize: f must be a function of x, got {type(f).__name__}")
    items = as_list(constraints)
    check_start("minimize", x0)
    variables, blocks = frozen_point("minimize", x0)
    space, single = variables.space, variables.single
    if bounds is not None:
        check_pair("minimize", bounds)
    nothing = torch.zeros(0, dtype=torch.float64)
    bare = Program(f, tuple(c.function for c in items), space, single, nothing, nothing, nothing, nothing)
    wide = bare.domain.device
    x = space.join(blocks).to(wide, torch.float64)
    if not bare.domain.finite(x):
        raise ValueError(f"minimize: x0 must be finite, got {float(x[~x.isfinite()][0])} in an entry")
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds
    low = side("minimize", space, lower, "lower").to(wide)
    high = side("minimize", space, upper, "upper").to(wide)
    empty = ((low > high) | (low == math.inf) | (high == -math.inf)).nonzero()
    if empty.numel():
        i = int(empty[0])
        raise ValueError(
            f"minimize: bounds must leave a point between them, got lower {float(low[i]):.6g} and upper "
            f"{float(high[i]):.6g} in entry {i}"
        )
    whole = Program(f, bare.functions, space, single, low, high, nothing, nothing)
    boxed = whole.stretched(lengths(x, low, high))
    x = boxed.rounded(pushed_inside(x / boxed.lengths, boxed.lower, boxed.upper), strict=True)
    values, shapes = _values(boxed, x)
    sided = sides(items, values)
    rows = (sided[0].to(wide), sided[1].to(wide))
    return replace(boxed, low=rows[0], high=rows[1]), x, shapes


def _values(program: Program, x: Tensor) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    """The constraints at the start, seen to be tensors, and their shapes."""
    if program.space.dim <= SMALL and program.space.dtype == torch.float64:  # kept, in case that matrices will be
        raw = program.raw(x)
        if math.isfinite(raw.f) or not program.functions:
            return [p.detach().view(s) for p, s in zip(raw.parts, raw.shapes, strict=True)], raw.shapes
    with torch.no_grad(), second_order("minimize", program.space.device):
        at = program.structured(x)
        if not isinstance(program.f, Objective):
            scalar(program.f(at))
        values = [row_values(i, c(at)) for i, c in enumerate(program.functions)]
    return values, [tuple(v.shape) for v in values]


def _start(program: Program, x: Tensor) -> Point:
    start = program.point(x)
    if start is not None:
        require_graphs(program, x)
        return start
    values = program.values(x)
    what = "the gradient of f" if values is not None else "f and the constraints"
    raise NonFinite(
        f"minimize: {what} must be finite at x0, got NaN or infinity; start where the functions are defined "
        "(a start on a bound is moved inside)"
    )


def _solution(
    program: Program,
    point: Point,
    run: Run,
    found: Conditions,
    holds: bool,
    grown: float,
    rules: Rules,
    way: Way,
    shapes: list[tuple[int, ...]],
) -> MinimizeSolution:
    status = run.status or Status.STAGNATED
    if holds:
        status = Status.CONVERGED if grown <= RUNAWAY else Status.STAGNATED
    measures = (
        f"residual {found.residual:.3g}, violation {found.infeasibility:.3g}, "
        f"complementarity {found.complementarity:.3g}"
    )
    reasons = {
        Status.CONVERGED: f"the first-order conditions hold: {measures}",
        Status.INFEASIBLE: f"the violation {found.infeasibility:.3g} is stationary: no direction reduces it; another "
        "start may find feasible points, or there are none",
        Status.UNBOUNDED: f"f falls without end where the constraints hold: {point.f:.3g}",
        Status.STAGNATED: f"no step gains, but {measures}: kinks, wrong derivatives, or dependent constraints",
        Status.MAX_ITERATIONS: f"the limit of {rules.max_iterations} iterations was reached: {measures}",
        Status.STOPPED: f"observe returned True in iteration {run.iterations}: {measures}",
    }
    if grown > RUNAWAY:
        reasons[Status.STAGNATED] = (
            f"the multipliers grow without bound, {largest(found.y):.3g} here: where the constraints are active their "
            f"gradients vanish or are dependent, so that the conditions, with {measures}, say nothing; leave out a "
            "side that always holds"
        )
    at, dtype, device = program.structured(point.x), program.space.dtype, program.space.device
    parts = found.y.to(device, dtype).split([math.prod(s) for s in shapes])
    return MinimizeSolution(
        x=at if isinstance(at, Tensor) else {name: b.clone() for name, b in at.items()},
        status=status,
        message=reasons[status],
        value=point.f,
        gradient=(point.g / program.lengths).to(device, dtype),
        residual=found.residual,
        iterations=run.iterations,
        evaluations=program.ledger.evaluations,
        gradients=program.ledger.gradients,
        products=program.ledger.products,
        method=_described(way.name, program),
        infeasibility=found.infeasibility,
        complementarity=found.complementarity,
        multipliers=tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True)),
        bound_multipliers=found.z.to(device, dtype) + 0.0,  # no minus zeros
        history=run.history,
        curvature=None if run.curvature is None else run.curvature.to(device, dtype),
    )


def _described(name: str, program: Program) -> str:
    sided = bool((program.low < program.high).any() or (program.lower > -math.inf).any())
    barrier = sided or bool((program.upper < math.inf).any())
    name = f"{name}, with a barrier" if barrier and name == COMPOSITE else name
    assert program.asked is not None
    return f"{name}, backward passes one by one" if program.asked.seen.batches.refused else name
