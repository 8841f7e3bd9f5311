"""The step of the prox-linear method: min_d h(c + J d) + norm(d)^2 / (2 t), h convex, from products with J and J'.

With u = c + J d as a constraint and y for its multiplier, the augmented Lagrangian leaves for each y and sigma a
strongly convex function of d, once differentiable: the Moreau envelope of h at z = c + J d + y / sigma, plus norm(d)^2
/ (2 t). Newton's method with conjugate gradients minimizes it; its matrix is H = J'W J + I / t with W = sigma (I -
dprox/dz). (Where J is a matrix with few columns, H is formed and factored.) Then y = sigma (z - prox(z, 1 / sigma)),
and sigma grows.

The duality gap is a sum of two terms that cannot be negative and is computed as such, without cancellation against h:
[h(u) - h(p) - y'(u - p)] + norm(d + t J'y)^2 / (2 t), p = prox(z, 1 / sigma). As the model is strongly convex,
norm(d - d*)^2 <= 2 t gap.

**Source.** X. Li, D. Sun and K.-C. Toh (2018), A highly efficient semismooth Newton augmented Lagrangian method for
solving Lasso problems, algorithms SSNAL and SSN, doi 10.1137/16M1097572.

**Differs from the source.** The roles: the augmented Lagrangian is that of the primal problem, whose multiplier is the
dual point. sigma grows tenfold in each iteration.

**Cost.** Two products per conjugate gradient iteration and one or two per Newton step; 6 vectors of each space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import from_callable, identity
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import Matrix
from frechet.optimize._nonsmooth.convex import Convex
from frechet.space import Space

MOST_ROUNDS, MOST_STEPS, MOST_TRIALS = 25, 40, 40
DIRECT = 512  # columns of a Jacobian that is formed, up to which H is formed too
FIRST, GROWS, IDLE = 10.0, 10.0, 3  # rounds that gain nothing before it ends


@dataclass(frozen=True, eq=False)
class Step:
    """The minimizer of the model: d ``(n,)``, y ``(m,)``, `model` = h(c + J d), and how far from exact it is."""

    d: Tensor
    y: Tensor
    model: float
    quadratic: float  # norm(d)^2 / (2 t)
    gap: float
    products: int


def prox_step(
    h: Convex, c: Tensor, J: LinearOperator, t: float, y: Tensor, norm_J: float, accuracy: float, noise: float
) -> Step:
    """The step for `t`; its gap is at most max(accuracy^2 norm(d)^2 / (2 t), noise), or as small as rounding allows.

    The multiplier `y` to start from, and `norm_J`, an estimate of norm(J), change how fast it is reached, not what.
    """
    space, image = J.domain, J.codomain
    d, Jd, products, idle = space.zeros(), image.zeros(), 0, 0
    sigma = FIRST / (t * max(norm_J, 1e-150) ** 2)
    best: Step | None = None
    for _ in range(MOST_ROUNDS):
        shift = y / sigma
        z = c + Jd + shift
        p = h.prox(z, 1 / sigma)
        for _ in range(MOST_STEPS):
            g = J.T @ (sigma * (z - p)) + d / t
            products += 1
            infeasible, quadratic = t / 2 * _square(space, g), _square(space, d) / (2 * t)
            if not math.isfinite(infeasible) or infeasible <= max(accuracy**2 * quadratic, noise) / 8:
                break
            s, spent = _newton(h, z, sigma, t, g, J)
            Js = J @ s
            products += spent + 1
            length = _line_minimum(h, z, Js, sigma, (d, s, t), J)
            if not length > 0:
                break
            d, Jd = d + length * s, Jd + length * Js
            z = c + Jd + shift
            p = h.prox(z, 1 / sigma)
        y = sigma * (z - p)
        found = _step(h, c + Jd, p, y, d, t, J)
        products += 1
        idle = 0 if best is None or found.gap < best.gap / 2 else idle + 1
        if best is None or found.gap < best.gap:
            best = found
        if idle == IDLE or not math.isfinite(found.gap) or best.gap <= max(accuracy**2 * best.quadratic, noise):
            break
        sigma *= GROWS
    assert best is not None  # there is at least one round
    return replace(best, products=products)


def _square(space: Space, v: Tensor) -> float:
    return float(space.inner(v, v))


def _line_minimum(
    h: Convex, z: Tensor, Js: Tensor, sigma: float, move: tuple[Tensor, Tensor, float], J: LinearOperator
) -> float:
    """The length along s at which the slope is a tenth of what it is at the start, by false position.

    The function has as many pieces as there are kinks near: halving from 1 would cross them one at a time.
    """
    d, s, t = move
    ds, ss = float(J.domain.inner(d, s)) / t, _square(J.domain, s) / t

    def slope(length: float) -> float:
        v = z + length * Js
        return sigma * float(J.codomain.inner(v - h.prox(v, 1 / sigma), Js)) + ds + length * ss

    low, high, at_low = 0.0, 1.0, slope(0.0)
    small, at_high = 0.1 * abs(at_low), slope(1.0)
    for _ in range(MOST_TRIALS):
        if abs(at_high) <= small:
            return high
        if at_high > 0:
            break
        low, at_low, high = high, at_high, 2 * high
        at_high = slope(high)
    for _ in range(MOST_TRIALS):
        middle = high - at_high * (high - low) / (at_high - at_low) if at_high > at_low else (low + high) / 2
        at = slope(middle)
        if abs(at) <= small:
            return middle
        if at > 0:  # the end that stays counts half, so that it moves next time
            high, at_high, at_low = middle, at, at_low / 2
        else:
            low, at_low, at_high = middle, at, at_high / 2
    return low


def _newton(h: Convex, z: Tensor, sigma: float, t: float, g: Tensor, J: LinearOperator) -> tuple[Tensor, int]:
    """The direction -H^-1 g for H = J'W J + I / t, and the products with J that it took."""
    W = _curvature(h, z, sigma, J)
    if isinstance(J, Matrix) and J.shape[1] <= DIRECT:
        H = J.matrix.T @ (W @ J.matrix)
        L, failed = torch.linalg.cholesky_ex(H + torch.eye(len(g), dtype=g.dtype, device=g.device) / t)
        if not int(failed):
            return -torch.cholesky_solve(g[:, None], L)[:, 0], 0
    solved = cg(J.T @ W @ J + (1 / t) * identity(J.domain), -g, rtol=1e-5, max_iterations=2 * min(J.shape) + 20)
    return solved.x, 2 * solved.products


def _curvature(h: Convex, z: Tensor, sigma: float, J: LinearOperator) -> LinearOperator:
    """sigma (I - dprox/dz) at z."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        p = h.prox(leaf, 1 / sigma)

    def product(V: Tensor) -> Tensor:
        try:
            (moved,) = torch.autograd.grad(p, leaf, V.T, is_grads_batched=True, retain_graph=True)
        except RuntimeError:  # an operation that has no rule for batches
            moved = torch.stack([torch.autograd.grad(p, leaf, v, retain_graph=True)[0] for v in V.T])
        return sigma * (V - moved.T)

    flat = from_callable(lambda V: sigma * V, J.codomain, facts="positive_semidefinite")  # a constant proximal map
    return from_callable(product, J.codomain, facts="positive_semidefinite") if p.requires_grad else flat


def _step(h: Convex, u: Tensor, p: Tensor, y: Tensor, d: Tensor, t: float, J: LinearOperator) -> Step:
    model = float(h.value(u))
    fenchel = model - float(h.value(p)) - float(J.codomain.inner(y, u - p))
    gap = max(fenchel, 0.0) + _square(J.domain, d + t * (J.T @ y)) / (2 * t)
    return Step(d, y, model, _square(J.domain, d) / (2 * t), gap, 0)
