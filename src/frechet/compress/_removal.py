"""Weights set to zero, and the other weights moved such that the quadratic model of the loss rises least.

With the inverse B of the curvature H, the gradient g (0 at a minimum) and a set Q of weights w that go,

    minimize g'd + d'H d / 2   over d   with d_Q = -w_Q
    B_QQ l = (B g)_Q - w_Q,    d = B_:Q l - B g

At a minimum the increase is w_Q' (B_QQ)^-1 w_Q / 2; of one weight, w_q^2 / (2 B_qq). A sum of single saliencies is not
that of a set. For `InverseFisher` the equations are solved for the weights that stay, by their gradients alone:
H_RR d_R = H_RQ w_Q - g_R.

**Source.** B. Hassibi, D. Stork (1993), Second order derivatives for network pruning: optimal brain surgeon, NeurIPS,
equation 5; S. P. Singh, D. Alistarh (2020), WoodFisher, arXiv 2004.14340, for sets; E. Frantar, E. Kurtic, D. Alistarh
(2021), M-FAC, arXiv 2107.03356.
**Differs from the source.** M-FAC takes the weights of a set for independent, and leaves w_Q + d_Q != 0, which it then
cuts off; here the small system is solved.
**Cost.** `compensated`: for `InverseFisher` m^2 n; else the rows and columns of B in Q and |Q|^3 / 3, or from `DENSE`
weights on, one product with B per step of cg. `removed_in_order`: k products and k^2 n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg import diagonal, solve
from frechet.linalg._shown import Result, Rows
from frechet.operators import InverseFisher, from_callable, inverse_fisher, submatrix
from frechet.operators._eigendecomposition import double
from frechet.operators._operator import LinearOperator
from frechet.space import euclidean

DENSE = 2048  # weights of a set whose system is formed: 32 MiB


@dataclass(frozen=True, eq=False)
class Removal(Result):
    """Weights after a removal. `increase` is that of the quadratic model, over the weights before."""

    x: Tensor  # (n,)
    removed: Tensor  # (k,) indices, in the order of their removal
    increase: float
    increases: Tensor  # (k,) float64: after each of them, where they went one by one; else empty

    def _line(self) -> str:
        return f"{len(self.removed)} of {len(self.x)} weights, predicted increase {self.increase:.4g}"

    def _table(self) -> Rows:
        return ("", ""), [("removed", f"{len(self.removed)} of {len(self.x)}"), ("increase", f"{self.increase:.6g}")]


@torch.no_grad()
def compensated(
    x: Tensor,
    inverse: LinearOperator,
    removed: Tensor | Sequence[int],
    *,
    gradient: Tensor | None = None,
    rtol: float = 1e-8,
) -> Removal:
    """Return the weights with a set of them removed together and the others moved such that the loss rises least.

    Args:
        x: the weights ``(n,)``.
        inverse: the inverse of the curvature, positive definite: `inverse_fisher`, `inverse` of a K-FAC operator plus a
            multiple of the identity, `nystrom`, a dense operator.
        removed: the indices of the weights that go, or a mask ``(n,)`` that is true for them.
        gradient: the gradient at x ``(n,)``, where it is not 0. Default: 0.
        rtol: relative tolerance of cg, where the set is large and the inverse has no structure of gradients.

    Raises:
        ValueError: shapes or indices do not fit, or the inverse is not known to be positive definite.
        NotConverged: cg did not reach the tolerance.

    Example:
        >>> import torch
        >>> from frechet import from_matrix
        >>> from frechet.compress import compensated
        >>> B = from_matrix(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), facts="positive_definite")
        >>> found = compensated(torch.tensor([1.0, 3.0]), B, [0])
        >>> found.x, round(found.increase, 6)  # w_1 moves by -1/2; 1^2 / (2 * 2)
        (tensor([0.0000, 2.5000]), 0.25)
    """
    x, Q = _arguments("compensated", x, inverse, removed)
    g = None if gradient is None else _vector("compensated: gradient", gradient, inverse)
    if not len(Q) and g is None:
        return Removal(x.clone(), Q, 0.0, torch.zeros(0, dtype=torch.float64))
    if isinstance(inverse, InverseFisher):
        d, increase = _by_the_rest(x, inverse, Q, g)
    else:
        d, increase = _by_the_set(x, inverse, Q, g, rtol)
    moved = x + d
    moved[Q] = 0.0
    return Removal(moved, Q, increase, torch.zeros(0, dtype=torch.float64))


def _by_the_rest(x: Tensor, B: InverseFisher, Q: Tensor, g: Tensor | None) -> tuple[Tensor, float]:
    """The move and the increase from the equations of the weights that stay."""
    m = max(1, len(B.gradients))
    gone = torch.zeros_like(x)
    gone[Q] = x[Q]
    G = B.gradients.clone()
    G[:, Q] = 0.0
    rest = inverse_fisher(G, B.damping, domain=B.domain, block=B.block)
    d = rest.of_combination(B.products(gone) / m)
    if g is not None:
        d -= rest @ g
    d[Q] = -x[Q]
    curved = B.damping * B.domain.inner(d, d) + B.products(d).square().sum() / m
    slope = 0.0 if g is None else float(B.domain.inner(g, d))
    return d, slope + float(curved) / 2


def _by_the_set(x: Tensor, B: LinearOperator, Q: Tensor, g: Tensor | None, rtol: float) -> tuple[Tensor, float]:
    """The move and the increase from the equations of the set."""
    free = torch.zeros_like(x) if g is None else -(B @ g)
    b = double(-(free + x)[Q])
    if len(Q) <= DENSE:
        S = double(submatrix(B, Q))
        l = torch.cholesky_solve(b[:, None], torch.linalg.cholesky((S + S.T) / 2))[:, 0]
    else:
        space = euclidean(len(Q), x.dtype, x.device)

        def product(V: Tensor) -> Tensor:
            whole = B.domain.zeros(V.shape[1])
            whole[Q] = V
            return (B @ whole)[Q]

        l = double(solve(from_callable(product, space, facts="positive_definite"), b.to(x), rtol=rtol).x)
    forces = torch.zeros_like(x)
    forces[Q] = l.to(x)
    d = free + B @ forces
    slope = 0.0 if g is None else float(B.domain.inner(g, d))
    return d, slope / 2 - float(double(x[Q]) @ l) / 2


@torch.no_grad()
def removed_in_order(x: Tensor, inverse: LinearOperator, number: int, *, candidates: Tensor | None = None) -> Removal:
    """Return the weights after so many single removals, each of the weight whose loss is least then (exact OBS).

    Each removal moves the others, and the next one is chosen by the curvature of those that are left.

    Args:
        x: the weights ``(n,)``.
        inverse: as for `compensated`; its diagonal must be in the structure, or takes n products.
        number: how many weights go.
        candidates: a mask ``(n,)`` of the weights that may go. Default: all.

    Raises:
        ValueError: shapes do not fit, or there are fewer candidates.

    Example:
        >>> import torch
        >>> from frechet import from_diagonal
        >>> from frechet.compress import removed_in_order
        >>> found = removed_in_order(torch.tensor([1.0, 3.0, 1.0]), from_diagonal(torch.tensor([1.0, 1.0, 4.0])), 2)
        >>> found.removed, found.increases  # 1/8, then 1/2 more
        (tensor([2, 0]), tensor([0.1250, 0.6250], dtype=torch.float64))
    """
    x, _ = _arguments("removed_in_order", x, inverse, [])
    allowed = torch.ones_like(x, dtype=torch.bool) if candidates is None else candidates.clone()
    if allowed.shape != x.shape or allowed.dtype != torch.bool:
        raise ValueError(f"removed_in_order: candidates must be a mask ({len(x)},), got {tuple(allowed.shape)}")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= int(allowed.sum()):
        raise ValueError(f"removed_in_order: number must lie between 0 and {int(allowed.sum())}, got {number}")
    w, d = double(x).clone(), double(diagonal(inverse, method="exact").value).clone()
    C = w.new_zeros(len(w), number)  # the columns of each removal, over the roots of their pivots
    order, increases, total = [], [], 0.0
    for k in range(number):
        losses = torch.where(allowed, w.square() / (2 * d), torch.inf)
        q = int(losses.argmin())
        unit = inverse.domain.zeros()
        unit[q] = 1.0
        column = double(inverse @ unit) - C[:, :k] @ C[q, :k]
        total += float(w[q].square() / (2 * column[q]))
        w -= w[q] / column[q] * column
        C[:, k] = column / column[q].sqrt()
        d -= C[:, k].square()
        w[q], allowed[q] = 0.0, False
        order.append(q)
        w[order] = 0.0
        increases.append(total)
    removed = torch.tensor(order, dtype=torch.long, device=x.device)
    return Removal(w.to(x), removed, total, torch.tensor(increases, dtype=torch.float64))


def _arguments(name: str, x: Tensor, inverse: LinearOperator, removed: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """The weights, and the indices of those that go, each once."""
    if "positive_definite" not in inverse.facts:
        raise ValueError(f"{name}: inverse must be positive definite, got {inverse!r}; declare it where it is")
    x = _vector(f"{name}: x", x, inverse)
    given = torch.as_tensor(removed, device=x.device)
    if given.dtype == torch.bool:
        if given.shape != x.shape:
            raise ValueError(f"{name}: a mask must have shape ({len(x)},), got {tuple(given.shape)}")
        return x, given.nonzero()[:, 0]
    Q = given.long().reshape(-1).unique()
    if len(Q) and not 0 <= int(Q.min()) <= int(Q.max()) < len(x):
        raise ValueError(f"{name}: removed must lie between 0 and {len(x) - 1}, got {int(Q.min())} to {int(Q.max())}")
    return x, Q


def _vector(name: str, v: Tensor, inverse: LinearOperator) -> Tensor:
    if v.shape != (inverse.domain.dim,):
        raise ValueError(f"{name} must have shape ({inverse.domain.dim},), got {tuple(v.shape)}")
    return v.detach().to(inverse.domain.device, inverse.domain.dtype)
