"""A primal-dual interior point method with a filter line search, for problems whose matrices are small and dense.

Newton steps on the conditions of a barrier problem, made steps of descent by the signs of LDL' (`inertia.py`), are
shortened until a filter takes them (`filter.py`): a trial where f or c is not finite, too. A step that fails at full
length is corrected for the curvature of the rows. Where no step is taken, the violation alone is reduced
(`restoration.py`). mu falls superlinearly from 0.1.

**Source.** Waechter and Biegler (2006), On the implementation of an interior-point filter line-search algorithm for
large-scale nonlinear programming, doi 10.1007/s10107-004-0559-y, algorithm A with its constants (IPOPT).

**Differs from the source.** 1. Matrices are dense. 2. Restoration minimizes the sum of squares of the violations. 3.
The last digits come from the active set (`active_rows.py`).

**Cost** per iteration: one gradient, one Jacobian and one Hessian, a factorization of order n + m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from frechet.linalg._result import Status
from frechet.optimize._constrained.barrier_problem import BarrierProblem, Iterate, Place, Step
from frechet.optimize._constrained.dense import Array, Dense, Trial
from frechet.optimize._constrained.filter import ARMIJO, WIDEST, Filter

MU, FASTER, SLOWER, ENOUGH = 0.1, 1.5, 0.2, 10.0
TO_SIDE = 0.99
CORRECTIONS, FEWER = 4, 0.99  # second-order corrections, and the decrease of the violation that they must bring
BACK = 0.5
UNBOUNDED = 1e20
TINY = 10.0  # unit roundoffs: a step below is none
LONG = 5  # iterations at the last mu without progress

Ends = Callable[[BarrierProblem, Iterate], bool]


@dataclass
class Search:
    """What a run carries from one iteration to the next."""

    filter: Filter
    mu: float
    iterations: int = 0
    added: float = 0.0  # to the Hessian, last
    tiny: int = 0
    status: Status | None = None
    history: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Limits:
    """When a run ends: iterations, the last mu, and where f has no lower end."""

    iterations: int
    mu: float
    mu_start: float = MU
    lowest: float = -UNBOUNDED
    wide: float = WIDEST  # times max(1, violation of the start): no point is farther from the rows
    watch: Callable[[Iterate, Search], bool] = lambda it, search: False


@dataclass(frozen=True, eq=False)
class Found:
    """Where a run ended. `status` is None where `ends` said so."""

    iterate: Iterate
    problem: BarrierProblem
    search: Search

    @property
    def status(self) -> Status | None:
        return self.search.status


def interior_point(
    dense: Dense, start: Trial, ends: Ends, limits: Limits, restore: Callable[..., Place | Status] | None
) -> Found | None:
    """Run from a trial strictly inside the bounds; None where derivatives are not finite there."""
    problem = BarrierProblem(dense, start.x)
    place = problem.start(start)
    mu = limits.mu_start if problem.barred else 0.0
    ones = np.where(problem.has_L, 1.0, 0.0), np.where(problem.has_U, 1.0, 0.0)
    it = problem.iterate(place, None, *ones)
    if it is None:
        return None
    search = Search(Filter(place.theta, limits.wide), mu)
    search.history.append(place.trial.f)
    while search.status is None:
        if _over(problem, it, search, ends, limits):
            break
        lowered(problem, it, search, limits)
        found = advanced(problem, it, search)
        if found is None:
            found = _other(problem, it, search, limits, restore)
        if found is None:
            break
        it = found
        search.history.append(it.place.trial.f)
    return Found(it, problem, search)


def _over(problem: BarrierProblem, it: Iterate, search: Search, ends: Ends, limits: Limits) -> bool:
    """Whether the run is at its end; then with the reason in `search.status`."""
    over = ends(problem, it)
    if limits.watch(it, search):
        search.status = Status.STOPPED
        return True
    if over:
        return True
    if search.iterations >= limits.iterations:
        search.status = Status.MAX_ITERATIONS
    elif it.place.trial.f < limits.lowest and it.place.theta <= 1e-6 * max(
        1.0, float(np.abs(it.place.w).max(initial=0))
    ):
        search.status = Status.UNBOUNDED
    return search.status is not None


def lowered(problem: BarrierProblem, it: Iterate, search: Search, limits: Limits) -> None:
    """Lower mu as far as the conditions hold to it, with a new filter."""
    least = limits.mu
    while problem.barred and search.mu > least:
        if problem.error(it, search.mu) > ENOUGH * search.mu and search.tiny < 2:
            break
        search.mu = max(least, min(SLOWER * search.mu, search.mu**FASTER))
        search.tiny = 0
        search.filter = Filter(search.filter.theta_start, search.filter.wide)


def advanced(problem: BarrierProblem, it: Iterate, search: Search) -> Iterate | None:
    """The next point by a step that the filter takes; None where there is none."""
    search.iterations += 1
    H = it.place.trial.second(problem.whole(it.y))
    if not np.isfinite(H).all():
        return None
    step = problem.step(it, H, search.mu, search.added)
    if step is None:
        return None
    search.added = step.factors.a or search.added
    tau = max(TO_SIDE, 1 - search.mu)
    chosen = line_search(problem, it, step, search, tau)
    if chosen is None:
        return None
    place, alpha, step = chosen
    return moved(problem, it, step, place, alpha, search, tau)


def moved(
    problem: BarrierProblem, it: Iterate, step: Step, place: Place, alpha: float, search: Search, tau: float
) -> Iterate | None:
    zL, zU = problem.moved_duals(it, step, place, search.mu, tau)
    return problem.iterate(place, it.y + alpha * step.dy, zL, zU)


def line_search(
    problem: BarrierProblem, it: Iterate, step: Step, search: Search, tau: float
) -> tuple[Place, float, Step] | None:
    """A place along the step that the filter takes, the length, and the step, which may have been corrected."""
    p, mu, taken = it.place, search.mu, search.filter
    phi = problem.phi(p, mu)
    noise = 10 * problem.dense.eps * max(1.0, abs(phi), abs(p.trial.f))
    longest = alpha = problem.room(p, step.dw, tau)
    if _tiny(problem, p, step.dw):
        place = problem.place(p.w + alpha * step.dw)
        search.tiny += 1
        return None if place is None or search.tiny > LONG else (place, alpha, step)
    search.tiny = 0
    least = taken.least(p.theta, step.slope)
    while alpha >= least:
        place = problem.place(p.w + alpha * step.dw)
        for trial in () if place is None else (place, problem.following(place, p)):
            if trial is not None and _taken(taken, problem, p, trial, alpha, step.slope, mu, noise):
                return trial, alpha, step
        if place is not None and alpha == longest and place.theta >= p.theta:
            corrected = _second_order(problem, it, step, place, alpha, search, tau, noise)
            if corrected is not None:
                return corrected
        alpha *= BACK
    return None


def _taken(
    taken: Filter, problem: BarrierProblem, p: Place, q: Place, alpha: float, slope: float, mu: float, noise: float
) -> bool:
    """Whether the filter takes q from p; it grows where the value was not what decided."""
    phi, new = problem.phi(p, mu), problem.phi(q, mu)
    if not math.isfinite(new) or not taken.allows(q.theta, new, noise):
        return False
    if taken.descends(alpha, p.theta, slope):
        return new <= phi + ARMIJO * alpha * slope + noise
    if q.theta <= (1 - 1e-5) * p.theta or new <= phi - 1e-8 * p.theta + noise * (p.theta > 0):
        taken.add(p.theta, phi)
        return True
    return False


def _second_order(
    problem: BarrierProblem,
    it: Iterate,
    step: Step,
    place: Place,
    alpha: float,
    search: Search,
    tau: float,
    noise: float,
) -> tuple[Place, float, Step] | None:
    p, C, before = it.place, alpha * it.place.C + place.C, math.inf
    now: Place | None = place
    for _ in range(CORRECTIONS):
        if now is None or now.theta > FEWER * before:
            return None
        before = now.theta
        bent = problem.again(it, step, C, search.mu)
        if bent is None:
            return None
        length = problem.room(p, bent.dw, tau)
        now = problem.place(p.w + length * bent.dw)
        if now is not None and _taken(search.filter, problem, p, now, alpha, step.slope, search.mu, noise):
            return now, length, bent
        if now is not None:
            C = length * C + now.C
    return None


def _tiny(problem: BarrierProblem, p: Place, dw: Array) -> bool:
    return bool((np.abs(dw) <= TINY * problem.dense.eps * (1 + np.abs(p.w))).all()) and p.theta <= 1e-4


def _other(
    problem: BarrierProblem,
    it: Iterate,
    search: Search,
    limits: Limits,
    restore: Callable[..., Place | Status] | None,
) -> Iterate | None:
    """What is done where no step is taken: mu is lowered where the rows hold, else the violation is reduced."""
    p = it.place
    rows = float(np.abs(p.C).max(initial=0.0))
    if problem.barred and search.mu > limits.mu and rows <= search.mu:
        search.mu = max(limits.mu, min(SLOWER * search.mu, search.mu**FASTER))
        search.filter = Filter(search.filter.theta_start, search.filter.wide)
        return it
    if restore is None or rows <= 1e-2 * limits.mu:
        search.status = Status.STAGNATED
        return None
    search.filter.add(p.theta, problem.phi(p, search.mu))
    found = restore(problem, it, search, limits)
    if isinstance(found, Status):
        search.status = found
        return None
    zL = problem.kept(np.minimum(it.zL, 1e3), found.dL, problem.has_L, search.mu)
    zU = problem.kept(np.minimum(it.zU, 1e3), found.dU, problem.has_U, search.mu)
    again = problem.iterate(found, None, zL, zU)
    search.status = Status.STAGNATED if again is None else None
    return again
