"""The roughness of a loss around a point: how much it goes up and down on random lines.

On each line f(t) = L(x + t d), |t| <= r, the total variation over the range,

    T = sum_i |f(t_i+1) - f(t_i)| / (max f - min f),

is 1 where f is monotone, 2 where it is a bowl about its middle, and more where it has ripples. It does not depend on
units of the loss. The roughness index is the standard deviation of T over the directions, divided by its mean.

**Source.** Wu, Jiang, Zhang and Lai, "Roughness index for loss landscapes of neural network models of partial
differential equations" (2021), arXiv 2103.11069.
**Differs from the source.** (1) T is divided by the range of f on its line. (2) Each line reaches as far as its slope
and curvature predict a given change of the loss (`loss_slices`): a random direction of fixed length sees only the mean
eigenvalue of the Hessian, so that T would be 1 or 2 for every model. (3) Intervals over
directions: Student's for the mean, the jackknife's of its logarithm for the index. (4) `resolution`: how far T changes
when every second point is left out. Grids that are too coarse miss ripples.

**Cost.** One pass with directions x points forward passes, and one Hessian product per direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import scipy
import torch
from torch import Tensor

from frechet.analyze._slices import loss_slices
from frechet.analyze._stability import Range
from frechet.errors import NonFinite
from frechet.linalg._sequential import degrees_of_freedom
from frechet.linalg._shown import Result
from frechet.objective import Objective

LEVEL = 0.95
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Roughness(Result):
    """The variation T of the loss on random lines: its mean, and the index sd(T) / mean(T), with 95 % intervals."""

    mean: Range
    index: Range
    resolution: float  # the largest change of a T when every second point is left out
    variations: Tensor = field(repr=False)  # (directions,)
    radius_rule: str
    evaluations: int
    products: int
    seed: int


def roughness(
    objective: Objective,
    *,
    seed: int,
    directions: int = 20,
    points: int = 41,
    change: float = 1.0,
    radius: float | None = None,
    x: Tensor | None = None,
) -> Roughness:
    """Estimate how much the loss goes up and down on random lines through a point.

    Args:
        objective: the objective.
        seed: of the directions, which are Gaussian of length 1 on average.
        directions: how many lines, at least 5.
        points: on a line, odd and at least 5.
        change: each line goes as far as slope and curvature predict this change of the loss, relative to the loss.
        radius: the length of all lines to each side, in place of `change`.
        x: the point ``(n,)``. Default: the model's present parameters.

    Raises:
        NonFinite: the loss on a line is not finite; a smaller `change` or `radius` helps.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import roughness
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.eye(3), torch.zeros(3, 1))])  # a bowl
        >>> round(roughness(objective, seed=0).mean.value, 6)
        2.0
    """
    if directions < 5 or points < 5 or points % 2 == 0:
        raise ValueError(
            f"roughness: directions must be at least 5 and points odd and at least 5, got {directions} and {points}"
        )
    space = objective.space
    D = space.random(range(directions), seed, "gaussian") / space.dim**0.5
    cut = loss_slices(objective, D, radius=radius, points=points, change=change, x=x)
    if not bool(torch.isfinite(cut.losses).all()):
        lines = int((~torch.isfinite(cut.losses)).any(1).sum())
        raise NonFinite(f"roughness: the loss is not finite on {lines} of {directions} lines; pass a smaller change")
    flat = cut.losses.amax(1) == cut.losses.amin(1)
    if bool(flat.any()):
        raise ValueError(
            f"roughness: the loss must vary on every line, got the same value at all points of {int(flat.sum())} of "
            f"{directions} lines; pass a larger change or radius"
        )
    T, coarse = variation(cut.losses), variation(cut.losses[:, ::2])
    mean, index = intervals(T)
    return Roughness(
        mean, index, float((T - coarse).abs().max()), T, cut.radius_rule, cut.evaluations, cut.products, seed
    )


def variation(f: Tensor) -> Tensor:
    """The total variation of each row over its range."""
    return f.diff(dim=1).abs().sum(1) / (f.amax(1) - f.amin(1))


def intervals(T: Tensor) -> tuple[Range, Range]:
    """The mean of T and sd(T) / mean(T), with intervals.

    Those of the index cover 85 to 90 % where T has tails like an exponential variable, from 20 directions.
    """
    k = len(T)
    q = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, k - 1))
    mean, sd = float(T.mean()), float(T.std())
    half = q * sd / math.sqrt(k)
    index, without = sd / mean, torch.stack([torch.cat([T[:i], T[i + 1 :]]) for i in range(k)])
    logs = (without.std(1) / without.mean(1)).clamp(min=TINY).log()
    q = float(scipy.stats.t.ppf(0.5 + LEVEL / 2, degrees_of_freedom(k)))
    factor = math.exp(min(q * math.sqrt((k - 1) / k * float((logs - logs.mean()).square().sum())), 700.0))
    return Range(mean, mean - half, mean + half), Range(index, index / factor, index * factor)
