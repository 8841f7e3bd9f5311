"""The distance of Bures and Wasserstein between L'L and K'K, for factors L ``(r, d)`` and K ``(q, d)``.

d^2 = tr L'L + tr K'K - 2 tr (L'L K'K)^(1/2) = |L|^2 + |K|^2 - 2 |L K'|_*: the root of a product of d x d matrices is
the sum of the singular values of an r x q matrix. With the thin decomposition L K' = U S V', d^2 = |U'L - V'K|^2 + |L -
UU'L|^2 + |K - VV'K|^2, which has no cancellation. The gradient in L is 2 (L - W K) with the polar factor W = U V'. Its
derivative is dW = U ((P - P')_ij / (s_i + s_j)) V' + (I - UU') E V S^-1 V' + U S^-1 U' E (I - VV'), P = U' E V, E = dL
K' + L dK'.

**Source.** Mathiasen and Hvilshøj, "Backpropagating through Fréchet Inception Distance" (2020), for the small matrix.
**Differs from the source:** (1) singular values and not eigenvalues of the product, so that small ones keep their
digits; (2) the value by squares; (3) second derivatives; (4) where L lacks a direction that K has, the distance has a
kink, and the gradient is refused. **Cost:** r q d + min(r, q)^2 max(r, q); factors with more rows than columns are
reduced to d rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.matrices._forward_rule import nested
from frechet.calculus.matrices._symmetric import moved
from frechet.errors import NonFinite, NotDifferentiable

LARGEST_ERROR = 1e-6  # of the gradient, relative to the other factor, above which it is refused

DIGITS = 1e-2  # part that a difference of squares must keep, so that it loses two digits at most


class Bures(torch.autograd.Function):
    """d^2, and the thin decomposition of L K' that derivatives need."""

    @staticmethod
    def forward(L: Tensor, K: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        if not bool(L.isfinite().all() and K.isfinite().all()):
            raise NonFinite("frechet_distance: features and covariances must be finite, got NaN or infinite entries")
        (Q, R), (Z, T) = _reduced(L), _reduced(K)
        U, s, Vt = torch.linalg.svd(R @ T.mT, full_matrices=False)
        u, v = U.mT @ R, Vt @ T
        value = (u - v).square().sum((-2, -1)) + _outside(R, U, u) + _outside(T, Vt.mT, v)
        return value, U if Q is None else Q @ U, s, Vt.mT.contiguous() if Z is None else Z @ Vt.mT, u, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:  # type: ignore[override]
        L, K = ctx.saved_tensors[:2]
        needs = tuple(ctx.needs_input_grad)
        P, O = Matched.apply(needs, *ctx.saved_tensors)
        g = 2 * g[..., None, None]
        return g * (L - P) if needs[0] else None, g * (K - O) if needs[1] else None

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], dL: Tensor | None, dK: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        P, O = Matched.apply((dL is not None, dK is not None), *saved)
        pairs = ((saved[0], P, dL), (saved[1], O, dK))
        parts = [(2 * (a - b) * d).sum((-2, -1)) for a, b, d in pairs if d is not None]
        return torch.stack(parts).sum(0), None, None, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Bures.apply(*moved(given, dims, info.batch_size)), (0,) * 6


class Matched(torch.autograd.Function):
    """W K and W'L: each factor turned to lie nearest to the other one; empty where it is not needed."""

    @staticmethod
    def forward(needs: tuple[bool, bool], *given: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        L, K, U, s, V, u, v = given
        if needs[0]:
            _require_determined(L, K, v, s, V)
        if needs[1]:
            _require_determined(K, L, u, s, U)
        return U @ v if needs[0] else torch.zeros_like(L), V @ u if needs[1] else torch.zeros_like(K)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, G: Tensor, F: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, *Turned.apply(*ctx.saved_tensors, G, F), *[None] * 5

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dL: Tensor | None, dK: Tensor | None, *__: Any) -> Any:  # type: ignore[override]
        L, K = saved[:2]
        G, F = (torch.zeros_like(x) if d is None else d for x, d in ((L, dL), (K, dK)))
        return Turned.apply(*saved, G, F)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Matched.apply(*moved(given, dims, info.batch_size)), (0, 0)


class Turned(torch.autograd.Function):
    """The derivative of (W K, W'L) along (G, F), which is symmetric."""

    @staticmethod
    def forward(*given: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        L, K, U, s, V, u, v, G, F = given
        left = G @ v.mT + L @ (F.mT @ V)  # E V
        right = (U.mT @ G) @ K.mT + u @ F.mT  # U'E
        P = U.mT @ left
        both = P - P.mT
        core = both * _inverse(s.unsqueeze(-1) + s.unsqueeze(-2))
        below = (left - U @ P) * _inverse(s).unsqueeze(-2)
        beside = (right - P @ V.mT) * _inverse(s).unsqueeze(-1)
        return (
            U @ (core @ v) + below @ v + U @ (beside @ K) + U @ (V.mT @ F),
            V @ (core.mT @ u) + V @ (below.mT @ L) + beside.mT @ u + V @ (U.mT @ G),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None: ...

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotDifferentiable(
            "frechet_distance: there are derivatives of order 1 and 2, got order 3; use sqrtm on covariances"
        )

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotDifferentiable(
            "frechet_distance: there are derivatives of order 1 and 2, got order 3; use sqrtm on covariances"
        )

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Turned.apply(*moved(given, dims, info.batch_size)), (0, 0)


def _reduced(L: Tensor) -> tuple[Tensor | None, Tensor]:
    """Q, R with L = Q R and at most d rows in R; no Q where L has no more."""
    return tuple(torch.linalg.qr(L)) if L.shape[-2] > L.shape[-1] else (None, L)


def _outside(R: Tensor, U: Tensor, u: Tensor) -> Tensor:
    """|R - U u|^2 for u = U'R, by the difference of squares where that keeps its digits."""
    if R.shape[-2] == U.shape[-1]:
        return torch.zeros_like(R[..., 0, 0])
    whole = R.square().sum((-2, -1))
    found = whole - u.square().sum((-2, -1))
    return found if bool((found > DIGITS * whole).all()) else (R - U @ u).square().sum((-2, -1))


def _noise(s: Tensor, rows: int) -> Tensor:
    """The relative error of singular vectors, at most 1, and 1 where a singular value is rounding."""
    eps = torch.finfo(s.dtype).eps * rows
    return (eps * s.amax(-1, keepdim=True) / s).clamp(max=1.0).nan_to_num(1.0)


def _inverse(s: Tensor) -> Tensor:
    """1 / s, with 0 for what is rounding: a guard has proved that its terms vanish."""
    small = s <= torch.finfo(s.dtype).eps * s.shape[-1] * s.amax((-1, -2) if s.ndim > 1 else -1, keepdim=True)
    return torch.where(small, torch.zeros_like(s), 1 / torch.where(small, torch.ones_like(s), s))


def _require_determined(L: Tensor, K: Tensor, v: Tensor, s: Tensor, V: Tensor) -> None:
    """Refuse the gradient in L where W K is not determined, because L lacks directions that K has."""
    if not s.shape[-1]:
        return
    size = K.square().sum((-2, -1)).sqrt()
    lost = (_noise(s, max(L.shape[-2], K.shape[-2])).unsqueeze(-1) * v).square().sum((-2, -1))
    if L.shape[-2] > s.shape[-1]:
        lost = lost + (K - V @ v).square().sum((-2, -1))
    if bool((lost.sqrt() > LARGEST_ERROR * size).any()):
        raise NotDifferentiable(
            "frechet_distance: the covariance of the features must have the directions of the other one, got one that "
            "lacks some: the distance has a kink there; add ridge=, more samples, or noise to the features"
        )
