"""The Fréchet mean: the point of a metric space with the least weighted sum of squared distances to given points.

x <- exp_x(a sum_i w_i log_x(p_i)), Karcher's gradient descent of the variance f(x) = sum_i w_i d(x, p_i)^2, with a
halved until f falls (or, where f is exact to rounding, until the gradient falls). Several starts where uniqueness is
not proved.

**Source.** Karcher (1977), "Riemannian center of mass and mollifier smoothing"; Afsari (2011), "Riemannian L^p center
of mass". **Differs from the source:** the step is searched, so that widely spread points converge too. **Cost:** one
logarithm of each point in an iteration; the rate is linear and depends on curvature times spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._result import Solution, Status
from frechet.optimize._means.geometry import Geometry

SUFFICIENT = 1e-4  # part of the predicted fall that f must show
SHORTEST, LONGEST = 2.0**-40, 100.0  # of a; 1 is Karcher's step, longer ones pay where curvature is small
ROUNDING = 1e3  # multiples of eps by which rounding may raise f
SAME_VALUE, ELSEWHERE = 1e-8, 1e-4  # relative: means of equal variance at distances that are not rounding are several


@dataclass(frozen=True, eq=False)
class FrechetMean(Solution):
    """The mean x. `residual` is the norm of sum_i w_i log_x(p_i), over the mean distance of the points from x.

    Attributes:
        variance: sum_i w_i d(x, p_i)^2.
        unique: True where x is proved to be the only mean, False where another one was found, None where that is open.
    """

    variance: float = math.nan
    unique: bool | None = None

    def _line(self) -> str:
        known = {True: "unique", False: "not unique", None: "uniqueness open"}[self.unique]
        return f"{self.status}, variance {self.variance:.6g}, {known}, residual {self.residual:.1e}"


@dataclass(frozen=True)
class _At:
    """A point with its variance, its direction sum_i w_i log_x(p_i), the norm of that, and the mean distance."""

    x: Tensor
    variance: float
    direction: Tensor
    norm: float
    spread: float


@torch.no_grad()
def frechet_mean(
    points: Tensor,
    geometry: Geometry,
    *,
    weights: Tensor | None = None,
    x0: Tensor | None = None,
    rtol: float = 1e-10,
    max_iterations: int = 1000,
    observe: Callable[[Tensor], bool] | None = None,
) -> FrechetMean:
    """Find the Fréchet mean of points in a metric space.

    The certificate is the gradient of the variance, recomputed at the result: `converged` means that its half is at
    most `rtol` times the mean distance of the points. That is a mean where the space makes it unique; `unique` says so.
    Elsewhere it is the best stationary point of several starts, and `unique` is None, or False where another mean was
    found. No graph leads from the result to the points; see `karcher_step` for derivatives.

    Args:
        points: the points ``(N, ...)``, in float32 or float64.
        geometry: `sphere()`, `affine_invariant()`, `bures_wasserstein()`, `hyperbolic()`, or a `Geometry` of your own.
        weights: nonnegative weights ``(N,)``, which are divided by their sum. Default: equal ones.
        x0: where the iteration starts. Default: where the geometry says, which may be several points.
        rtol: see above, > 0.
        max_iterations: the most iterations from one start.
        observe: is called with x at each iteration, and stops the run by returning True.

    Example:
        >>> import torch
        >>> from frechet.optimize import Geometry, frechet_mean
        >>> line = Geometry(exp=lambda x, v: x + v, log=lambda x, p: p - x)
        >>> frechet_mean(torch.tensor([[0.0], [3.0]]), line, weights=torch.tensor([2.0, 1.0])).x
        tensor([1.])
    """
    w = _checked(points, geometry, weights, rtol, max_iterations)
    used, w = points[w > 0], w[w > 0]
    equal = bool((used == used[0]).all())
    starts = [x0.detach().clone()] if x0 is not None else [used[0]] if equal else geometry.starts(used, w)
    runs = [_descend(x, used, w, geometry, rtol, max_iterations, observe) for x in starts]
    best, status, iterations, message = min(runs, key=lambda run: (run[1] is not Status.CONVERGED, run[0].variance))
    unique = geometry.unique(best.x, used) if status is Status.CONVERGED else None
    if not unique and any(_another(best, end, geometry) for end, how, *_ in runs if how is Status.CONVERGED):
        unique, message = False, "the mean is not unique: another one has the same variance"
    return FrechetMean(
        x=best.x,
        status=status,
        residual=best.norm / best.spread if best.spread and not equal else 0.0,
        iterations=iterations,
        products=0,
        evaluations=sum(run[2] for run in runs) * len(used),
        message=message,
        variance=best.variance,
        unique=unique,
    )


def karcher_step(x: Tensor, points: Tensor, geometry: Geometry, *, weights: Tensor | None = None) -> Tensor:
    """Return exp_x(sum_i w_i log_x(p_i)), one step of Karcher's iteration; a Fréchet mean is its fixed point.

    With it `implicit` differentiates a mean in points and weights, in both modes and to second order. Derivatives in
    points are those along the space, where the space has equations.

    Args:
        x: a point of the space.
        points: the points ``(N, ...)``.
        geometry: the space.
        weights: weights ``(N,)``, which are divided by their sum. Default: equal ones.

    Example:
        >>> import torch
        >>> from frechet import implicit
        >>> from frechet.calculus import fixed_point_conditions
        >>> from frechet.optimize import affine_invariant, frechet_mean, karcher_step
        >>> space = affine_invariant()
        >>> def find(points, weights):
        ...     return frechet_mean(points, space, weights=weights).x
        >>> def step(x, points, weights):
        ...     return karcher_step(x, points, space, weights=weights)
        >>> mean = implicit(find, fixed_point_conditions(step))
        >>> points = torch.tensor([[[1.0]], [[4.0]]], dtype=torch.float64)  # matrices 1 x 1: a geometric mean
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> torch.autograd.grad(mean(points, weights).sum(), weights)[0] / torch.log(torch.tensor(4.0))
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    w = points.new_ones(len(points)) if weights is None else weights
    return geometry.exp(x, torch.tensordot(w / w.sum(), geometry.log(x, points), 1))


def _descend(
    x: Tensor,
    points: Tensor,
    w: Tensor,
    geometry: Geometry,
    rtol: float,
    max_iterations: int,
    observe: Callable[[Tensor], bool] | None,
) -> tuple[_At, Status, int, str]:
    at, a = _evaluated(x, points, w, geometry), 1.0
    for k in range(max_iterations + 1):
        if not math.isfinite(at.variance) or not math.isfinite(at.norm):
            return at, Status.NONFINITE, k, "logarithms or exponentials are not finite at an iterate"
        if at.norm <= rtol * at.spread or bool((points == at.x).all()):
            return at, Status.CONVERGED, k, f"the gradient is {at.norm:.1e} at a mean distance of {at.spread:.3g}"
        if observe is not None and observe(at.x):
            return at, Status.STOPPED, k, f"observe returned True in iteration {k}"
        if k == max_iterations:
            break
        while True:
            trial = _evaluated(geometry.exp(at.x, a * at.direction), points, w, geometry)
            falls = trial.variance <= at.variance - SUFFICIENT * 2 * a * at.norm**2
            exact = trial.variance <= at.variance * (1 + ROUNDING * torch.finfo(w.dtype).eps) and trial.norm < at.norm
            if (falls and at.norm**2 > 1e-12 * at.variance) or exact:
                break
            a /= 2
            if a < SHORTEST:
                return at, Status.STAGNATED, k, "no step along the gradient reduces the variance or the gradient"
        at, a = trial, min(LONGEST, 1.5 * a)
    return at, Status.MAX_ITERATIONS, max_iterations, f"the gradient is {at.norm:.1e} after {max_iterations} iterations"


def _evaluated(x: Tensor, points: Tensor, w: Tensor, geometry: Geometry) -> _At:
    logs = geometry.log(x, points)
    squares = geometry.inner(x, logs, logs).clamp(min=0)
    direction = torch.tensordot(w, logs, 1)
    whole = direction.unsqueeze(0)
    norm = float(geometry.inner(x, whole, whole).clamp(min=0).sqrt()[0])
    return _At(x, float((w * squares).sum()), direction, norm, float((w * squares.sqrt()).sum()))


def _another(best: _At, end: _At, geometry: Geometry) -> bool:
    """Whether a run ended in another mean."""
    if abs(end.variance - best.variance) > SAME_VALUE * best.variance:
        return False
    way = geometry.log(best.x, end.x.unsqueeze(0))
    return float(geometry.inner(best.x, way, way)[0]) > (ELSEWHERE * best.spread) ** 2


def _checked(points: Tensor, geometry: Geometry, weights: Tensor | None, rtol: float, max_iterations: int) -> Tensor:
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"frechet_mean: geometry must be a Geometry, got {type(geometry).__name__}; give sphere() or another"
        )
    if points.ndim < 1 or not len(points) or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"frechet_mean: points must be float32 or float64 (N, ...), got {points.dtype} {tuple(points.shape)}"
        )
    if not bool(points.isfinite().all()):
        raise ValueError("frechet_mean: points must be finite, got NaN or infinite entries")
    if not rtol > 0 or max_iterations < 0:
        raise ValueError(f"frechet_mean: rtol must be > 0 and max_iterations >= 0, got {rtol} and {max_iterations}")
    geometry.check(points)
    if weights is None:
        return points.new_full((len(points),), 1 / len(points))
    w = weights.to(points)
    if w.shape != (len(points),) or not bool((w >= 0).all()) or not 0 < float(w.sum()) < math.inf:
        raise ValueError(
            f"frechet_mean: weights must be ({len(points)},) numbers >= 0 with a positive sum, got {weights}"
        )
    return w / w.sum()
