"""Functions of general square matrices, with derivatives of all orders from block triangular matrices.

f([[A, E], [0, A]]) = [[f(A), Df(A)[E]], [0, f(A)]], and D^k f(A)[E_1, ..., E_k] is the corner of f at a matrix of size
2^k n. tr(G D^k f(A)[E_1, ..., E_k]) is symmetric in G and all E, so the adjoint of D^k f is D^(k+1) f, transposed. No
eigenvectors are used: repeated and defective eigenvalues are as good as others.

**Source.** Mathias, "A chain rule for matrix functions and applications" (1996); Higham, "Functions of Matrices"
(2008), sections 3.1 and 3.6. **Cost:** a k-th derivative costs f at size 2^k n. exp runs in torch, log and sqrt in
SciPy (Schur forms, on the processor), other functions by `_schur_parlett.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.calculus.matrices._forward_rule import nested, summed
from frechet.calculus.matrices._symmetric import moved
from frechet.errors import NonFinite

Evaluated = Callable[[np.ndarray], np.ndarray]
IMAGINARY = 1e-8  # part of the largest entry above which a result is complex and not rounding


@dataclass(frozen=True)
class Evaluator:
    """f at batches of square matrices of float64, in torch or in NumPy one at a time."""

    name: str
    in_torch: Callable[[Tensor], Tensor] | None = None
    in_numpy: Evaluated | None = None

    def at(self, A: Tensor) -> Tensor:
        """Return f(A) for each of the matrices ``(..., n, n)``."""
        if not bool(A.isfinite().all()):
            raise NonFinite(f"{self.name}: A must be finite, got {float(A[~A.isfinite()][0])} in an entry")
        if self.in_torch is not None:
            return self.in_torch(A)
        assert self.in_numpy is not None
        flat = A.detach().to("cpu", torch.float64).reshape(-1, *A.shape[-2:]).numpy()
        found = [self._real(self.in_numpy(a)) for a in flat]
        return torch.from_numpy(np.stack(found) if found else flat).reshape(A.shape).to(A)

    def _real(self, found: Any) -> np.ndarray:
        size = np.abs(found).max(initial=0.0)
        if not np.isfinite(size) or np.abs(found.imag).max(initial=0.0) > IMAGINARY * size:
            raise NonFinite(
                f"{self.name}: f(A) must be real and finite, got complex or infinite entries; log and sqrt need a "
                "matrix without eigenvalues on the negative half line and at 0"
            )
        return np.ascontiguousarray(found.real)


def exponential() -> Evaluator:
    """Return exp, by torch."""
    return Evaluator("expm", in_torch=torch.linalg.matrix_exp)


def logarithm() -> Evaluator:
    """Return the principal logarithm, by SciPy."""
    return Evaluator("logm", in_numpy=lambda a: np.asarray(scipy.linalg.logm(_regular("logm", a))))


def root() -> Evaluator:
    """Return the principal square root, by SciPy."""
    return Evaluator("sqrtm", in_numpy=lambda a: np.asarray(scipy.linalg.sqrtm(_regular("sqrtm", a))))


def _regular(name: str, a: np.ndarray) -> np.ndarray:
    """A matrix without eigenvalue 0, which has a root and a logarithm."""
    if a.size and np.abs(np.linalg.eigvals(a)).min() <= np.finfo(np.float64).eps * np.abs(a).max():
        raise NonFinite(
            f"{name}: A must be invertible, got an eigenvalue 0; give symmetric=True for a semidefinite matrix"
        )
    return a


class GeneralFunction(torch.autograd.Function):
    """D^k f(A)[E_1, ..., E_k] for k = 0, 1, ..."""

    @staticmethod
    def forward(f: Evaluator, A: Tensor, *E: Tensor) -> Tensor:  # type: ignore[override]
        n = A.shape[-1]
        if not n:
            return A.clone()
        size = _size(A)
        scales = [_size(e) / size for e in E]  # D^k f is linear in each E, and rounds best where E is as large as A
        found = f.at(_embedded(A, [e / s for e, s in zip(E, scales, strict=True)]))[..., :n, -n:].clone()
        for s in scales:
            found = found * s
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.f = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        A, *E = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        to_A = GeneralFunction.apply(ctx.f, A, *E, g.mT).mT if needs[0] else None
        to_E = [
            GeneralFunction.apply(ctx.f, A, *E[:i], g.mT, *E[i + 1 :]).mT if needs[i + 1] else None
            for i in range(len(E))
        ]
        return None, to_A, *to_E

    @staticmethod
    @nested
    def jvp(ctx: Any, saved: list[Tensor], _: Any, dA: Tensor | None, *dE: Tensor | None) -> Tensor:  # type: ignore[override]
        A, *E = saved
        parts = [] if dA is None else [GeneralFunction.apply(ctx.f, A, *E, dA)]
        parts += [GeneralFunction.apply(ctx.f, A, *E[:i], d, *E[i + 1 :]) for i, d in enumerate(dE) if d is not None]
        return summed(parts)

    @staticmethod
    def vmap(info: Any, dims: Any, *given: Any) -> tuple[Any, Any]:  # type: ignore[override]
        return GeneralFunction.apply(*moved(given, dims, info.batch_size)), 0


def _size(A: Tensor) -> Tensor:
    """The largest entry of each matrix, and 1 for a zero matrix."""
    found = A.abs().amax((-2, -1), keepdim=True)
    return torch.where(found == 0, torch.ones_like(found), found)


def _embedded(A: Tensor, E: list[Tensor]) -> Tensor:
    """The block triangular matrix of size 2^k n whose function has D^k f(A)[E] in its corner."""
    if not E:
        return A
    inner = _embedded(A, E[:-1])
    copies = inner.shape[-1] // A.shape[-1]
    eye = torch.eye(copies, dtype=A.dtype, device=A.device)
    corner = torch.einsum("ab,...ij->...aibj", eye, E[-1]).reshape(*E[-1].shape[:-2], *inner.shape[-2:])
    return torch.cat([torch.cat([inner, corner], -1), torch.cat([torch.zeros_like(inner), inner], -1)], -2)
