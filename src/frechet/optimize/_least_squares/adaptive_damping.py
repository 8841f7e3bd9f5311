"""Levenberg-Marquardt damped by the sizes of residual and gradient: fast where J is singular at the solution.

    (J'J + mu I) p = -J'r,     mu = lam (xi norm(r)^eta + (1 - xi) norm(J'r)^eta)

With norm(r) -> 0 the damping vanishes at the rate that keeps the convergence superlinear under Hoelder metric
subregularity, beta dist(x, solutions) <= norm(r)^delta, where solutions need not be isolated and J may lose rank; eta
must lie in (0, 4 delta). lam is raised while trial steps fail and lowered after good ones.

**Source.** M. Ahookhosh, F. J. Aragon Artacho, R. M. T. Fleming and P. T. Vuong (2019), Local convergence of the
Levenberg- Marquardt method under Hoelder metric subregularity, Advances in Computational Mathematics 45, arXiv
1703.07461; the global version with lam and the nonmonotone value from the same authors, Finding zeros of Hoelder
metrically subregular mappings via globally convergent Levenberg-Marquardt methods, arXiv 1812.00818.

**Differs from the source.**
1. A step that fails after all trials is refused; it is accepted there.
2. mu has the floor (eps norm(J))^2 instead of 1e-8, and lam 1e-10 instead of 1e-3: fixed floors stop the fast
   convergence.
3. r is measured in units of its start, and the parameters in units that give the columns of J norm one at the start:
   powers of norm(r) and norm(J'r) have no meaning otherwise.
4. The least-squares problem [J; sqrt(mu) I] is solved by singular values.
5. Where it stops before it is solved, the best point is returned: the last one may lie above by orders of magnitude.

**Cost.** One residual per trial, one Jacobian and one SVD per step; a change of lam costs n^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from frechet.linalg._result import Status
from frechet.optimize._geometric import Geometric
from frechet.optimize._least_squares.damped_step import boxed, column_scale, factored
from frechet.optimize._least_squares.last_digits import at_limit, polished
from frechet.optimize._least_squares.optimality import IDLE, Rules, free_to_move, judged, too_short
from frechet.optimize._least_squares.residual import LARGE, Linearization, Residual, length
from frechet.optimize._least_squares.run import RESUMED, LeastSquaresState, Run

FAIR, GOOD = 1e-4, 0.9
RAISE, LOWER = 2.0, 0.5
FIRST, LEAST, MOST = 1e-2, 1e-10, 1e20  # of lam
MEMORY = 0.95  # of the nonmonotone value


def adaptive_damping(  # noqa: C901 - one branch for each way to go on or to end
    residual: Residual,
    linear: Linearization,
    rules: Rules,
    *,
    eta: float = 1.2,
    observe: Callable[[LeastSquaresState], bool] | None = None,
    resume: LeastSquaresState | None = None,
) -> Run:
    """Run from `linear`, with the exponent `eta`."""
    D, unit = column_scale(linear.columns), max(linear.size, 1e-300)
    lam, xi, value = FIRST, 1.0, linear.cost
    iterations, history, status = 0, [linear.cost], None
    idle, pace, best, before = 0, Geometric(torch.dot), linear, 0
    if resume is not None:
        lam, xi, m = resume.control, _xi(before := int(resume.memory["steps"])), resume.memory
        D, unit, value, idle = m["scale"], m["unit"], m["value"], int(m["idle"])
        pace, best = _pace(m), _best(residual, linear, m)
    while True:
        free = free_to_move(residual, linear)
        factor = factored(linear, D, free)
        verdict = judged(residual, linear, rules, known=factor if linear.J.numel() >= LARGE else None)
        if verdict.solved:
            best = polished(residual, linear, rules) if rules.tight else linear
            break
        size, slope = linear.size / unit, length(torch.where(free, linear.gradient / D, 0.0)) / unit
        if observe is not None and observe(
            LeastSquaresState(
                iterations,
                linear.x,
                linear.cost,
                verdict.optimality,
                lam,
                residual.ledger.residuals,
                _memory(D, unit, value, idle, before + iterations, pace, best),
            )
        ):
            return Run(best, Status.STOPPED, iterations, tuple(history), verdict if best is linear else None)
        if idle >= IDLE:
            status = Status.STAGNATED
            break
        floor = (residual.eps * float(factor.s[0])) ** 2 if len(factor.s) else 0.0
        accepted, slack, power = None, linear.noise * linear.size, 1.0
        while accepted is None and lam < MOST and residual.ledger.residuals < rules.max_evaluations:
            mu = max(floor, lam * (xi * size**eta + (1 - xi) * slope**eta))
            p = boxed(linear, factor, factor.step(mu), mu, residual.lower, residual.upper)
            predicted = factor.predicted(linear, p)
            if too_short(residual, linear, rules, p):
                break
            point = residual.at(linear.x + p)
            gain = -math.inf
            if point is not None and predicted > 0:
                gain = (value - point.cost + slack) / (predicted + slack)
            if gain >= FAIR and point is not None:
                accepted = residual.linearized(point)
            if accepted is None:
                lam, power = lam * RAISE**power, power + 1  # by 2, 4, 8, ...
            elif gain >= GOOD:
                lam = max(LOWER * lam, LEAST)
        if accepted is None:
            spent = residual.ledger.residuals >= rules.max_evaluations
            status = Status.MAX_ITERATIONS if spent else Status.STAGNATED
            break
        idle = idle + 1 if abs(linear.cost - accepted.cost) <= 0.1 * slack else 0
        linear, iterations = at_limit(residual, accepted, accepted.x - linear.x, pace), iterations + 1
        best = linear if linear.cost <= best.cost else best
        value = (1 - MEMORY) * linear.cost + MEMORY * max(value, linear.cost)
        xi = _xi(before + iterations)
        history.append(linear.cost)
    return Run(best, status, iterations, tuple(history))


def _xi(steps: int) -> float:
    """The share of norm(r) in the damping."""
    share = MEMORY**steps
    return 1.0 if not steps else MEMORY if share >= 1e-2 else max(share, 1e-10)


# --- what a run goes on with ------------------------------------------------------------------------------------------


def _memory(
    scale: Tensor, unit: float, value: float, idle: int, steps: int, pace: Geometric, best: Linearization
) -> dict[str, float | Tensor]:
    kept = {"scale": scale, "unit": unit, "value": value, "idle": idle, "steps": steps, "best": best.x}
    rate = {"q": pace.q, "wait": pace.wait, "row": pace.row, "most": pace.most}
    last = {} if pace.last is None else {"last": pace.last}
    return {"method": RESUMED.index("adaptive-damping"), **kept, **rate, **last}


def _pace(memory: Mapping[str, Any]) -> Geometric:
    pace = Geometric(torch.dot)
    pace.last, pace.q = memory.get("last"), memory["q"]
    pace.wait, pace.row, pace.most = memory["wait"], memory["row"], memory["most"]
    return pace


def _best(residual: Residual, linear: Linearization, memory: Mapping[str, Any]) -> Linearization:
    """The best point so far, at which the residual is evaluated again."""
    if torch.equal(memory["best"], linear.x):
        return linear
    point = residual.at(memory["best"])
    found = None if point is None else residual.linearized(point)
    return linear if found is None else found
