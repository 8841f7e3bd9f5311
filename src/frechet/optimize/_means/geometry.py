"""Geometries in which points have Fréchet means: exponential maps, their inverses, metrics, and when a mean is unique.

The variance of weighted points p_i at x is sum_i w_i d(x, p_i)^2, with the gradient -2 sum_i w_i log_x(p_i). Spaces
without positive curvature (definite matrices in the affine invariant metric, hyperbolic space) have one mean. On the
sphere the mean is unique if all points lie within pi/2 of it (Afsari 2011). In the Bures-Wasserstein space it is unique
if a point is definite (Agueh and Carlier 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.matrices import matrix_function
from frechet.errors import NotDifferentiable

Map = Callable[[Tensor, Tensor], Tensor]


def _euclidean(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return (u * v).flatten(u.ndim - x.ndim).sum(-1)


def _nothing(points: Tensor) -> None:
    return None


def _first(points: Tensor, weights: Tensor) -> list[Tensor]:
    return [points[int(weights.argmax())]]


def _unknown(x: Tensor, points: Tensor) -> bool | None:
    return None


@dataclass(frozen=True)
class Geometry:
    """A metric space with geodesics; write one of your own with `exp` and `log`.

    Attributes:
        exp: ``exp(x, v)``, the point that the geodesic from x with velocity v reaches at time 1.
        log: ``log(x, points)``, the velocities ``(N, ...)`` of the geodesics from x to the points ``(N, ...)``.
        inner: ``inner(x, u, v)``, the inner products ``(N,)`` of velocities ``(N, ...)`` at x. Default: of their
            entries.
        name: what results call it.
        check: raises where points do not lie in the space. Default: anything does.
        starts: ``starts(points, weights)``, where iterations begin; the best end is the mean. Default: the point of the
            largest weight.
        unique: ``unique(x, points)``, True if the mean x is proved to be the only one, None if that is open. Default:
            open.
    """

    exp: Map
    log: Map
    inner: Callable[[Tensor, Tensor, Tensor], Tensor] = _euclidean
    name: str = "geometry"
    check: Callable[[Tensor], None] = _nothing
    starts: Callable[[Tensor, Tensor], list[Tensor]] = _first
    unique: Callable[[Tensor, Tensor], bool | None] = _unknown


# --- the sphere -------------------------------------------------------------------------------------------------------

SPREAD_STARTS = 8  # points from which the search on a sphere begins anew where the mean is not proved unique


def sphere() -> Geometry:
    """Return the unit sphere of vectors ``(d,)`` with its angles.

    Example:
        >>> import torch
        >>> from frechet.optimize import frechet_mean, sphere
        >>> p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> frechet_mean(p, sphere()).x
        tensor([0.7071, 0.7071], dtype=torch.float64)
    """

    def exp(x: Tensor, v: Tensor) -> Tensor:
        square = v.square().sum()
        moved = _cosine(square) * x + _sine_over(square) * v
        return moved / moved.square().sum().sqrt()

    def log(x: Tensor, points: Tensor) -> Tensor:
        along = points @ x
        u = points - along.unsqueeze(-1) * x
        return u * _angle_over(u.square().sum(-1), along).unsqueeze(-1)

    def check(points: Tensor) -> None:
        if points.ndim != 2 or not bool(((points.square().sum(-1) - 1).abs() < _slack(points)).all()):
            raise ValueError(
                "frechet_mean: points must be unit vectors (N, d) on a sphere; divide them by their lengths"
            )

    def starts(points: Tensor, weights: Tensor) -> list[Tensor]:
        mean = weights @ points
        size = mean.square().sum().sqrt()
        found = [mean / size] if float(size) > _slack(points) else []
        if found and unique(found[0], points):
            return found
        # off the points themselves: at a point's antipode the variance has a kink
        near = points[:: max(1, len(points) // SPREAD_STARTS)][:SPREAD_STARTS]
        shifted = near + 0.3 * torch.cos(torch.arange(near.numel(), dtype=near.dtype, device=near.device)).view_as(near)
        return found + list(shifted / shifted.square().sum(-1, keepdim=True).sqrt())

    def unique(x: Tensor, points: Tensor) -> bool | None:
        return True if bool((points @ x > _slack(points)).all()) else None

    return Geometry(exp, log, name="sphere", check=check, starts=starts, unique=unique)


# --- hyperbolic space -------------------------------------------------------------------------------------------------


def hyperbolic() -> Geometry:
    """Return hyperbolic space as the hyperboloid of vectors ``(d + 1,)`` with -x_0^2 + x_1^2 + ... = -1, x_0 > 0.

    Example:
        >>> import torch
        >>> from frechet.optimize import frechet_mean, hyperbolic
        >>> t = torch.tensor([-1.0, 3.0], dtype=torch.float64)
        >>> frechet_mean(torch.stack([t.cosh(), t.sinh()], -1), hyperbolic()).x[1].asinh().round(decimals=8)
        tensor(1., dtype=torch.float64)
    """

    def lorentz(u: Tensor, v: Tensor) -> Tensor:
        return (u * v)[..., 1:].sum(-1) - (u * v)[..., 0]

    def on(x: Tensor) -> Tensor:
        return torch.cat([(1 + x[..., 1:].square().sum(-1, keepdim=True)).sqrt(), x[..., 1:]], -1)

    def exp(x: Tensor, v: Tensor) -> Tensor:
        square = lorentz(v, v)
        return on(_cosine(-square) * x + _sine_over(-square) * v)

    def log(x: Tensor, points: Tensor) -> Tensor:
        chord = points - x
        u = points + lorentz(points, x).unsqueeze(-1) * x
        return u * _distance_over(lorentz(chord, chord)).unsqueeze(-1)

    def check(points: Tensor) -> None:
        off = (lorentz(points, points) + 1).abs() if points.ndim == 2 and points.shape[1] > 1 else None
        if off is None or not bool(((off < _slack(points) * points[:, 0] ** 2) & (points[:, 0] > 0)).all()):
            raise ValueError("frechet_mean: points must lie on the hyperboloid -x_0^2 + x_1^2 + ... = -1 with x_0 > 0")

    def starts(points: Tensor, weights: Tensor) -> list[Tensor]:
        return [on(weights @ points)]

    def inner(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return lorentz(u, v)

    return Geometry(exp, log, inner, "hyperbolic", check, starts, lambda x, points: True)


# --- definite matrices ------------------------------------------------------------------------------------------------


def affine_invariant() -> Geometry:
    """Return the symmetric positive definite matrices ``(n, n)`` with the affine invariant metric tr(X^-1 U X^-1 V).

    Example:
        >>> import torch
        >>> from frechet.optimize import affine_invariant, frechet_mean
        >>> p = torch.stack([torch.eye(2), 4 * torch.eye(2)]).double()
        >>> frechet_mean(p, affine_invariant()).x.round(decimals=10)
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """

    def exp(x: Tensor, v: Tensor) -> Tensor:
        root, inverse = _power(x, 0.5), _power(x, -0.5)
        return _symmetric(root @ _function(inverse @ v @ inverse, torch.exp) @ root)

    def log(x: Tensor, points: Tensor) -> Tensor:
        root, inverse = _power(x, 0.5), _power(x, -0.5)
        return root @ _function(inverse @ points @ inverse, torch.log) @ root

    def inner(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        inverse = _power(x, -1.0)
        return _trace(inverse @ u @ inverse @ v)

    def starts(points: Tensor, weights: Tensor) -> list[Tensor]:
        return [_function(torch.einsum("n,nij->ij", weights, _function(points, torch.log)), torch.exp)]

    def check(points: Tensor) -> None:
        _require_definite(points, strict=True)

    return Geometry(exp, log, inner, "affine invariant", check, starts, lambda x, points: True)


def bures_wasserstein() -> Geometry:
    """Return the semidefinite matrices ``(n, n)`` with the Bures-Wasserstein metric of Gaussians; means are definite.

    A velocity is the symmetric L of the map I + L. A step to exp(x, mean of logs) is the fixed-point iteration of
    Álvarez-Esteban, del Barrio, Cuesta-Albertos and Matrán (2016).

    Example:
        >>> import torch
        >>> from frechet.optimize import bures_wasserstein, frechet_mean
        >>> p = torch.stack([torch.eye(2), 9 * torch.eye(2)]).double()
        >>> frechet_mean(p, bures_wasserstein()).x.round(decimals=10)
        tensor([[4., 0.],
                [0., 4.]], dtype=torch.float64)
    """

    def exp(x: Tensor, v: Tensor) -> Tensor:
        moved = torch.eye(len(x), dtype=x.dtype, device=x.device) + v
        return _symmetric(moved @ x @ moved)

    def log(x: Tensor, points: Tensor) -> Tensor:
        # the map from x to p = F F' is F (F'x F)^(-1/2) F': no root of the rounding errors of a singular p
        lam, V = torch.linalg.eigh(_symmetric(points.detach()))
        noise = lam.shape[-1] * torch.finfo(lam.dtype).eps * lam.abs().amax(-1, keepdim=True)
        real = lam > noise
        if bool(real.all()):
            maps = _map_from(x, torch.linalg.cholesky(_symmetric(points)))
        else:
            _refuse_derivatives(points)
            factors = [V[i][:, real[i]] * lam[i][real[i]].sqrt() for i in range(len(lam))]
            maps = torch.stack([_map_from(x, F) for F in factors])
        return maps - torch.eye(len(x), dtype=x.dtype, device=x.device)

    def inner(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return _trace(u @ x @ v)

    def starts(points: Tensor, weights: Tensor) -> list[Tensor]:
        return [torch.einsum("n,nij->ij", weights, points)]

    def check(points: Tensor) -> None:
        _require_definite(points, strict=False)

    def unique(x: Tensor, points: Tensor) -> bool | None:
        lam = torch.linalg.eigvalsh(points)
        return True if bool((lam[:, 0] > _slack(points) * lam[:, -1]).any()) else None

    return Geometry(exp, log, inner, "Bures-Wasserstein", check, starts, unique)


# --- functions of a square: derivatives exist where a velocity or a distance is zero ----------------------------------

SMALL = 1e-3  # below it four terms of a series leave less than 1e-16


def _by_series(square: Tensor, small: Tensor, away: Callable[[Tensor], Tensor], terms: list[float]) -> Tensor:
    """`away` of the square, and the series where it is small: no root of 0, and no derivative of one, is formed."""
    series = torch.zeros_like(square)
    for term in reversed(terms):
        series = series * square + term
    return torch.where(small, series, away(torch.where(small, torch.ones_like(square), square)))


def _cosine(q: Tensor) -> Tensor:
    """cos sqrt(q), which is cosh sqrt(-q) where q < 0."""
    sign = q.detach().sign()

    def away(q: Tensor) -> Tensor:
        root = q.abs().sqrt()
        return torch.where(sign > 0, torch.cos(root), torch.cosh(root))

    return _by_series(q, q.detach().abs() < SMALL, away, [1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320])


def _sine_over(q: Tensor) -> Tensor:
    """sin(sqrt(q)) / sqrt(q), which is sinh(sqrt(-q)) / sqrt(-q) where q < 0."""
    sign = q.detach().sign()

    def away(q: Tensor) -> Tensor:
        root = q.abs().sqrt()
        return torch.where(sign > 0, torch.sin(root), torch.sinh(root)) / root

    return _by_series(q, q.detach().abs() < SMALL, away, [1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880])


def _angle_over(q: Tensor, along: Tensor) -> Tensor:
    """atan2(sqrt(q), a) / sqrt(q), the angle over its sine if q + a^2 = 1; 1 at the antipode, where it is infinite."""
    near = (q.detach() < SMALL * along.detach() ** 2) & (along.detach() > 0)
    small = near | (q.detach() == 0)
    a = torch.where(near, along, torch.ones_like(along))
    ratio = torch.where(near, q / a**2, torch.zeros_like(q))
    series = _by_series(ratio, small, torch.ones_like, [1, -1 / 3, 1 / 5, -1 / 7, 1 / 9]) / a
    root = torch.where(small, torch.ones_like(q), q).sqrt()
    return torch.where(small, series, torch.atan2(root, along) / root)


def _distance_over(c: Tensor) -> Tensor:
    """d / sinh d for the square c = 4 sinh(d/2)^2 of a chord."""

    def away(c: Tensor) -> Tensor:
        half = c.abs().sqrt() / 2
        return torch.asinh(half) / (half * (1 + half**2).sqrt())

    # rounding of a chord may be negative: it is small
    small = c.detach() < SMALL
    terms = [1, -1 / 6, 1 / 30, -1 / 140, 1 / 630]
    return _by_series(torch.where(small, c.clamp(min=-SMALL), c), small, away, terms)


def _slack(x: Tensor) -> float:
    return 1e3 * torch.finfo(x.dtype).eps


def _map_from(x: Tensor, F: Tensor) -> Tensor:
    return F @ _function(F.mT @ x @ F, torch.rsqrt) @ F.mT


def _refuse_derivatives(points: Tensor) -> None:
    if points.requires_grad or torch.autograd.forward_ad.unpack_dual(points).tangent is not None:
        raise NotDifferentiable(
            "bures_wasserstein: the map to a singular matrix has no derivative in that matrix; add a ridge to the "
            "points, or ask for derivatives in the weights alone, with points that are no input of `implicit`"
        )


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


def _function(A: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    return matrix_function(f)(_symmetric(A))


def _power(A: Tensor, p: float) -> Tensor:
    return _function(A, lambda lam: lam**p)


def _require_definite(points: Tensor, *, strict: bool) -> None:
    good = points.ndim == 3 and points.shape[-1] == points.shape[-2]
    if good:
        lam = torch.linalg.eigvalsh(_symmetric(points))
        floor = 0.0 if strict else -_slack(points) * lam[:, -1].abs()
        size = points.abs().amax((-2, -1))
        off = (points - points.mT).abs().amax((-2, -1))
        good = bool(((lam[:, 0] > floor) if strict else (lam[:, 0] >= floor)).all() and (off <= 1e-6 * size).all())
    if not good:
        kind = "definite" if strict else "semidefinite"
        raise ValueError(f"frechet_mean: points must be symmetric positive {kind} matrices (N, n, n); add a ridge")
