"""The barrier of the loss on the straight line between two points, and the curvature that makes it.

    B(a) = L(x_a) - (1 - a) L(x_0) - a L(x_1) = - int_0^1 G(a, t) d'H(x_t) d dt,    x_t = x_0 + t d,  d = x_1 - x_0
    G(a, t) = min(a, t) (1 - max(a, t))

Only negative curvature along the segment makes a barrier. Products at a few Gauss-Legendre nodes give the whole curve
B(a), and the blocks of d tell which layers are connected by themselves.

**Source.** Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and the lottery ticket hypothesis" (2020),
arXiv 1912.05671: the barrier. Adilova et al., "Layer-wise linear mode connectivity" (2024), arXiv 2307.06966.
**Differs from the source.** (1) The curvature's prediction beside the measured barrier. (2) Buffers, such as running
statistics of norms, stay those of the model, so the two ends should share them.
**Cost.** `points` losses in one pass and `nodes` Hessian products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from frechet.analyze._slices import _losses
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._hessian import hessian


@dataclass(frozen=True, eq=False)
class Barrier(Result):
    """B(a) on the line: measured, and predicted by curvature at nodes. `height` is the largest measured B(a).

    `curvatures` are d'H d at `nodes`; negative ones are what raises the barrier. Two points are linearly connected
    where `height` is not larger than what the loss varies by between runs.
    """

    a: Tensor = field(repr=False)  # (points,)
    measured: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)
    nodes: Tensor = field(repr=False)
    curvatures: Tensor = field(repr=False)
    height: float
    predicted_height: float
    ends: tuple[float, float]  # the losses there
    products: int


def barrier(
    objective: Objective,
    x0: Tensor,
    x1: Tensor,
    *,
    nodes: int = 16,
    points: int = 21,
    restrict: str | list[str] | None = None,
) -> Barrier:
    """Return the barrier of the loss between two points, measured and predicted by curvature on the segment.

    Args:
        objective: the objective.
        x0: one point ``(n,)``.
        x1: the other.
        nodes: Gauss-Legendre nodes at which d'H d is taken; 0 leaves the prediction out.
        points: where the loss is taken, ends included.
        restrict: patterns of blocks that move from x0 to x1, while all others stay at x0: one layer's own barrier.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import barrier
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), squared_error(), data)
        >>> found = barrier(objective, torch.tensor([-1.0]), torch.tensor([1.0]))  # w^2: convex, no barrier
        >>> found.height, round(float(found.measured.min()), 6)
        (0.0, -1.0)
    """
    space = objective.space
    refuse_sharded("barrier", space)
    for name, x in (("x0", x0), ("x1", x1)):
        if x.shape != (space.dim,) or not space.finite(x):
            raise ValueError(f"barrier: {name} must be finite of shape ({space.dim},), got shape {tuple(x.shape)}")
    if points < 3 or nodes < 0:
        raise ValueError(f"barrier: points must be at least 3 and nodes at least 0, got {points} and {nodes}")
    d = x1 - x0
    if restrict is not None:
        kept = torch.zeros_like(d)
        for name in space.restrict(restrict).names:
            kept[space.block(name)] = d[space.block(name)]
        d = kept
    a = torch.linspace(0, 1, points, dtype=torch.float64)
    losses = _losses(objective.snapshot(x0), lambda i: x0 + float(a[i]) * d, points)
    measured = losses - (1 - a) * losses[0] - a * losses[-1]
    places, weights = np.polynomial.legendre.leggauss(max(nodes, 1))
    t = torch.from_numpy((places[:nodes] + 1) / 2)
    curvatures = torch.tensor(
        [float(space.inner(d, hessian(objective, x0 + s * d) @ d)) for s in t.tolist()], dtype=torch.float64
    )
    predicted = torch.full_like(a, torch.nan) if not nodes else _integrated(places, weights, curvatures.numpy(), a)
    return Barrier(
        a, measured, predicted, t, curvatures, float(measured.max()), float(predicted.max()),
        (float(losses[0]), float(losses[-1])), nodes,
    )  # fmt: skip


def _integrated(places: np.ndarray, weights: np.ndarray, curvatures: np.ndarray, a: Tensor) -> Tensor:
    """The function on [0, 1] with these second derivatives, through their polynomial, that vanishes at both ends.

    Integrating the polynomial is exact where a quadrature of G, which has a kink at t = a, is not.
    """
    degrees = np.arange(len(places))
    values = np.polynomial.legendre.legvander(places, len(places) - 1)
    coefficients = (2 * degrees + 1) / 2 * (values * (weights * curvatures)[:, None]).sum(0)
    twice = np.polynomial.legendre.legint(coefficients, 2) / 4  # t runs half as fast as the places in [-1, 1]
    at, (first, last) = (np.polynomial.legendre.legval(v, twice) for v in (2 * a.numpy() - 1, np.array([-1.0, 1.0])))
    return torch.from_numpy(at) - (1 - a) * first - a * last
