"""Curvature along each batch's own gradient, and the gradient noise between batches.

    batch sharpness  E_b [ g_b' H_b g_b / |g_b|^2 ]        g_b, H_b gradient and Hessian of one batch

Once SGD trains at the edge of stability, this number and not the largest eigenvalue hovers at 2 / rate.

**Source.** Andreyev and Beneventano, "Edge of stochastic stability: revisiting the edge of stability for SGD" (2024),
arXiv 2412.20553. McCandlish et al. (2018), arXiv 1812.06162, for the noise scale from batches.
**Differs from the source.** The mean has a t interval over batches, and the noise scale the Fieller interval of
`noise_scale`, with the batches as its draws.
**Cost.** One gradient and one Hessian product per batch, and as many vectors as batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from frechet.analyze._examples import ExampleGradients
from frechet.analyze._noise_scale import NoiseScale, noise_scale
from frechet.linalg._result import Estimate
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.objective._data import rows_of, untouched_generators
from frechet.objective._structure import examples_of
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._hessian import hessian
from frechet.space import generator


@dataclass(frozen=True, eq=False)
class BatchSharpness(Result):
    """The mean of g_b'H_b g_b / |g_b|^2 over `batches` batches of `batch_size` examples, and what their gradients tell.

    `noise` is the gradient noise scale in examples; None with fewer than three batches.
    """

    value: Estimate
    along: Tensor = field(repr=False)  # (batches,), one value each
    noise: NoiseScale | None
    batch_size: int
    batches: int
    products: int


def batch_sharpness(
    objective: Objective,
    *,
    batch_size: int | None = None,
    batches: int = 16,
    seed: int | None = None,
    x: Tensor | None = None,
) -> BatchSharpness:
    """Estimate the curvature along a batch's own gradient, E_b[g_b'H_b g_b / |g_b|^2], and the noise between batches.

    Args:
        objective: the objective. Its data are in memory, as a list of batches, where batches are drawn.
        batch_size: examples in a batch that is drawn without replacement. Default: the objective's own batches, those
            that have as many examples as the first.
        batches: how many are drawn.
        seed: of the draw.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import batch_sharpness
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.ones(2, 1))])
        >>> found = batch_sharpness(objective, batch_size=1, batches=4, seed=0)  # H_b = 2 x x', along x
        >>> round(float(found.value), 4)
        2.0
    """
    refuse_sharded("batch_sharpness", objective.space)
    if batch_size is None:
        own, size = _own(objective)
    else:
        if seed is None:
            raise ValueError("batch_sharpness: seed must be given where batches are drawn")
        own, size = drawn(objective, batch_size, batches, seed), batch_size
    if not own:
        raise ValueError("batch_sharpness: the objective must have a batch, got none")
    space, x = objective.space, objective.point if x is None else x
    along, gradients = [], []
    for part in own:
        g = part.gradient(x)
        square = float(space.inner(g, g))
        if square == 0:
            raise ValueError("batch_sharpness: a batch has the gradient 0, along which there is no curvature")
        along.append(float(space.inner(g, hessian(part, x) @ g)) / square)
        gradients.append(g)
    values = torch.tensor(along, dtype=torch.float64)
    m = len(own)
    error = values.std() / math.sqrt(m) if m > 1 else torch.tensor(math.inf, dtype=torch.float64)
    mean = Estimate(
        values.mean(), error, m, m, seed, degrees_of_freedom=max(m - 1, 1), method="batches along their own gradients"
    )
    noise = _noise(objective, gradients, size) if m > 2 else None
    return BatchSharpness(mean, values, noise, size, m, m)


def drawn(objective: Objective, size: int, count: int, seed: int) -> list[Objective]:
    """The objective on `count` batches, each of `size` examples drawn without replacement from all data.

    A drawn batch is a list of the rows that it takes of each batch of the data: sums over both are the same.
    """
    objective.snapshot().refuse_coupled("drawn batches")
    if len(objective.parts) != 1 or not isinstance(objective.parts[0].data, Sequence):
        raise ValueError("drawn batches: the objective must have one data term whose data are a list of batches")
    raw: list[Any] = list(objective.parts[0].data)
    sizes = [examples_of(b) for b in raw]
    total = sum(sizes)
    if not 1 <= size <= total or count < 1:
        raise ValueError(f"drawn batches: batch_size must lie between 1 and the {total} examples, got {size}")
    found = []
    for j in range(count):
        chosen = torch.randperm(total, generator=generator(seed, j))[:size].sort().values
        pieces, start = [], 0
        for batch, n in zip(raw, sizes, strict=True):
            rows = chosen[(chosen >= start) & (chosen < start + n)] - start
            if rows.numel():
                pieces.append(rows_of(batch, rows))
            start += n
        found.append(objective._with((replace(objective.parts[0], data=pieces, population=None),), objective.penalties))
    return found


def _own(objective: Objective) -> tuple[list[Objective], int]:
    """The objective on each of its batches that is as large as the first."""
    if len(objective.parts) != 1:
        raise ValueError(f"batch_sharpness: needs an objective with one data term, got {len(objective.parts)}")
    part = objective.parts[0]
    with untouched_generators():
        raw = list(part.data)
    sizes = [examples_of(*part.split(b)) for b in raw]
    return [objective.on(b) for b, n in zip(raw, sizes, strict=True) if n == sizes[0]], sizes[0] if sizes else 0


def _noise(objective: Objective, gradients: list[Tensor], size: int) -> NoiseScale:
    """The noise scale with batches as the draws, whose variance is a `size`-th of an example's."""
    space = objective.space
    G = torch.stack(gradients)
    gram = space.gram(G.T, G.T).double().cpu()
    mean = G.mean(0)
    squared = float(gram.mean())
    draws = ExampleGradients(
        gram.diagonal().clone(), gram.mean(1), torch.zeros(len(G), dtype=torch.float64), 0.0, mean, squared, len(G),
        float(len(G)), 1, "loop",
    )  # fmt: skip
    found = noise_scale(draws)
    variance = found.gradient_variance
    scaled = replace(variance, value=size * variance.value, standard_error=size * variance.standard_error)
    return replace(
        found, value=size * found.value, lower=size * found.lower, upper=size * found.upper, gradient_variance=scaled,
        on_these_data=size * found.on_these_data, resolvable=size * found.resolvable, examples=size * len(G),
    )  # fmt: skip
