"""I. Hong, S. Na, M. Mahoney, M. Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized
iterative sketching, ICML, arXiv 2305.18379.

Claims: Newton's method with an exact augmented Lagrangian converges superlinearly when the systems are solved more and
more exactly; and sketched solvers need less work for these systems than deterministic ones. The same outer method runs
with Krylov spaces (`minimize(method="augmented")`) and with sketches (`studies.sketched_lagrangian`).
"""

from __future__ import annotations

import math

import torch
from claim import Claim

from frechet import minimize
from frechet.optimize.studies import sketched_lagrangian

VARIABLES, EQUALITIES = 20, 5


def measure() -> Claim:
    """Products of both until 1e-9, and the orders of convergence of the last steps."""
    draw = torch.Generator().manual_seed(0)
    Q = torch.randn(VARIABLES, VARIABLES, generator=draw, dtype=torch.float64)
    Q = Q @ Q.T / VARIABLES + torch.eye(VARIABLES, dtype=torch.float64)
    G = torch.randn(EQUALITIES, VARIABLES, generator=draw, dtype=torch.float64) / VARIABLES**0.5
    x0 = torch.randn(VARIABLES, generator=draw, dtype=torch.float64)

    def f(x):
        return 0.5 * x @ Q @ x + (x**4).sum() / 4 + torch.sin(x).sum()

    def c(x):
        return G @ x - 1 + 0.1 * torch.sin(G @ x)

    a = minimize(f, x0, method="augmented", constraints=c, gtol=1e-9, ctol=1e-9, max_iterations=60)
    plain = minimize(f, x0, constraints=c, gtol=1e-9, ctol=1e-9)
    steps: list[float] = []
    best = minimize(f, x0, constraints=c, gtol=1e-12, ctol=1e-12).x
    s = sketched_lagrangian(
        f, x0, c, seed=0, gtol=1e-9, ctol=1e-9, max_iterations=60,
        observe=lambda state: bool(steps.append(float((state.x - best).norm()))),
    )  # fmt: skip
    logs = [math.log(e) for e in steps if e > 1e-8]
    order = (logs[-1] - logs[-2]) / (logs[-2] - logs[-3]) if len(logs) > 2 else math.nan
    return Claim(
        paper="Hong, Na, Mahoney, Kolar 2023, arXiv 2305.18379",
        claim="sketched systems inside Newton's method: superlinear convergence with less work",
        theirs="superlinear local convergence; fewer flops than MINRES and GMRES on their problems",
        ours=f"order of the last step {order:.2f}; products {s.products} sketched, {a.products} with Krylov "
        f"spaces, {plain.products} of the plain call",
        verdict="holds" if s.products < a.products else "holds in part" if order > 1.1 else "does not hold here",
        why="superlinear, but a sketch sees the matrix through few products, each of which costs a pass here; a class "
        "on which it pays would need rows of the matrix for less than a product. The method is for study",
        name="optimize.studies.sketched_lagrangian",
    )
