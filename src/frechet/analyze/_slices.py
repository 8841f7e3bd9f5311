"""The loss along straight lines, and on planes, through a point, beside its quadratic model there.

    L(x + a d)  and  L(x) + a g'd + a^2/2 d'Hd

Every value is the loss on all data, computed exactly; one pass over the data serves all points of all lines.

The default radius is the a > 0 at which the quadratic model leaves L(x) by `change` times |L(x)| at one of its ends,
a |g'd| + a^2/2 |d'Hd| = change |L(x)|: where the model says that something visible happens, on every line alike.

**Cost.** One pass with as many forward passes as points, a gradient, and one Hessian product per direction unless the
curvatures are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._shown import Result
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._remembered import Remembered
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._hessian import hessian


@dataclass(frozen=True, eq=False)
class Slices(Result):
    """Losses ``(k, points)`` on k lines; those that are not finite stay so. All in float64 on the CPU.

    `quadratic` is the Taylor polynomial of second order at the point, `radii` the largest steps, in units of the
    directions as they were given.
    """

    steps: Tensor  # (k, points), increasing
    losses: Tensor
    quadratic: Tensor
    loss: float  # at the point
    slopes: Tensor  # (k,), g'd
    curvatures: Tensor  # (k,), d'Hd
    radii: Tensor  # (k,)
    radius_rule: str
    evaluations: int
    products: int
    passes: int

    def plot(self, axes: Any) -> Any:
        """Draw the losses on every line, and dashed the quadratic model, into matplotlib's `axes`; returns them."""
        for steps, losses, model in zip(
            self.steps.tolist(), self.losses.tolist(), self.quadratic.tolist(), strict=True
        ):
            line = axes.plot(steps, losses)[0]
            axes.plot(steps, model, "--", color=line.get_color())
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        return axes


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """Losses ``(points, points)`` at x + a u + b v, a down the rows and b along the columns, and their Taylor model."""

    a: Tensor  # (points,)
    b: Tensor
    losses: Tensor
    quadratic: Tensor
    loss: float
    slopes: Tensor  # (2,)
    curvature: Tensor  # (2, 2)
    radius_rule: str
    evaluations: int
    products: int
    passes: int


def loss_slices(
    objective: Objective,
    directions: Tensor,
    *,
    radius: float | None = None,
    points: int = 21,
    change: float = 1.0,
    curvatures: Tensor | None = None,
    x: Tensor | None = None,
) -> Slices:
    """Evaluate the loss on straight lines through a point, beside its quadratic model.

    Args:
        objective: the objective.
        directions: the lines' directions as columns ``(n, k)``.
        radius: each line goes from -radius to radius times its direction. Default: each line's own, from its slope and
            curvature (`radius_rule` of the result states the rule), or 1 where both vanish.
        points: the number of equally spaced points on a line.
        change: the change of the loss that the rule for the radius aims at.
        curvatures: d'Hd ``(k,)`` where they are known, such as eigenvalues. Default: one Hessian product for each line.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import loss_slices
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> objective = Objective(model, squared_error(), [(torch.ones(1, 1), torch.zeros(1, 1))])  # w^2
        >>> cut = loss_slices(objective, torch.ones(1, 1), radius=1.0, points=3)
        >>> cut.losses, cut.quadratic
        (tensor([[0., 1., 4.]], dtype=torch.float64), tensor([[0., 1., 4.]], dtype=torch.float64))
    """
    D = _checked("loss_slices", objective, directions, radius, points, change)
    k, space = D.shape[1], objective.space
    if curvatures is not None and curvatures.shape != (k,):
        raise ValueError(f"loss_slices: curvatures must have shape ({k},), got {tuple(curvatures.shape)}")
    snapshot = objective.snapshot(x)
    loss = _value(objective, snapshot)
    slopes = space.gram(D, objective.gradient(snapshot.x)[:, None])[:, 0].cpu()
    if curvatures is None:
        image = hessian(objective, snapshot.x) @ D
        pairs = zip(D.T, image.T, strict=True)
        known = torch.stack([space.inner(d, u) for d, u in pairs]).cpu() if k else slopes
    else:
        known = curvatures.detach().double().cpu()
    radii = torch.tensor(
        [
            _radius(loss, s, c, change) if radius is None else radius
            for s, c in zip(slopes.tolist(), known.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    steps = radii[:, None] * torch.linspace(-1, 1, points, dtype=torch.float64)
    flat = steps.reshape(-1).tolist()

    def point(i: int) -> Tensor:
        return snapshot.x + flat[i] * D[:, i // points]

    losses = _losses(snapshot, point, k * points).reshape(k, points)
    quadratic = loss + slopes[:, None] * steps + known[:, None] / 2 * steps**2
    products = 0 if curvatures is not None else k
    passes = 3 + (1 if products else 0)
    return Slices(
        steps, losses, quadratic, loss, slopes, known, radii, _rule(radius, change), k * points, products, passes
    )


def loss_plane(
    objective: Objective,
    directions: Tensor,
    *,
    radius: float | None = None,
    points: int = 21,
    change: float = 1.0,
    x: Tensor | None = None,
) -> Plane:
    """Evaluate the loss on a grid of points x + a u + b v, beside its quadratic model.

    The quadratic model takes two Hessian products.

    Args:
        objective: the objective.
        directions: u and v as columns ``(n, 2)``.
        radius: the range of a and b. Default: that which `loss_slices` gives each axis.
        points: the number of points along each axis.
        change: as in `loss_slices`.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import loss_plane
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.ones(1, 2), torch.zeros(1, 1))])  # (u + v)^2
        >>> loss_plane(objective, torch.eye(2), radius=1.0, points=2).losses
        tensor([[4., 0.],
                [0., 4.]], dtype=torch.float64)
    """
    D = _checked("loss_plane", objective, directions, radius, points, change)
    if D.shape[1] != 2:
        raise ValueError(f"loss_plane: directions must have 2 columns, got {D.shape[1]}")
    space, snapshot = objective.space, objective.snapshot(x)
    loss = _value(objective, snapshot)
    slopes = space.gram(D, objective.gradient(snapshot.x)[:, None])[:, 0].cpu()
    C = space.gram(D, hessian(objective, snapshot.x) @ D).cpu()
    C = (C + C.T) / 2
    ends = [
        _radius(loss, float(s), float(c), change) if radius is None else radius
        for s, c in zip(slopes, C.diagonal(), strict=True)
    ]
    a, b = (end * torch.linspace(-1, 1, points, dtype=torch.float64) for end in ends)

    def point(i: int) -> Tensor:
        return snapshot.x + float(a[i // points]) * D[:, 0] + float(b[i % points]) * D[:, 1]

    losses = _losses(snapshot, point, points * points).reshape(points, points)
    A, B = a[:, None], b[None, :]
    quadratic = loss + slopes[0] * A + slopes[1] * B + (C[0, 0] * A**2 + C[1, 1] * B**2) / 2 + C[0, 1] * A * B
    return Plane(a, b, losses, quadratic, loss, slopes, C, _rule(radius, change), points**2, 2, 4)


def _checked(
    what: str, objective: Objective, directions: Tensor, radius: float | None, points: int, change: float
) -> Tensor:
    if not isinstance(objective, Objective):
        raise TypeError(f"{what}: objective must be an Objective, got {type(objective).__name__}")
    space = objective.space
    refuse_sharded(what, space)
    good = directions.ndim == 2 and directions.shape[0] == space.dim
    if not good or directions.dtype != space.dtype or directions.device != space.device:
        got = f"{directions.dtype} on {directions.device} of shape {tuple(directions.shape)}"
        raise ValueError(f"{what}: directions must be a block ({space.dim}, k) of {space!r}, got {got}")
    if not bool(torch.isfinite(directions).all()):
        raise NonFinite(f"{what}: directions hold a NaN or an infinity")
    if points < 2:
        raise ValueError(f"{what}: points must be at least 2, got {points}")
    if radius is not None and not 0 < radius < math.inf:
        raise ValueError(f"{what}: radius must be positive and finite, got {radius}")
    if not 0 < change < math.inf:
        raise ValueError(f"{what}: change must be positive and finite, got {change}")
    return directions.detach()


def _radius(loss: float, slope: float, curvature: float, change: float) -> float:
    """The positive root a of a |slope| + a^2/2 |curvature| = change |loss|; 1 where there is none."""
    target, s, c = change * abs(loss), abs(slope), abs(curvature)
    if target <= 0 or (s == 0 and c == 0):
        return 1.0
    return 2 * target / (s + math.sqrt(s * s + 2 * c * target))  # the form without cancellation


def _rule(radius: float | None, change: float) -> str:
    if radius is not None:
        return f"radius {radius:g}, as given"
    return f"radius at which slope and curvature predict a change of {change:g} times the loss; 1 where they vanish"


def _value(objective: Objective, snapshot: Snapshot) -> float:
    """The loss at the snapshot's point, in the working dtype's precision but added up in float64."""
    return float(objective.value(snapshot.x))


def _losses(snapshot: Snapshot, point: Callable[[int], Tensor], count: int) -> Tensor:
    """L at points 0 to count - 1, in one pass over the data."""
    sums = torch.zeros(len(snapshot.parts), count, dtype=torch.float64)
    counts = torch.zeros(len(snapshot.parts), dtype=torch.float64)

    def visit(part: Part, batch: Batch) -> None:
        j = next(j for j, p in enumerate(snapshot.parts) if p is part)
        counts[j] += float(part.criterion.count(batch.targets))
        for i in range(count):
            terms = snapshot.terms(part, snapshot.space.unflatten(point(i)), batch)
            sums[j, i] += float(terms.double().sum())

    with torch.no_grad():
        with Remembered(snapshot):
            snapshot.sweep(visit)
        if snapshot.group is not None:
            sums, counts = snapshot.group.sum(sums), snapshot.group.sum(counts)
        weights = torch.tensor([p.weight for p in snapshot.parts], dtype=torch.float64) / counts
        values = (weights[:, None] * sums).sum(0)
        if snapshot.penalties:
            space = snapshot.space
            values = values + torch.tensor(
                [float(snapshot.penalty(space.unflatten(point(i)))) for i in range(count)], dtype=torch.float64
            )
    return values
