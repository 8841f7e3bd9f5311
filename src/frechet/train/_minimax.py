"""Steps for min_x max_y f(x, y), and the test of what they end at.

With V = (df/dx, -df/dy) and rates c of y and c / ratio of x:

    extragradient   z' = z - c V(z),                 z+ = z - c V(z')
    past            z' = z - c V(z'_last),           z+ = z - c V(z')
    optimistic      z+ = z - 2 c V(z) + c V(z_last)
    reflected       z+ = z - c V(2 z - z_last)

A ratio above one is a second time scale, on which x waits for y. A point is a local minimax point only if f_yy <= 0 and

    U'(f_xx - f_xy f_yy^+ f_yx) U >= 0,   U a basis of {u : f_yx u in the range of f_yy},

the restricted Schur complement: the plain one is wrong where f_yy is singular.

**Source.** J. Chae, K. Kim, D. Kim (2024), Two-timescale extragradient for finding local minimax points, ICLR, arXiv
2305.16242; L. D. Popov (1980); Y. Malitsky (2015), Projected reflected gradient methods, doi 10.1137/14097238X.
**Differs from the source.** The test says "undecided" where an eigenvalue is zero to its tolerance.
**Cost.** One gradient of f for each V; the test, dense second derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.operators.derivatives import hessian

Minimax = Literal["extragradient", "past", "optimistic", "reflected"]
Game = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class MinimaxState:
    """What a step hands to the next: the last V, of x and of y, and the last point."""

    slopes: tuple[Tensor, Tensor] | None = None
    last: tuple[Tensor, Tensor] | None = None


def minimax_step(
    f: Game,
    x: Tensor,
    y: Tensor,
    state: MinimaxState,
    *,
    lr: float,
    method: Minimax = "extragradient",
    ratio: float = 1.0,
) -> tuple[Tensor, Tensor, MinimaxState]:
    """Return x and y after one step towards a solution of min_x max_y f(x, y).

    Args:
        f: a function of x and y to a scalar.
        x: the variables that minimize, a tensor.
        y: the variables that maximize, a tensor.
        state: ``MinimaxState()`` before the first step, then that of the last step.
        lr: the rate c of y.
        method: one of the four of the module.
        ratio: how much slower x moves than y, >= 1 for local minimax points.

    Example:
        >>> import torch
        >>> from frechet.train import MinimaxState, minimax_step
        >>> x, y, state = torch.ones(1), torch.ones(1), MinimaxState()
        >>> for _ in range(200):
        ...     x, y, state = minimax_step(lambda x, y: (x * y).sum(), x, y, state, lr=0.3)
        >>> bool(x.abs() < 1e-3), bool(y.abs() < 1e-3)
        (True, True)
    """
    if not 0 < lr < math.inf or not 0 < ratio < math.inf:
        raise ValueError(f"minimax_step: lr and ratio must be numbers > 0, got {lr} and {ratio}")
    z, c = (x.detach(), y.detach()), (lr / ratio, lr)

    def moved(by: tuple[Tensor, Tensor], times: float = 1.0) -> tuple[Tensor, Tensor]:
        return z[0] - times * c[0] * by[0], z[1] - times * c[1] * by[1]

    if method == "extragradient":
        V = _slopes(f, moved(_slopes(f, z)))
    elif method == "past":
        V = _slopes(f, moved(state.slopes or _slopes(f, z)))
    elif method == "optimistic":
        now = _slopes(f, z)
        before = state.slopes or now
        further = moved((2 * now[0] - before[0], 2 * now[1] - before[1]))
        return *further, MinimaxState(now, z)
    elif method == "reflected":
        last = state.last or z
        V = _slopes(f, (2 * z[0] - last[0], 2 * z[1] - last[1]))
    else:
        raise ValueError(
            f"minimax_step: method must be 'extragradient', 'past', 'optimistic' or 'reflected', got {method!r}"
        )
    return *moved(V), MinimaxState(V, z)


def _slopes(f: Game, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = (t.detach().requires_grad_() for t in z)
    with torch.enable_grad():
        value = f(x, y)
        if value.numel() != 1:
            raise ValueError(f"minimax_step: f must return a scalar, got shape {tuple(value.shape)}")
        a, b = torch.autograd.grad(value.reshape(()), (x, y), allow_unused=True, materialize_grads=True)
    return a, -b


@dataclass(frozen=True)
class MinimaxCheck:
    """Whether a point is a local minimax point: "yes", "no", or "undecided" where an eigenvalue is zero.

    `gradient` is the largest slope, `inner` the largest eigenvalue of f_yy, `outer` the least one of the restricted
    Schur complement (infinite where it has no dimension).
    """

    verdict: Literal["yes", "no", "undecided"]
    gradient: float
    inner: float
    outer: float


def is_local_minimax(f: Game, x: Tensor, y: Tensor, *, rtol: float = 1e-8) -> MinimaxCheck:
    """Tell whether (x, y) is a local minimax point of min_x max_y f(x, y), by second derivatives.

    Args:
        f: a function of x and y to a scalar, twice differentiable.
        x: the point of the variables that minimize, a tensor.
        y: the point of the variables that maximize, a tensor.
        rtol: eigenvalues count as zero below it, relative to the largest second derivative; so do slopes.

    Example:
        >>> import torch
        >>> from frechet.train import is_local_minimax
        >>> o = torch.zeros(1, dtype=torch.float64)
        >>> is_local_minimax(lambda x, y: (-x**2 + 4 * x * y - y**2).sum(), o, o).verdict  # max over y is 3 x^2
        'yes'
    """
    n = x.numel()
    both = {"x": x.detach(), "y": y.detach()}
    H = hessian(lambda z: f(z["x"], z["y"]).reshape(()), both).dense().double()
    A, C, B = H[:n, :n], H[:n, n:], H[n:, n:]
    scale = float(H.abs().max()) or 1.0
    zero = rtol * scale
    slopes = _slopes(f, (both["x"], both["y"]))
    gradient = max((float(s.abs().max()) for s in slopes if s.numel()), default=0.0)
    values, vectors = torch.linalg.eigh(B)
    inner = float(values.max()) if len(values) else -math.inf
    seen = values.abs() > zero
    null = vectors[:, ~seen]
    # u with f_yx u in the range of f_yy: orthogonal to what C carries to the null space
    left, size, _ = torch.linalg.svd(C @ null, full_matrices=True)
    rank = int((size > zero).sum())
    U = left[:, rank:]
    S = A - C @ (vectors[:, seen] / values[seen]) @ (C @ vectors[:, seen]).T
    outer = float(torch.linalg.eigvalsh(U.T @ S @ U).min()) if U.shape[1] else math.inf
    if gradient > rtol * max(scale, 1.0) or inner > zero or outer < -zero:
        return MinimaxCheck("no", gradient, inner, outer)
    strict = inner < -zero and outer > zero
    return MinimaxCheck("yes" if strict else "undecided", gradient, inner, outer)
