"""The gradient of a regression function from samples: a plane through the nearest neighbours.

For samples (X_i, Y_i) with Y_i = m(X_i) + noise, the k nearest neighbours of x give, by least squares with intercept,

    Y_i = a + g . (X_i - x) + rest,    |rest_i| <= L |X_i - x|^2 / 2 + noise,

where L is a Lipschitz constant of m's gradient. With P the pseudo-inverse of the design, entry j of g is biased by at
most sum_i |P_ji| L |X_i - x|^2 / 2, which is computed; its variance is that of least squares.

**Source.** Ausset, Clémençon and Portier, "Nearest neighbour based estimates of gradients" (2020), arXiv 2006.15043.
**Differs from the source:** 1. without its l1 penalty. 2. The bias bound is the one of these neighbours, and no rate.
**Cost:** distances to all samples, one least squares of k rows.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from frechet.calculus.estimated._estimate import GradientEstimate


def knn_gradient(
    X: Tensor,
    Y: Tensor,
    x: Tensor,
    *,
    neighbours: int,
    ball: Literal["sup", "euclidean"] = "sup",
    gradient_constant: float | None = None,
) -> GradientEstimate:
    """Estimate the gradient of a regression function at x from samples, with its error and a bound on its bias.

    Args:
        X: places of the samples, (n, d).
        Y: values at them, (n,).
        x: the point, (d,).
        neighbours: how many samples are used, > d + 1. More lower the variance and raise the bias.
        ball: the distance in which neighbours are nearest. Default: "sup".
        gradient_constant: a Lipschitz constant of the gradient, for a bound on the bias. Without it the bound is
            infinite, and half the neighbours show how large the bias may be.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import knn_gradient
        >>> X = torch.rand(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> Y = X @ torch.tensor([1.0, -2.0], dtype=torch.float64)
        >>> knn_gradient(X, Y, torch.full((2,), 0.5, dtype=torch.float64), neighbours=20).value
        tensor([ 1.0000, -2.0000], dtype=torch.float64)
    """
    if X.ndim != 2 or Y.shape != X.shape[:1] or x.shape != X.shape[1:]:
        raise ValueError(
            f"knn_gradient: X must be (n, d), Y (n,) and x (d,), got {tuple(X.shape)}, {tuple(Y.shape)}, "
            f"{tuple(x.shape)}"
        )
    n, d = X.shape
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or not d + 1 < neighbours <= n:
        raise ValueError(f"knn_gradient: neighbours must be an integer in {d + 2}..{n}, got {neighbours!r}")
    if ball not in ("sup", "euclidean"):
        raise ValueError(f"knn_gradient: ball must be 'sup' or 'euclidean', got {ball!r}")
    off = (X - x).detach()
    far = off.abs().amax(1) if ball == "sup" else off.square().sum(1).sqrt()
    near = far.topk(neighbours, largest=False).indices
    Z, size = off[near], float(far[near].max())
    if size == 0:
        raise ValueError(f"knn_gradient: neighbours must not all lie at x, got {neighbours} samples there; take more")
    design = torch.cat([torch.ones_like(Z[:, :1]), Z / size], 1)
    P = torch.linalg.pinv(design)
    if int(torch.linalg.matrix_rank(design)) <= d:
        raise ValueError("knn_gradient: neighbours must not lie in one hyperplane; take more, or fewer coordinates")
    y = Y[near].detach()
    coefficients = P @ y
    rest = y - design @ coefficients
    freedom = neighbours - d - 1
    noise = rest.square().sum() / freedom
    error = (noise * P[1:].square().sum(1)).sqrt() / size
    L = math.inf if gradient_constant is None else gradient_constant
    bias = (P[1:].abs() @ Z.square().sum(1)) * (L / 2) / size
    return GradientEstimate(
        value=coefficients[1:] / size,
        standard_error=error,
        bias_bound=bias,
        target=f"the plane through {neighbours} neighbours",
        samples=neighbours,
        evaluations=0,
        seed=None,
        degrees_of_freedom=float(freedom),
        method=f"nearest neighbours, {ball} ball of radius {size:.3g}",
    )
