"""A dense problem between barriers: variables w = (x, s), rows C(w) = (c_E(x) - b; c_I(x) - s), points of a run.

Entries of x with equal sides are left out of w. Each side of w has a multiplier, kept near mu / distance.

**Source.** Waechter and Biegler (2006), doi 10.1007/s10107-004-0559-y, sections 2.1 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from frechet.optimize._constrained.dense import Array, Dense, Trial
from frechet.optimize._constrained.inertia import Condensed, Factors, corrected

SAFE = 1e10  # a multiplier stays within this factor of mu / distance
SIDE = 1e-2  # of max(1, |side|), and of the width: a start is at least this far inside
MANY = 200  # rows: then least squares are solved by LDL'
DAMPING = 1e-5  # of the barrier where only one side is there: keeps w from infinity


def pushed(v: Array, low: Array, high: Array) -> Array:
    """`v` moved off its sides."""
    with np.errstate(invalid="ignore"):
        width = SIDE * np.where(np.isfinite(low) & np.isfinite(high), high - low, math.inf)
        below = np.where(np.isfinite(low), low + np.minimum(SIDE * np.maximum(1.0, np.abs(low)), width), -math.inf)
        above = np.where(np.isfinite(high), high - np.minimum(SIDE * np.maximum(1.0, np.abs(high)), width), math.inf)
    return np.minimum(np.maximum(v, below), above)


@dataclass(frozen=True, eq=False)
class Place:
    """A trial point of the barrier problem: w, f, C and the distances to the sides."""

    w: Array
    trial: Trial
    C: Array
    theta: float  # norm(C), sum of entries
    logs: float  # sum of the logarithms of the distances, with the damping
    dL: Array
    dU: Array


@dataclass(frozen=True, eq=False)
class Iterate:
    """An accepted point: derivatives and multipliers."""

    place: Place
    g: Array  # of f, of the variables in w
    J: Array  # of the rows, in the order of C, by the variables in w
    y: Array
    zL: Array
    zU: Array
    whole: tuple[Array, Array]  # g and J of all variables and rows


@dataclass(frozen=True, eq=False)
class Step:
    """A direction for w and for all multipliers, and the factors that it came from."""

    dw: Array
    dy: Array
    dzL: Array
    dzU: Array
    slope: float  # of the barrier function along dw
    factors: Factors | Condensed


class BarrierProblem:
    """The variables, the sides and the rows of a `Dense` problem, from a start x ``(n,)``."""

    def __init__(self, dense: Dense, x: Array) -> None:
        self.dense, self.x = dense, x.copy()
        self.free = np.flatnonzero(dense.lower < dense.upper)
        self.whole_x = len(self.free) == len(x)
        self.x[dense.lower == dense.upper] = dense.lower[dense.lower == dense.upper]
        equal = dense.low == dense.high
        bare = np.isinf(dense.low) & np.isinf(dense.high)
        self.equal, self.slack = np.flatnonzero(equal), np.flatnonzero(~equal & ~bare)
        self.order = np.concatenate([self.equal, self.slack])
        self.n, self.e, self.m = len(self.free), len(self.equal), len(self.order)
        self.L = np.concatenate([dense.lower[self.free], dense.low[self.slack]])
        self.U = np.concatenate([dense.upper[self.free], dense.high[self.slack]])
        self.has_L, self.has_U = np.isfinite(self.L), np.isfinite(self.U)
        self.only_L, self.only_U = self.has_L & ~self.has_U, self.has_U & ~self.has_L
        self.where_L, self.where_U = np.flatnonzero(self.has_L), np.flatnonzero(self.has_U)
        self.pulls = self.only_L.astype(float) - self.only_U  # where the damping pushes to
        self.inner_L, self.inner_U = np.nextafter(self.L, self.U), np.nextafter(self.U, self.L)
        self.target = dense.low[self.equal]
        self.barred = bool(self.has_L.any() or self.has_U.any())
        self.identity = np.eye(self.n)

    def outer(self, w: Array) -> Array:
        x = self.x.copy()
        x[self.free] = w[: self.n]
        return x

    def place(self, w: Array) -> Place | None:
        """The values at w, which is kept strictly inside; None where they are not finite."""
        w = np.minimum(np.maximum(w, self.inner_L), self.inner_U)
        trial = self.dense.trial(self.outer(w))
        return None if trial is None else self.placed(w, trial)

    def placed(self, w: Array, trial: Trial) -> Place:
        C = trial.c[self.order]
        C[: self.e] -= self.target
        C[self.e :] -= w[self.n :]
        dL, dU = w - self.L, self.U - w
        logs = damped = 0.0
        if self.barred:
            logs = np.log(dL[self.where_L]).sum() + np.log(dU[self.where_U]).sum()
            damped = DAMPING * (dL[self.only_L].sum() + dU[self.only_U].sum())
        return Place(w, trial, C, float(np.abs(C).sum()), float(logs - damped), dL, dU)

    def following(self, q: Place, p: Place) -> Place | None:
        """The trial q from p with slacks that are the rows, None where they are already.

        None comes nearer to its side than by half: it is for rows that are far from theirs.
        """
        if not len(self.slack):
            return None
        tail, keep = slice(self.n, None), 0.5
        low = np.where(self.has_L[tail], self.L[tail] + keep * np.where(self.has_L[tail], p.dL[tail], 0.0), -math.inf)
        high = np.where(self.has_U[tail], self.U[tail] - keep * np.where(self.has_U[tail], p.dU[tail], 0.0), math.inf)
        s = np.minimum(np.maximum(q.trial.c[self.slack], low), high)
        s = np.minimum(np.maximum(s, self.inner_L[tail]), self.inner_U[tail])
        if bool((s == q.w[tail]).all()):
            return None
        return self.placed(np.concatenate([q.w[: self.n], s]), q.trial)

    def start(self, trial: Trial) -> Place:
        """The point at the start of a run, with slacks inside their sides."""
        s = pushed(trial.c[self.slack], self.L[self.n :], self.U[self.n :])
        return self.placed(np.concatenate([trial.x[self.free], s]), trial)

    def phi(self, place: Place, mu: float) -> float:
        return place.trial.f - mu * place.logs

    def iterate(self, place: Place, y: Array | None, zL: Array, zU: Array) -> Iterate | None:
        """The point with its derivatives; the multipliers of the rows by least squares where none are given."""
        first = place.trial.first(None if y is None else self.whole(y))
        if first is None:
            return None
        g, J = (
            (first[0], first[1][self.order])
            if self.whole_x
            else (
                first[0][self.free],
                first[1][self.order][:, self.free],
            )
        )
        it = Iterate(place, g, J, np.zeros(self.m) if y is None else y, zL, zU, first)
        return it if y is not None else self.with_multipliers(it)

    def with_multipliers(self, it: Iterate, most: float = 1e3) -> Iterate:
        """Multipliers y that minimize the residual; none where they are above `most`."""
        r = self._slope(it) - it.zL + it.zU
        n, e = self.n, self.e
        # the multipliers of slacks are those of their sides plus what the gradient of x asks of them
        if self.m > MANY:
            E = np.concatenate([np.zeros(e), np.ones(self.m - e)])
            right = np.concatenate([-r[:n], np.zeros(e), -r[n:]])
            found = corrected(np.eye(n), it.J, E, 1.0, 0.0, right, e)[1]
            y = np.zeros(self.m) if found is None else found[n:]
        else:
            A = np.concatenate([it.J.T, np.zeros((self.m - e, self.m))])
            A[n + np.arange(self.m - e), e + np.arange(self.m - e)] = -1.0
            y = np.linalg.lstsq(A, -r, rcond=None)[0] if self.m else np.zeros(0)
        y = np.asarray(y, np.float64) if np.abs(y).max(initial=0.0) <= most else np.zeros(self.m)
        return Iterate(it.place, it.g, it.J, y, it.zL, it.zU, it.whole)

    def _slope(self, it: Iterate) -> Array:
        return np.concatenate([it.g, np.zeros(self.m - self.e)])

    def pulled(self, it: Iterate, y: Array) -> Array:
        """dC' y."""
        return np.concatenate([it.J.T @ y, -y[self.e :]])

    def residuals(self, it: Iterate, mu: float) -> tuple[Array, Array, Array]:
        """How far the conditions are from holding: of the gradient, and of the products with both distances."""
        p = it.place
        dual = self._slope(it) + self.pulled(it, it.y) - it.zL + it.zU
        dual += mu * DAMPING * self.pulls
        L, U = self.where_L, self.where_U
        return dual, it.zL[L] * p.dL[L] - mu, it.zU[U] * p.dU[U] - mu

    def error(self, it: Iterate, mu: float) -> float:
        """The largest of the residuals, with multipliers beyond 100 scaled down."""
        dual, low, high = self.residuals(it, mu)
        z = float(it.zL.sum() + it.zU.sum())
        scale = max(100.0, (z + float(np.abs(it.y).sum())) / max(1, self.m + 2 * len(dual))) / 100.0
        products = max(float(np.abs(low).max(initial=0.0)), float(np.abs(high).max(initial=0.0)))
        return max(
            float(np.abs(dual).max(initial=0.0)) / scale, products / scale, float(np.abs(it.place.C).max(initial=0.0))
        )

    def whole(self, y: Array) -> Array:
        """Multipliers of C as multipliers of all rows."""
        found = np.zeros(len(self.dense.low))
        found[self.order] = y
        return found

    def step(self, it: Iterate, H: Array, mu: float, last: float) -> Step | None:
        """Newton's step on the conditions of the barrier problem."""
        n, e, p = self.n, self.e, it.place
        sigma = it.zL / p.dL + it.zU / p.dU  # infinite distances have none
        r = self._slope(it) + self.pulled(it, it.y) + self._barrier_slope(p, mu)
        W = H.copy() if self.whole_x else H[np.ix_(self.free, self.free)]
        W.flat[:: n + 1] += sigma[:n]
        E = np.concatenate([np.zeros(e), 1 / sigma[n:]])
        q = -p.C.copy()
        q[e:] -= r[n:] / sigma[n:]
        factors, found = corrected(W, it.J, E, mu, last, np.concatenate([-r[:n], q]), e)
        return None if factors is None or found is None else self._step(it, found, r, sigma, mu, factors)

    def again(self, it: Iterate, step: Step, C: Array, mu: float) -> Step | None:
        """The step with other values of the rows and the same factors."""
        n, e, p = self.n, self.e, it.place
        sigma = it.zL / p.dL + it.zU / p.dU
        r = self._slope(it) + self.pulled(it, it.y) + self._barrier_slope(p, mu)
        q = -C.copy()
        q[e:] -= r[n:] / sigma[n:]
        found = step.factors.solve(np.concatenate([-r[:n], q]))
        return None if found is None else self._step(it, found, r, sigma, mu, step.factors)

    def _barrier_slope(self, p: Place, mu: float) -> Array:
        return -mu / p.dL + mu / p.dU + mu * DAMPING * self.pulls

    def _step(
        self, it: Iterate, found: Array, r: Array, sigma: Array, mu: float, factors: Factors | Condensed | Condensed
    ) -> Step:
        n, e, p = self.n, self.e, it.place
        dx, dy = found[:n], found[n:]
        dw = np.concatenate([dx, (dy[e:] - r[n:]) / sigma[n:]])
        dzL = np.where(self.has_L, mu / p.dL - it.zL - it.zL / p.dL * dw, 0.0)
        dzU = np.where(self.has_U, mu / p.dU - it.zU + it.zU / p.dU * dw, 0.0)
        slope = float((self._slope(it) + self._barrier_slope(p, mu)) @ dw)
        return Step(dw, dy, dzL, dzU, slope, factors)

    def room(self, p: Place, dw: Array, tau: float) -> float:
        """The part of a step that stays inside the sides."""
        if not self.barred:
            return 1.0
        return min(_share(p.dL, -dw, tau), _share(p.dU, dw, tau))

    def moved_duals(self, it: Iterate, step: Step, p: Place, mu: float, tau: float) -> tuple[Array, Array]:
        """The multipliers of the sides after their own step, within a factor of mu / distance at the new point."""
        if not self.barred:
            return it.zL, it.zU
        t = min(_share(it.zL, -step.dzL, tau), _share(it.zU, -step.dzU, tau))
        zL, zU = it.zL + t * step.dzL, it.zU + t * step.dzU
        return self.kept(zL, p.dL, self.has_L, mu), self.kept(zU, p.dU, self.has_U, mu)

    def kept(self, z: Array, distance: Array, has: Array, mu: float) -> Array:
        center = mu / distance
        return np.where(has, np.minimum(np.maximum(z, center / SAFE), center * SAFE), 0.0)


def _share(room: Array, towards: Array, tau: float) -> float:
    """The largest t <= 1 at which ``t towards <= tau room``."""
    falls = np.flatnonzero(towards > 0)
    if not len(falls):
        return 1.0
    return min(1.0, float((tau * room[falls] / towards[falls]).min()))
