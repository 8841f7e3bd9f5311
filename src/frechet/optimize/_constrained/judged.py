"""A result judged by its own sizes: those of f, of the rows and of the parameters there, not those at the start.

A run is made in the lengths of the parameters at its start. Where these differ from those at its end, the conditions
have to hold in both, and else it goes on from there in the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._constrained.frame import pushed_inside
from frechet.optimize._constrained.interior import on_active_rows
from frechet.optimize._constrained.kkt import (
    STATIONARY,
    Conditions,
    conditions,
    largest,
    stationary_violation,
    violation,
)
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.run import Rules, Run
from frechet.optimize._constrained.scaling import (
    FLAT,
    bending,
    lengths,
    mattering,
    measures,
    reaching,
    scales,
    without_zeros,
)

LITTLE = 1e-4  # of a violation: less is taken for stationary
ROUNDINGS = 100.0  # unit roundoffs of the Hessian times x that a gradient is off by: sums of some 100 terms


def reached(program: Program, start: Point) -> tuple[Program, Point]:
    """The program with longer lengths for parameters that start as zeros, and its start inside the bounds."""
    sizes = torch.as_tensor(program.lengths)
    longer = reaching(start, sizes) if sizes.ndim else sizes
    if bool((longer == sizes).all()):
        return program, start
    other = program.stretched(longer)
    x = pushed_inside(start.x * sizes / longer, other.lower, other.upper)
    point = other.point(other.rounded(x, strict=True))
    return (program, start) if point is None else (other, point)


def lengthened(program: Program, start: Point) -> tuple[Program, Point]:
    """The program with longer lengths for parameters that are small by chance, and its start."""
    sizes = torch.as_tensor(program.lengths)
    if not sizes.ndim or not bool((sizes < sizes.max()).any()):
        return program, start
    scaled = program.scaled(*scales(start)).point(start.x)
    longer = sizes if scaled is None else mattering(scaled, sizes)
    if bool((longer == sizes).all()):
        return program, start
    other = program.stretched(longer)
    point = other.point(other.rounded(start.x * sizes / longer, strict=True))
    return (program, start) if point is None else (other, point)


@dataclass(frozen=True, eq=False)
class Judged:
    """Where a run ended: in the lengths it was made in, and in those by the sizes of the parameters there."""

    run: Run
    program: Program
    point: Point
    found: Conditions
    other: Program
    there: Point
    stricter: Conditions
    loose: bool = False  # the conditions hold, but by the size of the Hessian alone

    def holds(self, rules: Rules) -> bool:
        both = self.found.hold(rules.gtol, rules.ctol) and self.stricter.hold(rules.gtol, rules.ctol)
        left = max(self.found.scaled, self.found.complementarity)
        return both and (not self.loose or left <= self._rounding)

    @property
    def _rounding(self) -> float:
        """What a gradient with this Hessian is off by."""
        return ROUNDINGS * self.program.eps * self.found.measure

    def next_measure(self, rules: Rules) -> float:
        """The size of f for a run that goes on: by its gradient, or by the rounding of its gradient."""
        return max(1.0, largest(self.there.g), self._rounding / rules.gtol)

    def again(self, rules: Rules) -> Point | None:
        """Where another run begins, if the conditions of this one fail in the lengths of its result.

        It is moved off the bounds as a start is: from a bound itself an interior point method takes no step.
        """
        status, program = self.run.status, self.other
        if self.holds(rules) if status is None else not _falls(program, self.there, status):
            return None
        x = pushed_inside(self.there.x, program.lower, program.upper)
        return program.point(program.rounded(x, strict=True))


def judged_by_sizes(program: Program, run: Run, sized: Tensor, rules: Rules, small: bool) -> Judged:
    """The result of a run in both lengths; `small` ones are sharpened in the second where they fail in it alone."""
    program, point, found = _measured(program, run.x, run.y, rules)
    own = lengths(without_zeros(point, sized), program.lower * program.lengths, program.upper * program.lengths)
    loose = by_curvature_alone(point, found, rules)
    if not bool((own != program.lengths).any()):
        return Judged(run, program, point, found, program, point, found, loose)
    other = program.stretched(own)
    at = other.point(point.x * program.lengths / own)
    assert at is not None  # the same point
    other, at = lengthened(other, at)  # a zero that is known to rounding has no size
    other, there, stricter = _measured(other, at.x, run.y, rules)
    judged = Judged(run, program, point, found, other, there, stricter, loose)
    if run.status is not None or not small or judged.holds(rules) or not program.small:
        return judged
    x, y = on_active_rows(other, there, stricter.y, rules)
    sharper = judged_by_sizes(program, replace(run, x=x * other.lengths / program.lengths, y=y), sized, rules, False)
    return sharper if sharper.holds(rules) else judged


def by_curvature_alone(point: Point, found: Conditions, rules: Rules) -> bool:
    """Whether the conditions hold by the size of f by its Hessian, and not by its gradient.

    In a narrow valley the Hessian is large and the solution far away. The smallest residual that rounding leaves may be
    as large, though: so this says that a solver has to go on, and not that it has failed.
    """
    steep = max(1.0, largest(point.g))
    return found.hold(rules.gtol, rules.ctol) and not replace(found, measure=min(found.measure, steep)).hold(
        rules.gtol, rules.ctol
    )


def _falls(program: Program, point: Point, status: Status) -> bool:
    """Whether a violation that was stationary in the units of the start still falls in those at its end."""
    if status is not Status.INFEASIBLE:
        return False
    here = program.scaled(*scales(point))
    scaled = here.point(point.x)
    if scaled is None or stationary_violation(here, scaled, STATIONARY):
        return False
    v = violation(here, scaled.x, scaled.c)  # and the part of it that a change of x by its size takes away
    return float(here.domain.norm(scaled.J.T @ v)) > LITTLE * float(here.codomain.norm(v)) ** 2


def _measured(program: Program, x: Tensor, y: Tensor, rules: Rules) -> tuple[Program, Point, Conditions]:
    """The program with the sizes of f and of the rows at x, which is in its lengths.

    The size of f by its Hessian is asked for where its gradient vanishes, or where the conditions fail without it.
    """
    point = program.point(x)
    assert point is not None  # an accepted point
    if largest(point.g) >= FLAT:
        measure, sizes = measures(point, 1.0, 1.0)
        plain = replace(program, measure=measure, measures=sizes)
        found = conditions(plain, point, y)
        if found.hold(rules.gtol, rules.ctol):
            return plain, point, found
    measure, sizes = measures(point, 1.0, 1.0, bending(point))
    program = replace(program, measure=measure, measures=sizes)
    return program, point, conditions(program, point, y)
