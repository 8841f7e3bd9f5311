"""The standard error of an average of quadratic forms z'A z over few random probes.

The sample variance of x_j = z_j'A z_j is the usual choice and the worst: where one eigenvalue c dominates, x is about c
chi-square(1). The probes that miss its eigenvector give a small mean and a small variance together, and Student's
interval from 10 probes covers 88 % instead of 95 %. The products y_j = A z_j know more. For a symmetric A

    signs:                    Var x = 2 sum_{i != k} A_ik^2        = 2 sum_i Var (z_i y_i)
    a sphere, |z|^2 = n:      Var x = 2 n/(n+2) (||A||_F^2 - tr(A)^2/n) = 2 E |y - (x/n) z|^2

and the right-hand sides add up n numbers for every probe. Where one eigenvalue dominates they are about 2 c x, and the
studentized mean is (w - 1)/sqrt(2 w/k) with w = chi-square(k)/k, whose quantiles are below Student's with k - 1 degrees
of freedom from k = 4 on; where many matter they are nearly exact. For an A that is not symmetric the right-hand sides
are upper bounds, far too large for a nearly antisymmetric one. There the sample variance stands beside them, with the
degrees of freedom that one dominating eigenvalue asks for, and the shorter of the two intervals is taken.

**Source.** The variances: Avron and Toledo 2011, Randomized algorithms for estimating the trace of an implicit
symmetric positive semi-definite matrix, doi 10.1145/1944345.1944349. Updating a variance by blocks: Chan, Golub and
LeVeque 1983, doi 10.1080/00031305.1983.10483115.

**Differs from the source.** The variance is estimated from the products themselves, entry by entry.

Cost: no product; with signs one vector more, and the block's z * y for a moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

from frechet.linalg._sequential import LEVEL, Reading, degrees_of_freedom
from frechet.space import Space

ROUNDING = 2.0  # a sum over n entries, behind a sketch of the whole range: errors up to 8 times eps sqrt(n) ||A||_F


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples x_1, ..., x_k of a trace, and what the products behind them say about their variance."""

    x: Tensor  # (k,) float64
    size: float  # root of the sum of the squared norms of `counted` products
    counted: int
    spread: float = 0.0  # root of the sum of squares whose mean is half of Var x
    mean: Tensor | None = None  # (n,), of z * y over signs; None with a sphere

    @property
    def products(self) -> int:
        return self.x.numel()


def no_samples(size: float = 0.0, counted: int = 0) -> Samples:
    return Samples(torch.zeros(0, dtype=torch.float64), size, counted)


def inners(space: Space, U: Tensor, V: Tensor) -> Tensor:
    """u_j'v_j of two blocks' columns, float64 (k,)."""
    return torch.stack([space.inner(u, v) for u, v in zip(U.T, V.T, strict=True)])


def length(space: Space, V: Tensor) -> float:
    """The Frobenius norm of a block. Lengths are added by `hypot`: their squares may not be numbers."""
    return math.hypot(*space.norm(V).tolist())


def with_signs(space: Space, seen: Samples, Z: Tensor, Y: Tensor) -> Samples:
    """`seen` and the samples of the products Y with signs Z."""
    k, b = seen.products, Z.shape[1]
    X = Z * Y
    mean = X.mean(1)
    gap = mean if seen.mean is None else mean - seen.mean
    spread = math.hypot(length(space, X - mean.unsqueeze(1)), float(space.norm(gap)) * math.sqrt(k * b / (k + b)))
    mean = mean if seen.mean is None else seen.mean + gap * (b / (k + b))
    return _added(space, seen, inners(space, Z, Y), Y, spread, mean)


def on_sphere(space: Space, seen: Samples, Z: Tensor, Y: Tensor, image: Tensor, n: int) -> Samples:
    """`seen` and the samples z'y of probes on a sphere of an n-dimensional subspace, `image` being y within it."""
    x = inners(space, Z, Y)
    rest = image - Z * (x / max(n, 1)).to(Z.device, Z.dtype)
    return _added(space, seen, x, Y, length(space, rest), None)


def _added(space: Space, seen: Samples, x: Tensor, Y: Tensor, spread: float, mean: Tensor | None) -> Samples:
    size = math.hypot(seen.size, length(space, Y))
    x = torch.cat([seen.x.to(x.device), x])
    return Samples(x, size, seen.counted + Y.shape[1], math.hypot(seen.spread, spread), mean)


def reading(space: Space, samples: Samples, symmetric: bool, shift: float = 0.0) -> Reading:
    """`shift` plus the mean of the samples, with its standard error and at least that of rounding."""
    x, k = samples.x, samples.products
    if k == 1:
        return Reading(shift + x[0], x.new_tensor(math.inf), degrees_of_freedom(k))
    signs = samples.mean is not None
    # the mean of z * y is estimated too; few signs take few values, for which Student's quantile is not enough
    error = math.sqrt(2 / (k - 1 if signs else k)) * samples.spread / math.sqrt(k)
    dof = degrees_of_freedom(k) if signs else float(k - 1)
    if not symmetric:
        own = float(deviation(x)) / math.sqrt(k), dominated(k)
        error, dof = min(
            (error, dof), own, key=lambda pair: pair[0] * float(scipy.stats.t.ppf((1 + LEVEL) / 2, pair[1]))
        )
    floor = ROUNDING * space.eps * math.sqrt(space.dim / samples.counted) * samples.size
    return Reading(shift + x.mean(), x.new_tensor(max(error, floor)), dof)


def deviation(x: Tensor) -> Tensor:
    """The sample standard deviation of numbers whose squares may not be numbers."""
    unit = x.abs().max()
    return (x / unit).std() * unit if float(unit) > 0.0 else torch.zeros_like(unit)


def dominated(k: int) -> float:
    """Degrees of freedom with which Student's interval from k draws of a chi-square(1) variable covers 95 %.

    Fitted to 400 000 simulated samples each at k = 4, ..., 60: 1.13, 1.77, 2.04, 2.82, 3.32, 4.65, 8.63 at 4, 8, 10,
    16, 20, 30, 60. No sum of eigenvalues times chi-square(1) variables is more skewed.
    """
    return 0.6 + 0.134 * k
