"""D. Davis, D. Drusvyatskiy (2018), Stochastic model-based minimization of weakly convex functions, arXiv 1803.06523.

Claims: for h(c(x)) with convex h, steps on sampled models drive the stationarity to zero like k^-1/4; at sharp minima
the whole model converges quadratically. Tried on robust phase retrieval with 15 % outliers.
"""

from __future__ import annotations

import math

import torch
from claim import Claim

from frechet.optimize import prox_linear, stochastic_prox_linear

ROWS, N = 60, 4


def measure() -> Claim:
    """Steps of the whole model to 1e-12, and the exponent of the stochastic method with steps of 1/sqrt(K)."""
    draw = torch.Generator().manual_seed(0)
    A = torch.randn(ROWS, N, generator=draw, dtype=torch.float64)
    x = torch.randn(N, generator=draw, dtype=torch.float64)
    b = (A @ x).square()
    b[torch.rand(ROWS, generator=draw) < 0.15] *= 10
    x0 = x + 0.3 * torch.randn(N, generator=draw, dtype=torch.float64)
    whole = prox_linear("l1", lambda w: (A @ w).square() - b, x0)
    steps, error = whole.iterations, float((whole.x - x).norm())
    epochs, sizes = (5, 20, 80), []
    for k in epochs:
        found = stochastic_prox_linear(
            "l1", lambda w, rows: (A[rows] @ w).square() - b[rows], x0, rows=ROWS, batch_size=4, seed=0, epochs=k,
            t0=0.02 / math.sqrt(k), decay=1.0,
        )  # fmt: skip
        sizes.append(float(found.stationarity))
    slope = math.log(sizes[-1] / sizes[0]) / math.log(epochs[-1] / epochs[0])
    return Claim(
        paper="Davis, Drusvyatskiy 2018, arXiv 1803.06523",
        claim="stochastic models reach stationarity like k^-1/4; the whole model is quadratic at sharp minima",
        theirs="O(k^-1/4) for the gradient of the Moreau envelope",
        ours=f"whole model: {steps} steps to an error of {error:.0e}; "
        f"stationarity {', '.join(f'{s:.2g}' for s in sizes)} after 5, 20, 80 "
        f"epochs, exponent {slope:.2f}",
        verdict="holds" if steps <= 10 and error < 1e-12 and slope <= -0.2 else "holds in part",
        why="the minimum is sharp: steps of 1/sqrt(K) are faster here than the bound, which is for any weakly convex f",
        name="stochastic_prox_linear",
    )
