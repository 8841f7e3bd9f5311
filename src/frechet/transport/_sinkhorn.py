"""Entropic optimal transport: Sinkhorn's sweeps while they are fast, Newton's method where they are not.

    min <C, P> + epsilon KL(P | a b'/m)    over P >= 0 with P 1 = a, P' 1 = b

The potentials are followed from a large epsilon to the one that is asked for, a factor 4 at a time, each time to an
error of 1e-2. Sweeps converge fast for large epsilon and linearly with a rate near one for small; there the Hessian of
the dual function is nearly sparse, and a handful of Newton steps reach rounding.

    method="auto"       sweeps, and Newton steps where the rate of the sweeps says that they would take long
    "newton"            Newton steps after a few sweeps at each epsilon
    "sinkhorn"          sweeps only

**Source.** M. Cuturi (2013), Sinkhorn distances, arXiv 1306.0895; B. Schmitzer (2019), Stabilized sparse scaling
algorithms for entropy regularized transport problems, doi 10.1137/16M1106018 (epsilon scaling); see `_newton.py` for
the steps.

**Cost.** n m numbers for the plan, twice that while exponentials are taken; see `_scaling.py` and `_newton.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_resume
from frechet.transport._certificate import gap
from frechet.transport._newton import MOST, Trust, newton_step
from frechet.transport._problem import Inputs, Problem, checked, expanded, reduced, spread
from frechet.transport._result import TransportSolution, TransportState, exponent
from frechet.transport._scaling import Point, point, sweeps

Method = Literal["auto", "newton", "sinkhorn"]
FALL = 4.0  # of epsilon, from one stage to the next
STAGE = 1e-2  # error to which the earlier stages are solved
PATIENCE = 100.0  # sweeps that cost as much as the Newton steps that they would save
ROUND = 50  # sweeps, at most, between two looks


@torch.no_grad()
def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    epsilon: float,
    method: Method = "auto",
    start: tuple[Tensor, Tensor] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 100_000,
    observe: Callable[[TransportState], bool] | None = None,
    resume: TransportState | None = None,
) -> TransportSolution:
    """The plan that carries the mass a ``(n,)`` to b ``(m,)`` at least cost ``(n, m)``, blurred by entropy.

    `a` and `b` must have the same sum (to rounding: b is then rescaled) and are uniform, with sum one, if left out.
    `epsilon` is absolute, in the units of the cost: write ``epsilon=0.01 * float(cost.max())`` for a relative one. Zero
    masses are dropped exactly; a cost of inf forbids a pair. `start` is a pair of potentials, such as ``(s.f, s.g)`` of
    a similar problem: the run then begins at `epsilon` itself.

    Converged means ``marginal_error <= max(rtol * m, atol)`` for the error recomputed from the potentials, the sum of
    |P 1 - a| and |P' 1 - b|, with m the mass. If left out, rtol is eps^(3/4) of the dtype or, where that is larger,
    eps (4 + 4 max|C| / epsilon): the potentials are of the size of the cost, and their rounding alone changes the plan
    by that much. In float32 with epsilon = max|C| / 1000 it is 5e-4; use float64 for more.

    Other statuses: `infeasible` (forbidden pairs leave no plan: `reason` names the rows, the potentials are zero),
    `stagnated` (rounding), `max_iterations` (sweeps and Newton steps together), `stopped`, `nonfinite`. A NaN in the
    cost raises `NonFinite`. `observe` is called after each round of sweeps and each Newton step.

    Example:
        >>> import torch
        >>> from frechet import sinkhorn
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> s = sinkhorn(cost, epsilon=0.5).checked()
        >>> t = 1 / (1 + torch.exp(torch.tensor(-2.0, dtype=torch.float64)))  # the part of the mass that stays
        >>> torch.allclose(s.plan().diagonal(), t / 2), s.gap >= 0
        (True, True)
    """
    if method not in ("auto", "newton", "sinkhorn"):
        raise ValueError(f"sinkhorn: method must be 'auto', 'newton' or 'sinkhorn', got {method!r}")
    given = checked("sinkhorn", cost, a, b, epsilon)
    if (rtol is not None and not 0 <= rtol < math.inf) or not 0 <= atol < math.inf:
        raise ValueError(f"sinkhorn: rtol and atol must be numbers >= 0, got {rtol} and {atol}")
    if max_iterations < 0:
        raise ValueError(f"sinkhorn: max_iterations must be >= 0, got {max_iterations}")
    problem = reduced(given)
    if isinstance(problem, str):
        zero = torch.zeros_like(given.a), torch.zeros_like(given.b)
        return _solution(given, None, *zero, math.inf, Status.INFEASIBLE, problem, (0, 0, 0), method, ())
    tolerance = max(torch.finfo(given.cost.dtype).eps ** 0.75, problem.rounding) if rtol is None else rtol
    target = max(tolerance, atol / given.mass)
    label = ("sinkhorn", f"{tuple(given.cost.shape)}", f"epsilon {epsilon:.9g}", f"cost {float(_total(problem)):.9e}")
    stage, g = _beginning(problem, given, start, resume, label)

    flipped = problem.cost.shape[1] > problem.cost.shape[0]
    if flipped:  # the smaller side is the one that Newton's system has
        problem = problem.T
    p = point(problem, g, stage)
    swept, steps, products, trust, history = 0, 0, 0, Trust(), [p.error]
    kind, begun, fresh, status, reason = "start", 0, True, None, ""  # history[begun:] is of this epsilon
    while True:
        goal = 0.5 * target if p.epsilon == epsilon else max(STAGE, target)
        if not math.isfinite(p.error):
            status, reason = Status.NONFINITE, "a potential is not finite"
        elif observe is not None and observe(_state(given, problem, p, label, swept + steps, kind, flipped)):
            status, reason = Status.STOPPED, "observe returned True"
        elif p.error <= goal and p.epsilon == epsilon:
            status, reason = Status.CONVERGED, f"the marginals are met to {tolerance:.3g} of the mass"
        elif swept + steps >= max_iterations:
            status, reason = Status.MAX_ITERATIONS, f"{swept} sweeps and {steps} Newton steps were not enough"
        elif trust.damping >= MOST or _stuck(history[begun:], problem):
            status, reason = Status.STAGNATED, "the error has stopped falling"
        if status is not None:
            break
        left = max_iterations - swept - steps
        if p.error <= goal:
            stage = max(p.epsilon / FALL, epsilon)
            p, trust, begun, fresh, kind = point(problem, p.g, stage), Trust(), len(history), True, "start"
        elif method == "sinkhorn" or fresh:
            few = min(5 if method == "newton" else ROUND, left)
            p, count = sweeps(problem, p, goal, few, math.inf if method == "sinkhorn" else PATIENCE)
            swept, kind, fresh = swept + count, "sweeps", method == "auto" and count == ROUND
        else:
            step = newton_step(problem, p, trust, goal)
            p, trust, products, steps, kind = step.point, step.trust, products + step.products, steps + 1, "newton"
            if step.taken and p.error > goal and left > 1:
                p, count = sweeps(problem, p, goal, 1, math.inf) if p.error > 1e-6 else (p, 0)
                swept += count
        history.append(p.error)

    if p.epsilon != epsilon and status is not Status.NONFINITE:  # on the way: the best f for the epsilon asked for
        p = point(problem, p.g, epsilon)
    f, g = (p.g, p.f) if flipped else (p.f, p.g)
    problem = problem.T if flipped else problem
    f, g = expanded(given, problem, f, g)
    return _solution(given, problem, f, g, target, status, reason, (swept, steps, products), method, tuple(history))


def _beginning(
    problem: Problem,
    given: Inputs,
    start: tuple[Tensor, Tensor] | None,
    resume: TransportState | None,
    label: tuple[str, ...],
) -> tuple[float, Tensor]:
    """The first epsilon and the potential there: of columns, or of rows where the problem will be turned."""
    turned = problem.cost.shape[1] > problem.cost.shape[0]
    pair, stage = start, problem.epsilon
    if resume is not None:
        check_resume("sinkhorn", resume.fingerprint, label)
        pair, stage = (resume.f, resume.g), resume.epsilon
    if pair is None:
        return max(spread(problem), problem.epsilon), torch.zeros_like(problem.a if turned else problem.b)
    sizes = tuple(tuple(x.shape) for x in pair)
    if sizes != tuple(tuple(x.shape) for x in (given.a, given.b)):
        raise ValueError(
            f"sinkhorn: start must be potentials of shapes {tuple(given.a.shape)} and {tuple(given.b.shape)}, got "
            f"{' and '.join(map(str, sizes))}"
        )
    chosen = (pair[0][given.rows] if turned else pair[1][given.columns]).detach().to(problem.cost)
    if not bool(torch.isfinite(chosen).all()):
        raise NonFinite("sinkhorn: start must be finite")
    return stage, chosen


def _stuck(history: list[float], problem: Problem) -> bool:
    """Whether many rounds gained nothing; few, where the error is one that rounding explains."""
    window = 6 if history and history[-1] < 1e2 * problem.rounding else 60
    return len(history) > window and min(history[-window:]) > 0.9 * min(history[:-window])


def _total(problem: Problem) -> Tensor:
    """A number that tells costs apart."""
    return torch.where(torch.isfinite(problem.cost), problem.cost, 0).sum() + (problem.a[0] - problem.b[0])


def _state(
    given: Inputs, problem: Problem, p: Point, label: tuple[str, ...], iteration: int, kind: str, flipped: bool
) -> TransportState:
    f, g = (p.g, p.f) if flipped else (p.f, p.g)
    f, g = expanded(given, problem.T if flipped else problem, f, g)
    return TransportState(label, iteration, kind, p.epsilon, p.error * given.mass, f, g)


def _solution(
    given: Inputs,
    problem: Problem | None,
    f: Tensor,
    g: Tensor,
    target: float,
    status: Status,
    reason: str,
    counts: tuple[int, int, int],
    method: str,
    history: tuple[float, ...],
) -> TransportSolution:
    """Everything from the potentials as they are handed out."""
    cost, a, b, eps = given.cost, given.a, given.b, given.epsilon
    if problem is not None and problem.pattern is not None:
        allowed = torch.ones_like(cost, dtype=torch.bool)
        allowed[given.rows.unsqueeze(1), given.columns] = problem.pattern.allowed
        cost = torch.where(allowed, cost, math.inf)
    E = exponent(f, g, cost, a, b, eps, a.sum())
    P = torch.exp(E)
    error = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
    if status is Status.CONVERGED and not error <= target * given.mass:
        status = Status.STAGNATED
        reason = (
            f"the marginals are met to {error / given.mass:.3g} of the mass, not to {target:.3g}; rounding at this "
            f"epsilon explains {problem.rounding if problem else 0.0:.3g}: raise rtol or epsilon, or use float64"
        )
    empty = status is Status.INFEASIBLE
    value = float(torch.where(P > 0, cost, 0.0).mul(P).sum())
    entropy = eps * float((P * torch.where(P > 0, (f.unsqueeze(1) + g - cost) / eps, 0.0)).sum())
    dual = float((a * f).sum() + (b * g).sum() - eps * (P.sum() - a.sum()))
    distance = math.inf if empty else gap(P, E, a, b, eps, cost)
    if empty:
        value, entropy, dual = math.inf, 0.0, math.inf
    return TransportSolution(
        f, g, cost, a, b, eps, status, reason, value, value + entropy, dual, distance, error, *counts, method,
        tuple(given.mass * e for e in history),
    )  # fmt: skip
