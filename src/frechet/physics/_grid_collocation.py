"""Linear differential equations by Gaussian processes on grids, where covariances are Kronecker products.

The kernel is a product of one kernel for each axis. u is the mean of the process given its values on the grid of all
points that conditions name, U = V_1 x ... x V_d B in the eigenvectors V_i of the kernel matrices of the axes. A sum of
products of one-dimensional operators, such as the Laplacian D x I + I x D, then acts by small matrices on each axis,
and conditions L u = f at grids of points are least squares for B:

    min_B  sum over conditions  w^2 |sum over terms (F_1 x ... x F_d) B - f|^2,   F_i = L_i k_i(x_i, z_i) V_i / lambda_i

LSMR solves it by products; w divides a condition by its norm. S_i are the rows in which axis i alone has an operator.
Bases are turned to their right singular vectors, and columns divided by sqrt(s_1^2 + ... + s_d^2). The products of rows
of two axes that are left out there are at most as large as what is kept, and not negative for elliptic equations. So
the condition number is near sqrt(2), and LSMR needs some 20 iterations on every grid.

**Source.** S. Fang, M. Cooley, D. Long, S. Li, R. Kirby and S. Zhe (2024), Solving high frequency and multi-scale PDEs
with Gaussian processes, arXiv 2311.04465, sections 3.2 and 3.3.
**Differs from the source:** a linear equation under a fixed kernel is solved, and not trained for.
**Cost.** An eigendecomposition of each axis, and products of n^(d+1) operations for grids of n^d points; no matrix of
all pairs of points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from frechet.errors import NonFinite, NotConverged
from frechet.linalg import Solution, lsmr
from frechet.operators import from_callable
from frechet.space import euclidean

Kernel = Callable[[Tensor, Tensor], Tensor]
Function = Callable[[Tensor], Tensor]
Operator = Callable[[Function], Function] | None  # of one axis; None is the identity
GridCondition = tuple[Sequence[Sequence[Operator]], Sequence[Tensor], Tensor]
NEGATIVE = 1e-10  # of the largest eigenvalue of a kernel matrix: more than rounding leaves


@dataclass(frozen=True, eq=False)
class GridSolution:
    """The process given its conditions; call it with the points of each axis for the mean on their grid.

    Attributes:
        coefficients: B, as many as there are eigenvectors of each axis.
        misfits: the largest misfit of each condition, in the units of its values.
        solution: the result of `lsmr`.
    """

    kernels: tuple[Kernel, ...]
    coefficients: Tensor
    misfits: tuple[float, ...]
    solution: Solution
    axes: tuple[_Axis, ...]

    def __call__(self, *points: Tensor) -> Tensor:
        """Return the mean of u on the grid of points ``(N_1,)`` to ``(N_d,)``."""
        if len(points) != len(self.axes):
            raise ValueError(f"GridSolution: points must be given for {len(self.axes)} axes, got {len(points)}")
        return _products([axis.rows(None, p) for axis, p in zip(self.axes, points, strict=True)], self.coefficients)


def grid_collocation(
    kernels: Sequence[Kernel],
    conditions: Sequence[GridCondition],
    *,
    cut: float = 1e-13,
    rtol: float = 1e-8,
    max_iterations: int = 2000,
) -> GridSolution:
    """Return the Gaussian process with a product kernel that meets linear conditions on grids.

    Args:
        kernels: a kernel for each axis, a smooth function of two numbers to a number, symmetric and positive definite.
        conditions: triples of terms, points and values. The terms are summed; each is a product of one-dimensional
            operators, one for each axis, None for the identity. An operator maps a function of a number to a function
            of a number, such as ``lambda u: torch.func.grad(torch.func.grad(u))``. Points are a tensor ``(N_i,)`` for
            each axis; values ``(N_1, ..., N_d)`` belong to their grid.
        cut: eigenvalues of the kernel matrix of an axis below this part of the largest are left out, > 0.
        rtol: that of `lsmr`.
        max_iterations: the most iterations of `lsmr`.

    Raises:
        NotConverged: `lsmr` needed more iterations; `result` is the `GridSolution` so far.

    Example:
        >>> import torch
        >>> from frechet.physics import grid_collocation
        >>> def bent(u):
        ...     return torch.func.grad(torch.func.grad(u))
        >>> def kernel(x, y):
        ...     return torch.exp(-8 * (x - y) ** 2)
        >>> x = torch.linspace(0, 1, 30, dtype=torch.float64)
        >>> inside, ends = x[1:-1], x[[0, -1]]
        >>> exact = torch.sin(3 * x)[:, None] * torch.cos(4 * x)
        >>> u = grid_collocation([kernel, kernel], [
        ...     ([(bent, None), (None, bent)], (inside, inside), -25 * exact[1:-1, 1:-1]),
        ...     ([(None, None)], (ends, x), exact[[0, -1]]),
        ...     ([(None, None)], (x, ends), exact[:, [0, -1]]),
        ... ])
        >>> float((u(x, x) - exact).abs().max()) < 1e-5
        True
    """
    _check(kernels, conditions, cut)
    d = len(kernels)
    axes = [_Axis.of(k, [points[i] for _, points, _ in conditions], cut, i) for i, k in enumerate(kernels)]
    blocks = [_Block.of(axes, terms, points, values) for terms, points, values in conditions]
    axes = [axis.turned(_rows_alone(blocks, i)) for i, axis in enumerate(axes)]
    blocks = [_Block.of(axes, terms, points, values) for terms, points, values in conditions]
    squares = torch.zeros((), dtype=blocks[0].values.dtype)
    for i, axis in enumerate(axes):
        squares = squares + axis.singular.square().view([-1 if j == i else 1 for j in range(d)])
    scale = squares.clamp(min=1e-30 * float(squares.max())).rsqrt()
    space = euclidean(scale.numel(), scale.dtype)
    sizes = [b.values.numel() for b in blocks]

    def forward(v: Tensor) -> Tensor:
        B = v.view(scale.shape) * scale
        return torch.cat([b.forward(B).reshape(-1) for b in blocks])

    def backward(r: Tensor) -> Tensor:
        parts = zip(blocks, r.split(sizes), strict=True)
        return (scale * torch.stack([b.backward(t.view(b.values.shape)) for b, t in parts]).sum(0)).reshape(-1)

    A = from_callable(
        lambda V: torch.stack([forward(v) for v in V.T], 1),
        space,
        euclidean(sum(sizes), scale.dtype),
        rmatmat=lambda U: torch.stack([backward(u) for u in U.T], 1),
    )
    f = torch.cat([(b.weight * b.values).reshape(-1) for b in blocks])
    s = lsmr(A, f, rtol=rtol, max_iterations=max_iterations)
    B = s.x.view(scale.shape) * scale
    misfits = tuple(float((b.forward(B) / b.weight - b.values).abs().max()) for b in blocks)
    found = GridSolution(tuple(kernels), B, misfits, s, tuple(axes))
    if not s.converged:
        raise NotConverged(
            f"grid_collocation: lsmr must converge, got {s.status} after {s.iterations} iterations with misfits up to "
            f"{max(misfits):.3g}; raise max_iterations or rtol, or take more points or a smoother kernel",
            found,
        )
    return found


@dataclass(frozen=True, eq=False)
class _Axis:
    """The basis of one axis: psi(x) = k(x, z) W, orthonormal on the points z."""

    kernel: Kernel
    points: Tensor  # z, all that conditions name
    W: Tensor
    singular: Tensor

    @classmethod
    def of(cls, kernel: Kernel, named: list[Tensor], cut: float, i: int) -> _Axis:
        z = torch.cat(named).unique()
        K = _pairs(kernel, None, z, z)
        if not bool(K.isfinite().all()):
            raise NonFinite(f"grid_collocation: the kernel of axis {i} must be finite, got NaN or infinity")
        values, V = torch.linalg.eigh((K + K.T) / 2)
        if not float(values[0]) >= -NEGATIVE * float(values[-1]):
            raise ValueError(
                f"grid_collocation: the kernel of axis {i} must be positive definite, got eigenvalues from "
                f"{float(values[0]):.3g} to {float(values[-1]):.3g}"
            )
        kept = values > cut * values[-1]
        return cls(kernel, z, V[:, kept] / values[kept], torch.ones_like(values[kept]))

    def turned(self, S: Tensor | None) -> _Axis:
        """The same basis, in which the columns of the rows S are orthogonal."""
        if S is None:
            return _Axis(self.kernel, self.points, self.W, torch.zeros_like(self.singular))
        _, s, Y = torch.linalg.svd(S, full_matrices=True)
        s = torch.cat([s, s.new_zeros(max(len(Y) - len(s), 0))])
        return _Axis(self.kernel, self.points, self.W @ Y.T, s)

    def rows(self, operator: Operator, points: Tensor) -> Tensor:
        """L psi at points."""
        return _pairs(self.kernel, operator, points, self.points) @ self.W


@dataclass(frozen=True, eq=False)
class _Block:
    """One condition as products of matrices of the axes, divided by a bound of its norm.

    So no condition outweighs another, on which the condition number of the whole depends.
    """

    terms: list[list[Tensor]]
    identities: list[list[bool]]
    values: Tensor
    weight: float
    partial: list[bool]  # axes of which the condition names some points only

    @classmethod
    def of(
        cls, axes: list[_Axis], terms: Sequence[Sequence[Operator]], points: Sequence[Tensor], values: Tensor
    ) -> _Block:
        factors = [[a.rows(L, p) for a, L, p in zip(axes, term, points, strict=True)] for term in terms]
        if not all(bool(F.isfinite().all()) for term in factors for F in term):
            raise NonFinite("grid_collocation: derivatives of the kernels must be finite, got NaN or infinity")
        size = sum(math.prod(float(torch.linalg.matrix_norm(F, 2)) for F in term) for term in factors)
        partial = [len(p) < len(a.points) for a, p in zip(axes, points, strict=True)]
        identities = [[L is None for L in term] for term in terms]
        return cls(factors, identities, values, 1 / max(size, 1e-300), partial)

    def forward(self, B: Tensor) -> Tensor:
        return self.weight * torch.stack([_products(term, B) for term in self.terms]).sum(0)

    def backward(self, r: Tensor) -> Tensor:
        return self.weight * torch.stack([_products([F.T for F in term], r) for term in self.terms]).sum(0)


def _rows_alone(blocks: list[_Block], i: int) -> Tensor | None:
    """Rows of terms that act on axis i alone, by an operator or by naming some of its points."""
    found = []
    for b in blocks:
        for factors, identity in zip(b.terms, b.identities, strict=True):
            others = all(same for j, same in enumerate(identity) if j != i)
            if others and (not identity[i] or b.partial[i]):
                found.append(b.weight * factors[i])
    return torch.cat(found) if found else None


def _products(factors: list[Tensor], X: Tensor) -> Tensor:
    """(F_1 x ... x F_d) X, one axis after the other."""
    for axis, F in enumerate(factors):
        first = X.movedim(axis, 0)
        X = (F @ first.reshape(len(first), -1)).view(len(F), *first.shape[1:]).movedim(0, axis)
    return X


def _pairs(kernel: Kernel, operator: Operator, x: Tensor, z: Tensor) -> Tensor:
    """(L k)(x, z) at all pairs."""

    def entry(a: Tensor, b: Tensor) -> Tensor:
        return kernel(a, b) if operator is None else operator(lambda s: kernel(s, b))(a)

    return vmap(vmap(entry, (None, 0)), (0, None))(x, z)


def _check(kernels: Sequence[Kernel], conditions: Sequence[GridCondition], cut: float) -> None:
    d = len(kernels)
    if not d or not conditions or not 0 < cut < 1:
        raise ValueError(
            "grid_collocation: kernels and conditions must be given and cut lie between 0 and 1, got "
            f"{d}, {len(conditions)} and {cut}"
        )
    for i, (terms, points, values) in enumerate(conditions):
        if not terms or any(len(term) != d for term in terms) or len(points) != d:
            got = f"{[len(term) for term in terms]} and {len(points)}"
            raise ValueError(f"grid_collocation: condition {i} must have {d} operators a term and points, got {got}")
        grid = tuple(len(p) if p.ndim == 1 else -1 for p in points)
        if -1 in grid or values.shape != grid:
            raise ValueError(
                f"grid_collocation: condition {i} must have points (N_i,) of each axis and values on their grid, got "
                f"{[tuple(p.shape) for p in points]} and {tuple(values.shape)}"
            )
        if not bool(values.isfinite().all()):
            raise NonFinite(f"grid_collocation: values of condition {i} must be finite, got NaN or infinity")
