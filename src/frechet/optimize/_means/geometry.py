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
        angle = v.square().sum().sqrt()
        moved = torch.cos(angle) * x + torch.sinc(angle / torch.pi) * v
        return moved / moved.square().sum().sqrt()

    def log(x: Tensor, points: Tensor) -> Tensor:
        along = points @ x
        u = points - along.unsqueeze(-1) * x
        size = u.square().sum(-1).sqrt()
        return u * (torch.atan2(size, along) / torch.where(size == 0, 1.0, size)).unsqueeze(-1)

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
        size = lorentz(v, v).clamp(min=0).sqrt()
        factor = torch.sinh(size) / size if float(size) > 0 else torch.ones_like(size)
        return on(torch.cosh(size) * x + factor * v)

    def log(x: Tensor, points: Tensor) -> Tensor:
        chord = points - x
        distance = 2 * torch.asinh(lorentz(chord, chord).clamp(min=0).sqrt() / 2)
        u = points + lorentz(points, x).unsqueeze(-1) * x
        factor = torch.where(distance == 0, 1.0, distance / torch.sinh(distance))
        return u * factor.unsqueeze(-1)

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
        lam, V = torch.linalg.eigh(_symmetric(points))
        F = V * _without_rounding(lam).sqrt().unsqueeze(-2)
        inverse = _function(F.mT @ x @ F, lambda mu: _inverse(_without_rounding(mu).sqrt()))
        return F @ inverse @ F.mT - torch.eye(len(x), dtype=x.dtype, device=x.device)

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


def _slack(x: Tensor) -> float:
    return 1e3 * torch.finfo(x.dtype).eps


def _without_rounding(lam: Tensor) -> Tensor:
    noise = lam.shape[-1] * torch.finfo(lam.dtype).eps * lam.abs().amax(-1, keepdim=True)
    return torch.where(lam <= noise, torch.zeros_like(lam), lam)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), 1 / torch.where(x == 0, torch.ones_like(x), x))


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


def _function(A: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    lam, V = torch.linalg.eigh(_symmetric(A))
    return (V * f(lam).unsqueeze(-2)) @ V.mT


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
