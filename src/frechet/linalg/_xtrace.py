"""The exchangeable trace estimators: XTrace for any square operator, XNysTrace for semidefinite ones.

tr A = tr(P A) + tr((I - P) A (I - P)) for any orthogonal projector P. With P on the range of A w_j, j != i, probe w_i
is independent of P, and w_i'(I - P) A (I - P) w_i is an unbiased estimate of the second part. Every probe plays this
role once; the estimate is the mean. XNysTrace replaces P A by the Nystrom approximation of A from the other probes,
which needs no product beyond A w_j. Probes have length sqrt(n), and the projected ones are scaled to their expected
length.

**Source.** Epperly, Tropp and Webber 2024, XTrace: Making the most of every sample in stochastic trace estimation, SIAM
J. Matrix Anal. Appl. 45, sections 2.1, 2.3 and appendix, doi 10.1137/23M1548323 (arXiv 2301.07825).

**Differs from the source.** (1) The standard error counts the dependence of the estimates (`_exchangeable.py`).
(2) Probes are added in blocks, so a run can be watched, resumed and stopped at a tolerance. (3) Directions of the
sketch below rounding are dropped instead of shifting A; the trace of a numerically low-rank A is then that of its
sketch, with the dropped directions as standard error. (4) The small matrices are taken in the basis of the sketch's
singular vectors.

Cost of k probes: 2k products and k vectors kept (2k where A is not symmetric); XNysTrace k products and k vectors.
Reading draws the probes again, k vectors for a moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._exchangeable import PAIRED, second_directions, unit_columns, variance_of_mean
from frechet.linalg._sequential import Reading, Sampler, degrees_of_freedom, finite
from frechet.linalg._symmetry import refuse_asymmetric
from frechet.operators._operator import Fact, LinearOperator
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class Sketch:
    """A w_1, ..., A w_k = Q R with Q (n, r) orthonormal; Z = A Q and H = Q'Z where the method needs them."""

    Q: Tensor
    R: Tensor  # (r, k) float64
    Z: Tensor | None
    H: Tensor  # (r, r) float64
    products: int

    @property
    def probes(self) -> int:
        return self.R.shape[1]


def extend_sketch(space: Space, sketch: Sketch | None, Y: Tensor) -> tuple[Sketch, Tensor]:
    """The sketch with the block Y of new products A w appended, and the directions Q_new (n, b) this adds."""
    if sketch is None:
        empty = torch.zeros(0, 0, dtype=torch.float64, device=space.gram(Y[:, :0], Y[:, :0]).device)
        sketch = Sketch(space.zeros(0), empty, None, empty, 0)
    Q, R = sketch.Q, sketch.R
    above = R.new_zeros(R.shape[0], Y.shape[1])
    for _ in range(2):
        part = space.gram(Q, Y)
        above, Y = above + part, Y - Q @ part.to(Y.device, Y.dtype)
    new, below = space.orthonormalize(Y)
    columns = torch.cat([above, below.to(above.device)])
    # a block already inside the range of Q leaves rounding errors only, which orthonormalize cannot know
    U, size, W = torch.linalg.svd(columns[R.shape[0] :], full_matrices=False)
    whole = torch.cat([R, columns[: R.shape[0]]], dim=1)
    scale = max(_largest(whole), float(size[0]) if size.numel() else 0.0)
    keep = size > (R.shape[1] + Y.shape[1]) * space.eps * scale
    if not bool(keep.all()):
        new = (new.T.contiguous().T @ U[:, keep].to(new.device, new.dtype)).T.contiguous().T
        columns = torch.cat([columns[: R.shape[0]], size[keep, None] * W[keep]])
    grown = R.new_zeros(R.shape[0] + new.shape[1], R.shape[1] + Y.shape[1])
    grown[: R.shape[0], : R.shape[1]] = R
    grown[:, R.shape[1] :] = columns
    spent = sketch.products + Y.shape[1]
    return Sketch(torch.cat([Q.T, new.T]).T, grown, sketch.Z, sketch.H, spent), new


def _largest(M: Tensor) -> float:
    return float(torch.linalg.matrix_norm(M, 2)) if M.numel() else 0.0


def draw(space: Space, probes: range, seed: int) -> Tensor:
    return space.random(probes, seed, "sphere")


def _products(A: LinearOperator, probes: range, seed: int) -> Tensor:
    Omega = draw(A.domain, probes, seed)
    Y = finite(A @ Omega, "trace", probes)
    refuse_asymmetric(A, Omega, Y, "trace")
    return Y


def rounding(space: Space, R: Tensor) -> float:
    """The least standard error of a trace: eps sqrt(n) times the Frobenius norm of A as the products A w show it."""
    return space.eps * math.sqrt(space.dim * float(R.square().sum()) / max(1, R.shape[1]))


def reading(space: Space, R: Tensor, estimates: Tensor, paired: Tensor) -> Reading:
    k = estimates.shape[0]
    floor = R.new_tensor(rounding(space, R))
    error = variance_of_mean(estimates, paired).sqrt().maximum(floor) if k > 1 else R.new_tensor(math.inf)
    return Reading(estimates.mean(), error, degrees_of_freedom(k))


def unit_of(R: Tensor) -> float:
    """The largest entry: what is divided by it has squares that are numbers."""
    return (float(R.abs().max()) if R.numel() else 0.0) or 1.0


def scaled(reading: Reading, unit: float) -> Reading:
    return Reading(reading.value * unit, reading.standard_error * unit, reading.degrees_of_freedom)


def low_rank_reading(space: Space, R: Tensor, value: Tensor) -> Reading:
    """The estimate where the sketch holds all of A's range that can be told from rounding."""
    dropped = R.shape[1] * space.eps * _largest(R) * math.sqrt(space.dim)
    return Reading(value, R.new_tensor(max(rounding(space, R), dropped)), degrees_of_freedom(R.shape[1]))


# --- XTrace -----------------------------------------------------------------------------------------------------------


def xtrace(A: LinearOperator, seed: int) -> Sampler:
    """XTrace of A, two products per probe."""
    space, symmetric = A.domain, Fact.SYMMETRIC in A.facts

    def extend(sketch: Sketch | None, probes: range) -> Sketch:
        old = space.zeros(0) if sketch is None else sketch.Q
        old_Z = None if sketch is None else sketch.Z
        sketch, new = extend_sketch(space, sketch, _products(A, probes, seed))
        Z = A @ new
        r, s = old.shape[1], new.shape[1]
        H = sketch.R.new_zeros(r + s, r + s)
        H[:r, :r] = sketch.H
        H[:, r:] = space.gram(sketch.Q, Z)
        if symmetric:
            H[r:, :r] = H[:r, r:].T
            return Sketch(sketch.Q, sketch.R, None, H, sketch.products + s)
        if old_Z is not None:
            H[r:, :r] = space.gram(new, old_Z)
            Z = torch.cat([old_Z.T, Z.T]).T
        return Sketch(sketch.Q, sketch.R, Z, H, sketch.products + s)

    def read(sketch: Sketch) -> Reading:
        unit = unit_of(sketch.R)
        R, H = sketch.R / unit, sketch.H / unit
        if R.shape[0] < R.shape[1]:
            return scaled(low_rank_reading(space, R, H.trace()), unit)
        Omega = draw(space, range(sketch.probes), seed)
        W = space.gram(sketch.Q, Omega)
        T = R if sketch.Z is None else space.gram(sketch.Z, Omega) / unit
        estimates, paired = xtrace_estimates(space.dim, R, (H + H.T) / 2, W, T)
        return scaled(reading(space, R, estimates, paired), unit)

    return Sampler("xtrace", extend, read, cost=2)


def xtrace_estimates(n: int, R: Tensor, H: Tensor, W: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """The k leave-one-out estimates, and `paired[i, j]`: estimate j with probe i left out of its sketch too.

    R = Q'A Omega, H = the symmetric part of Q'A Q, W = Q'Omega, T = Q'A'Omega, all (k, k).
    """
    k = R.shape[0]
    P, sigma, X = torch.linalg.svd(R)
    R, H, W, T = sigma[:, None] * X, P.T @ H @ P, P.T @ W, P.T @ T
    S = unit_columns(X / sigma[:, None])  # column i is orthogonal to R's columns j != i

    def residual(w: Tensor, r: Tensor, t: Tensor, x: Tensor, sketched: Tensor, left: int) -> Tensor:
        # w = Q'omega, x its part inside the kept sketch: omega'(I - P) A (I - P) omega = (w - x)'r - t'x + x'Hx
        size = n - x.square().sum(-2)
        quadratic = ((w - x) * r).sum(-2) - (t * x).sum(-2) + (x * (H @ x)).sum(-2)
        return sketched + (n - left) / size * quadratic

    SHS = (S * (H @ S)).sum(0)
    estimates = residual(W, R, T, W - S * (S * W).sum(0), H.trace() - SHS, k - 1)
    m = min(k, PAIRED)
    V, w, r, t = second_directions(S, m), W[:, :m], R[:, :m], T[:, :m]
    first = S.T[:m, :, None] * (S[:, :m].T @ w)[:, None, :]
    x = w - first - V * (V * w).sum(1, keepdim=True)
    sketched = H.trace() - SHS[:m, None] - (V * (H @ V)).sum(1)
    return estimates, residual(w.expand_as(x), r.expand_as(x), t.expand_as(x), x, sketched, k - 2)


# --- XNysTrace --------------------------------------------------------------------------------------------------------


def xnystrace(A: LinearOperator, seed: int) -> Sampler:
    """XNysTrace of a positive semidefinite A, one product per probe."""
    space = A.domain

    def extend(sketch: Sketch | None, probes: range) -> Sketch:
        return extend_sketch(space, sketch, _products(A, probes, seed))[0]

    def read(sketch: Sketch) -> Reading:
        unit, k = unit_of(sketch.R), sketch.probes
        R, Omega = sketch.R / unit, draw(space, range(k), seed)
        W = space.gram(sketch.Q, Omega)
        M = W.T @ R  # Omega'A Omega
        E, X = torch.linalg.eigh((M + M.T) / 2)
        small = k * space.eps * float(E.abs().max())
        lowest = float(E[0])
        if lowest < -math.sqrt(space.dim) * small:
            raise ValueError(
                f"trace: A must be positive semidefinite for method 'nystrom', got v'A v = {unit * lowest:.3g} for a "
                f"vector v in {A!r}; use method='xtrace'"
            )
        keep = small < E
        B = R @ X[:, keep] / E[keep].sqrt()  # Q B B'Q' is the Nystrom approximation of A
        if R.shape[0] < k or not bool(keep.all()):
            return scaled(low_rank_reading(space, R, B.square().sum()), unit)
        F = X.T / E.sqrt()[:, None]  # F'F is the inverse of Omega'A Omega
        estimates, paired = xnystrace_estimates(space.dim, B, F, space.gram(Omega, Omega))
        return scaled(reading(space, R, estimates, paired), unit)

    return Sampler("nystrom", extend, read)


def xnystrace_estimates(n: int, B: Tensor, F: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """As `xtrace_estimates`, from B B' = Q'A_nystrom Q, F'F = inverse of Omega'A Omega, D = Omega'Omega, all (k, k).

    Leaving probe i out removes from the approximation the direction B f_i.
    """
    k, G = F.shape[1], B.T @ B
    S, inverse = unit_columns(F), torch.linalg.inv(D)
    d = inverse.diagonal()
    SGS = (S * (G @ S)).sum(0)
    estimates = G.trace() - SGS + (n - k + 1) * d / F.square().sum(0)
    m = min(k, PAIRED)
    V = second_directions(S, m)
    height = (V * F[:, :m]).sum(1).square()  # 1 / height is w_j'(A - A_nystrom)w_j with i and j left out
    length = d[:m] - inverse[:m, :m].square() / d[:m, None]
    ratio = length / torch.where(height > 0, height, torch.inf)
    paired = G.trace() - SGS[:m, None] - (V * (G @ V)).sum(1) + (n - k + 2) * ratio
    return estimates, paired
