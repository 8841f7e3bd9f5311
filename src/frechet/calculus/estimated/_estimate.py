"""What estimators of gradients return, and the one report of bias and variance for all of them.

`bias_and_variance` runs an estimator m times with its own seeds, beside a reference: the exact gradient, or an unbiased
estimator, run as often. With d_i = estimate_i - reference_i,

    |bias|^2 = sum over i != j of d_i . d_j / (m (m - 1)),

which has no bias of its own; its error is the jackknife's. The variance is the mean of |e_i - mean|^2, with the spread
of these numbers as its error. The mean square error of one run is the sum of both.

**Source.** Hoeffding, "A class of statistics with asymptotically normal distribution" (1948); Efron and Stein (1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

from frechet.linalg import Estimate
from frechet.linalg._shown import Result, Rows, short


@dataclass(frozen=True, eq=False)
class GradientEstimate(Result):
    """An estimate of a gradient: its random error, and how far its mean may lie from the gradient.

    `bias_bound` bounds every entry's bias: zero for unbiased estimators, infinite where nothing is known. `target` says
    whose gradient the mean is.
    """

    value: Tensor
    standard_error: Tensor
    bias_bound: Tensor
    target: str
    samples: int
    evaluations: int  # of the function, or products with its derivative
    seed: int | None
    degrees_of_freedom: float
    method: str

    @property
    def unbiased(self) -> bool:
        """Whether the mean is the gradient itself."""
        return not bool(self.bias_bound.any())

    def interval(self, level: float = 0.95, *, bias: bool = True) -> tuple[Tensor, Tensor]:
        """Ends that cover each entry of the gradient with probability `level`; without `bias`, of the mean."""
        if not 0 < level < 1:
            raise ValueError(f"interval: level must lie between 0 and 1, got {level}")
        q = float(scipy.stats.t.ppf(0.5 + level / 2, self.degrees_of_freedom))
        half = q * self.standard_error + (self.bias_bound if bias else 0.0)
        return self.value - half, self.value + half

    def _line(self) -> str:
        bias = "unbiased" if self.unbiased else f"bias <= {float(self.bias_bound.max()):.2g}"
        error = float(self.standard_error.max()) if self.standard_error.numel() else 0.0
        return f"{short(self.value)} ± {error:.2g}, {bias}, {self.evaluations} evaluations, {self.method}"


@dataclass(frozen=True, eq=False)
class BiasVariance(Result):
    """The bias and the variance of an estimator, each with its standard error, over `repeats` independent runs."""

    bias: Tensor  # of each entry
    bias_error: Tensor
    bias_squared: Estimate  # the squared length of the bias
    variance: Estimate  # summed over entries, of one run
    cosine: Estimate  # between one run and the reference
    coverage: float | None  # how often an entry's 95 % interval held the reference, where that is exact
    repeats: int
    evaluations: int

    @property
    def mean_square_error(self) -> float:
        """The expected squared distance of one run from the gradient."""
        return max(0.0, float(self.bias_squared)) + float(self.variance)

    def _line(self) -> str:
        low, high = (float(t) for t in self.bias_squared.interval())
        ends = f"|bias| in [{math.sqrt(max(0.0, low)):.3g}, {math.sqrt(max(0.0, high)):.3g}]"
        return f"{ends}, variance {float(self.variance):.4g}, cosine {float(self.cosine):.3f}, {self.repeats} runs"

    def _table(self) -> Rows:
        rows = [(name, repr(getattr(self, name))) for name in ("bias_squared", "variance", "cosine")]
        rows += [(name, short(getattr(self, name))) for name in ("coverage", "repeats", "evaluations")]
        return ("", ""), rows


Estimator = Callable[[int], "GradientEstimate | Tensor"]


def bias_and_variance(estimator: Estimator, reference: Tensor | Estimator, *, repeats: int, seed: int) -> BiasVariance:
    """Estimate the bias and the variance of any estimator of a gradient, with error bars.

    Args:
        estimator: a function of a seed that returns a `GradientEstimate` or a tensor.
        reference: the exact gradient, or an unbiased estimator of it, which is run as often.
        repeats: how many independent runs, >= 3.
        seed: run i has the seed `seed + i`; a reference that is random has seeds beyond these.

    Example:
        >>> import torch
        >>> from frechet.calculus.estimated import bias_and_variance, forward_gradient
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> run = lambda seed: forward_gradient(lambda x: x.square().sum(), x, probes=4, seed=seed)
        >>> report = bias_and_variance(run, 2 * x, repeats=200, seed=0)
        >>> low, high = report.bias_squared.interval(0.999)
        >>> bool(low <= 0), report.repeats
        (True, 200)
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 3:
        raise ValueError(f"bias_and_variance: repeats must be an integer >= 3, got {repeats!r}")
    runs = [estimator(seed + i) for i in range(repeats)]
    E = torch.stack([_value(r).detach().double().flatten() for r in runs])
    if isinstance(reference, Tensor):
        R = reference.detach().double().flatten().expand_as(E)
    else:
        R = torch.stack([_value(reference(seed + repeats + i)).detach().double().flatten() for i in range(repeats)])
    if E.shape != R.shape:
        raise ValueError(f"bias_and_variance: reference must have {E.shape[1]} entries, got {R.shape[1]}")
    D = E - R
    covered = _covered(runs, R) if isinstance(reference, Tensor) else None
    spent = sum(r.evaluations if isinstance(r, GradientEstimate) else 0 for r in runs)
    return BiasVariance(
        D.mean(0),
        D.std(0) / math.sqrt(repeats),
        _squared_mean(D),
        _mean((E - E.mean(0)).square().sum(1) * (repeats / (repeats - 1))),
        _mean(_cosines(E, R.mean(0).expand_as(E))),
        covered,
        repeats,
        spent,
    )


def _value(run: GradientEstimate | Tensor) -> Tensor:
    return run.value if isinstance(run, GradientEstimate) else run


def _mean(values: Tensor) -> Estimate:
    m = len(values)
    return Estimate(values.mean(), values.std() / math.sqrt(m), m, 0, None, degrees_of_freedom=m - 1.0, method="mean")


def _cosines(E: Tensor, R: Tensor) -> Tensor:
    size = (E.square().sum(1) * R.square().sum(1)).sqrt()
    return (E * R).sum(1) / size.clamp(min=torch.finfo(E.dtype).tiny)


def _squared_mean(D: Tensor) -> Estimate:
    """The squared length of the mean of D's rows, without the part that their noise adds, and the jackknife's error."""
    m = len(D)
    total, own = D.sum(0), D.square().sum(1)

    def without(s: Tensor, squares: Tensor, k: int) -> Tensor:
        return (s.square().sum(-1) - squares) / (k * (k - 1))

    value = without(total, own.sum(), m)
    left = without(total - D, own.sum() - own, m - 1)
    error = ((m - 1) / m * (left - left.mean()).square().sum()).sqrt()
    return Estimate(value, error, m, 0, None, degrees_of_freedom=m - 1.0, method="pairs of runs")


def _covered(runs: list[GradientEstimate | Tensor], R: Tensor) -> float | None:
    found = []
    for run, r in zip(runs, R, strict=True):
        if not isinstance(run, GradientEstimate):
            return None
        low, high = (t.detach().double().flatten() for t in run.interval())
        found.append(float(((low <= r) & (r <= high)).double().mean()))
    return sum(found) / len(found)
