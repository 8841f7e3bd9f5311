"""The largest eigenpair of a symmetric operator that changes slowly, from the block of Ritz vectors found before.

Rayleigh-Ritz on [V, g, residuals]: one product with the block V of the last time and the gradient g, and then, until
the tolerance is met, one with the residual of the leading pair. The two best Ritz vectors are kept for the next time.

One vector is not enough: where two eigenvalues cross, the old top vector still has a small residual and is not the top
any more. On the network of examples/sharpness_during_training.py over 900 steps, refreshed every 10, 25 or 60 steps,
one vector at a tolerance of 5 % missed the top eigenvalue by up to 12 %; so did two to five Ritz vectors, and a cold
start each time by 11 %. Two Ritz vectors and the gradient, which holds what is about to turn unstable, missed it by at
most 2.2 % at a tolerance of 2 %. They took 57 % (25 steps) or 50 % (10 steps) of the cold starts' products there.

**Source.** Davidson, "The iterative calculation of a few of the lowest eigenvalues and corresponding eigenvectors"
(1975), doi 10.1016/0021-9991(75)90065-0, without a preconditioner.
**Cost.** One product with three vectors and a few with one; twice as many vectors of memory as products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._shown import Result
from frechet.operators._operator import LinearOperator
from frechet.space import Space

TRACKED = 2  # Ritz vectors that are kept: see above
MOST = 40  # vectors that a basis may grow to, as that of eigsh


@dataclass(frozen=True, eq=False)
class Tracked(Result):
    """The largest Ritz value; within `residual` of it there is an eigenvalue. `block` is where the next call starts."""

    value: float
    residual: float
    converged: bool
    products: int
    block: Tensor = field(repr=False)  # (n, TRACKED)


@torch.no_grad()
def tracked_top(
    A: LinearOperator, start: Tensor | None, hint: Tensor, *, seed: int, rtol: float, max_products: int | None = None
) -> Tracked:
    """Return the largest eigenpair of A, from a block of guesses, or a random vector, and a vector `hint`."""
    space = A.domain
    first = space.random(range(1), seed, "gaussian") if start is None else start
    block = [v / space.norm(v).to(v) for v in [*first.T, hint] if float(space.norm(v)) > 0]
    V = space.orthonormalize(torch.stack(block).T)[0]
    limit = MOST if max_products is None else max_products
    if V.shape[1] > limit:
        V = V[:, :limit]
    AV, products = _applied(A, V), V.shape[1]
    while True:
        T = space.gram(V, AV).double().cpu()
        theta, S = torch.linalg.eigh((T + T.T) / 2)
        best = S.flip(1)[:, :TRACKED].to(V)
        value, x = float(theta[-1]), V @ best[:, :1]
        r = AV @ best[:, :1] - value * x
        residual = float(space.norm(r[:, 0]))
        floor = 10 * space.eps * float(T.abs().max())
        done = residual <= max(rtol * abs(value), floor)
        if done or products >= limit or V.shape[1] == space.dim:
            return Tracked(value, math.hypot(residual, floor), done, products, V @ best)
        w = _outside(space, V, r)
        if w is None:
            return Tracked(value, math.hypot(residual, floor), done, products, V @ best)
        Aw = _applied(A, w)
        V, AV, products = torch.cat([V.T, w.T]).T, torch.cat([AV.T, Aw.T]).T, products + 1


def _outside(space: Space, V: Tensor, r: Tensor) -> Tensor | None:
    """What is new in r, of length one; None where nothing is."""
    size = float(space.norm(r[:, 0]))
    for _ in range(2):
        r = r - V @ space.gram(V, r).to(V)
    left = float(space.norm(r[:, 0]))
    return r / left if left > 100 * space.eps * size and left > 0 else None


def _applied(A: LinearOperator, V: Tensor) -> Tensor:
    image = A @ V
    if not A.domain.finite(image):
        raise NonFinite("monitor: a product of the operator holds a NaN or an infinity; check the data and the loss")
    return image
