"""The Monge gap: how far a map is from moving its points at least cost.

    M(T) = (1/n) sum_i c(x_i, y_i) - min over plans <C, P>,    y_i = T(x_i),  C_ij = c(x_i, y_j)

It is zero iff pairing x_i with y_i is an optimal plan: for the squared distance, iff the pairs are cyclically monotone,
as those of the gradient of a convex function are. With entropy the same difference is taken in the regularized problem,
F(P) = <C, P> + epsilon KL(P | 1/n^2), of which the pairing has the value mean cost + epsilon log n:

    M_epsilon = F(pairing) - min F >= 0

**Source.** T. Uscidda and M. Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, arXiv
2302.04953; `debiased` after J. Feydy et al. (2019), Interpolating between optimal transport and MMD using Sinkhorn
divergences, arXiv 1810.08278.

**Differs from the source.** 1. The constant epsilon log n is added, so that zero is the lower bound at every epsilon,
reached as epsilon falls. 2. `debiased` takes the Sinkhorn divergence in place of the minimum of F and the mean cost in
place of F(pairing): it vanishes for the identity and for translations at every epsilon, and may be slightly negative.

**Cost.** One run of `sinkhorn` on n x n costs, three if debiased; the gradient needs no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from frechet.calculus.solutions._plain_function import Nested
from frechet.errors import NonFinite
from frechet.transport._derivatives import transport_value


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Half the squared Euclidean distance of each of n points to each of m, ``(n, m)``."""
    d = x.unsqueeze(1) - y.unsqueeze(0)
    return (d * d).sum(-1) / 2


def monge_gap(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    cost: Callable[[Tensor, Tensor], Tensor] = squared_distance,
    debiased: bool = False,
    rtol: float | None = None,
) -> Tensor:
    """Return the Monge gap of a map with y = T(x), a scalar that autograd sees through, twice.

    To train a map, add a multiple of the gap of ``(x, model(x))`` to the loss.

    Args:
        x: points ``(n, d)``.
        y: their images ``(n, d)``.
        epsilon: the weight of the entropy, > 0, in the unit of the cost. A hundredth of the mean cost is a start.
        cost: takes points ``(n, d)`` and ``(m, d)`` to ``(n, m)``. Default: half the squared distance.
        debiased: whether to take the Sinkhorn divergence, as above. Default: False.
        rtol: relative tolerance of `sinkhorn`. Default: the one there.

    Raises:
        NotConverged: a run of `sinkhorn` did not converge.

    Example:
        >>> import torch
        >>> from frechet.transport import monge_gap
        >>> x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        >>> widened, turned = monge_gap(x, 3 * x, epsilon=0.01), monge_gap(x, -x, epsilon=0.01)
        >>> bool(widened < 1e-6), round(float(turned), 6)  # each point could have stayed; it has moved by 2
        (True, 2.0)
    """
    for name, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor):
            raise TypeError(f"monge_gap: {name} must be a tensor, got {type(points).__name__}")
        if points.ndim != 2 or not len(points):
            raise ValueError(f"monge_gap: {name} must be points (n, d) with n >= 1, got {tuple(points.shape)}")
        Nested.apply(partial(_check_finite, name), points.detach())  # where every transform sees numbers
    if len(x) != len(y):
        raise ValueError(f"monge_gap: y must have one point for each of x, got {len(y)} for {len(x)}")
    C = cost(x, y)
    if C.shape != (len(x), len(y)):
        raise ValueError(f"monge_gap: cost must return shape {(len(x), len(y))}, got {tuple(C.shape)}")
    mean, least = C.diagonal().mean(), transport_value(C, epsilon=epsilon, rtol=rtol)
    if not debiased:
        return mean + epsilon * math.log(len(x)) - least
    own = [transport_value(cost(z, z), epsilon=epsilon, rtol=rtol) for z in (x, y)]
    return mean - (least - (own[0] + own[1]) / 2)


def _check_finite(name: str, points: Tensor) -> list[Tensor]:
    if not bool(torch.isfinite(points).all()):
        raise NonFinite(f"monge_gap: {name} must be finite")
    return [points]
