"""Linear differential equations by Gaussian processes: one symmetric solve for a fixed kernel.

u is a Gaussian process with kernel k, and each condition says L u = f at its points, L a linear operator. The
covariance of L u(x) and L' u(y) is L_x L'_y k(x, y), by automatic differentiation of the kernel. The mean of u given
all conditions is the function of least norm that meets them:

    u(x) = sum_j c_j L_j k(x, .)(y_j),   G c = f,   G_ij = L_i L_j' k(y_i, y_j)

G is scaled to ones on its diagonal; `jitter` is then the relative variance of the noise that each datum is given.

**Source.** H. Owhadi (2015), Bayesian numerical homogenization, doi 10.1137/140974596, section 2.2.
**Cost.** m^2 derivatives of the kernel for m points in all, in chunks of rows, and one Cholesky factorization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotConverged

Kernel = Callable[[Tensor, Tensor], Tensor]
Function = Callable[[Tensor], Tensor]
Condition = tuple[Callable[[Function], Function], Tensor, Tensor]
ROWS = 1 << 16  # pairs of points at once


@dataclass(frozen=True, eq=False)
class ProcessSolution:
    """The process given its conditions; call it at points for the mean.

    Attributes:
        coefficients: c ``(m,)``.
        misfit: the largest misfit of a condition, in the units of the prior's standard deviation there.
        log_evidence: the log density of all data under the kernel: what kernels and frequencies are compared by.
    """

    kernel: Kernel
    conditions: tuple[Condition, ...]
    coefficients: Tensor
    misfit: float
    log_evidence: float
    factor: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mean of u at points ``(N, d)``."""
        return self._cross(x) @ self.coefficients

    def variance(self, x: Tensor) -> Tensor:
        """Return the variance of u at points ``(N, d)``: what the conditions leave open under the kernel."""
        C = self._cross(x) * self.scale
        prior = torch.func.vmap(self.kernel)(x, x)
        inside = torch.linalg.solve_triangular(self.factor, C.T, upper=False)
        return (prior - inside.square().sum(0)).clamp(min=0)

    def _cross(self, x: Tensor) -> Tensor:
        return torch.cat([_block(self.kernel, _value, L, x, points) for L, points, _ in self.conditions], 1)


def operator_collocation(kernel: Kernel, conditions: Sequence[Condition], *, jitter: float = 1e-12) -> ProcessSolution:
    """Return the Gaussian process that meets linear conditions: equations, boundary values and data alike.

    Args:
        kernel: k, a smooth function of two points ``(d,)`` to a number, symmetric and positive definite.
        conditions: triples of a linear operator, points ``(N, d)`` and values ``(N,)``. The operator maps a function
            of a point to a function of a point, such as ``lambda u: lambda x: torch.func.hessian(u)(x).trace()``; the
            identity is ``lambda u: u``.
        jitter: the relative variance of noise, > 0. Less lets the mean meet the conditions more exactly, as long as
            the Gram matrix has a Cholesky factor.

    Raises:
        NotConverged: the Gram matrix has no Cholesky factor: the kernel is not positive definite, or jitter is below
            what rounding leaves.

    Example:
        >>> import torch
        >>> from frechet.physics import operator_collocation
        >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
        >>> def bent(u):
        ...     return lambda x: -torch.func.hessian(u)(x).trace()
        >>> def kernel(x, y):
        ...     return torch.exp(-8 * (x - y).square().sum())
        >>> ends = x[[0, -1]]
        >>> f = torch.pi**2 * torch.sin(torch.pi * x[:, 0])
        >>> u = operator_collocation(kernel, [(bent, x, f), (lambda u: u, ends, torch.zeros(2).double())])
        >>> float((u(x) - torch.sin(torch.pi * x[:, 0])).abs().max()) < 1e-5
        True
    """
    if not conditions or not 0 < jitter < math.inf:
        raise ValueError(
            f"operator_collocation: conditions must be given and jitter > 0, got {len(conditions)} and {jitter}"
        )
    dimension = {points.shape[1:] for _, points, _ in conditions if isinstance(points, Tensor)}
    for i, (_, points, values) in enumerate(conditions):
        if points.ndim != 2 or values.shape != points.shape[:1] or len(dimension) > 1:
            raise ValueError(
                f"operator_collocation: condition {i} must have points (N, d) of one d and values (N,), got "
                f"{tuple(points.shape)} and {tuple(values.shape)}"
            )
    G = torch.cat([torch.cat([_block(kernel, L, M, x, y) for M, y, _ in conditions], 1) for L, x, _ in conditions], 0)
    f = torch.cat([values for _, _, values in conditions]).to(G)
    if not bool(G.isfinite().all()) or not bool(f.isfinite().all()):
        what = "the kernel and its derivatives" if not bool(G.isfinite().all()) else "values"
        raise NonFinite(
            f"operator_collocation: {what} must be finite, got NaN or infinity; a distance has none at zero"
        )
    if not bool((G.diagonal() > 0).all()):
        raise ValueError(
            "operator_collocation: the variances of what conditions ask for must be positive, got "
            f"{float(G.diagonal().min()):.3g}; take a kernel that is smooth enough for the operator"
        )
    scale = G.diagonal().rsqrt()
    A = scale[:, None] * (G + G.T) / 2 * scale
    noisy = A + jitter * torch.eye(len(A), dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(noisy)
    if int(info):
        raise NotConverged(
            f"operator_collocation: the Gram matrix must have a Cholesky factor, got a non-positive pivot in row "
            f"{int(info) - 1} of {len(A)}; raise jitter above {jitter:g}, or take fewer points or a rougher kernel",
            None,
        )
    b = scale * f
    c = torch.cholesky_solve(b[:, None], factor)[:, 0]
    whitened = torch.linalg.solve_triangular(factor, b[:, None], upper=False)
    # of the values f = b / scale: the scale is part of their density
    determinant = float(factor.diagonal().log().sum() - scale.log().sum())
    evidence = -0.5 * float(whitened.square().sum()) - determinant - 0.5 * len(b) * math.log(2 * math.pi)
    misfit = float((A @ c - b).abs().max())
    return ProcessSolution(kernel, tuple(conditions), scale * c, misfit, evidence, factor, scale)


def _value(u: Function) -> Function:
    return u


def _block(
    kernel: Kernel, L: Callable[[Function], Function], M: Callable[[Function], Function], X: Tensor, Y: Tensor
) -> Tensor:
    """L_x M_y k at all pairs of points."""

    def entry(x: Tensor, y: Tensor) -> Tensor:
        return L(lambda s: M(lambda t: kernel(s, t))(y))(x)

    rows = max(1, ROWS // max(len(Y), 1))
    both = torch.func.vmap(torch.func.vmap(entry, (None, 0)), (0, None))
    return torch.cat([both(X[a : a + rows], Y) for a in range(0, len(X), rows)])
