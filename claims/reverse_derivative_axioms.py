"""R. Cockett et al. (2019), Reverse derivative categories, arXiv 1910.07065.

Claim: a reverse derivative is a forward derivative with a dagger: transposes twice are the map itself, the chain rule
and linearity hold, and <J u, v> = <u, J' v>. Here: Jacobians of random maps as operators.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import check_operator, jacobian


def maps(draw: torch.Generator):
    A, B = (torch.randn(*s, generator=draw).double() for s in ((5, 4), (3, 5)))
    f = lambda x: torch.tanh(A @ x) * (A @ x)  # noqa: E731
    g = lambda y: torch.logsumexp(y, 0) + torch.sin(B @ y)  # noqa: E731
    return f, g


def violations(seed: int) -> dict[str, float]:
    """How far each axiom is violated for one draw of maps."""
    draw = torch.Generator().manual_seed(seed)
    f, g = maps(draw)
    x, u, v, w = (torch.randn(n, generator=draw).double() for n in (4, 4, 5, 3))
    F, G = jacobian(f, x), jacobian(g, f(x))
    check_operator(F, seed=seed)
    pair = jacobian(lambda x: torch.cat([f(x), g(f(x))]), x)
    found = {
        "pairing": (F @ u) @ v - u @ (F.T @ v),
        "dagger twice": F.T.T @ u - F @ u,
        "chain rule": jacobian(lambda x: g(f(x)), x).T @ w - F.T @ (G.T @ w),
        "sums": jacobian(lambda x: f(x) + 2 * f(x).flip(0), x).T @ v - F.T @ (v + 2 * v.flip(0)),
        "pairs": pair.T @ torch.cat([v, w]) - F.T @ v - F.T @ (G.T @ w),
    }
    return {name: float(t.abs().max()) for name, t in found.items()}


def measure() -> Claim:
    """The largest violation of each axiom over twenty draws."""
    draws = [violations(seed) for seed in range(20)]
    worst = {name: max(d[name] for d in draws) for name in draws[0]}
    return Claim(
        paper="Cockett et al. 2019, arXiv 1910.07065",
        claim="reverse derivatives are forward derivatives with a transpose that respects sums, pairs and composition",
        theirs="an axiomatization",
        ours="largest violations: " + ", ".join(f"{k} {v:.0e}" for k, v in worst.items()),
        verdict="holds" if max(worst.values()) < 1e-12 else "does not hold here",
        why="both products are of one Jacobian",
        name="jacobian",
    )
