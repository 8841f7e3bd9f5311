"""Fixed points: x = g(x), by Anderson mixing of the last steps; no derivatives.

With f = g(x) - x and the differences dX, dF of the last `memory` iterates, each step is

    x+ = x + mixing f - (dX + mixing dF) c,     c = argmin norm(f - dF c)

which for linear g is GMRES on the fixed-point equation. Where the residual grows far beyond the best so far, the run
goes back to the best point and forgets the differences: there a step without them follows. Where that has not helped
since the last return, the mixing is halved, too; it doubles again after some better points.

**Source.** D. G. Anderson (1965), Iterative procedures for nonlinear integral equations, doi 10.1145/321296.321305; H.
F. Walker and P. Ni (2011), Anderson acceleration for fixed-point iterations, algorithm AA, doi 10.1137/10078356X.

**Differs from the source.** The least-squares problem is solved on an orthonormal basis of dF, in which directions
below rounding are dropped; the return to the best point.

**Cost.** One evaluation of g per step; 2 memory + 4 vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Solution, Status
from frechet.linalg.systems._arguments import check_numbers, check_start
from frechet.operators.derivatives._function import frozen_point
from frechet.optimize._equations.root_state import RootState, moved_by
from frechet.space import Space, like, named

GROWTH = 10.0  # of the residual over the best, at which the run goes back
LEAST = 1e-4  # mixing
# better points after which the mixing doubles: of 5, 10 and 20 the one that lost least where half of the mixing
# is all that g allows, on five families of 8 to 20 maps (projected gradients, over-relaxed linear maps, networks)
STEADY = 20
WHY = {
    Status.CONVERGED: "",
    Status.STAGNATED: ": the mixing has become tiny; g is no contraction near x, or rtol is below the rounding of g",
    Status.MAX_ITERATIONS: ": max_iterations was reached",
    Status.STOPPED: ": observe returned True",
}


@torch.no_grad()
def fixed_point(
    g: Callable[..., object],
    x0: Tensor | Mapping[str, Tensor],
    *,
    memory: int = 5,
    mixing: float = 1.0,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    observe: Callable[[RootState], bool] | None = None,
) -> Solution:
    """Find an x with g(x) = x, by Anderson mixing of the last steps.

    Args:
        g: a function of what x0 is, which returns the same form.
        x0: where the iteration starts, a tensor of any shape or a dict of tensors. ``x`` of the result has the shape of
            x0, and is flat for a dict.
        memory: how many steps are mixed. 0 is the plain iteration ``x + mixing (g(x) - x)``.
        mixing: the largest mixing that is tried.
        rtol: converged means ``norm(g(x) - x) <= max(rtol * norm(x), atol)`` at x, whatever the start was. Default:
            eps^(3/4) of the dtype.
        atol: see `rtol`. Give one where x = 0 may be the fixed point.
        max_iterations: the most iterations.
        observe: is called with a `RootState` at each iteration, and stops the run by returning True.

    Returns:
        A `Solution`, whose `history` has the residual of each iteration. Its status is `converged` or one of these:
            `stagnated` (the mixing has become tiny: g is no contraction near x, or rtol is below the rounding of g),
            `max_iterations`, `stopped`.

    Raises:
        NonFinite: g is not finite at x0.

    Example:
        >>> import torch
        >>> from frechet.optimize import fixed_point
        >>> s = fixed_point(torch.cos, torch.ones(1, dtype=torch.float64)).checked()
        >>> round(float(s.x), 12), s.iterations < 10
        (0.739085133215, True)
    """
    check_start("fixed_point", x0)
    variables, blocks = frozen_point("fixed_point", like(x0, [b.detach() for b in named(x0).values()]))
    space = variables.space
    tolerance = space.eps**0.75 if rtol is None else rtol
    check_numbers("fixed_point", rtol=tolerance, atol=atol, max_iterations=max_iterations)
    _check(memory, mixing)
    x = space.join(blocks)
    f = moved_by("fixed_point", "g", g, variables, x) - x
    norm = float(space.norm(f))
    if not math.isfinite(norm):
        raise NonFinite(f"fixed_point: g must be finite at x0, got norm(g(x0) - x0) = {norm}")
    most, better, best = mixing, 0, (norm, x, f)  # better: points since the last return
    dX, dF = space.zeros(0), space.zeros(0)
    iterations, history, status = 0, [norm], None
    while True:
        solved = norm <= max(tolerance * float(space.norm(x)), atol)
        status = (
            Status.CONVERGED if solved else _ended(RootState(iterations, x, norm, 0), observe, max_iterations, mixing)
        )
        if status is not None:
            break
        step = _mixed(space, f, dX, dF, mixing)
        moved = x + step
        f_new = moved_by("fixed_point", "g", g, variables, moved) - moved
        norm_new = float(space.norm(f_new))
        iterations += 1
        if not norm_new <= GROWTH * best[0]:  # also NaN
            norm, x, f = best
            mixing = mixing if better and dX.shape[1] else mixing / 2
            dX, dF, better = space.zeros(0), space.zeros(0), 0
            history.append(norm)
            continue
        if memory:
            kept = max(0, dX.shape[1] - memory + 1)
            dX = torch.cat([dX[:, kept:], step.unsqueeze(1)], 1)
            dF = torch.cat([dF[:, kept:], (f_new - f).unsqueeze(1)], 1)
        x, f, norm = moved, f_new, norm_new
        history.append(norm)
        if norm < best[0]:
            best, better = (norm, x, f), better + 1
            if better % STEADY == 0:
                mixing = min(most, 2 * mixing)
    if status is not Status.CONVERGED:
        norm, x, f = best
    found = x.view(space.shapes[0]) if variables.single else x
    message = f"fixed_point by Anderson mixing{WHY[status]}"
    return Solution(found, status, norm, iterations, 0, tuple(history), message, evaluations=iterations + 1)


def _check(memory: int, mixing: float) -> None:
    if memory < 0:
        raise ValueError(f"fixed_point: memory must be >= 0, got {memory}")
    if not 0 < mixing <= 1:
        raise ValueError(f"fixed_point: mixing must lie in (0, 1], got {mixing}")


def _ended(
    state: RootState, observe: Callable[[RootState], bool] | None, max_iterations: int, mixing: float
) -> Status | None:
    """Why a run ends that is not converged, None where it goes on."""
    if observe is not None and observe(state):
        return Status.STOPPED
    if state.iteration >= max_iterations:
        return Status.MAX_ITERATIONS
    return Status.STAGNATED if mixing < LEAST else None


def _mixed(space: Space, f: Tensor, dX: Tensor, dF: Tensor, mixing: float) -> Tensor:
    """mixing f - (dX + mixing dF) c for the c that minimizes norm(f - dF c)."""
    if not dF.shape[1]:
        return mixing * f
    Q, R = space.orthonormalize(dF)
    c = torch.linalg.pinv(R) @ space.gram(Q, f.unsqueeze(1))[:, 0]
    return mixing * f - (dX + mixing * dF) @ c.to(f)
