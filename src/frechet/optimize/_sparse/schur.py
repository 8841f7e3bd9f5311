"""The normal equations (A'A + diag(d)) x = b of a block Jacobian A, after elimination of a block-diagonal part.

With the columns of the eliminated parameters last,

    [ U  W ] [x_r]   [b_r]         S = U - W V^-1 W',   S x_r = b_r - W V^-1 b_e,   V x_e = b_e - W'x_r
    [ W' V ] [x_e] = [b_e],

V is block diagonal, one block for each point of bundle adjustment, and S couples two cameras only where they see one
point. With V = L L' and Z = W L^-T the complement is U - Z Z': one small product for each pair of groups that share a
block. S is factored as a dense matrix, or as a sparse one.

**Source.** B. Triggs, P. McLauchlan, R. Hartley and A. Fitzgibbon (2000), Bundle adjustment: a modern synthesis,
section 6, doi 10.1007/3-540-44480-7_21. **Differs from the source:** what is where is found once for a structure, and
serves all points and dampings.

**Cost.** For E eliminated blocks of width e that k groups of width w read each: E k^2 w^2 e / 2 multiplications, and
the factorization of S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.optimize._sparse.block_jacobian import BlockJacobian
from frechet.optimize._sparse.structure import Blocks
from frechet.optimize._sparse.symbolic import Bucket, Eliminated, Elimination, Tiles

FEW = 16  # products of one sum
CHUNK = 1 << 22  # numbers that are gathered at a time: 32 MiB


@dataclass(frozen=True, eq=False)
class NormalFactor:
    """The factors of A'A + diag(d)."""

    plan: Elimination
    halves: tuple[Tensor, ...]  # L^-1 (E, e, e) of each eliminated parameter
    Z: tuple[Tensor, ...]  # L^-1 W' (O, e, w)
    reduced: Callable[[Tensor], Tensor]  # S^-1

    def solve(self, b: Tensor) -> Tensor:
        """The solution ``(n,)``."""
        x, right, halved = torch.zeros_like(b), b[self.plan.reduced], []
        for e, half, Z in zip(self.plan.eliminated, self.halves, self.Z, strict=True):
            t = (half * _part(b, e.blocks)[:, None, :]).sum(2)
            right = right - _scattered((Z * t[e.block][:, :, None]).sum(1), e.columns, len(right))
            halved.append(t)
        x_r = self.reduced(right)
        x[self.plan.reduced] = x_r
        for e, half, Z, t in zip(self.plan.eliminated, self.halves, self.Z, halved, strict=True):
            known = torch.where(e.columns >= 0, x_r[e.columns], 0.0) if len(x_r) else x_r.new_zeros(e.columns.shape)
            t = t.index_add(0, e.block, (Z * known[:, None, :]).sum(2), alpha=-1)
            found = (t[:, :, None] * half).sum(1)
            x[e.blocks.start : e.blocks.start + found.numel()] = found.reshape(-1)
        return x


def factored_normal(plan: Elimination, A: BlockJacobian, shift: Tensor) -> NormalFactor | None:
    """The factors of A'A + diag(shift); None where it is not positive definite to rounding."""
    tiles = []
    for own, group, values in zip(plan.own, A.structure.groups, A.values, strict=True):
        tiles.append((own, _summed(own, values[:, :, : values.shape[2] - group.last])))
    halves, found = [], []
    for e in plan.eliminated:
        V, W = _blocks(e, A)
        V.diagonal(dim1=1, dim2=2).add_(_part(shift, e.blocks))
        L, info = torch.linalg.cholesky_ex(V)
        if bool(info.any()):
            return None
        eye = torch.eye(e.blocks.width, dtype=V.dtype, device=V.device).expand_as(V)
        half = torch.linalg.solve_triangular(L, eye, upper=False)
        each = half.flatten(1).index_select(0, e.block).view(-1, *half.shape[1:])
        Z = _small_products(each, W)
        tiles += [(t, -_summed(t, Z)) for t in e.coupled]
        if e.stacked is not None:
            tiles.append((_whole(plan), -_product(e.stacked, Z, plan.size, len(V))))
        halves.append(half)
        found.append(Z)
    S = _dense(plan, tiles, shift) if plan.dense else _sparse(plan, tiles, shift)
    return None if S is None else NormalFactor(plan, tuple(halves), tuple(found), S)


def _blocks(e: Eliminated, A: BlockJacobian) -> tuple[Tensor, Tensor]:
    """V (E, e, e), and W' of each group that reads a block (O, e, w)."""
    V, parts, width = A.values[0].new_zeros(e.blocks.count, e.blocks.width, e.blocks.width), [], e.columns.shape[1]
    for g, held, buckets in zip(e.groups, e.held, e.own, strict=True):
        J = A.values[g][held]
        w = J.shape[2] - e.blocks.width
        V += _added(buckets, J[:, :, w:], len(V))
        W = _small_products(J[:, :, w:].mT, J[:, :, :w])
        parts.append(torch.nn.functional.pad(W, (0, width - w)))
    return V, torch.cat(parts)


def _product(stacked: Tensor, Z: Tensor, q: int, count: int) -> Tensor:
    """The sum of Z_i'Z_j ``(1, q, q)`` over all pairs that share a block, as one product."""
    M = Z.new_zeros((q + 1) * count * Z.shape[1]).index_add_(0, stacked, Z.reshape(-1)).view(q + 1, -1)[:q]
    return (M @ M.T)[None]


def _small_products(X: Tensor, Y: Tensor) -> Tensor:
    """X_i Y_i of many small ``(K, a, b)`` and ``(K, b, c)``: sums of b outer products are faster than calls."""
    if X.shape[2] > FEW:
        return X @ Y
    found = X[:, :, :1] * Y[:, :1, :] if X.shape[2] else X.new_zeros(len(X), X.shape[1], Y.shape[2])
    for k in range(1, X.shape[2]):
        found.addcmul_(X[:, :, k, None], Y[:, k, None, :])
    return found


def _whole(plan: Elimination) -> Tiles:
    every = torch.arange(plan.size, device=plan.reduced.device)[None]
    return Tiles(every, every, (), False)


def _summed(tiles: Tiles, X: Tensor) -> Tensor:
    """The sums of X_i'X_j ``(T, w, w)`` for X ``(K, e, w)``."""
    return _added(tiles.buckets, X, len(tiles.rows))


def _added(buckets: tuple[Bucket, ...], X: Tensor, count: int) -> Tensor:
    """The sums of X_i'X_j, those of one bucket as products of stacked matrices."""
    terms, e, w = X.shape
    flat = torch.cat([X.reshape(terms, e * w), X.new_zeros(1, e * w)])  # rows of two dimensions are gathered fast
    found = X.new_zeros(count, w, w)
    for b in buckets if w else ():
        many, size = b.left.shape
        step = max(1, CHUNK // max(size * e * w, 1))
        for first in range(0, many, step):
            part = slice(first, first + step)
            left = flat.index_select(0, b.left[part].reshape(-1)).view(-1, size * e, w)
            same = b.right is b.left
            right = left if same else flat.index_select(0, b.right[part].reshape(-1)).view(-1, size * e, w)
            found[b.into[part]] = left.mT @ right
    return found


def _dense(plan: Elimination, tiles: list[tuple[Tiles, Tensor]], shift: Tensor) -> Callable[[Tensor], Tensor] | None:
    q = plan.size
    S = shift.new_zeros(q * q)
    for place, values in tiles:
        held = (place.rows[:, :, None] >= 0) & (place.columns[:, None, :] >= 0)
        values = torch.where(held, values, 0.0)
        rows, columns = place.rows.clamp(min=0)[:, :, None], place.columns.clamp(min=0)[:, None, :]
        if q:
            S.index_add_(0, (rows * q + columns).reshape(-1), values.reshape(-1))
            if place.mirrored:
                S.index_add_(0, (columns * q + rows).reshape(-1), values.reshape(-1))
    S = S.view(q, q)
    S.diagonal().add_(shift[plan.reduced])
    L, info = torch.linalg.cholesky_ex(S)
    return None if bool(info.any()) else lambda b: torch.cholesky_solve(b[:, None], L)[:, 0]


def _sparse(plan: Elimination, tiles: list[tuple[Tiles, Tensor]], shift: Tensor) -> Callable[[Tensor], Tensor] | None:
    """By SuperLU with pivots on the diagonal, in an order of least degree."""
    q, diagonal = plan.size, shift[plan.reduced].cpu().numpy()
    rows, columns, entries = [np.arange(q)], [np.arange(q)], [diagonal]
    for place, values in tiles:
        i, j, v = (t.cpu().numpy().ravel() for t in _entries(place, values))
        kept = (i >= 0) & (j >= 0)
        sides = [(i, j), (j, i)] if place.mirrored else [(i, j)]
        for a, b in sides:
            rows.append(a[kept])
            columns.append(b[kept])
            entries.append(v[kept])
    places = (np.concatenate(rows), np.concatenate(columns))
    S = scipy.sparse.csc_array(scipy.sparse.coo_array((np.concatenate(entries), places), shape=(q, q)))
    if not np.isfinite(S.data).all() or (S.diagonal() <= 0).any():
        return None
    try:
        factor = scipy.sparse.linalg.splu(
            S, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
    except RuntimeError as error:
        if "singular" not in str(error):
            raise
        return None
    if (factor.U.diagonal() <= 0).any():
        return None
    return lambda b: torch.from_numpy(factor.solve(b.cpu().numpy())).to(b)


def _entries(place: Tiles, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = values.shape
    return place.rows[:, :, None].expand(shape), place.columns[:, None, :].expand(shape), values


def _part(v: Tensor, blocks: Blocks) -> Tensor:
    """The entries of a parameter, one row for each block."""
    return v[blocks.start : blocks.start + blocks.count * blocks.width].view(blocks.count, blocks.width)


def _scattered(terms: Tensor, columns: Tensor, q: int) -> Tensor:
    found = terms.new_zeros(q)
    if q:
        found.index_add_(0, columns.clamp(min=0).reshape(-1), torch.where(columns >= 0, terms, 0.0).reshape(-1))
    return found
