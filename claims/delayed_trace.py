"""D. Sprunger, S. Katsumata (2019), Differentiable causal computations via delayed trace, arXiv 1903.01093.

Claim: the derivative of a stateful network is a stateful network, so that it needs no unrolling; the chain rule and the
symmetry of second derivatives hold. Here: recurrent cells, their derivative carried along against backpropagation
through time.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import jacobian

DRAW = torch.Generator().manual_seed(0)
W, U, V = (0.5 * torch.randn(*s, generator=DRAW).double() for s in ((5, 5), (5, 2), (3, 5)))


def cell(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.tanh(W @ s + U @ a)
    return s, V @ s


def other(s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = 0.7 * s + torch.sin(a)
    return s, s * a


def derivative(f):
    """The stateful derivative: a cell on pairs of a value and its tangent."""
    return lambda S, A: torch.func.jvp(f, (S[0], A[0]), (S[1], A[1]))


def carried(f, start: torch.Tensor, xs: torch.Tensor, vs: torch.Tensor) -> torch.Tensor:
    S, found = (start, torch.zeros_like(start)), []
    for a, v in zip(xs, vs, strict=True):
        (s, _), (ds, dy) = derivative(f)(S, (a, v))
        S = (s, ds)
        found.append(dy)
    return torch.stack(found)


def unrolled(f, start: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    s, found = start, []
    for a in xs:
        s, y = f(s, a)
        found.append(y)
    return torch.stack(found)


def in_row(f, g, sizes: tuple[int, int]):
    """g after f, with both states side by side."""

    def both(s, a):
        s1, y = f(s[: sizes[0]], a)
        s2, z = g(s[sizes[0] :], y)
        return torch.cat([s1, s2]), z

    return both


def measure() -> Claim:
    """Differences of the two ways, for a cell and for two in a row, and the asymmetry of second derivatives."""
    worst = 0.0
    xs, vs, us = (torch.randn(12, 2, generator=DRAW).double() for _ in range(3))
    for f, n in ((cell, 5), (in_row(cell, other, (5, 3)), 8)):
        start = torch.zeros(n, dtype=torch.float64)
        J = jacobian(lambda x, f=f, start=start: unrolled(f, start, x).flatten(), xs)
        worst = max(worst, float((carried(f, start, xs, vs).flatten() - J @ vs.flatten()).abs().max()))
    start = torch.zeros(5, dtype=torch.float64)
    second = lambda u, v: torch.func.jvp(lambda x: carried(cell, start, x, v), (xs,), (u,))[1]  # noqa: E731
    skew = float((second(us, vs) - second(vs, us)).abs().max())
    return Claim(
        paper="Sprunger, Katsumata 2019, arXiv 1903.01093",
        claim="a stateful network's derivative is a stateful network; chain rule and symmetry hold",
        theirs="theorems on categories with a delayed trace",
        ours=f"carried along against unrolled over 12 steps: {worst:.0e}, also for two cells in a row; asymmetry of "
        f"second derivatives {skew:.0e}",
        verdict="holds" if max(worst, skew) < 1e-12 else "does not hold here",
        why="the tangent of a state is a state",
        name="jacobian",
    )
