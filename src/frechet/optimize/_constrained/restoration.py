"""Towards the constraints alone: from a point where no step is taken to one that the filter takes.

With an elastic variable v for each row, min rho norm(v)^2 / 2 + zeta norm(D (x - x_R))^2 / 2 subject to
low <= c(x) - v <= high is a problem like any other, whose rows hold at its start. It ends at the first x that the
filter takes with less violation; or where norm(v) is least: there the gradient of the sum of squares of the violations
vanishes.

**Source.** Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y, section 3.3, with squares in place of absolute
values: no side is added, and dependent rows are ordinary ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from frechet.linalg._result import Status
from frechet.optimize._constrained.barrier_problem import BarrierProblem, Iterate, Place
from frechet.optimize._constrained.dense import Array, Dense, Trial
from frechet.optimize._constrained.interior_point import Limits, Search, interior_point

RHO = 1000.0
STATIONARY = 1e-7  # of the violation: a gradient below this is none
LARGEST = 900  # unknowns of the elastic problem
LESS = 0.9  # of the violation at which it began


@dataclass(eq=False)
class ElasticTrial:
    """Values of the elastic problem at X = (x, v)."""

    x: Array
    f: float
    c: Array
    inner: Trial
    problem: Elastic

    def first(self, y: Array | None = None, weight: float = 1.0) -> tuple[Array, Array] | None:
        found = self.inner.first(y, 0.0)
        if found is None:
            return None
        p, n = self.problem, self.problem.n
        g = np.concatenate([p.near * p.weights * (self.x[:n] - p.anchor), RHO * self.x[n:]])
        return g, np.concatenate([found[1], -np.eye(len(self.c))], 1)

    def second(self, y: Array, weight: float = 1.0) -> Array:
        p, n = self.problem, self.problem.n
        H = np.zeros((len(self.x), len(self.x)))
        H[:n, :n] = self.inner.second(y, 0.0)
        H[range(n), range(n)] += weight * p.near * p.weights
        H[range(n, len(self.x)), range(n, len(self.x))] = weight * RHO
        return H


class Elastic:
    """The elastic problem of a dense one, near x_R."""

    def __init__(self, dense: Dense, anchor: Array, near: float) -> None:
        self.dense, self.anchor, self.near, self.eps = dense, anchor, near, dense.eps
        self.n, m = len(anchor), len(dense.low)
        self.weights = np.minimum(1.0, 1 / np.maximum(np.abs(anchor), 1e-300)) ** 2
        self.lower = np.concatenate([dense.lower, np.full(m, -math.inf)])
        self.upper = np.concatenate([dense.upper, np.full(m, math.inf)])
        self.low, self.high = dense.low, dense.high

    def trial(self, x: Array) -> ElasticTrial | None:
        inner = self.dense.trial(x[: self.n])
        return None if inner is None else self.around(x, inner)

    def around(self, x: Array, inner: Trial) -> ElasticTrial:
        v, d = x[self.n :], x[: self.n] - self.anchor
        f = 0.5 * RHO * float(v @ v) + 0.5 * self.near * float(self.weights @ (d * d))
        return ElasticTrial(x, f, inner.c - v, inner, self)


def restored(problem: BarrierProblem, it: Iterate, search: Search, limits: Limits) -> Place | Status:
    """A place that the filter takes; or how it ended without one."""
    p, found = it.place, None
    if problem.n + 2 * problem.m > LARGEST:
        return Status.STAGNATED
    elastic = Elastic(problem.dense, problem.outer(p.w), math.sqrt(max(search.mu, limits.mu)))
    v = np.zeros(len(problem.dense.low))
    v[problem.order] = p.C
    start = elastic.around(np.concatenate([p.trial.x, v]), p.trial)

    def ends(around: BarrierProblem, at: Iterate) -> bool:
        nonlocal found
        found = _place(problem, at.place.trial)
        if found.theta > LESS * p.theta or not search.filter.allows(found.theta, problem.phi(found, search.mu)):
            found = None
        left = float(np.abs(at.place.trial.x[elastic.n :]).max(initial=0.0))
        lacking = max(float(np.abs(r).max(initial=0.0)) for r in around.residuals(at, 0.0))
        return found is not None or lacking <= STATIONARY * RHO * max(left, limits.mu)

    for near in (elastic.near, 0.0):
        elastic.near = near
        inner = replace(limits, iterations=limits.iterations - search.iterations, mu_start=max(search.mu, limits.mu))
        run = interior_point(elastic, start, ends, inner, None)
        if run is None:
            return Status.STAGNATED
        search.iterations += run.search.iterations
        if found is not None:
            return found
        if run.status is Status.MAX_ITERATIONS or run.status is Status.STOPPED:
            return run.status
        again = elastic.trial(run.iterate.place.trial.x)
        if again is None:
            return Status.STAGNATED
        start = again
    last = _place(problem, start.inner)
    if last.theta <= LESS * p.theta:  # no point that the filter takes: it begins anew
        search.filter.pairs.clear()
        return last
    return Status.STAGNATED


def _place(problem: BarrierProblem, trial: Trial) -> Place:
    inner = getattr(trial, "inner", trial)
    return problem.start(inner)
