"""Block sketch-and-project: A x = b for any consistent A, from products with A' and random blocks.

    S (m, block) Gaussian;   x <- x - A'S (S'A A'S)^+ S'(A x - b)

Each step projects x onto the solutions of the sketched system S'A x = S'b: the error never grows, and on average falls
by the factor 1 - rho, rho = the smallest eigenvalue of E [projection onto range(A'S)], at least
sigma_min^2 block / norm_F(A)^2 for small blocks. A block as wide as A is exact in one step.

**Source.** Gower and Richtarik (2015), Randomized iterative methods for linear systems, arXiv 1506.03296, section 2;
Hong, Na, Mahoney and Kolar (2023), Constrained optimization via exact augmented Lagrangian and randomized iterative
sketching, ICML, arXiv 2305.18379 (the single-vector case, inside Newton's method).

**Differs from the source.** 1. Blocks instead of single vectors. 2. The residual is updated by a product, recomputed at
exit.

**Cost** per step: block products with A' and one with A; 2 block + 3 vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.operators._operator import LinearOperator


def sketch_and_project(
    A: LinearOperator,
    b: Tensor,
    *,
    seed: int,
    block: int = 32,
    rtol: float = 1e-6,
    max_iterations: int = 1000,
) -> Solution:
    """The solution of A x = b nearest to zero; converged means norm(b - A x) <= rtol norm(b).

    Other statuses: `max_iterations`; `nonfinite`. The draws are numbered from `seed`.
    """
    space, image = A.domain, A.codomain
    x, r = space.zeros(), -b
    goal = rtol * float(image.norm(b))
    block, drawn, iterations, products = min(block, image.dim), 0, 0, 0
    status, size = Status.MAX_ITERATIONS, float(image.norm(r))
    history = [size]
    while True:
        if not math.isfinite(size):
            status = Status.NONFINITE
            break
        if size <= goal:
            status = Status.CONVERGED
            break
        if iterations >= max_iterations:
            break
        S = image.random(range(drawn, drawn + block), seed, "gaussian")
        P = A.T @ S
        Q, R = space.orthonormalize(P)  # P = Q R: the projection needs no Gram matrix, whose condition is squared
        rhs = image.gram(S, r.unsqueeze(1))[:, 0]
        w = torch.linalg.lstsq(R.T, rhs, driver="gelsd" if R.device.type == "cpu" else None).solution
        step = Q @ w.to(Q.device, Q.dtype)
        x = x - step
        r = r - A @ step
        drawn, iterations, products = drawn + block, iterations + 1, products + block + 1
        size = float(image.norm(r))
        history.append(size)
    residual = float(image.norm(b - A @ x))
    return Solution(x, status, residual, iterations, products + 1, tuple(history), "sketch_and_project")
