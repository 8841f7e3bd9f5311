"""Functions of symmetric matrices, f(A) = V f(Lambda) V', with exact derivatives at repeated eigenvalues.

Df(A)[E] = V (f[l_i, l_j] (V'EV)_ij) V' (Daleckii and Krein), and D^2 f(A)[E, G] = V R V' with
R_ij = sum_k f[l_i, l_k, l_j] (E_ik G_kj + G_ik E_kj), E and G in the basis V. The forms <G, D^k f(A)[E_1, ..., E_k]>
are symmetric in all arguments, since f is the gradient of tr F with F' = f. So the adjoint of D^k f is D^(k+1) f, and
one rule serves reverse and forward mode.

**Source.** Higham, "Functions of Matrices" (2008), chapter 3. **Differs from the source:** (1) the differences are
taken from integrals at close points (`_divided_differences.py`); (2) where f has no derivative, as the square root at
0, the derivative exists in the directions that leave that block alone: these give values, others are refused. **Cost:**
one eigendecomposition for all orders, 4 n^3 for the first derivative, n^4 / 16 flops or so for the second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.calculus.matrices._divided_differences import Scalar
from frechet.calculus.matrices._forward_rule import nested, summed
from frechet.errors import NonFinite, NotDifferentiable

CELLS = 2**20  # entries of f[l_i, l_k, l_j] that are formed at once
ASYMMETRY = 0.75  # power of eps, relative: products that are symmetric in exact arithmetic pass, others do not


def symmetrized(A: Tensor) -> Tensor:
    """Return (A + A') / 2."""
    return (A + A.mT) / 2


def require_symmetric(name: str, A: Tensor) -> None:
    """Refuse what is no symmetric matrix, or is not finite."""
    if not bool(A.isfinite().all()):
        raise NonFinite(f"{name}: A must be finite, got {float(A[~A.isfinite()][0])} in an entry")
    if not A.numel():
        return
    off, size = (A - A.mT).abs().amax((-2, -1)), A.abs().amax((-2, -1))
    if bool((off > torch.finfo(A.dtype).eps ** ASYMMETRY * size).any()):
        raise ValueError(
            f"{name}: A must be symmetric, got A - A' up to {float(off.max()):.2g}; give symmetric=False or (A + A') "
            "/ 2"
        )


def moved(given: tuple[Any, ...], dims: tuple[Any, ...], size: int) -> list[Any]:
    """The tensors with the axis of vmap in front, those without it repeated."""
    return [
        a if not isinstance(a, Tensor) else a.movedim(d, 0) if d is not None else a.expand(size, *a.shape)
        for a, d in zip(given, dims, strict=True)
    ]


class SymmetricFunction(torch.autograd.Function):
    """f(A), with the eigenvalues and eigenvectors that the derivatives need."""

    @staticmethod
    def forward(f: Scalar, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        require_symmetric(f.name, A)
        lam, V = torch.linalg.eigh(symmetrized(A))
        lam = without_rounding(f, lam)
        values = f.value(lam)
        if not bool(values.isfinite().all()):
            at = float(lam[~values.isfinite()][0])
            raise NonFinite(
                f"{f.name}: f must be finite at the eigenvalues of A, got f({at:.3g}); it has no value here"
            )
        return (V * values.unsqueeze(-2)) @ V.mT, lam, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.f = inputs[0]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[1], *output[1:])
        ctx.save_for_forward(inputs[1], *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:  # type: ignore[override]
        A, lam, V = ctx.saved_tensors
        return None, SymmetricDerivative.apply(ctx.f, lam, V, A, g)

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dA: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        A, lam, V = saved
        return SymmetricDerivative.apply(ctx.f, lam, V, A, dA), None, None

    @staticmethod
    def vmap(info: Any, dims: Any, f: Scalar, A: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        return SymmetricFunction.apply(*moved((f, A), dims, info.batch_size)), (0, 0, 0)


class SymmetricDerivative(torch.autograd.Function):
    """D^k f(A)[E_1, ..., E_k] for k = 1, 2."""

    @staticmethod
    def forward(f: Scalar, lam: Tensor, V: Tensor, A: Tensor, *E: Tensor) -> Tensor:  # type: ignore[override]
        T = [V.mT @ symmetrized(e) @ V for e in E]
        return V @ (_first(f, lam, T[0]) if len(E) == 1 else _second(f, lam, T[0], T[1])) @ V.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.f = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        lam, V, A, *E = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        to_A = _next(ctx.f, lam, V, A, [*E, g]) if needs[0] else None
        to_E = [
            SymmetricDerivative.apply(ctx.f, lam, V, A, *E[:i], g, *E[i + 1 :]) if needs[i + 1] else None
            for i in range(len(E))
        ]
        return None, None, None, to_A, *to_E

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, __: Any, ___: Any, dA: Tensor | None, *dE: Tensor | None) -> Tensor:  # type: ignore[override]
        lam, V, A, *E = saved
        parts = [] if dA is None else [_next(ctx.f, lam, V, A, [*E, dA])]
        parts += [
            SymmetricDerivative.apply(ctx.f, lam, V, A, *E[:i], d, *E[i + 1 :])
            for i, d in enumerate(dE)
            if d is not None
        ]
        return summed(parts)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return SymmetricDerivative.apply(*moved(given, dims, info.batch_size)), 0


def _next(f: Scalar, lam: Tensor, V: Tensor, A: Tensor, E: list[Tensor]) -> Tensor:
    if len(E) > 2:
        raise NotDifferentiable(
            f"{f.name}: a function of a symmetric matrix has derivatives of order 1 and 2 here, got order {len(E)}; "
            "use symmetric=False, which has all orders"
        )
    return SymmetricDerivative.apply(f, lam, V, A, *E)


def without_rounding(f: Scalar, lam: Tensor) -> Tensor:
    """The eigenvalues, with zeros for those that rounding moved from zero where this matters."""
    if not f.zeros or not lam.numel():
        return lam
    noise = lam.shape[-1] * torch.finfo(lam.dtype).eps * lam.abs().amax(-1, keepdim=True)
    return torch.where(lam.abs() <= noise, torch.zeros_like(lam), lam)


def _times(f: Scalar, factor: Tensor, term: Tensor, size: Tensor) -> Tensor:
    """factor * term, where infinite factors need terms that are zero up to rounding."""
    bad = ~factor.isfinite()
    if not bool(bad.any()):
        return factor * term
    noise = torch.finfo(term.dtype).eps ** 0.5 * size
    if bool((bad & (term.abs() > noise)).any()):
        raise NotDifferentiable(
            f"{f.name}: f has no derivative at an eigenvalue of A (the square root has none at 0), and this loss moves "
            "that block; add a multiple of the identity to A, or work with a factor of A"
        )
    return torch.where(bad, torch.zeros_like(term), factor * term)


def _differences(f: Scalar, lam: Tensor) -> Tensor:
    """f[l_i, l_j], each pair once."""
    n = lam.shape[-1]
    rows, columns = torch.triu_indices(n, n, device=lam.device)
    half = f.first(lam[..., rows], lam[..., columns])
    G = half.new_empty(*lam.shape, n)
    G[..., rows, columns] = half
    G[..., columns, rows] = half
    return G


def _first(f: Scalar, lam: Tensor, T: Tensor) -> Tensor:
    if not T.numel():
        return T
    return _times(f, _differences(f, lam), T, T.abs().amax((-2, -1), keepdim=True))


def _second(f: Scalar, lam: Tensor, T: Tensor, U: Tensor) -> Tensor:
    n, rows = lam.shape[-1], []
    G = _differences(f, lam)
    size = T.abs().amax((-2, -1))[..., None, None, None] * U.abs().amax((-2, -1))[..., None, None, None]
    step = max(1, CELLS // max(1, lam.numel() * n))
    for i in range(0, n, step):
        here = slice(i, i + step)
        points = lam[..., here, None, None], lam[..., None, :, None], lam[..., None, None, :]  # i, k, j
        D = f.second(points, (G[..., here, :, None], G[..., None, :, :], G[..., here, None, :]))
        pairs = T[..., here, :, None] * U[..., None, :, :] + U[..., here, :, None] * T[..., None, :, :]
        rows.append(_times(f, D, pairs, size).sum(-2))
    return torch.cat(rows, -2) if rows else T
