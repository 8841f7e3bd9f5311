"""The outliers of a spectrum, and its bulk.

The Hessian of a trained network has a few large eigenvalues, about one for each class, and a bulk near zero. The rule:
among the `most` + 1 largest eigenvalues the outliers are those above the largest ratio of neighbours. A clear rule has
a `gap` well above `next_gap`; where both are near 1 there are no outliers, only a tail.

**Source.** Sagun, Evci, Güney, Dauphin and Bottou, "Empirical analysis of the Hessian of over-parametrized neural
networks" (2017), arXiv 1706.04454: bulk and outliers. **Differs from the source.** They look at histograms; the rule is
ours. The bulk comes from products, with the outliers taken out exactly.

**Cost.** That of `eigsh` for `most` + 1 pairs, and probes x steps products for the bulk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from frechet.linalg._density import Density, spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Spectrum
from frechet.linalg._shown import Result
from frechet.operators._operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Outliers(Result):
    """Outliers of a symmetric operator and the bulk below them.

    `edge` is the largest eigenvalue of the bulk. `gap` is the ratio of the last outlier to it, and `next_gap` the next
    largest ratio of neighbours. `share` is the part of the trace that the outliers carry, nan where the trace is not
    positive. `scale` is the root mean square of the bulk's eigenvalues, `negative` the part of them below
    -`scale` / 1 000.
    """

    count: int
    values: Tensor  # (count,)
    edge: float
    gap: float
    next_gap: float
    share: float
    scale: float
    negative: float
    spectrum: Spectrum = field(repr=False)  # of the outliers and what follows them
    bulk: Density = field(repr=False)
    products: int


def outliers(
    A: LinearOperator, *, seed: int, most: int = 20, rtol: float = 1e-2, probes: int = 4, steps: int = 40
) -> Outliers:
    """Tell the large eigenvalues of a symmetric operator from its bulk.

    Args:
        A: a symmetric operator, such as ``hessian(objective)``.
        seed: of the random vectors.
        most: the largest number of outliers.
        rtol: the tolerance of the eigenvalues (`eigsh`).
        probes: of the bulk's density (`spectral_density`).
        steps: of each probe.

    Raises:
        NotConverged: an eigenvalue did not converge.
        ValueError: fewer than two of the largest eigenvalues are positive.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.analyze import outliers
        >>> A = from_diagonal(torch.cat([torch.tensor([30.0, 25.0, 20.0]), torch.linspace(0, 1, 97)]))
        >>> found = outliers(A, seed=0)
        >>> found.count, round(found.gap)
        (3, 20)
    """
    if not 1 <= most < A.shape[0] - 1:
        raise ValueError(f"outliers: most must lie between 1 and n - 2 = {A.shape[0] - 2}, got {most}")
    found = eigsh(A, most + 1, seed=seed, rtol=rtol).checked()
    positive = found.values[found.values > 0]
    if len(positive) < 2:
        raise ValueError(
            f"outliers: at least two of the {most + 1} largest eigenvalues must be positive, got {len(positive)}"
        )
    ratios = positive[:-1] / positive[1:]
    order = ratios.argsort(descending=True)
    count = int(order[0]) + 1
    kept = Spectrum(
        found.values[:count], found.vectors[:, :count], found.residuals[:count], found.converged[:count],
        found.iterations, found.products, found.status, space=found.space,
    )  # fmt: skip
    bulk = spectral_density(A, seed=seed, probes=probes, steps=steps, deflate=kept)
    left = A.shape[0] - count
    out, total = kept.values.sum(), bulk.trace_of(lambda t: t).value
    square = (bulk.trace_of(lambda t: t * t).value - kept.values.square().sum()).clamp(min=0)
    scale = float((square / left).sqrt())
    below = bulk.trace_of(lambda t: (t < -1e-3 * scale).double()).value
    return Outliers(
        count, kept.values, float(positive[count]), float(ratios[count - 1]),
        float(ratios[order[1]]) if len(order) > 1 else 1.0, float(out / total) if total > 0 else float("nan"), scale,
        float(below) / left, found, bulk, found.products + bulk.products,
    )  # fmt: skip
