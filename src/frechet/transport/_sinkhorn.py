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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._arguments import check_resume
from frechet.linalg.systems._protocol import Ending, iterate
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
    x0: tuple[Tensor, Tensor] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 100_000,
    observe: Callable[[TransportState], bool] | None = None,
    resume: TransportState | None = None,
) -> TransportSolution:
    """Estimate the plan that carries the mass a to b at least cost, blurred by entropy.

    Args:
        cost: what it costs to carry a unit of mass from row i to column j, ``(n, m)``. A cost of inf forbids a pair.
        a: the masses of the rows, ``(n,)``, >= 0. Zero masses are dropped exactly. Default: uniform, with sum 1.
        b: the masses of the columns, ``(m,)``, with the sum of a (to rounding: b is then rescaled). Default: uniform.
        epsilon: the weight of the entropy, in the unit of the cost; ``0.01 * float(cost.max())`` for a relative one.
        method: "auto", "newton" or "sinkhorn", as above. Default: "auto".
        x0: a pair of potentials, such as ``(s.f, s.g)`` of a similar problem. The run then begins at `epsilon`
            itself. Default: zero, at a large epsilon.
        rtol: relative tolerance. Converged means ``marginal_error <= max(rtol * mass, atol)`` for the error recomputed
            from the potentials, the sum of abs(P 1 - a) and abs(P' 1 - b). Default: eps^(3/4) of the dtype, or eps (4 +
            4 max(abs(C)) / epsilon) where that is larger, since the rounding of the potentials alone changes the plan
            by that much. In float32 with epsilon = max(abs(C)) / 1000 it is 5e-4; use float64 for more.
        atol: absolute tolerance on the same error, in the unit of the masses. Default: 0.
        max_iterations: the most sweeps and Newton steps together. Default: 100 000.
        observe: is called with a `TransportState` after each round of sweeps and each Newton step. The run stops if it
            returns True. Default: none.
        resume: a `TransportState` of the same problem, from which the run goes on. Default: none.

    Returns:
        A `TransportSolution`. Its status is `converged` or one of these: `infeasible` (forbidden pairs leave no plan:
            `message` names the rows, the potentials are zero), `stagnated` (rounding), `max_iterations`, `stopped`,
            `nonfinite`.

    Raises:
        NonFinite: the cost holds a NaN.

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
        ending = Ending(Status.INFEASIBLE, problem)
        return _solution(given, None, *zero, math.inf, ending, (0, 0, 0), method, ())
    tolerance = max(torch.finfo(given.cost.dtype).eps ** 0.75, problem.rounding) if rtol is None else rtol
    target = max(tolerance, atol / given.mass)
    label = ("sinkhorn", f"{tuple(given.cost.shape)}", f"epsilon {epsilon:.9g}", f"cost {float(_total(problem)):.9e}")
    stage, g = _beginning(problem, given, x0, resume, label)
    # the smaller side is the one that Newton's system has
    turned = problem.T if problem.cost.shape[1] > problem.cost.shape[0] else problem
    run = _Run(given, problem, turned, label, method, tolerance, target, max_iterations)
    p = point(run.problem, g, stage)
    history = [p.error]
    s, ending = iterate(_Moment(p), partial(_judge, run, observe, history), partial(_step, run, history))
    p = s.point
    if (
        p.epsilon != epsilon and ending.status is not Status.NONFINITE
    ):  # on the way: the best f for the epsilon asked for
        p = point(run.problem, p.g, epsilon)
    counts = (s.swept, s.steps, s.products)
    return _solution(given, problem, *run.potentials(p), target, ending, counts, method, tuple(history))


@dataclass(frozen=True, eq=False)
class _Run:
    """The arguments of one call."""

    given: Inputs
    straight: Problem
    problem: Problem  # with rows and columns exchanged where there are more columns
    label: tuple[str, ...]
    method: Method
    tolerance: float
    target: float
    limit: int

    def potentials(self, p: Point) -> tuple[Tensor, Tensor]:
        """f and g of all rows and columns."""
        f, g = (p.f, p.g) if self.problem is self.straight else (p.g, p.f)
        return expanded(self.given, self.straight, f, g)

    def goal(self, p: Point) -> float:
        """The error that ends the present stage."""
        return 0.5 * self.target if p.epsilon == self.given.epsilon else max(STAGE, self.target)


@dataclass(frozen=True, eq=False)
class _Moment:
    """Where a run stands."""

    point: Point
    trust: Trust = field(default_factory=Trust)
    swept: int = 0  # sweeps
    steps: int = 0  # Newton steps
    products: int = 0
    kind: str = "start"  # what led here
    begun: int = 0  # history[begun:] is of this epsilon
    fresh: bool = True  # whether sweeps come next

    @property
    def iteration(self) -> int:
        return self.swept + self.steps


def _judge(
    run: _Run, observe: Callable[[TransportState], bool] | None, history: list[float], s: _Moment
) -> tuple[_Moment, Ending | None]:
    p, ending = s.point, None
    if not math.isfinite(p.error):
        ending = Ending(Status.NONFINITE, "a potential is not finite")
    elif observe is not None and observe(_state(run, s)):
        ending = Ending(Status.STOPPED, "observe returned True")
    elif p.error <= run.goal(p) and p.epsilon == run.given.epsilon:
        ending = Ending(Status.CONVERGED, f"the marginals are met to {run.tolerance:.3g} of the mass")
    elif s.iteration >= run.limit:
        ending = Ending(Status.MAX_ITERATIONS, f"{s.swept} sweeps and {s.steps} Newton steps were not enough")
    elif s.trust.damping >= MOST or _stuck(history[s.begun :], run.problem):
        ending = Ending(Status.STAGNATED, "the error has stopped falling")
    return s, ending


def _step(run: _Run, history: list[float], s: _Moment) -> tuple[_Moment, None]:
    """A smaller epsilon, a round of sweeps, or a Newton step."""
    p, goal, left = s.point, run.goal(s.point), run.limit - s.iteration
    if p.error <= goal:
        p = point(run.problem, p.g, max(p.epsilon / FALL, run.given.epsilon))
        s = replace(s, point=p, trust=Trust(), begun=len(history), fresh=True, kind="start")
    elif run.method == "sinkhorn" or s.fresh:
        few = min(5 if run.method == "newton" else ROUND, left)
        p, count = sweeps(run.problem, p, goal, few, math.inf if run.method == "sinkhorn" else PATIENCE)
        again = run.method == "auto" and count == ROUND
        s = replace(s, point=p, swept=s.swept + count, kind="sweeps", fresh=again)
    else:
        step = newton_step(run.problem, p, s.trust, goal)
        p, count = step.point, 0
        if step.taken and p.error > goal and left > 1 and p.error > 1e-6:
            p, count = sweeps(run.problem, p, goal, 1, math.inf)
        s = replace(s, point=p, trust=step.trust, products=s.products + step.products)
        s = replace(s, steps=s.steps + 1, swept=s.swept + count, kind="newton")
    history.append(p.error)
    return s, None


def _beginning(
    problem: Problem,
    given: Inputs,
    x0: tuple[Tensor, Tensor] | None,
    resume: TransportState | None,
    label: tuple[str, ...],
) -> tuple[float, Tensor]:
    """The first epsilon and the potential there: of columns, or of rows where the problem will be turned."""
    turned = problem.cost.shape[1] > problem.cost.shape[0]
    pair, stage = x0, problem.epsilon
    if resume is not None:
        check_resume("sinkhorn", resume.fingerprint, label)
        pair, stage = (resume.f, resume.g), resume.epsilon
    if pair is None:
        return max(spread(problem), problem.epsilon), torch.zeros_like(problem.a if turned else problem.b)
    sizes = tuple(tuple(x.shape) for x in pair)
    if sizes != tuple(tuple(x.shape) for x in (given.a, given.b)):
        raise ValueError(
            f"sinkhorn: x0 must be potentials of shapes {tuple(given.a.shape)} and {tuple(given.b.shape)}, got "
            f"{' and '.join(map(str, sizes))}"
        )
    chosen = (pair[0][given.rows] if turned else pair[1][given.columns]).detach().to(problem.cost)
    if not bool(torch.isfinite(chosen).all()):
        raise NonFinite("sinkhorn: x0 must be finite")
    return stage, chosen


def _stuck(history: list[float], problem: Problem) -> bool:
    """Whether many rounds gained nothing; few, where the error is one that rounding explains."""
    window = 6 if history and history[-1] < 1e2 * problem.rounding else 60
    return len(history) > window and min(history[-window:]) > 0.9 * min(history[:-window])


def _total(problem: Problem) -> Tensor:
    """A number that tells costs apart."""
    return torch.where(torch.isfinite(problem.cost), problem.cost, 0).sum() + (problem.a[0] - problem.b[0])


def _state(run: _Run, s: _Moment) -> TransportState:
    p = s.point
    return TransportState(run.label, s.iteration, s.kind, p.epsilon, p.error * run.given.mass, *run.potentials(p))


def _solution(
    given: Inputs,
    problem: Problem | None,
    f: Tensor,
    g: Tensor,
    target: float,
    ending: Ending,
    counts: tuple[int, int, int],
    method: str,
    history: tuple[float, ...],
) -> TransportSolution:
    """Everything from the potentials as they are handed out."""
    cost, a, b, eps = given.cost, given.a, given.b, given.epsilon
    status, message = ending.status, ending.detail
    if problem is not None and problem.pattern is not None:
        allowed = torch.ones_like(cost, dtype=torch.bool)
        allowed[given.rows.unsqueeze(1), given.columns] = problem.pattern.allowed
        cost = torch.where(allowed, cost, math.inf)
    E = exponent(f, g, cost, a, b, eps, a.sum())
    P = torch.exp(E)
    error = float((P.sum(1) - a).abs().sum() + (P.sum(0) - b).abs().sum())
    if status is Status.CONVERGED and not error <= target * given.mass:
        status = Status.STAGNATED
        message = (
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
        f, g, cost, a, b, eps, status, message, value, value + entropy, dual, distance, error, *counts, method,
        tuple(given.mass * e for e in history),
    )  # fmt: skip
