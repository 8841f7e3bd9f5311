"""The eigenvalue distribution of a symmetric A, and any tr f(A), from a few short Lanczos runs.

With v uniform on the unit sphere E v'f(A) v = tr f(A) / n, and m Lanczos steps from v give nodes theta_i and weights
w_i. They satisfy v'f(A) v ~ sum_i w_i f(theta_i), exactly where f is a polynomial of degree up to 2 m - 1. Averaged
over probes this is stochastic Lanczos quadrature; f = a Gaussian around t gives the smoothed density at t. Known
eigenpairs (Q, lambda) are taken out first: probes are drawn in the complement of Q, of dimension N = n - k, and sum_i
f(lambda_i) is added.

Errors. (1) Probes. v is uniform on a sphere, so that the variance of one probe is known,

    Var v'F v = 2 / (N + 2) (tr F^2 / N - (tr F / N)^2),   F = f(A) on the complement,

and tr F^2 comes from the same quadrature: sharper than the spread of a handful of probes, and defined for one.
Student's degrees of freedom come from the variance of that variance (fourth moments). v'F v is nearly a multiple of a
chi-square variable (a sum of weighted squares), which gives the band of the density: right where one eigenvalue lies
under the kernel, where a symmetric interval is not. (2) Quadrature. The change of the result when the last step, or the
last eighth of the steps, is left out is added to the error, for tr f continued as a geometric series. This is an
estimate: a function with structure far below the resolution (log near a zero cluster) needs more steps or deflation.

**Source.** G. Golub and G. Meurant 2010, "Matrices, moments and quadrature", chapters 6 and 11; S. Ubaru, J. Chen and
Y. Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", doi 10.1137/16M1104974; L. Lin, Y. Saad
and C. Yang 2016, "Approximating spectral densities of large matrices", doi 10.1137/130934283. Matching two moments by a
chi-square variable: F. Satterthwaite 1946, doi 10.2307/3002019.

**Differs from the source.** (1) The error bars. (2) Deflation by exact eigenpairs. (3) Full orthogonalization.

Cost: probes * steps products, steps vectors of memory beside the k given ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import scipy
import torch
from torch import Tensor

from frechet.linalg._basis import ROUNDING, Storage, new_basis
from frechet.linalg._krylov import check_orthonormal, check_symmetric, gauss_quadrature
from frechet.linalg._result import Estimate, Spectrum, Status
from frechet.linalg._shown import Result
from frechet.operators._operator import Fact, LinearOperator

GRID = 4096  # points of the default grid, at most


@dataclass(frozen=True, eq=False)
class DensityState:
    """Where a run of `spectral_density` stands: the finished probes, and how far the current one is."""

    fingerprint: tuple[object, ...]
    alpha: Tensor  # (probes done, steps)
    beta: Tensor
    lengths: tuple[int, ...]
    step: int
    products: int  # of the finished probes
    departure: float = 0.0  # of T from what the rounded basis makes of A, relative to the largest product


@dataclass(frozen=True, eq=False)
class Density(Result):
    """The eigenvalue distribution of a symmetric operator, as found by `spectral_density`."""

    alpha: Tensor  # (probes, steps), float64: diagonal of each probe's tridiagonal matrix
    beta: Tensor  # (probes, steps), float64: off-diagonal; the last entry of a row leads out of the Krylov space
    lengths: tuple[int, ...]  # steps of each probe: fewer where its Krylov space ended
    deflated: Tensor  # (k,), float64: eigenvalues taken out exactly
    residuals: Tensor  # (k,), float64: their error bars
    dimension: int
    products: int
    seed: int
    eps: float  # relative error of the nodes by rounding: of the vectors, or of how they were kept
    lowest: float  # 0 for a positive semidefinite operator: nodes below are rounding
    status: Status

    def _line(self) -> str:
        ends = f"{float(self.nodes.min()):.4g} to {float(self.nodes.max()):.4g}, " if self.lengths else ""
        return (
            f"{ends}{len(self.lengths)} probes, {len(self.deflated)} deflated, dimension {self.dimension}, "
            f"{self.status}, {self.products} products"
        )

    def plot(self, axes: Any, width: float | None = None) -> Any:
        """Draw the smoothed density and its band into matplotlib's `axes`, on a logarithmic scale; returns them."""
        grid = self.grid(width)
        value, low, high = (t.tolist() for t in self.on(grid, width))
        axes.fill_between(grid.tolist(), low, high, alpha=0.3)
        axes.semilogy(grid.tolist(), value)
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        axes.set_ylim(bottom=1e-3 / self.dimension * max(value))
        return axes

    @property
    def nodes(self) -> Tensor:
        """Quadrature nodes ``(probes, steps)``, ascending; a probe that ended early repeats its last node."""
        return self._quadratures[0][0]

    @property
    def weights(self) -> Tensor:
        """Quadrature weights ``(probes, steps)``; each row sums to 1."""
        return self._quadratures[0][1]

    @cached_property
    def _quadratures(self) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights, and those of one step, an eighth and a quarter of the steps (at least 2 and 4) fewer."""
        lag = max(2, max(self.lengths, default=0) // 8)
        rules = []
        for fewer in (0, 1, lag, 2 * lag):
            nodes, weights = torch.zeros_like(self.alpha), torch.zeros_like(self.alpha)
            for i, length in enumerate(self.lengths):
                # a Krylov space that ended is exact and has nothing to leave out
                m = length if self.beta[i, length - 1] == 0 else max(1, length - fewer)
                nodes[i, :m], weights[i, :m] = gauss_quadrature(self.alpha[i, :m], self.beta[i, : m - 1])
                nodes[i, m:] = nodes[i, m - 1]
            rules.append((nodes.clamp_min(self.lowest), weights))
        return rules

    def width(self) -> float:
        """The default smoothing width: the mean distance between neighboring nodes, weighted by their mass."""
        gaps = self.nodes.diff(dim=1)
        first, last = gaps[:, :1], gaps[:, -1:]
        around = (torch.cat([first, gaps], 1) + torch.cat([gaps, last], 1)) / 2 if gaps.shape[1] else self.nodes * 0
        mean = float((self.weights * around).sum(1).mean()) if self.lengths else 0.0
        values = torch.cat([self.nodes.flatten(), self.deflated])
        size, spread = float(values.abs().max()), float(values.max() - values.min())
        return max(mean, 1e-3 * spread, 1e-3 * size, torch.finfo(torch.float32).tiny)

    def grid(self, width: float | None = None) -> Tensor:
        """Points from 4 widths below to 4 above every node and eigenvalue, half a width apart (more if too many)."""
        width = self._width(width)
        values = torch.cat([self.nodes[self.weights > 0], self.deflated]).sort().values
        breaks = (values.diff() > 8 * width).nonzero()[:, 0]
        lows = torch.cat([values[:1], values[breaks + 1]]) - 4 * width
        highs = torch.cat([values[breaks], values[-1:]]) + 4 * width
        spacing = max(width / 2, float((highs - lows).sum()) / GRID)
        pieces = [
            torch.linspace(a, b, max(2, math.ceil((b - a) / spacing)), dtype=torch.float64)
            for a, b in zip(lows.tolist(), highs.tolist(), strict=True)
        ]
        return torch.cat(pieces)

    def _width(self, width: float | None) -> float:
        if width is not None and not (width > 0 and math.isfinite(width)):
            raise ValueError(f"Density: width must be positive, got {width}")
        return self.width() if width is None else width

    def on(
        self, grid: Tensor | None = None, width: float | None = None, *, level: float = 0.95
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The density at the points of `grid`, and the lower and upper end of its pointwise band; each ``(g,)``.

        The density is that of the n eigenvalues, each smoothed to a Gaussian with standard deviation `width`, and
        integrates to 1. The band covers this smoothed density at each point with probability about `level`; it is never
        below zero. Defaults: `self.grid(width)` and `self.width()`. A width much below the default resolves single
        quadrature nodes: the band then widens and says so.
        """
        width = self._width(width)
        if not 0 < level < 1:
            raise ValueError(f"Density.on: level must lie between 0 and 1, got {level}")
        grid = self.grid(width) if grid is None else grid.to("cpu", torch.float64)
        height = 1 / (width * math.sqrt(2 * math.pi))

        def kernel(values: Tensor, weights: Tensor, power: int = 1, shift: float | Tensor = 0.0) -> Tensor:
            """Weighted Gaussians around `values`, each moved by `shift` toward the grid point (negative: away)."""
            z = ((grid[:, None] - values.flatten()).abs() - shift).clamp_min(0) / width
            return (height * torch.exp(-0.5 * z.square())).pow(power) @ weights.flatten()

        n, N, p = self.dimension, self.dimension - len(self.deflated), len(self.lengths)
        ones = torch.ones_like(self.deflated)
        rounding = ROUNDING * self.eps * float(torch.cat([self.nodes.flatten(), self.deflated]).abs().max())
        error = self.residuals.clamp_min(rounding)
        value, low, high = (kernel(self.deflated, ones, shift=s) / n for s in (0 * error, -error, error))
        if N == 0:
            return value, low, high
        weights = self.weights / p
        mean = kernel(self.nodes, weights)
        variance = 2 / (N + 2) * (kernel(self.nodes, weights, 2) - mean.square()).clamp_min(0) / p
        least, most = _chi_square_interval(mean, variance, level)
        earlier = [kernel(t, w / p) for t, w in self._quadratures[1:3]]
        change = torch.maximum(*((mean - x).abs() for x in earlier))
        least = (least - change - (mean - kernel(self.nodes, weights, shift=-rounding))).clamp_min(0)
        most = most + change + (kernel(self.nodes, weights, shift=rounding) - mean)
        return value + N / n * mean, low + N / n * least, high + N / n * most

    def trace_of(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        """tr f(A) with its standard error; `f` maps a float64 tensor of eigenvalues to their values, entry by entry.

        ``f = lambda x: x`` gives the trace, ``x**2`` the squared Frobenius norm, ``x / (x + a)`` the effective
        dimension, ``torch.log(x + a)`` a log determinant, all from the same products. Trace and Frobenius norm have no
        quadrature error. The deflated part is exact up to the square of its residuals.
        """
        N, p = self.dimension - len(self.deflated), len(self.lengths)
        known = _applied(f, self.deflated.clamp_min(self.lowest))
        value, size = known.sum(), known.abs().sum()
        if N == 0:
            error = self.eps * size
            return Estimate(value, error, 0, self.products, self.seed, exact=True, converged=True, method="eigenvalues")
        F = _applied(f, self.nodes)
        mean = (self.weights * F).sum(1).mean()
        second = (self.weights * (F - mean).square()).sum(1).mean()
        fourth = (self.weights * (F - mean).pow(4)).sum(1).mean()
        spread = fourth - second.square()
        freedom = p * (N + 2) * float(second.square() / spread) if spread > 0 else math.inf
        last, near, far = (float((w * _applied(f, t)).sum(1).mean()) for t, w in self._quadratures[1:])
        rate = min(abs(near - float(mean)) / max(abs(far - near), self.eps * abs(near), 1e-300), 0.95)
        # the last step shows oscillation; a slow approach is continued as a geometric series, twice over
        change = max(abs(last - float(mean)), abs(near - float(mean)) * max(1.0, 2 * rate / (1 - rate)))
        variance = 2 / (N + 2) * second / p
        rounding = self.eps * (size / N + (self.weights * F.abs()).sum(1).mean())
        error = N * (variance + change**2 + rounding.square()).sqrt()
        return Estimate(
            value + N * mean, error, p, self.products, self.seed, degrees_of_freedom=max(freedom, 1.0),
            method="stochastic Lanczos quadrature",
        )  # fmt: skip


def _applied(f: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    result = f(values)
    if result.shape != values.shape:
        raise ValueError(f"trace_of: f must map {tuple(values.shape)} to the same shape, got {tuple(result.shape)}")
    result = result.double()
    if not bool(torch.isfinite(result).all()):
        worst = values[~torch.isfinite(result)][0]
        raise ValueError(
            f"trace_of: f must be finite on the spectrum, got {float(f(worst[None]))} at {float(worst):.6g}"
        )
    return result


def _chi_square_interval(mean: Tensor, variance: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The interval for mu where mean ~ (c / 2) chi-square(2 mu / c), with c = variance / mean taken as known."""
    c = torch.where(mean > 0, variance / mean, torch.zeros_like(mean))
    x = torch.where(c > 0, 2 * mean / c, torch.full_like(mean, math.inf))
    q = float(scipy.stats.norm.ppf(0.5 + level / 2))
    low, high = mean - q * variance.sqrt(), mean + q * variance.sqrt()
    inner = (x < 1e5) & (x > 1e-8)  # beyond, the two agree, or there is nothing
    few = x[inner].numpy()
    low[inner] = c[inner] / 2 * torch.from_numpy(scipy.special.chdtriv(0.5 + level / 2, few))
    high[inner] = c[inner] / 2 * torch.from_numpy(scipy.special.chdtriv(0.5 - level / 2, few))
    return low, high


def _check_request(A: LinearOperator, probes: int, steps: int) -> None:
    check_symmetric(A, "spectral_density", "for singular values use A.T @ A")
    for name, value in (("probes", probes), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"spectral_density: {name} must be a positive int, got {value!r}")


@torch.no_grad()
def spectral_density(
    A: LinearOperator,
    *,
    seed: int,
    probes: int = 8,
    steps: int = 40,
    deflate: Spectrum | None = None,
    storage: Storage = "device",
    observe: Callable[[DensityState], bool] | None = None,
    resume: DensityState | None = None,
) -> Density:
    """Estimate the eigenvalue distribution of a symmetric A: ``density.on(grid, width)``, ``density.trace_of(f)``.

    A probe's run ends early where its Krylov space does; then it is exact.

    Args:
        A: the operator ``(n, n)``, with the fact `symmetric`.
        seed: of the probes.
        probes: how many random vectors. The statistical error falls as 1 / sqrt(probes). Default: 8.
        steps: Lanczos steps per probe, each one product. More steps resolve finer detail. Default: 40.
        deflate: known eigenpairs, from `eigsh`. They enter exactly and no longer add variance, which pays where a few
            large eigenvalues dominate f. Default: none.
        storage: where the Krylov vectors are kept: "device", "host", or in fewer bits (`_basis.py`). How far T then is
            from what the rounded vectors make of A shows in the coefficients that would otherwise be zero: it is
            measured, and enters the band and the standard errors in place of the rounding of the vectors' type.
            Default: "device".
        observe: is called with a `DensityState` after each product. If it returns True, the status is `stopped`, and
            the finished probes count (or the part of the first). Default: none.
        resume: a `DensityState` of the same call. The run goes on after its finished probes. Default: none.

    Raises:
        NonFinite: a product holds a NaN; the message has its number.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal, spectral_density
        >>> density = spectral_density(from_diagonal(2 * torch.ones(50)), seed=0, probes=2)
        >>> density.products, round(float(density.trace_of(torch.log)) / 50, 4)  # log 2
        (2, 0.6931)
    """
    _check_request(A, probes, steps)
    space, k, deflated = A.domain, 0, torch.zeros(0, dtype=torch.float64)
    residuals, known = deflated, None
    if deflate is not None:
        check_orthonormal(space, deflate.vectors, "spectral_density")
        known, deflated, residuals = deflate.vectors, deflate.values.cpu(), deflate.residuals.cpu()
        k = known.shape[1]
    m = min(steps, space.dim - k)
    fingerprint = (repr(space), seed, m, k, storage)
    if resume is not None and resume.fingerprint != fingerprint:
        raise ValueError(
            f"spectral_density: resume must come from the same call, got (space, seed, steps, deflated, storage) = "
            f"{resume.fingerprint} for {fingerprint}"
        )
    W = new_basis(space, min(m + 1, space.dim - k), storage, "spectral_density", known)
    alpha, beta = torch.zeros(probes, m, dtype=torch.float64), torch.zeros(probes, m, dtype=torch.float64)
    lengths, products, stopped, departure = [], 0, False, 0.0
    if resume is not None:
        departure = resume.departure
        lengths, products = list(resume.lengths[:probes]), sum(resume.lengths[:probes])
        alpha[: len(lengths)], beta[: len(lengths)] = resume.alpha[:probes], resume.beta[:probes]
    for i in range(len(lengths), probes if m else 0):
        W.start(space.random(i, seed, "gaussian"), "spectral_density", "the probe")
        scale, j, b = 0.0, 0, 1.0
        while j < m and b > 0.0 and not stopped:
            source = f"spectral_density: product {products + j + 1} (A @ v)"
            h, b, scale = W.append(j + 1, A @ W.column(j), scale, source)
            if W.rounded:  # what would be zero with vectors that are not rounded, and moves a node by its norm at most
                h[-2:-1] -= beta[i, j - 1 : j] if j else 0.0
                departure = max(departure, math.hypot(*h[k:-1].tolist()) * math.sqrt(m) / scale)
            alpha[i, j], beta[i, j], j = h[-1], b, j + 1
            if observe is not None:
                state = DensityState(
                    fingerprint, alpha[:i].clone(), beta[:i].clone(), tuple(lengths), j, sum(lengths), departure
                )
                stopped = observe(state)
        products += j
        if lengths and stopped and j < m and b > 0.0:
            break  # a cut probe is kept only where it is all there is
        lengths.append(j)
        if stopped:
            break
    done = len(lengths)
    lowest = 0.0 if Fact.POSITIVE_SEMIDEFINITE in A.facts else -math.inf
    status = Status.STOPPED if stopped else Status.CONVERGED
    return Density(
        alpha[:done], beta[:done], tuple(lengths), deflated, residuals, space.dim, products, seed,
        max(space.eps, departure), lowest, status,
    )  # fmt: skip
