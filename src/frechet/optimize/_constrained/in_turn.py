"""What a small problem is given to, one after the other, until one of them ends with a solution or a verdict."""

from __future__ import annotations

from dataclasses import replace

from frechet.linalg._result import Status
from frechet.optimize._constrained.composite import composite
from frechet.optimize._constrained.frame import pushed_inside
from frechet.optimize._constrained.interior import interior
from frechet.optimize._constrained.kkt import largest, violation
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.run import Observe, Rules, Run


def interior_then_composite(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:
    """Where the line search ends without a solution, it begins again nearer to the rows; then by composite steps."""
    run = interior_twice(program, start, rules, observe)
    left = rules.max_iterations - run.iterations
    if run.status is not Status.STAGNATED or left <= 0:
        return run
    point = program.point(program.rounded(pushed_inside(run.x, program.lower, program.upper), strict=True))
    if point is None or _violated(program, point) > max(rules.ctol, 0.1 * _violated(program, start)):
        point = start
    again = composite(program, point, replace(rules, max_iterations=left), observe)
    kept = run if again.status not in (None, Status.INFEASIBLE, Status.UNBOUNDED) else again
    return replace(kept, iterations=run.iterations + again.iterations, history=(*run.history, *again.history))


def _violated(program: Program, point: Point) -> float:
    return largest(violation(program, point.x, point.c))


def interior_twice(program: Program, start: Point, rules: Rules, observe: Observe | None) -> Run:
    """The line search, and again from the start, no farther from the rows than it, where it went to a violation."""
    run = interior(program, start, rules, observe)
    left = rules.max_iterations - run.iterations
    if run.status is not Status.STAGNATED or left <= 0:
        return run
    again = interior(program, start, replace(rules, max_iterations=left), observe, near=True)
    return replace(again, iterations=run.iterations + again.iterations, history=(*run.history, *again.history))
