"""`interior_point` on a `Program`: the conditions that end it, the last digits, and the result as a `Run`."""

from __future__ import annotations

import numpy as np
import torch

from frechet.linalg._result import Status
from frechet.optimize._constrained.active_rows import Measured, measured, sharpened
from frechet.optimize._constrained.barrier_problem import BarrierProblem, Iterate
from frechet.optimize._constrained.dense import ProgramAsDense
from frechet.optimize._constrained.filter import WIDEST
from frechet.optimize._constrained.interior_point import Found, Limits, Search, interior_point
from frechet.optimize._constrained.program import Point, Program
from frechet.optimize._constrained.restoration import restored
from frechet.optimize._constrained.run import ConstrainedState, Observe, Rules, Run

NEAR = 1.0  # times max(1, violation of the start)
STATIONARY = 1e-6  # of the violation, as in `kkt.py`


def interior(program: Program, start: Point, rules: Rules, observe: Observe | None, *, near: bool = False) -> Run:
    """Run from `start`, a point of `program` strictly inside the bounds; with `near`, no farther from the rows."""
    dense = ProgramAsDense(program)
    trial = dense.trial(start.x.cpu().numpy())
    assert trial is not None  # finite a moment ago
    last: list[Measured] = []

    def ends(problem: BarrierProblem, it: Iterate) -> bool:
        last[:] = [_measured(dense, problem, it)]
        return last[0].hold(rules.gtol, rules.ctol)

    def watch(it: Iterate, search: Search) -> bool:
        if observe is None:
            return False
        here = last[0] if last else None
        state = ConstrainedState(
            search.iterations,
            torch.from_numpy(it.place.trial.x.copy()),
            it.place.trial.f * program.unit,
            here.residual * program.measure if here else float("nan"),
            here.violated if here else float("nan"),
            search.mu,
            0.0,
        )
        return observe(state)

    mu = min(rules.gtol, rules.gtol / dense.of_f, rules.ctol) / 10
    limits = Limits(rules.max_iterations, mu, wide=NEAR if near else WIDEST, watch=watch)
    found = interior_point(dense, trial, ends, limits, restored)
    assert found is not None  # derivatives were finite a moment ago
    return _ended(dense, program, found, rules)


def _measured(dense: ProgramAsDense, problem: BarrierProblem, it: Iterate) -> Measured:
    return measured(dense, it.place.trial, *it.whole, problem.whole(it.y))


def _ended(dense: ProgramAsDense, program: Program, found: Found, rules: Rules) -> Run:
    problem, it, status = found.problem, found.iterate, found.status
    best, it = _plain(dense, problem, it, rules)
    if status in (None, Status.STAGNATED, Status.MAX_ITERATIONS):
        z = it.zU - it.zL
        of_rows = problem.whole(np.concatenate([it.y[: problem.e], z[problem.n :]]))
        of_x = np.zeros(len(dense.lower))
        of_x[problem.free] = z[: problem.n]
        best = sharpened(dense, best, of_rows, of_x, rules.gtol, rules.ctol)
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
    best = _measured(dense, problem, it)
    other = problem.with_multipliers(it, float("inf"))
    plain = _measured(dense, problem, other)
    if plain.worst <= best.worst or plain.hold(rules.gtol, rules.ctol):
        return plain, other
    return best, it


def _stationary(dense: ProgramAsDense, at: Measured) -> bool:
    """Whether no direction inside the bounds reduces the violation to first order."""
    c = at.trial.c
    v = np.maximum(c - dense.high, 0.0) - np.maximum(dense.low - c, 0.0)
    x = at.trial.x
    moved = np.minimum(np.maximum(x - at.J.T @ v, dense.lower), dense.upper)
    reach = max(1.0, float(np.linalg.norm(at.J, 2)))
    return float(np.linalg.norm(moved - x)) <= STATIONARY * reach * float(np.linalg.norm(v))
