"""Eigenvectors, singular vectors, Cholesky and QR factors whose derivatives are refused where they do not exist.

The derivative of an eigenvector divides by gaps of eigenvalues. In a group of equal eigenvalues the vectors are
arbitrary. A loss determines its gradient only if it does not see the vectors of the group one by one and weighs its
eigenvalues alike, as tr f(A) does. tr(A C) and tr(A^0 C), written with eigenvectors, have the same first derivatives in
(Lambda, V) at A = I and different ones in A: so a loss that sees vectors of a group is refused, and
`spectral_projector` and `matrix_function` serve instead. Singular values at 0 have a kink. Guards look in the backward,
at the loss's own gradient.

**Source.** Giles, "An extended collection of matrix derivative results" (2008). **Differs from the source:** the
guards. **Cost:** that of the factorization for each derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.matrices._forward_rule import nested
from frechet.calculus.matrices._matrix_function import require_real, require_square
from frechet.calculus.matrices._symmetric import moved, require_symmetric, symmetrized
from frechet.errors import NonFinite, NotDifferentiable

Check = Callable[..., None]


class Guard(torch.autograd.Function):
    """The identity on its first tensor, after a check of all of them that sees plain values under every transform."""

    @staticmethod
    def forward(check: Check, x: Tensor, *seen: Tensor) -> Tensor:  # type: ignore[override]
        check(x, *seen)
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.seen = len(inputs) - 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, g, *[None] * ctx.seen

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dx: Tensor, *__: Any) -> Tensor:  # type: ignore[override]
        return dx.clone()

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Guard.apply(*moved(given, dims, info.batch_size)), 0


def _tolerance(gap: float | None, x: Tensor, name: str) -> float:
    if gap is not None and not 0 < gap < 1:
        raise ValueError(f"{name}: gap must lie between 0 and 1, relative to the largest value, got {gap}")
    return math.sqrt(torch.finfo(x.dtype).eps) if gap is None else gap


def _same(values: Tensor, gap: float) -> Tensor:
    """Which pairs of values are closer than gap times the largest, the diagonal left out."""
    size = values.abs().amax(-1, keepdim=True).unsqueeze(-1)
    close = (values.unsqueeze(-1) - values.unsqueeze(-2)).abs() <= gap * size
    return close & ~torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)


def _inverse_gaps(x: Tensor, same: Tensor) -> Tensor:
    """1 / (x_j - x_i), and 0 in groups and on the diagonal."""
    eye = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    difference = x.unsqueeze(-2) - x.unsqueeze(-1)
    out = same | eye
    return torch.where(out, torch.zeros_like(difference), 1 / torch.where(out, torch.ones_like(difference), difference))


def _grouped(name: str, what: str, values: Tensor, g: Tensor, inside: list[Tensor], gap: float) -> None:
    """Refuse a gradient that sees the vectors of a group, or weighs its values differently."""
    same = _same(values, gap)
    if not bool(same.any()):
        return
    unequal = (g.unsqueeze(-1) - g.unsqueeze(-2)).abs()
    sizes = [g.abs().amax(-1), *(m.abs().amax((-2, -1)) for m in inside)]  # of each matrix of the batch
    noise = math.sqrt(torch.finfo(values.dtype).eps) * torch.stack(sizes).amax(0)[..., None, None]
    if any(bool((same & (m.abs() > noise)).any()) for m in [unequal, *inside]):
        raise NotDifferentiable(
            f"{name}: the loss must not depend on single {what} of equal values, which are closer than gap = "
            f"{gap:.1g} of the largest; use matrix_function or spectral_projector, which need no single vectors"
        )


# --- eigenvalues ------------------------------------------------------------------------------------------------------


class Eigh(torch.autograd.Function):
    """Eigenvalues and eigenvectors of a symmetric matrix, with guarded derivatives."""

    @staticmethod
    def forward(gap: float, A: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        require_symmetric("eigh", A)
        lam, V = torch.linalg.eigh(symmetrized(A))
        return lam, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.gap = inputs[0]
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, g: Tensor, gV: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        lam, V = ctx.saved_tensors
        M = V.mT @ gV

        def check(M: Tensor, lam: Tensor, g: Tensor) -> None:
            _grouped("eigh", "eigenvectors", lam, g, [M], ctx.gap)

        M = Guard.apply(check, M, lam, g)
        turn = _inverse_gaps(lam, _same(lam, ctx.gap)) * (M - M.mT) / 2
        return None, V @ (torch.diag_embed(g) + turn) @ V.mT

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dA: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        lam, V = saved

        def check(T: Tensor, lam: Tensor) -> None:
            if bool(_same(lam, ctx.gap).any()):
                raise NotDifferentiable(
                    "eigh: A must have separate eigenvalues for derivatives in forward mode, got some closer than gap "
                    f"= {ctx.gap:.1g} of the largest; use matrix_function or spectral_projector"
                )

        T = Guard.apply(check, V.mT @ symmetrized(dA) @ V, lam)
        return T.diagonal(dim1=-2, dim2=-1).clone(), V @ (_inverse_gaps(lam, _same(lam, ctx.gap)) * T)

    @staticmethod
    def vmap(info: Any, dims: Any, gap: float, A: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        return Eigh.apply(*moved((gap, A), dims, info.batch_size)), (0, 0)


def eigh(A: Tensor, *, gap: float | None = None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of symmetric matrices, with derivatives where these exist.

    Args:
        A: symmetric matrices ``(..., n, n)``.
        gap: the distance of eigenvalues, relative to the largest, below which they count as equal; a derivative loses
            eps / gap. Default: sqrt(eps).

    Returns:
        Eigenvalues ``(..., n)`` and eigenvectors as columns ``(..., n, n)``, whose signs are arbitrary.

    Raises:
        NotDifferentiable: in the backward, for a loss that sees single vectors of equal eigenvalues or weighs these
            eigenvalues differently.

    Example:
        >>> import torch
        >>> from frechet.calculus.matrices import eigh
        >>> A = torch.eye(3).requires_grad_()
        >>> eigh(A)[0].pow(2).sum().backward()  # invariant, so it has a gradient at equal eigenvalues
        >>> A.grad.diagonal()
        tensor([2., 2., 2.])
    """
    require_square("eigh", A)
    return Eigh.apply(_tolerance(gap, A, "eigh"), A)


# --- singular values --------------------------------------------------------------------------------------------------


class Svd(torch.autograd.Function):
    """The thin singular value decomposition, with guarded derivatives."""

    @staticmethod
    def forward(gap: float, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        if not bool(A.isfinite().all()):
            raise NonFinite(f"svd: A must be finite, got {float(A[~A.isfinite()][0])} in an entry")
        U, s, Vt = torch.linalg.svd(A, full_matrices=False)
        return U, s, Vt.mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.gap = inputs[0]
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, gU: Tensor, g: Tensor, gV: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        U, s, V = ctx.saved_tensors
        outer = U.shape[-2] != U.shape[-1] or V.shape[-2] != V.shape[-1]

        def check(M: Tensor, N: Tensor, s: Tensor, g: Tensor, gU: Tensor, gV: Tensor) -> None:
            _grouped("svd", "singular vectors", s, g, [M, N], ctx.gap)
            _at_zero(s, [g.unsqueeze(-2), gU, gV], ctx.gap)

        M, N = U.mT @ gU, V.mT @ gV
        M = Guard.apply(check, M, N, s, g, gU, gV)
        F = _inverse_gaps(s, _same(s, ctx.gap)) / _safe(s.unsqueeze(-1) + s.unsqueeze(-2))
        core = (F * (M - M.mT)) * s.unsqueeze(-2) + s.unsqueeze(-1) * (F * (N - N.mT)) + torch.diag_embed(g)
        found = U @ core @ V.mT
        if outer:
            r = _safe(s).unsqueeze(-2)
            found = found + ((gU - U @ M) / r) @ V.mT + U @ ((gV - V @ N) / r).mT
        return None, found

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dA: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        U, s, V = saved

        def check(P: Tensor, s: Tensor) -> None:
            _grouped("svd", "singular vectors", s, torch.zeros_like(s), [torch.ones_like(P)], ctx.gap)
            _at_zero(s, [torch.ones_like(s).unsqueeze(-2)], ctx.gap)

        P = Guard.apply(check, U.mT @ dA @ V, s)
        F = _inverse_gaps(s, _same(s, ctx.gap)) / _safe(s.unsqueeze(-1) + s.unsqueeze(-2))
        left, right, r = s.unsqueeze(-1), s.unsqueeze(-2), _safe(s).unsqueeze(-2)
        dU = U @ (F * (P * right + left * P.mT)) + (dA @ V - U @ P) / r
        dV = V @ (F * (left * P + P.mT * right)) + (dA.mT @ U - V @ P.mT) / r
        return dU, P.diagonal(dim1=-2, dim2=-1).clone(), dV

    @staticmethod
    def vmap(info: Any, dims: Any, gap: float, A: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        return Svd.apply(*moved((gap, A), dims, info.batch_size)), (0, 0, 0)


def _safe(s: Tensor) -> Tensor:
    """s with ones in place of zeros, whose terms a guard has proved to vanish."""
    return torch.where(s == 0, torch.ones_like(s), s)


def _at_zero(s: Tensor, columns: list[Tensor], gap: float) -> None:
    """Refuse a gradient that sees singular values at 0 or their vectors."""
    if not s.numel():
        return
    zero = s <= gap * s.amax(-1, keepdim=True)
    sizes = torch.stack([c.abs().amax((-2, -1)) for c in columns]).amax(0)[..., None, None]
    noise = math.sqrt(torch.finfo(s.dtype).eps) * sizes
    if any(bool((zero.unsqueeze(-2) & (c.abs() > noise)).any()) for c in columns):
        raise NotDifferentiable(
            f"svd: the loss must not depend on singular values below gap = {gap:.1g} of the largest, where |s| has a "
            "kink, or on their vectors; add a ridge, or use A'A"
        )


def svd(A: Tensor, *, gap: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s, V of the thin decomposition A = U diag(s) V', with derivatives where these exist.

    Args:
        A: matrices ``(..., m, n)``.
        gap: the distance of singular values, relative to the largest, below which they count as equal or as 0. Default:
            sqrt(eps).

    Returns:
        U ``(..., m, k)``, s ``(..., k)`` descending, and V ``(..., n, k)``, k = min(m, n).

    Raises:
        NotDifferentiable: in the backward, for a loss that sees single vectors of equal singular values, weighs these
            differently, or sees singular values at 0.
    """
    if A.ndim < 2:
        raise ValueError(f"svd: A must have shape (..., m, n), got {tuple(A.shape)}")
    require_real("svd", "A", A)
    return Svd.apply(_tolerance(gap, A, "svd"), A)


# --- triangular factors -----------------------------------------------------------------------------------------------


class Watched(torch.autograd.Function):
    """The identity on a factor, whose derivatives are refused where a diagonal is zero up to rounding."""

    @staticmethod
    def forward(name: str, gap: float, F: Tensor, diagonal: Tensor) -> Tensor:  # type: ignore[override]
        return F.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name, ctx.gap = inputs[:2]
        ctx.save_for_backward(inputs[3])
        ctx.save_for_forward(inputs[3])

    @staticmethod
    def _checked(ctx: Any, g: Tensor, diagonal: Tensor) -> Tensor:
        name, gap = ctx.name, ctx.gap

        def check(g: Tensor, d: Tensor) -> None:
            if bool((d.abs().amin(-1) <= gap * d.abs().amax(-1)).any()) and bool((g != 0).any()):
                raise NotDifferentiable(
                    f"{name}: A must have full rank for derivatives, got a pivot below {gap:.1g} of the largest; add a "
                    "multiple of the identity, or drop dependent columns"
                )

        return Guard.apply(check, g, diagonal)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return None, None, Watched._checked(ctx, g, ctx.saved_tensors[0]), None

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, __: Any, dF: Tensor, ___: Any) -> Tensor:  # type: ignore[override]
        return Watched._checked(ctx, dF, saved[0])

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return Watched.apply(*moved(given, dims, info.batch_size)), 0


def cholesky(A: Tensor, *, gap: float | None = None) -> Tensor:
    """Return the lower triangular L with A = L L', with derivatives where A is well inside the definite matrices.

    Args:
        A: symmetric positive definite matrices ``(..., n, n)``. The gradient is symmetric.
        gap: the smallest pivot, relative to the largest, for which derivatives are given. Default: sqrt(eps).
    """
    require_square("cholesky", A)
    L, info = torch.linalg.cholesky_ex(symmetrized(A))
    L = Guard.apply(_definite, L, A, info)
    return Watched.apply("cholesky", _tolerance(gap, A, "cholesky"), L, L.detach().diagonal(dim1=-2, dim2=-1))


def _definite(L: Tensor, A: Tensor, info: Tensor) -> None:
    require_symmetric("cholesky", A)
    if bool((info != 0).any()):
        raise ValueError(
            "cholesky: A must be positive definite, got a pivot that is not positive; add a multiple of the identity, "
            "or use sqrtm for a semidefinite matrix"
        )


def qr(A: Tensor, *, gap: float | None = None) -> tuple[Tensor, Tensor]:
    """Return Q, R of A = Q R with a diagonal of R that is not negative, with derivatives where A has full rank.

    Args:
        A: matrices ``(..., m, n)`` with m >= n.
        gap: the smallest entry on the diagonal of R, relative to the largest, for which derivatives are given. Default:
            sqrt(eps).
    """
    if A.ndim < 2 or A.shape[-2] < A.shape[-1]:
        raise ValueError(f"qr: A must have shape (..., m, n) with m >= n, got {tuple(A.shape)}; take the QR of A.mT")
    require_real("qr", "A", A)
    Q, R = torch.linalg.qr(A)
    diagonal = R.detach().diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(A.dtype)
    tolerance = _tolerance(gap, A, "qr")
    Q = Watched.apply("qr", tolerance, Q * sign.unsqueeze(-2), diagonal)
    return Q, Watched.apply("qr", tolerance, R * sign.unsqueeze(-1), diagonal)
