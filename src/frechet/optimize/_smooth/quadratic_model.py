"""The model g's + s'Hs/2 where H is diagonal, so that every shift, radius and cubic term is scalar work.

The subspace is the Krylov space of H and g, which grows until the step is accurate enough, or the whole space where n
is small: then the matrix comes from n products at once. Lengths are measured by a metric B: ``norm(s)^2 = s'Bs`` with
B^-1 the preconditioner of a Krylov space, or the diagonal that scales H to largest entries 1 in each row of a small
one. With the basis V, V'BV = I, and the decomposition V'HV = Q diag(lambda) Q', the minimizers are

    shifted        z_i = -c_i / (lambda_i + sigma),  c = Q'V'g,  s = V Q z
    trust region   the same with the sigma >= 0 for which norm(z) = radius, or sigma = 0 inside
    cubic          the same with sigma = M norm(z) / 2

What the Krylov space leaves over, B^-1-norm of (H + sigma B) s + g, is beta |e_m'Q z|, without a product.

**Source.** N. Gould, S. Lucidi, M. Roma, Ph. Toint (1999), Solving the trust-region subproblem using the Lanczos
method, section 5, doi 10.1137/S1052623497322735; C. Cartis, N. Gould, Ph. Toint (2011), Adaptive cubic regularisation
methods I, section 6, doi 10.1007/s10107-009-0286-5; the scaling: D. Ruiz (2001), A scaling algorithm to equilibrate
both rows and columns norms in matrices, RAL-TR-2001-034.

**Differs from the source.** (1) The basis is orthogonalized fully, so that ill-conditioned H costs at most n products.
(2) The tridiagonal matrix is diagonalized, at sizes that grow by an eighth, in place of factorizations per shift.

(3) Where the basis is full, a step that is inside the radius goes on by conjugate gradients (`continued_krylov`).

**Cost.** One product and one vector of memory (two with a preconditioner) per dimension of the basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._basis import ROUNDING, Basis
from frechet.operators._operator import LinearOperator
from frechet.optimize._smooth.continued_krylov import Continuation
from frechet.space import Space

ROOTS = 200  # iterations of a scalar root finder, which needs about six
TINY = 1e-280  # stands for no curvature
SHORTEST = 1e-150  # radius: squares of shorter steps lose digits and vanish
SWEEPS = 8  # of equilibration
CLOSE = 1e8  # weights of the past count up to so many times those of the present
FIRST = 16  # columns of a basis that are allocated at first


@dataclass(frozen=True, eq=False)
class Step:
    """A minimizer in the coordinates of a model: `decrease` is what g's + s'Hs/2 promises."""

    z: np.ndarray
    shift: float
    length: float
    decrease: float
    residual: float
    bounded: bool  # whether the radius holds it
    tail: Tensor | None = None  # what goes beyond the basis, (n,)
    indefinite: bool = False  # whether a direction beyond the basis bends downwards


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The model in the coordinates z."""

    values: np.ndarray  # eigenvalues, ascending
    slopes: np.ndarray  # c
    last: np.ndarray  # beta times the last row of Q

    @property
    def floor(self) -> float:
        """Eigenvalues of this size are rounding."""
        largest = float(np.abs(self.values).max(initial=0.0))
        return 4 * len(self.values) * np.finfo(float).eps * largest

    def made(self, z: np.ndarray, shift: float, bounded: bool = False) -> Step:
        with np.errstate(over="ignore", invalid="ignore"):
            decrease = -float(self.slopes @ z + 0.5 * (self.values * z) @ z)
        return Step(z, shift, size_of(z), decrease, abs(float(self.last @ z)), bounded)

    def shifted(self, sigma: float) -> Step:
        """The minimizer with sigma > -lambda_min; directions without curvature are left out."""
        curvature = self.values + sigma
        tiny = curvature <= max(self.floor, TINY)
        return self.made(np.where(tiny, 0.0, -self.slopes / np.where(tiny, 1.0, curvature)), sigma)

    def absolute(self) -> Step:
        """The step with |lambda| in place of lambda: downhill along every eigenvector."""
        size = np.maximum(np.abs(self.values), max(self.floor, TINY))
        return self.made(-self.slopes / size, 0.0)

    def newton_decrease(self) -> float:
        """What an unshifted step would gain; infinite where H is indefinite."""
        if not len(self.values) or self.values[0] < -self.floor:
            return math.inf if len(self.values) else 0.0
        size = np.maximum(self.values, max(self.floor, TINY))
        return 0.5 * float((self.slopes / size) @ self.slopes)

    def within(self, radius: float) -> Step:
        """The minimizer with norm(z) <= radius; no step where the radius has vanished."""
        if radius < SHORTEST:
            return self.made(np.zeros_like(self.slopes), 0.0, True)
        if self.values[0] > self.floor:
            inside = self.made(-self.slopes / self.values, 0.0)
            if inside.length <= radius:
                return inside
        # from here sigma = mu - base, mu > 0: near the pole only mu has digits
        base, gaps, mu = self._from_the_pole()
        if (length := _length(self.slopes, gaps + mu)) <= radius:
            return self._filled(gaps, mu, base, math.sqrt(radius * radius - length * length))
        low, high = mu, math.inf
        for _ in range(ROOTS):
            z = self.slopes / (gaps + mu)
            length = size_of(z)
            if abs(length - radius) <= 1e-10 * radius:
                break
            low, high = (mu, high) if length > radius else (low, mu)
            rate = float(np.square(z / length) @ (1 / (gaps + mu))) if length > 0 else 0.0
            # for 1 / radius - 1 / norm(z), whose slope may vanish far from the pole
            newton = mu + (length - radius) / radius / rate if rate > 0 else math.inf
            mu = newton if low < newton < high else _between(low, high)
            if high <= low * (1 + 1e-15):
                break
        step = self.made(-self.slopes / (gaps + mu), mu - base, True)
        # where mu has left the numbers no step has this length: the radius is spent
        return step if step.length <= 2 * radius else self.made(np.zeros_like(self.slopes), 0.0, True)

    def cubic(self, M: float) -> Step:
        """The minimizer of the model plus M norm(z)^3 / 6: sigma = M norm(z) / 2."""
        base, gaps, mu = self._from_the_pole()
        if (length := _length(self.slopes, gaps + mu)) <= 2 * (mu - base) / M:
            target = 2 * (mu - base) / M
            return self._filled(gaps, mu, base, math.sqrt(target * target - length * length))
        low, high = mu, math.sqrt(0.5 * M) * math.sqrt(math.sqrt(self.slopes @ self.slopes))
        for _ in range(ROOTS):
            mu = _between(low, high)
            low, high = (mu, high) if _length(self.slopes, gaps + mu) > 2 * (mu - base) / M else (low, mu)
            if high <= low * (1 + 1e-14):
                break
        return self.made(-self.slopes / (gaps + high), high - base)

    def _from_the_pole(self) -> tuple[float, np.ndarray, float]:
        """min(lambda_min, 0), the eigenvalues above it, and the smallest mu that counts as positive."""
        base = min(float(self.values[0]), 0.0)
        return base, self.values - base, max(0.01 * self.floor, TINY) if self.values[0] <= self.floor else 0.0

    def _filled(self, gaps: np.ndarray, mu: float, base: float, fill: float) -> Step:
        """The hard case: g has next to nothing along the lowest eigenvector, which fills the length that is left."""
        z = -self.slopes / (gaps + mu)
        if base >= -self.floor:
            return self.made(z, mu - base)  # no curvature and no slope there: nothing to gain
        z[0] += math.copysign(fill, z[0])
        return self.made(z, mu - base, True)


def _length(slopes: np.ndarray, curvature: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return size_of(slopes / curvature)


def size_of(z: np.ndarray) -> float:
    """The length without overflow of squares."""
    largest = float(np.abs(z).max(initial=0.0))
    return largest * math.sqrt(float(np.square(z / largest).sum())) if 0 < largest < math.inf else largest


def _between(low: float, high: float) -> float:
    """A point of the interval, by its logarithm while its ends differ in size."""
    if high == math.inf:
        return 4 * low
    if high <= 2 * low:
        return 0.5 * (low + high)
    return math.sqrt(low * high) if low > 0 else high / 16


@dataclass(eq=False)
class Model:
    """The basis as it grows. `complete` means that nothing is left over."""

    space: Space
    H: LinearOperator
    preconditioner: LinearOperator | None
    size: float  # the dual norm of g
    most: int
    V: Tensor
    U: Tensor  # B V: V itself where there is no preconditioner
    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    scale: float = 0.0
    complete: bool = False
    diagonal: Diagonal = field(default_factory=lambda: Diagonal(np.zeros(0), np.zeros(0), np.zeros(0)))
    Q: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    weights: Tensor | None = None  # of a diagonal metric
    beyond: int = 0  # dimensions after those of the basis
    beyond_basis: Continuation | None = None

    @property
    def dimension(self) -> int:
        return len(self.Q)

    @property
    def exhausted(self) -> bool:
        return self.complete or len(self.alpha) >= self.most

    def grow(self) -> None:
        """Some more dimensions, and the decomposition there."""
        m = len(self.alpha)
        for _ in range(max(1, m // 8)):
            if self.exhausted:
                break
            self._extend()
        alpha, beta = np.array(self.alpha), np.array(self.beta[:-1])
        values, self.Q = scipy.linalg.eigh_tridiagonal(alpha, beta) if len(alpha) > 1 else (alpha, np.ones((1, 1)))
        self.diagonal = Diagonal(values, self.size * self.Q[0], self.beta[-1] * self.Q[-1])

    def solved(
        self,
        solve: Callable[[Diagonal], Step],
        accuracy: float | Callable[[Step], float],
        *,
        radius: float | None = None,
    ) -> Step:
        """The step by `solve` in a space that is grown until its residual is small enough.

        With a radius (infinity for none) the step may go on beyond the basis; that needs a `solve` with a shift.
        """
        while True:
            if self.dimension:
                step = solve(self.diagonal)
                enough = accuracy(step) if callable(accuracy) else accuracy
                if step.residual <= enough:
                    return step
                if self.exhausted:
                    return step if radius is None else self._continued(step, enough, radius)
            self.grow()

    def _continued(self, step: Step, accuracy: float, radius: float) -> Step:
        m, d = len(self.alpha), self.diagonal
        if self.complete or not self.beyond or step.bounded or d.values[0] + step.shift <= d.floor:
            return step
        if self.beyond_basis is None or self.beyond_basis.sigma != step.shift:
            y, beta = self.Q @ step.z, self.beta[-1]
            w = self.Q @ (self.Q[-1] / (d.values + step.shift)) * (beta * beta * y[-1])
            rest = beta * float(y[-1])
            s, Bs = self._combined(self.V, y), self._combined(self.U, y)
            r, Br = rest * self.V[:, m], rest * self.U[:, m]
            self.beyond_basis = Continuation(
                space=self.space,
                H=self.H,
                preconditioner=self.preconditioner,
                sigma=step.shift,
                slope=Br - step.shift * Bs,
                start=s,
                start_image=Bs,
                r=Br,
                p=self._combined(self.V, w) - r,
                Bp=self._combined(self.U, w) - Br,
                rz=rest * rest,
                steps=m,
                most=m + self.beyond,
            )
        tail = self.beyond_basis.within(accuracy, radius)
        return replace(
            step,
            tail=tail.t,
            decrease=step.decrease + tail.fall,
            length=tail.length,
            residual=tail.residual,
            bounded=tail.bounded,
            indefinite=tail.indefinite,
        )

    def _combined(self, W: Tensor, y: np.ndarray) -> Tensor:
        return torch.mv(W[:, : len(y)], torch.from_numpy(y).to(W.device, W.dtype))

    def vector(self, step: Step) -> Tensor:
        """s ``(n,)``."""
        s = self._combined(self.V, self.Q @ step.z)
        return s if step.tail is None else s + step.tail

    def ritz_vector(self, i: int) -> Tensor:
        """The vector ``(n,)`` of eigenvalue number i."""
        return self._combined(self.V, self.Q[:, i].copy())

    def dual_norm(self, g: Tensor) -> float:
        """sqrt(g'B^-1 g)."""
        if self.preconditioner is not None:
            return math.sqrt(max(float(self.space.inner(g, self.preconditioner @ g)), 0.0))
        return float(self.space.norm(g if self.weights is None else g / self.weights.sqrt()))

    def left_over(self, step: Step, g: Tensor) -> float:
        """The dual norm of (H + shift B) s + g, by a product."""
        y = self.Q @ step.z
        s, metric = self._combined(self.V, y), self._combined(self.U, y)
        return self.dual_norm(torch.add(self.H @ s + g, metric, alpha=step.shift))

    def _extend(self) -> None:
        j = len(self.alpha)
        if j + 1 >= self.V.shape[1] < self.most + 1:
            self.V = _wider(self.space, self.V, self.most + 1)
            self.U = self.V if self.preconditioner is None else _wider(self.space, self.U, self.most + 1)
        w, source = self.H @ self.V[:, j], "minimize: a product with the Hessian"
        if self.preconditioner is None:
            h, b, self.scale = Basis(self.space, self.V).append(j + 1, w, self.scale, source)
        else:
            h, b = self._orthogonal(j + 1, w)
        self.alpha.append(float(h[-1]))
        self.beta.append(b)
        self.complete = b == 0.0

    def _orthogonal(self, j: int, w: Tensor) -> tuple[Tensor, float]:
        """Store what of `w` is orthogonal to the first j columns, as `append` does, in the metric."""
        assert self.preconditioner is not None
        h = torch.zeros(j, dtype=torch.float64)
        for _ in range(2):
            c = self.space.gram(self.V[:, :j], w[:, None])[:, 0]
            w = torch.addmv(w, self.U[:, :j], c.to(w), alpha=-1)
            h += c.cpu()
        p = self.preconditioner @ w
        square = float(self.space.inner(w, p))
        if not math.isfinite(square):
            raise NonFinite("minimize: a product with the Hessian or the preconditioner holds a NaN or an infinity")
        beta = math.sqrt(max(square, 0.0))
        self.scale = max(self.scale, math.hypot(*h.tolist(), beta))
        if beta <= ROUNDING * self.space.eps * self.scale or j == self.V.shape[1]:
            return h, 0.0
        self.V[:, j], self.U[:, j] = p / beta, w / beta
        return h, beta


def _wider(space: Space, V: Tensor, most: int) -> Tensor:
    W = space.zeros(min(2 * V.shape[1], most, space.dim))
    W[:, : V.shape[1]] = V
    return W


def krylov_model(
    space: Space,
    H: LinearOperator,
    g: Tensor,
    *,
    preconditioner: LinearOperator | None = None,
    most: int,
    beyond: int = 0,
) -> Model:
    """The model on the Krylov space of H and g, empty until it grows. g is not zero.

    The basis has at most `most` vectors; steps may use `beyond` dimensions more.
    """
    most = min(most, space.dim)
    V = space.zeros(min(FIRST, most + 1, space.dim))
    p = g if preconditioner is None else preconditioner @ g
    size = math.sqrt(max(float(space.inner(g, p)), 0.0))
    V[:, 0] = p / size
    U = V
    if preconditioner is not None:
        U = space.zeros(V.shape[1])
        U[:, 0] = g / size
    return Model(space, H, preconditioner, size, most, V, U, beyond=beyond)


def full_model(space: Space, H: LinearOperator, g: Tensor, weights: Tensor | None, *, kept: bool = False) -> Model:
    """The model on the whole space, from n products. Its metric: its own scales or `weights`, the larger, or `kept`."""
    A = H @ space.units(range(space.dim))
    A = 0.5 * (A + A.T).double()
    if not bool(A.isfinite().all()):
        raise NonFinite("minimize: a product with the Hessian holds a NaN or an infinity")
    own = equilibrated(A)
    if weights is None:
        weights = own
    elif kept:
        weights = torch.minimum(weights, CLOSE**2 * own)
    else:
        weights = torch.maximum(own, torch.minimum(weights, CLOSE * own))
    root = weights.sqrt()
    values, Q = torch.linalg.eigh(A / root[:, None] / root[None, :])
    c = Q.T @ (g.double() / root)
    model = Model(space, H, None, math.sqrt(float(c @ c)), space.dim, (Q / root[:, None]).to(space.dtype), A)
    model.complete, model.weights = True, weights
    m = space.dim
    model.Q = np.eye(m)
    model.diagonal = Diagonal(values.cpu().numpy(), c.cpu().numpy(), np.zeros(m))
    return model


def equilibrated(A: Tensor) -> Tensor:
    """The d for which D^-1/2 A D^-1/2 has largest entries 1 in each row; the geometric mean in rows of zeros."""
    size, d = A.abs(), torch.ones(len(A), dtype=A.dtype, device=A.device)
    some = size.amax(1) > 0
    for _ in range(SWEEPS):
        row = (size / d[:, None].sqrt() / d[None, :].sqrt()).amax(1)
        d = torch.where(some, d * row, d)
    if bool(some.any()):
        d = torch.where(some, d, d[some].log().mean().exp())
    return d
