"""The intrinsic dimension of a training problem: the least number of random directions in which training succeeds.

Train x = x0 + P z over z in R^d, where P has d random columns. The intrinsic dimension is the least d at which the
trained model reaches a given fraction (90 %) of what training of all parameters reaches.

P is a signed and sampled Walsh-Hadamard transform: its columns have length 1 and are orthogonal up to the padding of n
to a power of two, and a product takes O(n log n). The gradient over z is P'g, whose length is sqrt(d / n) of that of g:
the rate of SGD must be tuned for each d, that of Adam need not.

**Source.** Li, Farkhoor, Liu and Yosinski, "Measuring the intrinsic dimension of objective landscapes" (2018), arXiv
1804.08838.
**Differs from the source.** (1) A Hadamard transform in place of dense, sparse or Fastfood projections: nothing is
stored, and no length must be corrected. (2) The search doubles d, then bisects, on means over seeds, and returns the
band between the dimensions at which no seed and every seed succeeds.

**Cost.** One training run per dimension tried and seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.linalg._sketch import hadamard_sketch
from frechet.operators._operator import LinearOperator
from frechet.space import Space

FRACTION = 0.9
RATIO = 1.1  # the search ends where the two sides of the threshold are this near


@dataclass(frozen=True, eq=False)
class IntrinsicDimension(Result):
    """The least dimension tried whose mean score reaches the threshold; None where none did.

    `band` holds the largest dimension at which no seed reached the threshold, and the least at which all did; 0 and
    None stand for neither.
    """

    dimension: int | None
    band: tuple[int, int | None]
    threshold: float
    parameters: int
    dimensions: tuple[int, ...]  # tried, increasing
    scores: Tensor = field(repr=False)  # (tried, seeds)
    message: str


def random_subspace(space: Space, d: int, *, seed: int) -> LinearOperator:
    """Return P ``(n, d)``: random columns of length 1, nearly orthogonal, with products in O(n log n).

    Args:
        space: of the n parameters, such as ``objective.space``.
        d: how many columns, at most n.
        seed: of the columns.

    Example:
        >>> import torch
        >>> from frechet.analyze import random_subspace
        >>> from frechet.space import euclidean
        >>> P = random_subspace(euclidean(64, torch.float64), 4, seed=0)
        >>> bool(torch.allclose(P.dense().T @ P.dense(), torch.eye(4, dtype=torch.float64)))
        True
    """
    if not 1 <= d <= space.dim:
        raise ValueError(f"random_subspace: d must lie between 1 and n = {space.dim}, got {d}")
    return math.sqrt(d / space.dim) * hadamard_sketch(space, d, seed=seed).T


def intrinsic_dimension(
    score: Callable[[LinearOperator, int], float],
    space: Space,
    *,
    baseline: float,
    fraction: float = FRACTION,
    seeds: Sequence[int] = (0, 1, 2),
    first: int = 10,
    most: int | None = None,
) -> IntrinsicDimension:
    """Find the least dimension of a random subspace in which training succeeds.

    Args:
        score: trains x0 + P z from z = 0 and returns how good the result is, larger is better. It gets P ``(n, d)`` and
            the seed that P was drawn with.
        space: of the n parameters.
        baseline: the score of training all parameters.
        fraction: the part of the baseline that counts as success.
        seeds: of the subspaces; each dimension is tried with all of them.
        first: where the doubling begins.
        most: the largest dimension to try. Default: n.

    Example:
        >>> from frechet.analyze import intrinsic_dimension
        >>> from frechet.space import euclidean
        >>> found = intrinsic_dimension(lambda P, seed: min(1.0, P.shape[1] / 30), euclidean(1000), baseline=1.0)
        >>> found.dimension, found.band
        (27, (25, 27))
    """
    most = space.dim if most is None else most
    if not 1 <= first <= most <= space.dim:
        raise ValueError(f"intrinsic_dimension: needs 1 <= first <= most <= n = {space.dim}, got {first} and {most}")
    if not seeds or not 0 < fraction < 1 or not 0 < baseline < math.inf:
        raise ValueError(
            "intrinsic_dimension: needs a seed, a fraction between 0 and 1 and a positive finite baseline, got "
            f"seeds {tuple(seeds)}, fraction {fraction} and baseline {baseline}"
        )
    threshold, tried = fraction * baseline, dict[int, list[float]]()

    def succeeds(d: int) -> bool:
        found = [float(score(random_subspace(space, d, seed=seed), seed)) for seed in seeds]
        if any(math.isnan(v) for v in found):
            raise ValueError(
                f"intrinsic_dimension: score must be a number, got nan at d = {d}; return -inf for failures"
            )
        tried[d] = found
        return sum(found) / len(found) >= threshold

    low, high = 0, first
    while not succeeds(high):
        low = high
        if high == most:
            return _found(None, tried, threshold, space.dim, f"no dimension up to {most} reached the threshold")
        high = min(2 * high, most)
    while high > max(low + 1, RATIO * low):
        middle = (low + high) // 2
        low, high = (low, middle) if succeeds(middle) else (middle, high)
    return _found(high, tried, threshold, space.dim, f"means over seeds cross the threshold between {low} and {high}")


def _found(
    dimension: int | None, tried: dict[int, list[float]], threshold: float, parameters: int, message: str
) -> IntrinsicDimension:
    none = [d for d, found in tried.items() if max(found) < threshold]
    every = [d for d, found in tried.items() if min(found) >= threshold]
    dimensions = tuple(sorted(tried))
    scores = torch.tensor([tried[d] for d in dimensions], dtype=torch.float64)
    band = (max(none, default=0), min(every, default=None))
    return IntrinsicDimension(dimension, band, threshold, parameters, dimensions, scores, message)
