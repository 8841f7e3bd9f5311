"""The gradient noise scale: the batch size at which the noise of a batch's gradient is as large as the gradient.

    B = tr(Sigma) / |G|^2,    Sigma the covariance of one example's gradient g_i, G its mean

With batches much smaller than B, twice the batch allows nearly twice the step; much larger than B, it buys nothing.
From n examples, S = n/(n-1) (mean |g_i|^2 - |g|^2) and |g|^2 - S/n, g the mean, are unbiased for tr(Sigma), |G|^2.

The interval takes the examples as independent draws from a population and B as the population's. It is the set of
ratios r at which S - r |G|^2 is not significantly different from zero (Fieller). The variance of that difference is the
jackknife's, or the one that |G|^2 = S/r would give it, whichever is larger. Near a minimum |g|^2 is mostly noise, the
second is what holds then, and the interval has no upper end where |G| cannot be told from zero. For a part of a finite
data set drawn without replacement it is on the safe side. Where few examples carry the sum of |g_i|^2 or of |g_i'g|
(fewer than 5, or than n/6, of equal ones), their number in another sample is anyone's guess: no interval is given, it
is [0, inf]. What no example shows cannot be told: a kind of 1 % is missing in 100 examples with probability 0.37.
Examples that the model was trained on are no draws: their mean gradient is smaller than even G = 0 would leave it,
every r is rejected, and the interval is [0, inf].

**Source.** McCandlish, Kaplan, Amodei and the OpenAI Dota Team, "An empirical model of large-batch training" (2018),
arXiv 1812.06162, sections 2.2 and A.1. Fieller, "Some problems in interval estimation", JRSS B 16 (1954). Efron and
Stein, "The jackknife estimate of variance", Annals of Statistics 9 (1981), doi 10.1214/aos/1176345462.
**Differs from the source.** (1) Norms of single examples' gradients replace the difference of two batch sizes.
(2) The interval. (3) With r near the truth, Var |g|^2 = 4 G'Sigma G/n + 2 tr(Sigma^2)/n^2 for Gaussian gradients, with
G'Sigma G = l |G|^2 and tr(Sigma^2) = l tr(Sigma), l = g'Sigma g/|g|^2: exact for one parameter or isotropic Sigma.
(4) tr(H Sigma) from probes of the parameters: z'H Sigma z needs the weighted gradient of g_i'z. The variance is that
of pairs of probes, z_i'H Sigma z_j, or that of the samples where it is larger.
**Cost.** `noise_scale`: two passes, no product. `curvature_noise_scale`: probes + 1 products, about as many gradients
of gradients, 3 `probes` vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

from frechet.analyze._examples import ExampleGradients, _one_part, _terms, example_gradients
from frechet.analyze._single_examples import ExampleRoute
from frechet.linalg._result import Estimate
from frechet.linalg._shown import Result
from frechet.objective import Batch, Objective, Part
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import differentiating, grads

# Of 20, 100 and 300 Gaussian gradients the effective number is above 3.5, 22 and 80 in 99 % of the samples
FEW = 5.0
GRID = 256  # places at which the test is tried before bisection


@dataclass(frozen=True, eq=False)
class NoiseScale(Result):
    """B = tr(Sigma) / |G|^2 in examples, with the interval [lower, upper] at confidence `level`.

    `upper` is infinite where |G| cannot be told from zero, and `value` where the unbiased |G|^2 is not even positive.
    Where few examples carry the gradients the interval is [0, inf] and `message` says so. No `lower` exceeds
    `resolvable`, the largest B for which so many examples can tell |G| from zero at this level; it is 0 where
    `below_chance`: |g| is smaller than that of independent examples with G = 0, as at a point trained on these
    examples. They cannot tell the noise scale then; held-out ones can. `on_these_data` is the ratio with the data
    themselves as the population: no sampling error, nothing estimated.
    """

    value: float
    lower: float
    upper: float
    level: float
    gradient_variance: Estimate  # tr(Sigma)
    gradient_squared: Estimate  # |G|^2; may be negative
    on_these_data: float
    examples: int
    passes: int
    products: int = 0
    resolvable: float = math.inf
    below_chance: bool = False
    message: str = ""  # why there is no interval

    def _line(self) -> str:
        return f"{self.value:.4g} in [{self.lower:.4g}, {self.upper:.4g}], {self.examples} examples"

    @property
    def bounded(self) -> bool:
        """Whether |G| differs from zero at this level, so that the interval has an upper end."""
        return math.isfinite(self.upper)


def noise_scale(
    objective: Objective | ExampleGradients,
    *,
    x: Tensor | None = None,
    level: float = 0.95,
    route: ExampleRoute | None = None,
) -> NoiseScale:
    """Return the gradient noise scale tr(Sigma) / |G|^2, the critical batch size of the simple model, with an interval.

    Sigma is the covariance of one example's gradient, and G the mean gradient. The unit is examples, not tokens: where
    examples have different numbers of terms, g_i is the share of example i in the gradient of all, as in
    `example_gradients`. A penalty counts as part of G. Nothing is drawn.

    Args:
        objective: the objective, or the `ExampleGradients` of one.
        x: the point ``(n,)``. Default: the model's present parameters.
        level: the probability with which the interval covers.
        route: as in `example_gradients`.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import noise_scale
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> y = torch.tensor([[1.0], [2.0], [3.0]])
        >>> noise = noise_scale(Objective(model, squared_error(), [(torch.ones(3, 1), y)]))  # g_i = -2 y_i
        >>> round(float(noise.gradient_variance), 4), round(float(noise.gradient_squared), 4)  # 4 and 16 - 4/3
        (4.0, 14.6667)
        >>> round(noise.value, 4)
        0.2727
    """
    if not 0 < level < 1:
        raise ValueError(f"noise_scale: level must lie between 0 and 1, got {level}")
    if isinstance(objective, ExampleGradients):
        if x is not None or route is not None:
            raise ValueError("noise_scale: x and route must be left out with ExampleGradients; they are taken already")
        found = objective
    elif isinstance(objective, Objective):
        found = example_gradients(objective, x=x, route=route)
    else:
        raise TypeError(f"noise_scale: needs an Objective or ExampleGradients, got {type(objective).__name__}")
    n = found.examples
    if n < 3:
        raise ValueError(f"noise_scale: needs at least 3 examples to estimate a variance of gradients, got {n}")
    a, b, g2 = found.squared_norms, found.inner, found.squared_gradient
    S, G2 = _moments(a.mean(), torch.tensor(g2, dtype=torch.float64), n)
    floor = 4 * torch.finfo(found.gradient.dtype).eps * float(a.mean())  # equal gradients differ by rounding
    S = S if float(S) > floor else torch.zeros_like(S)
    left_out = _moments((a.sum() - a) / (n - 1), (n * n * g2 - 2 * n * b + a) / (n - 1) ** 2, n - 1)
    s, q = (n * whole - (n - 1) * part for whole, part in zip((S, G2), left_out, strict=True))  # pseudo-values
    along = (
        float(b.var()) / g2 if g2 > 0 else float(S)
    )  # l, the variance of g_i along g: without a g, at most all of it
    tests = _Difference(
        float(S), float(G2), float(s.var()) / n, float(q.var()) / n, float(torch.cov(torch.stack([s, q]))[0, 1]) / n,
        along, n,
    )  # fmt: skip
    t = float(scipy.stats.t.ppf(0.5 + level / 2, n - 1))
    smallest = t * math.sqrt(tests.null_variance(0.0))  # |G|^2 that differs from zero
    resolvable = float(S) / smallest if smallest > 0 else math.inf
    below = float(S) > 0 and float(G2) < -smallest
    lower, upper = (0.0, math.inf) if below else tests.interval(t)
    lower = min(lower, resolvable)
    message = _carried_by_few(a, b)
    if message:
        lower, upper = 0.0, math.inf
    value = float(S) / float(G2) if float(G2) > 0 else math.inf
    total = max(float(a.mean()) - g2, 0.0)
    error = torch.tensor([tests.variance_s, tests.null_variance(max(float(G2), 0.0))], dtype=torch.float64).sqrt()
    variance, squared = (
        Estimate(v, e, n, 0, None, degrees_of_freedom=n - 1, method="jackknife over examples")
        for v, e in zip((S, G2), error, strict=True)
    )
    here = total / g2 if g2 > 0 else math.inf
    return NoiseScale(
        value, lower, upper, level, variance, squared, here, n, found.passes, resolvable=resolvable, below_chance=below,
        message=message,
    )  # fmt: skip


def _carried_by_few(squares: Tensor, inner: Tensor) -> str:
    """Why there is no interval: the sentence, or nothing."""
    n = len(squares)
    for shares, what in ((squares, "squared gradients"), (inner.abs(), "mean gradient")):
        whole = float(shares.sum())
        effective = 1 / float((shares / whole).square().sum()) if whole > 0 else math.inf
        if effective < min(FEW, n / 6):
            return (
                f"noise_scale: no interval, because of {n} examples as few as {effective:.1f} equal ones would carry "
                f"the {what}; another sample may hold more or none of them: take more examples"
            )
    return ""


def _moments(mean_square: Tensor, squared_mean: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Unbiased tr(Sigma) and |G|^2 from mean |g_i|^2 and |mean g_i|^2 of n gradients."""
    S = n / (n - 1) * (mean_square - squared_mean)
    return S, squared_mean - S / n


@dataclass(frozen=True)
class _Difference:
    """S - r |G|^2 and its variance, as functions of the hypothetical ratio r."""

    S: float
    G2: float
    variance_s: float
    variance_q: float
    covariance: float
    along: float
    n: int

    def null_variance(self, squared: float) -> float:
        """Variance of the estimated |G|^2 where it is `squared` in truth; at least the jackknife's."""
        return max(self.variance_q, 4 * self.along * (squared + self.S / (2 * self.n)) / self.n)

    def studentized(self, r: float) -> float:
        """(S - r G2) / its standard error; r may be infinite."""
        if math.isinf(r):
            spread = math.sqrt(self.null_variance(0.0))
            return -self.G2 / spread if spread > 0 else -math.copysign(math.inf, self.G2) if self.G2 else 0.0
        variance = self.variance_s - 2 * r * self.covariance + r * r * self.variance_q
        if r > 0:
            variance += r * r * (self.null_variance(self.S / r) - self.variance_q)
        d = self.S - r * self.G2
        return d / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, d) if d else 0.0

    def interval(self, t: float) -> tuple[float, float]:
        """The smallest interval that holds every r >= 0 with a studentized difference in [-t, t]."""
        if self.S == 0.0:
            return 0.0, 0.0 if self.studentized(math.inf) < -t else math.inf
        unit = self.S / max(abs(self.G2), math.sqrt(self.null_variance(0.0)), 1e-300)
        grid = [unit * math.tan(0.5 * math.pi * i / GRID) for i in range(GRID)] + [math.inf]
        values = [self.studentized(r) for r in grid]
        low = next((i for i, v in enumerate(values) if v <= t), GRID)
        high = next(i for i in range(GRID, -1, -1) if values[i] >= -t)
        lower = grid[low] if low == 0 else self._crossing(grid[low - 1], grid[low], t)
        upper = math.inf if high == GRID else self._crossing(grid[high], grid[high + 1], -t)
        return lower, max(lower, upper)

    def _crossing(self, a: float, b: float, level: float) -> float:
        """Where the studentized difference passes `level` between a (above it) and b (below it)."""
        b = 1e9 * a if math.isinf(b) else b
        for _ in range(60):
            middle = 0.5 * (a + b)
            a, b = (middle, b) if self.studentized(middle) > level else (a, middle)
        return 0.5 * (a + b)


@dataclass(frozen=True, eq=False)
class CurvatureNoiseScale(Result):
    """B = tr(H Sigma) / G'HG in examples, and the learning rate |G|^2 / G'HG that minimizes the quadratic model.

    [lower, upper] accounts for the random probes of tr(H Sigma), not for the sampling of the data.
    """

    value: float
    lower: float
    upper: float
    level: float
    weighted_variance: Estimate  # tr(H Sigma)
    gradient_curvature: float  # g'Hg, g the gradient on all these data
    learning_rate: float
    examples: int
    seed: int
    products: int
    passes: int


def curvature_noise_scale(
    objective: Objective, *, seed: int, probes: int = 16, x: Tensor | None = None, level: float = 0.95
) -> CurvatureNoiseScale:
    """Estimate tr(H Sigma) / G'HG, the noise scale of an optimal step of the quadratic model, and that step's rate.

    A probe z has the quadratic form z'H Sigma z, of mean tr(H Sigma). G'HG is g'Hg less its bias tr(H Sigma) / n. Where
    that is not positive, no descent along the gradient ends in this quadratic model: `value` and `upper` are infinite,
    and `lower` takes g'Hg as it is.

    Args:
        objective: the objective.
        seed: the seed of the probes. Probe j depends on the seed and j alone, so the result is the same however the
            examples are spread over processes and batches.
        probes: the number of probes.
        x: the point ``(n,)``. Default: the model's present parameters.
        level: the probability with which the interval covers.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import curvature_noise_scale
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> y = torch.tensor([[1.0], [2.0], [3.0]])  # L = mean (w - y)^2, H = 2, g = -4
        >>> found = curvature_noise_scale(Objective(model, squared_error(), [(torch.ones(3, 1), y)]), seed=0)
        >>> found.gradient_curvature, found.learning_rate
        (32.0, 0.5)
    """
    snapshot, _ = _one_part("curvature_noise_scale", objective, x)
    if probes < 2:
        raise ValueError(f"curvature_noise_scale: probes must be at least 2, got {probes}")
    space = snapshot.space
    leaves, blocks = snapshot.leaves(space)
    Z = space.random(range(probes), seed, "sphere")
    directions = [space.split(z) for z in Z.T]
    per_term, n = 0.0, 0  # g_i over the gradient of example i's terms, and the examples of all ranks

    def contribute(part: Part, batch: Batch) -> Tensor:
        """The sum of the terms' gradients, and those weighted by their slopes along each direction."""
        rows = torch.empty(probes + 1, space.dim, dtype=space.dtype, device=space.device)
        with torch.enable_grad():
            terms = _terms(snapshot, part, blocks, batch)
            ones = torch.ones_like(terms, requires_grad=True)
            total = grads(terms, leaves, [ones], create_graph=True)
            rows[0].copy_(space.join([t.detach() for t in total]))
            for row, direction in zip(rows[1:], directions, strict=True):
                slopes = grads(total, [ones], direction, retain_graph=True)[0]
                row.copy_(space.join(grads(terms, leaves, [slopes.detach()], retain_graph=True)))
        return rows

    def scale(count: float, examples: int) -> float:
        nonlocal per_term, n
        n, per_term = examples, examples * snapshot.parts[0].weight / count
        return 1 / count

    with differentiating("curvature_noise_scale", space.device), torch.no_grad():
        start = torch.zeros(probes + 1, space.dim, dtype=space.dtype, device=space.device)
        with snapshot.installed(blocks):
            rows = snapshot.average(contribute, "curvature_noise_scale", scale, start=start)
        if n < 2:
            raise ValueError(f"curvature_noise_scale: needs at least 2 examples, got {n}")
        g = rows[0]
        # (1/n) sum g_i g_i'z less its mean; penalties are the same for all examples
        along = space.gram(g[:, None], Z)[0].to(rows)
        U = (per_term * rows[1:] - along[:, None] * g).T
        if snapshot.penalties:
            with torch.enable_grad():
                g = g + space.join(grads(snapshot.penalty(blocks), leaves, None))
        image = hessian(objective, snapshot.x) @ torch.cat([Z.T, g[None]]).T
        M = space.gram(image[:, :-1], U).cpu() * (n / (n - 1))
        gHg, g2 = float(space.inner(g, image[:, -1])), float(space.inner(g, g))
    draws = M.diagonal()
    weighted = Estimate(
        draws.mean(), _spread(M, space.dim) / math.sqrt(probes), probes, probes, seed,
        degrees_of_freedom=0.6 + 0.2 * probes, method="random directions of the parameters",
    )  # fmt: skip

    def ratio(trace: float) -> float:
        remaining = gHg - trace / n
        return trace / remaining if remaining > 0 else math.inf

    low, high = (float(end) for end in weighted.interval(level))
    value = ratio(float(draws.mean()))
    # where nothing is left of G'HG without its bias, all of g'Hg stands for it at the lower end
    lower = ratio(low) if math.isfinite(ratio(low)) else max(low, 0.0) / gHg if gHg > 0 else 0.0
    upper = max(ratio(high), value)
    rate = g2 / gHg if gHg > 0 else math.inf
    return CurvatureNoiseScale(value, lower, upper, level, weighted, gHg, rate, n, seed, probes + 1, 2)


def _spread(M: Tensor, n: int) -> Tensor:
    """The standard deviation of z'A z from all z_i'A z_j, for probes on the sphere of n dimensions.

    It is 2 n/(n+2) (|S|^2 - tr(S)^2/n) with S the symmetric part of A, whose terms pairs of probes tell without bias.
    The spread of the samples is too small where one eigenvalue dominates and they all miss it.
    """
    k, x = M.shape[0], M.diagonal()
    unit = float(M.abs().max()) or 1.0
    S, x = (M + M.T) / (2 * unit), x / unit
    square, product = (float((t - t.diag().diag()).sum()) / (k * (k - 1)) for t in (S.square(), x[:, None] * x))
    pairs = 2 * n / (n + 2) * max(square - product / n, 0.0)
    return unit * x.var().clamp(min=pairs).sqrt()
