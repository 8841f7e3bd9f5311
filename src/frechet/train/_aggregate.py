"""One direction for many losses, chosen by the Gram matrix of their gradients: G = J J', update = J'w.

    mean weights     w = 1/m: what a sum of losses does; the update may raise a loss
    upgrad           the mean of the gradients' projections onto the cone in which no loss rises to first order
    dual_projection  the projection of the mean
    min_norm         the shortest convex combination (MGDA): its slopes along all gradients are alike or larger
    cagrad           the direction near the mean whose least slope is largest
    imtl             equal slopes along all normalized gradients (IMTL-G)
    nash             the bargaining solution, G w = 1/w: slopes inverse to weights
    pcgrad           conflicts taken out one after the other, in random order

All are functions of G ``(m, m)`` alone, which is small, and return w ``(m,)``; J is never needed. `upgrad`,
`dual_projection` and `min_norm` are exact at any ratio of the gradients' norms: the rows are normalized before the
quadratic programs, which are solved to rounding. They are differentiable in G, and so is `imtl`.

**Source.** upgrad, dual_projection: P. Quinton, V. Rey (2024), Jacobian descent for multi-objective optimization,
arXiv 2406.16232. min_norm: J.-A. Desideri (2012), Multiple-gradient descent algorithm, doi 10.1016/j.crma.2012.03.014.
cagrad: B. Liu et al. (2021), Conflict-averse gradient descent, arXiv 2110.14048. imtl: L. Liu et al. (2021), Towards
impartial multi-task learning, ICLR. nash: A. Navon et al. (2022), Multi-task learning as a bargaining game, arXiv
2202.01017. pcgrad: T. Yu et al. (2020), Gradient surgery for multi-task learning, arXiv 2001.06782.
**Differs from the source.** (1) All quadratic programs by complementary.py's method instead of Frank-Wolfe or a solver
of second-order cones. (2) cagrad by the root of one equation in its multiplier. (3) nash by Newton's method on the
convex function w'G w / 2 - sum log w. (4) Where gradients cancel, so that no direction lowers all losses, the weights
of upgrad and dual_projection are 0.
**Cost.** Of order m^4 operations for upgrad, m^3 for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.train._complementarity import complementary

CANCELLED = 64  # multiples of m eps: what is left of v'G v beside its parts is rounding, and no direction is left
NOISE = 4.0  # multiples of the negative eigenvalue that rounding made
NEWTON, DECREASE = 100, 1e-14
ENDLESS = 1e7  # weights of normalized gradients that run to infinity: gradients cancel
BISECTIONS = 80

Aggregate = Callable[[Tensor], Tensor]


def upgrad(G: Tensor, preference: Tensor | None = None) -> Tensor:
    """Return the weights of the mean of projected gradients (UPGrad).

    Each gradient is projected onto the cone of the directions d with J d >= 0, and the projections are averaged. Along
    the update no loss rises to first order, whatever the norms are. The update is linear in each gradient's length.

    Args:
        G: the Gram matrix ``(m, m)`` of the gradients, of any floating-point type. It is used in float64.
        preference: weights of the gradients in the mean ``(m,)``, >= 0. Default: 1/m each.

    Returns:
        w ``(m,)`` in the dtype of G; the update is ``J.T @ w``. It is 0 where gradients cancel: then no direction
            lowers a loss without raising another.

    Raises:
        ValueError: G is not square or not symmetric, or a diagonal entry is negative.
        NonFinite: G holds a NaN or an infinity.

    Example:
        >>> import torch
        >>> from frechet.train import upgrad
        >>> J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> J @ (J.T @ upgrad(J @ J.T)) >= 0
        tensor([True, True])
    """
    A = _checked("upgrad", G)
    u = _preference("upgrad", A, preference)
    return _projected(A, torch.diag(u)).sum(1).to(G)


def dual_projection(G: Tensor, preference: Tensor | None = None) -> Tensor:
    """Return the weights of the mean gradient's projection onto the cone in which no loss rises (DualProj).

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.
        preference: weights of the gradients in the mean ``(m,)``, >= 0. Default: 1/m each.

    Returns:
        w ``(m,)`` in the dtype of G; 0 where the mean has no such projection but 0.

    Raises:
        ValueError: as in `upgrad`.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import dual_projection
        >>> dual_projection(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
        tensor([0.5000, 0.5000])
    """
    A = _checked("dual_projection", G)
    return _projected(A, _preference("dual_projection", A, preference)[:, None])[:, 0].to(G)


def dual_cone(G: Tensor, U: Tensor) -> Tensor:
    """Return the weights of the projections of J'u onto the cone of directions d with J d >= 0, for each row u of U.

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.
        U: weights of the vectors that are projected, ``(..., m)``.

    Returns:
        V of the shape and dtype of U: each row minimizes ``v'G v`` over ``v >= u``.

    Raises:
        ValueError: as in `upgrad`, or the last axis of U is not m.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import dual_cone
        >>> dual_cone(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[1.0000, 0.5000]])
    """
    A = _checked("dual_cone", G)
    if not isinstance(U, Tensor) or U.shape[-1:] != (len(A),):
        got = tuple(U.shape) if isinstance(U, Tensor) else type(U).__name__
        raise ValueError(f"dual_cone: U must have shape (..., {len(A)}), got {got}")
    return _projected(A, U.reshape(-1, len(A)).T.to(A)).T.reshape(U.shape).to(U)


def min_norm(G: Tensor) -> Tensor:
    """Return the weights of the shortest convex combination of the gradients (MGDA).

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.

    Returns:
        w ``(m,)``, >= 0 with sum 1. ``(G w)_i >= w'G w`` for each i, with equality where w_i > 0.

    Raises:
        ValueError: as in `upgrad`.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import min_norm
        >>> min_norm(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    A = _checked("min_norm", G)
    return _on_simplex(A, torch.zeros(len(A), dtype=A.dtype, device=A.device)).to(G)


def cagrad(G: Tensor, *, c: float) -> Tensor:
    """Return the weights of the direction within c |g0| of the mean g0 whose least slope is largest (CAGrad).

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.
        c: how far the direction may be from the mean, >= 0; 0 is the mean, and from 1 on no loss rises.

    Returns:
        w ``(m,)`` in the dtype of G.

    Raises:
        ValueError: as in `upgrad`, or c is negative.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import cagrad
        >>> cagrad(torch.eye(2), c=0.4)
        tensor([0.7000, 0.7000])
    """
    if not 0 <= c < math.inf:
        raise ValueError(f"cagrad: c must be a number >= 0, got {c}")
    A = _checked("cagrad", G).detach()
    m = len(A)
    mean = torch.full((m,), 1 / m, dtype=A.dtype, device=A.device)
    b = A @ mean
    reach = c * math.sqrt(max(float(mean @ b), 0.0))
    if reach == 0:
        return mean.to(G)

    def at(multiplier: float) -> tuple[Tensor, float]:
        """The minimizer of b'w + multiplier w'G w / 2 on the simplex, and multiplier |J'w|."""
        w = _on_simplex(multiplier * A, b)
        return w, multiplier * math.sqrt(max(float(w @ A @ w), 0.0))

    low, high = 0.0, 1.0
    while at(high)[1] < reach and high < 1e12:
        low, high = high, 4 * high
    for _ in range(BISECTIONS):  # multiplier |J'w| rises with the multiplier
        middle = 0.5 * (low + high)
        low, high = (middle, high) if at(middle)[1] < reach else (low, middle)
    w, _ = at(high)
    length = math.sqrt(max(float(w @ A @ w), 0.0))
    return (mean + (reach / length) * w if length > 0 else mean).to(G)


def imtl(G: Tensor) -> Tensor:
    """Return the weights, with sum 1, of the direction that has one slope along all normalized gradients (IMTL-G).

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.

    Returns:
        w ``(m,)`` in the dtype of G; 0 where the weights have the sum 0.

    Raises:
        ValueError: as in `upgrad`.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import imtl
        >>> imtl(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.6667, 0.3333])
    """
    A = _checked("imtl", G)
    lengths = A.diagonal().clamp_min(0).sqrt()
    unit = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    w = torch.linalg.pinv(A / unit[:, None] / unit, hermitian=True) @ (lengths > 0).to(A) / unit
    total = w.sum()
    some = total.abs() > CANCELLED * len(A) * torch.finfo(A.dtype).eps * w.abs().sum()
    return torch.where(some, w / total, torch.zeros_like(w)).to(G)


def nash(G: Tensor) -> Tensor:
    """Return the weights of the bargaining solution, ``G w = 1 / w`` (Nash-MTL).

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.

    Returns:
        w ``(m,)``, > 0. The slope along gradient i is 1 / w_i, so no loss rises. Doubled gradients halve w.

    Raises:
        ValueError: as in `upgrad`; or gradients cancel, or one is zero: then no solution exists.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import nash
        >>> nash(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([1.0000, 0.5000])
    """
    A = _checked("nash", G).detach().cpu().numpy()
    lengths = np.sqrt(np.diag(A))
    if not lengths.all():
        raise ValueError(f"nash: gradients must not be zero, got {int((lengths == 0).sum())}; leave out their losses")
    C = A / lengths[:, None] / lengths
    w = np.ones(len(C)) / math.sqrt(len(C))
    for _ in range(NEWTON):  # the function is self-concordant: damped Newton steps converge from any w > 0
        slope = C @ w - 1 / w
        step = -np.linalg.solve(C + np.diag(1 / w**2), slope)
        decrease = math.sqrt(max(-float(slope @ step), 0.0))
        w = w + step / (1 + decrease if decrease > 0.25 else 1.0)
        if decrease <= DECREASE * len(C) or w.max() > ENDLESS:
            break
    if not np.abs(w * (C @ w) - 1).max() <= 1e-6:
        raise ValueError(
            "nash: some direction must lower all losses, got gradients that cancel; use upgrad, which then stops"
        )
    return torch.from_numpy(w / lengths).to(G)


def pcgrad(G: Tensor, *, seed: int) -> Tensor:
    """Return the weights of gradient surgery (PCGrad): each gradient loses its conflicts with the others in turn.

    The mean of what is left of the gradients. The order of the others is random, and the result depends on it; the
    update may still conflict with a gradient.

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.
        seed: the seed of the orders.

    Returns:
        w ``(m,)`` in the dtype of G.

    Raises:
        ValueError: as in `upgrad`.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import pcgrad
        >>> pcgrad(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), seed=0)
        tensor([0.7500, 0.7500])
    """
    A = _checked("pcgrad", G).detach().cpu().numpy()
    draw, total = np.random.default_rng(seed), np.zeros(len(A))
    for i in range(len(A)):
        w = np.zeros(len(A))
        w[i] = 1.0
        for j in draw.permutation(len(A)):
            slope = A[j] @ w
            if j != i and slope < 0:
                w[j] -= slope / A[j, j]
        total += w
    return torch.from_numpy(total / len(A)).to(G)


def cosines(G: Tensor, w: Tensor) -> Tensor:
    """Return the cosines between the update J'w and each gradient ``(m,)``; 0 where one of both is zero.

    Args:
        G: the Gram matrix ``(m, m)``, as in `upgrad`.
        w: the weights ``(m,)``.

    Raises:
        ValueError: as in `upgrad`.
        NonFinite: as in `upgrad`.

    Example:
        >>> import torch
        >>> from frechet.train import cosines
        >>> cosines(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([1.0, 0.0]))
        tensor([ 1.0000, -0.5000])
    """
    A = _checked("cosines", G)
    v = w.to(A)
    slopes, length = A @ v, (v @ A @ v).clamp_min(0).sqrt()
    sizes = A.diagonal().sqrt() * length
    return torch.where(sizes > 0, slopes / torch.where(sizes > 0, sizes, 1.0), 0.0).to(G)


# --- the two programs -------------------------------------------------------------------------------------------------


def _projected(A: Tensor, U: Tensor) -> Tensor:
    """argmin of v'A v over v >= u for each column u of U; 0 where that is zero but for rounding."""
    V = U + complementary(A, A @ U)
    with torch.no_grad():
        lengths = A.diagonal().clamp_min(0).sqrt()
        unit = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        C = A / unit[:, None] / unit
        # a negative eigenvalue of the normalized matrix shows how exact its entries are; with a factor it has none
        definite = int(torch.linalg.cholesky_ex(C)[1]) == 0
        least = torch.zeros_like(lengths[0]) if definite else torch.linalg.eigvalsh(C)[0]
        noise = CANCELLED * len(A) * torch.finfo(A.dtype).eps + NOISE * (-least).clamp_min(0)
        lost = (V * (A @ V)).sum(0) <= noise * (lengths[:, None] * V.abs()).sum(0) ** 2
    return torch.where(lost, 0.0, V)


def _on_simplex(A: Tensor, b: Tensor) -> Tensor:
    """argmin of b'w + w'A w / 2 over w >= 0 with sum 1, for b = A u with a u of size one.

    On the simplex that is w'M w / 2 with M = A + b 1' + 1 b' + t 1 1', whose minimizer over all w >= 0 with a linear
    term -1'w has the same direction. M is positive semidefinite from some t on.
    """
    m = len(A)
    one = torch.ones(m, dtype=A.dtype, device=A.device)
    size = A.diagonal().detach()
    unit = size[size > 0].min() if bool((size > 0).any()) else torch.ones_like(size[0])
    A, b = A / unit, b / unit
    t = 1.0 + (float(b.detach().abs().max()) * m if bool((b != 0).any()) else 0.0)
    M = A + torch.outer(b, one) + torch.outer(one, b) + t
    w = complementary(M, -one[:, None])[:, 0]
    return w / w.sum()


# --- arguments --------------------------------------------------------------------------------------------------------


def _checked(name: str, G: Tensor) -> Tensor:
    """G in float64, made exactly symmetric."""
    if not isinstance(G, Tensor) or G.ndim != 2 or G.shape[0] != G.shape[1] or not len(G):
        got = tuple(G.shape) if isinstance(G, Tensor) else type(G).__name__
        raise ValueError(f"{name}: G must be a Gram matrix (m, m), got {got}; J @ J.T for gradients in rows")
    if not G.is_floating_point():
        raise ValueError(f"{name}: G must be of a floating-point type, got {G.dtype}")
    A = G.cpu().double() if G.device.type == "mps" else G.double()
    if not bool(A.detach().isfinite().all()):
        raise NonFinite(f"{name}: G must be finite, got NaN or infinity; a loss or its gradient is not finite")
    with torch.no_grad():
        size = A.abs().amax()
        if bool((A - A.T).abs().amax() > 1e-3 * size) or bool((A.diagonal() < 0).any()):
            raise ValueError(f"{name}: G must be symmetric with a diagonal >= 0; J @ J.T for gradients in rows")
    return 0.5 * (A + A.T)


def _preference(name: str, A: Tensor, preference: Tensor | None) -> Tensor:
    m = len(A)
    if preference is None:
        return torch.full((m,), 1 / m, dtype=A.dtype, device=A.device)
    u = preference.to(A)
    if u.shape != (m,) or not bool(((u >= 0) & u.isfinite()).all()):
        raise ValueError(f"{name}: preference must be ({m},) and >= 0, got shape {tuple(u.shape)}, {preference}")
    return u
