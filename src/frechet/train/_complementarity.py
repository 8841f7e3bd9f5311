"""Quadratic programs over the positive orthant that share one small matrix: the core of every aggregator.

    min_{s >= 0}  s'M s / 2 + q's   for each column q,   M symmetric positive semidefinite ``(m, m)``

s and y = M s + q satisfy s >= 0, y >= 0, s'y = 0. The method guesses the set P of positive entries, solves M_PP s_P =
-q_P, and exchanges the entries whose s or y is negative: all of them while their number falls, afterwards the last one
alone, which cannot cycle. All columns do this at the same time, on the device of M, with one number read by the host
for each round. The variables are scaled so that the diagonal of M is 1. Where M is nearly singular SHIFT is added to
it, and its effect is taken out by proximal rounds, which start at the right P.

Where M is well conditioned the systems are solved by conjugate gradients, one product M S for all columns at a time.
The result counts only where s and y have the right signs; otherwise the factorizations follow. A column that has not
settled after ROUNDS exchanges is solved by SciPy's `nnls`.

The result is differentiable twice in M and q, by one Newton step that does not move it; at a tie (s_i = y_i = 0) the
derivative is one of the two one-sided ones.

**Source.** J. Kim, H. Park (2011), Fast nonnegative matrix factorization: an active-set-like method and comparisons,
SIAM J. Sci. Comput. 33, doi 10.1137/110821172, algorithm 1; the backup rule: K. G. Murty (1974), Note on a
Bard-type scheme for solving the complementarity problem, Opsearch 11.
**Differs from the source.** (1) Columns are not grouped by P: each has its own small factorization, in one batched
call. (2) The proximal rounds, which serve singular M. (3) Conjugate gradients.
**Cost.** About five rounds. Each has a Cholesky factorization of M_PP for each column, or 6 products M S, and the last
round 30 to 350.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHIFT = 1e-8
PROXIMAL = 200  # most rounds that take the shift out again; 2 or 3 but where an eigenvalue is near the shift
PATIENCE = 3  # exchanges of all entries that may fail to shrink their number
ROUNDS = 200
BYTES = 1 << 27  # of the batched factors
REGULAR = 1e-5  # smallest eigenvalue of the scaled M from which on nothing is added to it
CONDITION = 300.0  # at most, for conjugate gradients: 350 products for all digits
DIGITS = 3e-6  # of a correction in float32, relative: 25 roundings
FEW, MANY, TRIES = 6, 450, 12  # products of a round, of the last one (three corrections), and such rounds


def complementary(M: Tensor, q: Tensor) -> Tensor:
    """s ``(m, k)``, column by column, in float64; M ``(m, m)`` and q ``(m, k)`` are float64."""
    with torch.no_grad():
        scale, C, p = _scaled(M, q)
        size = p.abs().amax(0).clamp_min(torch.finfo(p.dtype).tiny)
        s, P = _settled(C, p / size)
        s = s * size / scale[:, None]
    if not (M.requires_grad or q.requires_grad):
        return s
    return s - _on(M, P, M @ s + q)


def _scaled(M: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The square roots of the diagonal, M with a diagonal of ones, and q in those variables. A zero row stays alone."""
    diagonal = M.diagonal()
    scale = torch.where(diagonal > 0, diagonal.clamp_min(0).sqrt(), torch.ones_like(diagonal))
    C = M / scale[:, None] / scale
    C = 0.5 * (C + C.T)
    return scale, C.diagonal_scatter(torch.ones_like(diagonal)), q / scale[:, None]


def _settled(C: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """s and the set of its positive entries."""
    ends = torch.linalg.eigvalsh(C)[[0, -1]].tolist()
    if ends[0] * CONDITION >= ends[1]:
        found, P = _by_products(C, q)
        return (found, P) if found is not None else _pivoted(C, q, P)
    if ends[0] >= REGULAR:
        return _pivoted(C, q, q < 0)
    # the rounding of M may have made it indefinite
    C = C + 2 * max(0.0, -ends[0]) * torch.eye(len(C), dtype=C.dtype, device=C.device)
    shifted = C + SHIFT * torch.eye(len(C), dtype=C.dtype, device=C.device)
    s, P = _pivoted(shifted, q, q < 0)
    for _ in range(PROXIMAL):
        before = s
        s, P = _pivoted(shifted, q - SHIFT * s, P)
        if bool(((s - before).abs().amax(0) <= 1e-14 * s.abs().amax(0)).all()):
            break
    return s, P


def _by_products(C: Tensor, q: Tensor) -> tuple[Tensor | None, Tensor]:
    """The solution, None where the signs do not settle; and the last guess of P."""
    P, s, steps, single = q < 0, torch.zeros_like(q), FEW, C.float()
    for _ in range(TRIES):
        s = _conjugate_gradients(C, single, P, -q, s, steps)
        wrong = _wrong(C, q, s, P)
        if bool(wrong.any()):
            P = P ^ wrong
        elif steps == MANY:
            return s.clamp_min(0.0), P
        else:
            steps = MANY
    return None, P


def _conjugate_gradients(C: Tensor, single: Tensor, P: Tensor, b: Tensor, x: Tensor, steps: int) -> Tensor:
    """x with C_PP x_P = b_P in each column, to rounding or after so many products.

    Residuals are in float64. Corrections are in float32, whose products take half as long.
    """
    inside = P.to(b.dtype)
    x = x * inside
    least = 16 * torch.finfo(b.dtype).eps * (b * b).sum(0).sqrt()
    while steps > 0:
        r = (b - C @ x).mul_(inside)
        size = (r * r).sum(0).sqrt()
        if bool((size <= least).all()):
            break
        unit = torch.where(size > 0, size, 1.0)
        d, used = _corrected(single, inside.to(single), (r / unit).to(single), steps)
        x.addcmul_(d.to(x), unit)
        steps -= used + 1
    return x


def _corrected(C: Tensor, inside: Tensor, r: Tensor, steps: int) -> tuple[Tensor, int]:
    """d with C_PP d_P = r_P to the digits of float32, and the products that it took."""
    x, p, held = torch.zeros_like(r), r.clone(), torch.empty_like(r)  # in place: memory costs as much as the product
    tiny = torch.finfo(r.dtype).tiny
    rr = torch.mul(r, r, out=held).sum(0)
    for step in range(steps):
        if bool((rr <= DIGITS**2).all()):
            return x, step
        Cp = (C @ p).mul_(inside)
        alpha = rr / torch.mul(p, Cp, out=held).sum(0).clamp_min_(tiny)  # where p is 0, so is rr
        x.addcmul_(p, alpha)
        r.addcmul_(Cp, alpha, value=-1)
        before, rr = rr, torch.mul(r, r, out=held).sum(0)
        p.mul_(rr / before.clamp_min_(tiny)).add_(r)
    return x, steps


def _wrong(C: Tensor, q: Tensor, s: Tensor, P: Tensor) -> Tensor:
    """Where s or y = C s + q is negative by more than rounding."""
    slack = 16 * len(C) * torch.finfo(q.dtype).eps
    return torch.where(P, s < -slack * s.abs().amax(0), C @ s + q < -slack * (1 + s.abs().sum(0)))


def _pivoted(C: Tensor, q: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """The solution for a positive definite C, from a first guess P of the positive entries."""
    m, k = q.shape
    least = torch.full((k,), m + 1, device=q.device)
    patience = torch.full((k,), PATIENCE, device=q.device)
    numbers = torch.arange(m, device=q.device)[:, None]
    s, count = torch.zeros_like(q), least
    for _ in range(ROUNDS):
        s = -_on(C, P, q)
        wrong = _wrong(C, q, s, P)
        count = wrong.sum(0)
        if int(count.max()) == 0:
            return s.clamp_min(0.0), P
        fewer = count < least
        least = torch.where(fewer, count, least)
        patience = torch.where(fewer, PATIENCE, patience - 1)
        last = torch.where(wrong, numbers, -1).amax(0)
        P = P ^ (wrong & ((patience >= 0) | (numbers == last)))
    return _by_nnls(C, q, s, P, count.gt(0))


def _on(C: Tensor, P: Tensor, r: Tensor) -> Tensor:
    """z with C_PP z_P = r_P and zeros elsewhere, for each column."""
    m, k = r.shape
    most = int(P.sum(0).max()) if P.numel() else 0
    if most == 0:
        return torch.zeros_like(r)
    order = torch.argsort(P.to(torch.int8), dim=0, descending=True, stable=True)[:most].T  # (k, most): those of P first
    inside = torch.gather(P.T, 1, order)
    z = torch.zeros(k, m, dtype=r.dtype, device=r.device)
    step = max(1, BYTES // (8 * most * most))
    parts = []
    for j in range(0, k, step):
        rows, kept = order[j : j + step], inside[j : j + step]
        block = C[rows[:, :, None], rows[:, None, :]] * (kept[:, :, None] & kept[:, None, :])
        block = block + torch.diag_embed((~kept).to(C.dtype))
        right = torch.gather(r.T[j : j + step], 1, rows) * kept
        factor = torch.linalg.cholesky_ex(block)[0]
        parts.append(torch.cholesky_solve(right[:, :, None], factor)[:, :, 0])
    return z.scatter(1, order, torch.cat(parts)).T


def _by_nnls(C: Tensor, q: Tensor, s: Tensor, P: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """The columns that are left, one by one: with C = L L', s minimizes |L's + L^-1 q|."""
    import scipy.optimize

    L = torch.linalg.cholesky(C)
    right = torch.linalg.solve_triangular(L, q, upper=False).cpu().numpy()
    A, s, P = L.T.cpu().numpy(), s.clone(), P.clone()
    for j in left.nonzero()[:, 0].tolist():
        found, _ = scipy.optimize.nnls(A, -right[:, j], maxiter=50 * len(A))
        s[:, j] = torch.from_numpy(np.ascontiguousarray(found)).to(s)
        P[:, j] = s[:, j] > 0
    return s.clamp_min(0.0), P
