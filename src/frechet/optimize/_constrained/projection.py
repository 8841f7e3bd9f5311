"""What the rows of a Jacobian span, from products with it: projections, least-norm steps, least-squares multipliers.

Golub-Kahan bidiagonalization of A (m, n), A V = U H with both bases reorthogonalized and kept, goes on until A'U lies
in the span of V: then V spans the range of A', whatever the rank, and every projection onto the null space of A is two
products with V and none with A. An exhausted Krylov space is entered anew at a fixed pseudo-random vector. Where the
bases would exceed `entries` numbers nothing is kept, and each question is one `lsmr`.

**Source.** Golub and Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix, doi 10.1137/0702016;
Gould, Hribar and Nocedal (2001), On the solution of equality constrained quadratic programming problems arising in
optimization, doi 10.1137/S1064827598345667 (projections and their rounding errors).

**Cost.** 2 rank(A) + 1 products once, rank(A) vectors of both sides; kept bases make all further questions free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg.systems._lsmr import lsmr
from frechet.operators._operator import LinearOperator
from frechet.space import Space

ENTRIES = 1 << 24  # of the kept bases
RTOL = 1e-12  # of lsmr, relative to the size of its matrix
STREAM = 0  # of the vectors at which an exhausted Krylov space is entered anew: nothing depends on their values


@dataclass(frozen=True, eq=False)
class Rows:
    """A ~ U diag(s) V' on its numerical rank; None in their place where nothing was kept."""

    A: LinearOperator
    U: Tensor | None
    s: Tensor | None
    V: Tensor | None

    @property
    def rank(self) -> int | None:
        return None if self.s is None else len(self.s)

    def project(self, v: Tensor) -> Tensor:
        """The part of `v` ``(n,)`` in the null space of A."""
        if self.V is None:
            return v + self.A.T @ self.multipliers(v) if self.A.shape[0] else v
        space = self.A.domain
        for _ in range(2):  # once more for the rounding errors of the first
            v = v - self.V @ space.gram(self.V, v.unsqueeze(1))[:, 0]
        return v

    def multipliers(self, g: Tensor) -> Tensor:
        """The y ``(m,)`` of least norm that minimizes norm(g + A'y)."""
        if self.V is None or self.U is None or self.s is None:
            return -lsmr(self.A.T, g, rtol=RTOL).x if self.A.shape[0] else self.A.codomain.zeros()
        return -(self.U @ (self.A.domain.gram(self.V, g.unsqueeze(1))[:, 0] / self.s))

    def least_norm(self, b: Tensor) -> Tensor:
        """The x ``(n,)`` of least norm that minimizes norm(A x - b)."""
        if self.V is None or self.U is None or self.s is None:
            return lsmr(self.A, b, rtol=RTOL).x if self.A.shape[0] else self.A.domain.zeros()
        return self.V @ (self.A.codomain.gram(self.U, b.unsqueeze(1))[:, 0] / self.s)


def rows_of(A: LinearOperator, start: Tensor | None = None, *, entries: int = ENTRIES) -> Rows:  # noqa: C901 - a branch for each way to go on
    """The range of A', by products; `start` ``(m,)`` is where the Krylov space begins."""
    m, n = A.shape
    space, image = A.domain, A.codomain
    most = min(m, n)
    if most * (m + n) > entries:
        return Rows(A, None, None, None)
    room = min(m, 2 * most + 2)  # a Krylov space may be entered anew for every column of V
    U, V, H = image.zeros(room), space.zeros(most), torch.zeros(room, most, dtype=torch.float64)
    used = kept = 0  # columns of U and of V
    size, probe = 0.0, 0
    u = start
    while kept < most and used < room:
        fresh = _new(image, U[:, :used], u, size=0.0)
        if fresh is None:
            fresh = _new(image, U[:, :used], image.random(probe, STREAM, "gaussian"), size=0.0)
            probe += 1
        if fresh is None:  # U spans everything
            break
        entered, restarted = False, u is None or probe > 0
        while fresh is not None:
            U[:, used] = fresh
            used += 1
            if kept == most:
                break
            w = A.T @ fresh
            size = max(size, float(space.norm(w)))
            v = _new(space, V[:, :kept], w, size=size)
            if v is None:
                break
            V[:, kept], entered = v, True
            w = A @ v
            coefficients = image.gram(U[:, :used], w.unsqueeze(1))[:, 0]
            size = max(size, float(image.norm(w)))
            rest = w - U[:, :used] @ coefficients
            more = image.gram(U[:, :used], rest.unsqueeze(1))[:, 0]
            rest = rest - U[:, :used] @ more
            H[:used, kept] = (coefficients + more).to(H.device)
            length = float(image.norm(rest))
            kept += 1
            fresh = None
            if length > 1e-13 * size and used < room:
                fresh = rest / length
                H[used, kept - 1] = length
        u = None
        if not entered and restarted:
            break
    if not kept:
        return Rows(A, image.zeros(0), H.new_zeros(0).to(U.device), space.zeros(0))
    P, s, Qt = torch.linalg.svd(H[:used, :kept], full_matrices=False)
    keep = s > max(m, n) * torch.finfo(torch.float64).eps * s[0]
    P, s, Qt = (t.to(U.device) for t in (P[:, keep], s[keep], Qt[keep]))
    return Rows(A, (P.T @ U[:, :used].T).T, s, (Qt @ V[:, :kept].T).T)


def _new(space: Space, basis: Tensor, v: Tensor | None, *, size: float) -> Tensor | None:
    """The unit vector of what `v` adds to the orthonormal `basis`; None where that is rounding error."""
    if v is None:
        return None
    length = whole = float(space.norm(v))
    for _ in range(2):
        v = v - basis @ space.gram(basis, v.unsqueeze(1))[:, 0]
        length = float(space.norm(v))
    return v / length if length > 1e-13 * max(whole, size) and length > 0 else None
