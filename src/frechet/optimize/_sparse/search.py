"""One point of sparse Levenberg-Marquardt: r and J there, steps from it, and the tests whether it is a solution."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._least_squares.damped_step import blocked
from frechet.optimize._least_squares.optimality import Rules
from frechet.optimize._least_squares.residual import Point, Residual, length
from frechet.optimize._least_squares.robust import row_scales
from frechet.optimize._least_squares.run import LeastSquaresState
from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.colored_products import check_declared, check_gradient, derivative
from frechet.optimize._sparse.steps import Chord, Steps
from frechet.optimize._sparse.structure import Structure

ACCEPT = 1e-4  # gain, as in levenberg_marquardt
NEAR = 10.0  # within this factor of a tolerance the undamped step is computed


@dataclass(frozen=True, eq=False)
class Moment:
    """r and J of the weighted problem at a point, on the device of r; gradient and column norms on the host."""

    point: Point
    r: Tensor
    J: BlockJacobian
    gradient: Tensor
    columns: Tensor
    noise: float

    @property
    def size(self) -> float:
        return length(self.r)

    def gain(self, p: Tensor) -> float:
        """What p takes off r'r / 2 in the linear model."""
        return self.predicted(self.gradient, p)

    def predicted(self, gradient: Tensor, p: Tensor) -> float:
        """The same where the gradient is that of a point nearby."""
        return -float(gradient @ p) - 0.5 * length(self.J.times(p.to(self.r))) ** 2


@dataclass(frozen=True, eq=False)
class Trial:
    """A step, and what it promises; `chord` gives the undamped one of other gradients from the same factors."""

    p: Tensor
    predicted: float
    chord: Chord | None = None


def moment(problem: Residual, point: Point, structure: Structure, first: bool = False) -> Moment | None:
    """r and J at `point`; None where J is not finite. Raises where the function contradicts the structure."""
    d = derivative(problem, point, structure)
    problem.ledger.jacobians += 1
    J = d.blocks()
    if not J.finite():
        return None
    if first:
        check_declared(problem, point, J, d)
    r, u = point.r, point.r
    if problem.rho is not None:
        factors, rows = row_scales(problem.rho, r, problem.rho_scale)
        J, r, u = J.weighted(rows), factors * r, rows * factors * r
    exact = d.gradient(u)
    if exact is None:
        exact = J.transposed_times(r)
    else:
        problem.ledger.products += 1
        if not bool(exact.isfinite().all()):
            return None
        check_gradient(problem, J, exact, r)
    noise = problem.eps * (length(J.absolute().times(point.x.abs().to(r))) + length(r))
    return Moment(point, r, J, exact.cpu(), J.squares().sqrt().cpu(), noise)


@dataclass(frozen=True, eq=False)
class Search:
    """What the steps from one point need, and the tests there."""

    problem: Residual
    rules: Rules
    steps: Steps
    now: Moment
    D: Tensor

    @property
    def free(self) -> Tensor:
        """The parameters that no bound holds and that r depends on."""
        return self.released(self.now.point.x, self.now.gradient)

    def released(self, x: Tensor, gradient: Tensor) -> Tensor:
        return ~blocked(x, gradient, self.problem.lower, self.problem.upper) & (self.now.columns > 0)

    @property
    def optimality(self) -> float:
        """The largest cosine between r and a free column of J."""
        now = self.now
        cosines = now.gradient.abs() / (now.columns * max(now.size, 1e-300))
        return float(torch.where(self.free, cosines, 0.0).max()) if len(now.columns) else 0.0

    @property
    def least(self) -> float:
        """A gain that cannot be seen, or that is not asked for."""
        return max(self.rules.ftol * self.now.size**2 / 2, self.now.noise * self.now.size)

    def state(self, iteration: int, damping: float) -> LeastSquaresState:
        point, spent = self.now.point, self.problem.ledger.residuals
        return LeastSquaresState(iteration, point.x, point.cost, self.optimality, damping, spent)

    def settled(self) -> tuple[Status | None, str]:
        """What can be said without a step."""
        now = self.now
        if now.size <= now.noise:
            return Status.CONVERGED, f"the residual is zero to rounding: norm(r) = {now.size:.3g}"
        if now.point.cost == 0 and self.problem.unit != 1:
            return Status.STAGNATED, f"the residual has become too small for its unit: {now.size:.3g}"
        if now.point.cost == 0:
            return Status.CONVERGED, f"the cost is zero to rounding: norm(r) = {now.size:.3g}"
        if not bool(now.columns.any()):
            return Status.STAGNATED, "the Jacobian is zero: r does not change with any parameter"
        if not bool(self.free.any()):
            return Status.CONVERGED, "every parameter lies on a bound that holds it"
        if self.optimality <= self.rules.gtol:
            return Status.CONVERGED, f"r is orthogonal to the Jacobian: largest cosine {self.optimality:.3g}"
        return None, ""

    def step(self, mu: float) -> Trial | None:
        """The step damped by `mu`; None where its equations are singular to rounding."""
        p = self._boxed(mu)
        return None if p is None else Trial(p, self.now.gain(p))

    def undamped(self) -> Trial | None:
        now, problem = self.now, self.problem
        chord = self.steps.chord(now.J, self.D, self.free)
        if chord is not None:
            p = chord(now.gradient, True)
            x = now.point.x + p
            if bool(p.isfinite().all()) and not bool(((x < problem.lower) | (x > problem.upper)).any()):
                return Trial(p, now.gain(p), chord)
        p = self._boxed(0.0)
        return None if p is None else Trial(p, now.gain(p))

    def near(self, trial: Trial) -> bool:
        """Whether the point may be a solution, by a damped step that gains or moves little."""
        return trial.predicted <= NEAR * self.least or self._share(trial.p) <= NEAR * self.rules.xtol

    def moves(self, trial: Trial) -> bool:
        """Whether a step changes any parameter by more than rounding."""
        x, eps = self.now.point.x.abs(), self.problem.eps
        return bool((trial.p.abs() > eps * torch.maximum(x, eps * self.rules.x0)).any())

    def solved(self, trial: Trial) -> str:
        """Why the point is a solution, by its undamped step; empty where it is none."""
        if abs(trial.predicted) <= self.least:
            asked = self.rules.ftol * self.now.size**2 / 2 >= self.least
            what = "less than ftol of it" if asked else "no more than rounding errors"
            return f"a full step would reduce the cost by {what}"
        if (share := self._share(trial.p)) <= self.rules.xtol:
            return f"a full step would change x by no more than xtol: {share:.3g} of its size"
        return ""

    def tried(self, trial: Trial) -> tuple[Moment | None, float]:
        """Where the step leads, if it gains what it promised, and the ratio of the two."""
        now, slack = self.now, self.now.noise * self.now.size
        point = self.problem.at(now.point.x + trial.p)
        if point is None or not trial.predicted > 0:
            return None, -math.inf
        gain = (now.point.cost - point.cost + slack) / (trial.predicted + slack)
        return (moment(self.problem, point, now.J.structure) if gain > ACCEPT else None), gain

    def at(self, now: Moment) -> Search:
        return replace(self, now=now)

    def _share(self, p: Tensor) -> float:
        """norm(D p) of norm(D x), for the parameters that r depends on."""
        D = torch.where(self.now.columns > 0, self.D, 0.0)
        reach = length(D * self.now.point.x)
        return length(D * p) / reach if reach > 0 else math.inf

    def _boxed(self, mu: float) -> Tensor | None:
        """The step, where entries that would leave the box stop at its side and the others are solved for again."""
        x, problem, free = self.now.point.x, self.problem, self.free
        low, high = problem.lower - x, problem.upper - x
        held, right = torch.zeros_like(x), self.now.r
        forcing = min(0.001, math.sqrt(self.optimality)) * self.optimality
        for _ in range(len(x) + 1):
            found = self.steps.solve(self.now.J, right, self.D, free, mu, max(forcing, 2 * problem.eps))
            if found is None:
                return None
            p, products = found
            problem.ledger.products += products
            p = p + held
            out = free & ((p < low) | (p > high))
            if not bool(out.any()):
                return torch.minimum(torch.maximum(p, low), high)
            free = free & ~out
            held = torch.where(free, 0.0, torch.minimum(torch.maximum(p, low), high))
            right = self.now.r + self.now.J.times(held.to(self.now.r))
            if not bool(free.any()):
                return held
        return None
