"""`interior_point` on a `Program`: the conditions that end it, the last digits, and the result as a `Run`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._constrained.active_rows import (
    ActiveSet,
    Measured,
    active_set,
    convex_on,
    measured,
    sharpened,
)
from frechet.optimize._constrained.barrier_problem import BarrierProblem, Iterate
from frechet.optimize._constrained.dense import Array, ProgramAsDense, host
from frechet.optimize._constrained.filter import WIDEST
from frechet.optimize._constrained.interior_point import Found, Limits, Search, interior_point
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.restoration import restored
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run
from frechet.optimize._constrained.scaling import scales

NEAR = 1.0  # times max(1, violation of the start)
STATIONARY = 1e-6  # of the violation, as in `kkt.py`
NEARLY, TRIES, EARLY = 1e-4, 2, 4  # conditions at which the active set is tried, how often, and Newton steps on it
TIGHT = 1e-2  # of the tolerances, which an early end has to meet


@dataclass(eq=False)
class Ending:
    """The conditions at the iterates, and the early end from the active set.

    Where the sides that are active are the same in two iterates, few Newton steps on them are tried: they end the run
    where the conditions hold at their end, without the last values of mu.
    """

    dense: ProgramAsDense
    rules: Rules
    here: Measured | None = None
    sharp: Measured | None = None
    active: ActiveSet | None = None
    tried: int = 0

    def __call__(self, problem: BarrierProblem, it: Iterate) -> bool:
        self.here = measured(self.dense, it.place.trial, *it.whole, problem.whole(it.y))
        if self.here.hold(self.rules.gtol, self.rules.ctol):
            return True
        return problem.barred and self.here.worst <= NEARLY and self._early(problem, it, self.here)

    def _early(self, problem: BarrierProblem, it: Iterate, here: Measured) -> bool:
        y, z = side_multipliers(self.dense, problem, it)
        before, self.active = self.active, active_set(self.dense, it.place.trial, y, z)
        if self.tried >= TRIES or not self.active.same(before):
            return False
        self.tried += 1
        gtol, ctol = self.rules.gtol, self.rules.ctol
        sharp = sharpened(self.dense, here, y, self.active, gtol, ctol, EARLY)
        if not sharp.hold(TIGHT * gtol, TIGHT * ctol) or not convex_on(self.dense, sharp, self.active):
            return False
        self.sharp = sharp
        return True


def side_multipliers(dense: ProgramAsDense, problem: BarrierProblem, it: Iterate) -> tuple[Array, Array]:
    """The multipliers of the rows ``(m,)`` and of the bounds ``(n,)``, by those of the sides."""
    z = it.zU - it.zL
    of_x = np.zeros(len(dense.lower))
    of_x[problem.free] = z[: problem.n]
    return problem.whole(np.concatenate([it.y[: problem.e], z[problem.n :]])), of_x


def interior(program: Program, start: Point, rules: Rules, observe: Observe | None, *, near: bool = False) -> Run:
    """Run from `start`, a point of `program` strictly inside the bounds; with `near`, no farther from the rows."""
    dense = ProgramAsDense(program)
    trial = dense.trial(start.x.cpu().numpy())
    assert trial is not None  # finite a moment ago
    ending = Ending(dense, rules)

    def watch(it: Iterate, search: Search) -> bool:
        if observe is None:
            return False
        here = ending.here
        state = ConstrainedState(
            search.iterations,
            torch.from_numpy(it.place.trial.x[: len(dense.lower)].copy()),  # without what restoration adds
            it.place.trial.f * program.unit,
            here.residual * program.measure if here else float("nan"),
            here.violated if here else float("nan"),
            search.mu,
            0.0,
        )
        return observe(state)

    mu = min(rules.gtol, rules.gtol / dense.of_f, rules.ctol) / 10
    limits = Limits(rules.max_iterations, mu, wide=NEAR if near else WIDEST, watch=watch)
    assert program.asked is not None
    with program.asked.held_open():
        found = interior_point(dense, trial, ending, limits, restored)
        assert found is not None  # derivatives were finite a moment ago
        return _ended(dense, program, found, ending, rules)


def _ended(dense: ProgramAsDense, program: Program, found: Found, ending: Ending, rules: Rules) -> Run:
    problem, it, status, best = found.problem, found.iterate, found.status, ending.sharp
    if best is None:
        best, it = _plain(dense, problem, it, rules)
        if status in (None, Status.STAGNATED, Status.MAX_ITERATIONS):
            y, z = side_multipliers(dense, problem, it)
            best = sharpened(dense, best, y, active_set(dense, it.place.trial, y, z), rules.gtol, rules.ctol)
            if status is not None and best.hold(rules.gtol, rules.ctol):
                status = None
    if status is Status.STAGNATED and best.violated > rules.ctol and _stationary(dense, best):
        status = Status.INFEASIBLE
    x = torch.from_numpy(best.trial.x).to(program.domain.device)
    y = torch.from_numpy(best.y * program.unit / dense.units).to(program.domain.device)
    history = tuple(f * program.unit for f in found.search.history)
    return Run(x, y, status, found.search.iterations, history)


def _plain(dense: ProgramAsDense, problem: BarrierProblem, it: Iterate, rules: Rules) -> tuple[Measured, Iterate]:
    """With the smallest multipliers that do as well: those of a barrier are of any size where rows are dependent."""
    best = measured(dense, it.place.trial, *it.whole, problem.whole(it.y))
    other = problem.with_multipliers(it, float("inf"))
    plain = measured(dense, other.place.trial, *other.whole, problem.whole(other.y))
    if plain.worst <= best.worst or plain.hold(rules.gtol, rules.ctol):
        return plain, other
    return best, it


def on_active_rows(program: Program, point: Point, y: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Return x and multipliers, in the units of the caller, after Newton steps on the sides active at `point`."""
    scaled = program.scaled(*scales(point, mild=True))
    dense = ProgramAsDense(scaled)
    trial = dense.trial(point.x.cpu().numpy())
    first = None if trial is None else trial.first()
    if trial is None or first is None:
        return point.x, y
    here = measured(dense, trial, *first, host(y * scaled.units / scaled.unit))
    active = active_set(dense, trial, here.y, here.z)
    best = sharpened(dense, here, here.y, active, rules.gtol, rules.ctol)
    x = torch.from_numpy(best.trial.x).to(program.domain.device)
    return x, torch.from_numpy(best.y * scaled.unit / dense.units).to(program.domain.device)


def _stationary(dense: ProgramAsDense, at: Measured) -> bool:
    """Whether no direction inside the bounds reduces the violation to first order."""
    c = at.trial.c
    v = np.maximum(c - dense.high, 0.0) - np.maximum(dense.low - c, 0.0)
    x = at.trial.x
    moved = np.minimum(np.maximum(x - at.J.T @ v, dense.lower), dense.upper)
    reach = max(1.0, float(np.linalg.norm(at.J, 2)))
    return float(np.linalg.norm(moved - x)) <= STATIONARY * reach * float(np.linalg.norm(v))
