"""Hessian-free training: a damped Gauss-Newton step on one batch, from products alone or through a Gram matrix.

    (G + damping D) d = -g,   x+ = x + t d,   t <= lr

G is the Gauss-Newton matrix of the criterion and D a diagonal, by default the identity. The gain of a step is the
change of the loss over the change that the quadratic model predicts. Where it is poor the damping rises, where it is
good the damping falls. The loss is judged on a second batch where there is one: a step that solves a small batch
exactly gains there all that it predicts, and nothing elsewhere.

**Source.** J. Martens (2010), Deep learning via Hessian-free optimization, ICML: the stop of conjugate gradients
(section 4.4), the start from the last direction (4.5), the damping (4.1). S. G. Nash, A. Sofer (1990), Assessing a
search direction within a truncated-Newton method, doi 10.1016/0167-6377(90)90065-D: the stop by decrease.
**Differs from the source.** (1) The true Hessian of any criterion. (2) The last direction is left out where the model
rises along what comes of it. (3) The step is halved until the judged loss falls; where it never does, no step is taken.
(4) Small batches are solved exactly, see `_small_batch`.
**Cost** in gradients: one, about two for each iteration of conjugate gradients and one product more, and a third for
each judged loss, of which there are at least two. With `adapt=False` no loss is judged.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg import CGState, Status, cg
from frechet.objective import Objective
from frechet.operators import LinearOperator, from_diagonal
from frechet.operators.derivatives import gauss_newton
from frechet.space import Space
from frechet.train._small_batch import exact_direction

Stop = Literal["martens", "decrease"]
Solver = Literal["auto", "cg", "gram"]
Preconditioner = Callable[[Objective, Tensor, float], LinearOperator]

POOR, GOOD = 0.25, 0.75  # gains at which Martens changes the damping
CHANGE = 1.5  # the factor by which he does
REFUSED = 4.0  # the factor where no step lowers the loss
HALVINGS = 4  # of a step before it is refused
SLOW, SHARE, LEAST = 5e-4, 0.1, 10  # Martens' epsilon and k = max(10, 0.1 i)
LITTLE = 0.5  # Nash and Sofer's bound of i (1 - phi_{i-1} / phi_i)


@dataclass(frozen=True, eq=False)
class GaussNewtonState:
    """What one step hands to the next: the damping, and the last direction ``(n,)``."""

    damping: float
    direction: Tensor
    iteration: int = 0


@dataclass(frozen=True)
class GaussNewtonStep:
    """How a step went.

    `loss` and `after` are those of the judged batch. `gain` is their difference over the `predicted` one. `length` is
    the factor of the direction: at most lr, and zero where the step was refused. `iterations` and `products` are those
    of conjugate gradients, zero for the Gram matrix.
    """

    loss: float
    after: float
    predicted: float
    gain: float
    length: float
    damping: float
    status: Status
    iterations: int
    products: int
    gradients: int
    values: int


def gauss_newton_init(x: Tensor, *, damping: float = 1.0) -> GaussNewtonState:
    """Return the state before the first step from `x` ``(n,)``.

    Args:
        x: the point, as in `Objective.point`.
        damping: the first damping, in the unit of the curvature.
    """
    if not 0 < damping < math.inf:
        raise ValueError(f"gauss_newton_init: damping must be a number > 0, got {damping}")
    return GaussNewtonState(damping, torch.zeros_like(x))


@torch.no_grad()
def gauss_newton_step(
    objective: Objective,
    x: Tensor,
    state: GaussNewtonState,
    *,
    lr: float | Tensor = 1.0,
    gradient: Tensor | None = None,
    judge: Objective | None = None,
    adapt: bool = True,
    restrict: Sequence[str] | None = None,
    scale: Tensor | None = None,
    solver: Solver = "auto",
    preconditioner: Preconditioner | None = None,
    stop: Stop | None = "martens",
    rtol: float = 1e-8,
    max_iterations: int = 30,
    warm: float = 0.95,
) -> tuple[Tensor, GaussNewtonState, GaussNewtonStep]:
    """Return the point after one damped Gauss-Newton step on a batch.

    Args:
        objective: the objective on the batch.
        x: the point ``(n,)``.
        state: of `gauss_newton_init`, or of the last step.
        lr: the longest step, as a factor of the direction; a number, or a factor for each parameter ``(n,)``.
        gradient: the right-hand side ``(n,)``, such as a clipped gradient. Default: the objective's gradient.
        judge: the objective on a second batch, by which steps are judged. Default: the batch itself.
        adapt: whether steps are judged and the damping changes. Otherwise each step is taken as it is.
        restrict: the names of the parameters that move. Default: all.
        scale: D ``(n,)``, positive. Default: ones.
        solver: ``"cg"``, or ``"gram"`` for the exact solution through the matrix J J' of the outputs of all examples.
            Default: the second one where it takes less time and memory.
        preconditioner: a function of the objective, the point and the damping that returns an operator near the inverse
            of G + damping D, on the parameters that move.
        stop: the rule that ends conjugate gradients: ``"martens"``, ``"decrease"`` or None for `rtol` alone.
        rtol: ends conjugate gradients, relative to the norm of the right-hand side.
        max_iterations: of conjugate gradients.
        warm: the factor of the last direction with which they begin; 0 begins at zero.

    Returns:
        The next point, the next state, and how the step went.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.train import gauss_newton_init, gauss_newton_step
        >>> X, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
        >>> objective = Objective(torch.nn.Linear(3, 1).double(), squared_error(), [(X, y)])
        >>> x = objective.point
        >>> state = gauss_newton_init(x, damping=1e-8)
        >>> x, state, info = gauss_newton_step(objective, x, state)
        >>> round(info.gain, 6), float(objective.gradient(x).abs().max()) < 1e-6
        (1.0, True)
    """
    _check(lr, solver, stop, scale)
    names = None if restrict is None else [glob.escape(n) for n in restrict]
    space = objective.space if names is None else objective.space.restrict(names)
    at = slice(None) if names is None else objective.space.indices(space)
    D = (torch.ones_like(x) if scale is None else scale.to(x))[at]
    damping = state.damping
    found = exact_direction(objective, x, space, None if gradient is None else gradient[at], damping, D, solver)
    if found is not None:
        direction = _Direction(found.d, found.bend, Status.CONVERGED, 0, 0)
        slope, gradients = found.slope, found.gradients
    else:
        g = objective.gradient(x)[at] if gradient is None or adapt else None
        rhs = g if gradient is None else gradient[at]
        assert rhs is not None  # one of both is there
        G = gauss_newton(objective, x=x, restrict=names)
        M = None if preconditioner is None else preconditioner(objective, x, damping)
        solve = _Solve(space, G + from_diagonal(damping * D, domain=space), rhs, M, stop, rtol, max_iterations)
        direction = solve.from_start(warm * state.direction[at] if warm and state.iteration else None, damping, D)
        slope = float(space.inner(rhs if g is None else g, direction.d))
        gradients = int(g is not None)
    d = torch.zeros_like(x)
    d[at] = direction.d
    longest, along = _rated(lr, d, at)
    bend = direction.bend
    if along is not d:  # groups of different rates: another direction than the model's
        slope = float(objective.space.inner(objective.gradient(x), along))
        part = along[at]
        bend, gradients = float(space.inner(part, gauss_newton(objective, x=x, restrict=names) @ part)), gradients + 1
    spent = (direction.status, direction.iterations, direction.products, gradients)
    if not adapt:
        predicted = -(longest * slope + longest**2 * bend / 2)
        info = GaussNewtonStep(math.nan, math.nan, predicted, math.nan, longest, damping, *spent, 0)
        return x + longest * along, GaussNewtonState(damping, d, state.iteration + 1), info
    trial = judged(judge or objective, x, along, longest, slope, bend)
    told = (trial.loss, trial.after, trial.predicted, trial.gain, trial.length, damping)
    info = GaussNewtonStep(*told, *spent, trial.values)
    following = GaussNewtonState(
        damping * trial.change, d if trial.length else torch.zeros_like(d), state.iteration + 1
    )
    return x + trial.length * along if trial.length else x, following, info


def _rated(lr: float | Tensor, d: Tensor, at: slice | Tensor) -> tuple[float, Tensor]:
    """The largest rate, and the direction with those of other parameters relative to it."""
    if not isinstance(lr, Tensor):
        return lr, d
    rates = lr.to(d)[at]
    longest = float(rates.max()) if len(rates) else 0.0
    if longest == 0 or bool((rates == longest).all()):
        return longest, d
    along = torch.zeros_like(d)
    along[at] = d[at] * (rates / longest)
    return longest, along


@dataclass(frozen=True, eq=False)
class _Direction:
    """A direction d with d'G d."""

    d: Tensor
    bend: float
    status: Status
    iterations: int
    products: int


@dataclass(eq=False)
class _Solve:
    """(G + damping D) d = -g by conjugate gradients, ended by the decrease of the model."""

    space: Space
    A: LinearOperator
    g: Tensor
    M: LinearOperator | None
    stop: Stop | None
    rtol: float
    limit: int
    phis: list[float] = field(default_factory=list)

    def from_start(self, x0: Tensor | None, damping: float, D: Tensor) -> _Direction:
        found = self._run(x0, damping, D)
        if x0 is not None and not self.phis[-1] < 0:
            found = self._run(None, damping, D)
        return found

    def _run(self, x0: Tensor | None, damping: float, D: Tensor) -> _Direction:
        self.phis = []
        s = cg(
            self.A, -self.g, x0=x0, preconditioner=self.M, rtol=self.rtol, max_iterations=self.limit,
            observe=self._observe,
        )  # fmt: skip
        d = s.x if self.phis and self.phis[-1] < 0 else torch.zeros_like(s.x)
        self.phis = self.phis or [0.0]
        inner = self.space.inner
        # phi = g'd + d'(G + damping D) d / 2
        bend = 2 * (self.phis[-1] - float(inner(self.g, d))) - damping * float(inner(D * d, d))
        return _Direction(d, max(bend, 0.0) if bool(d.any()) else 0.0, s.status, s.iterations, s.products)

    def _observe(self, s: CGState) -> bool:
        """The model at x, from its recurrence: phi = -x'(b + r) / 2."""
        self.phis.append(-0.5 * float(self.space.inner(s.x, s.r[:, 0] - self.g)))
        return self.stop is not None and slow(self.phis, self.stop)


def slow(phis: Sequence[float], stop: Stop) -> bool:
    """Whether conjugate gradients have gained too little of late, from the model's values at iterations 1, 2, ..."""
    i, now = len(phis), phis[-1]
    if not now < 0:
        return False
    if stop == "decrease":
        return i > 1 and i * (1 - phis[-2] / now) <= LITTLE
    k = max(LEAST, math.ceil(SHARE * i))
    return i > k and (now - phis[-1 - k]) / now < k * SLOW


@dataclass(frozen=True)
class _Trial:
    loss: float
    after: float
    predicted: float
    gain: float
    length: float
    change: float  # the factor of the damping
    values: int


def judged(judge: Objective, x: Tensor, d: Tensor, lr: float, slope: float, bend: float) -> _Trial:
    """The longest of the steps lr, lr / 2, ... along d at which the judged loss falls."""
    loss, values = float(judge.value(x)), 1
    slack = 10 * judge.space.eps * abs(loss)
    t, gain, after, predicted, first = lr, -math.inf, loss, 0.0, None
    for _ in range(HALVINGS + 1):
        if not t > 0 or not bool(d.any()):
            return _Trial(loss, loss, 0.0, 0.0, 0.0, 1.0 if not t > 0 else REFUSED, values)
        predicted = -(t * slope + t * t * bend / 2)
        after, values = value_of(judge, x + t * d), values + 1
        gain = (loss - after + slack) / (predicted + slack) if predicted > 0 else -math.inf
        first = gain if first is None else first  # the damping answers for the whole step
        if math.isfinite(after) and loss - after + slack > 0:
            change = CHANGE if first < POOR else 1 / CHANGE if first > GOOD else 1.0
            return _Trial(loss, after, predicted, first, t, change, values)
        t /= 2
    return _Trial(loss, loss, predicted, first if first is not None else gain, 0.0, REFUSED, values)


def value_of(objective: Objective, x: Tensor) -> float:
    """The loss at a trial point; infinite where it is no number there."""
    try:
        return float(objective.value(x))
    except NonFinite:
        return math.inf


def _check(lr: float | Tensor, solver: str, stop: str | None, scale: Tensor | None) -> None:
    worst = float(lr.min()) if isinstance(lr, Tensor) else lr
    if not 0 <= worst < math.inf:
        raise ValueError(f"gauss_newton_step: lr must be a number >= 0, got {worst}")
    if solver not in ("auto", "cg", "gram"):
        raise ValueError(f"gauss_newton_step: solver must be 'auto', 'cg' or 'gram', got {solver!r}")
    if stop not in (None, "martens", "decrease"):
        raise ValueError(f"gauss_newton_step: stop must be 'martens', 'decrease' or None, got {stop!r}")
    if scale is not None and not bool((scale > 0).all()):
        raise ValueError(f"gauss_newton_step: scale must be positive, got {float(scale.min())}")
