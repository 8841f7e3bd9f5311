"""What of the normal equations depends on the structure alone: what is eliminated, where products go, and what fits.

After the elimination the matrix S of the columns that remain is held as a dense matrix, as a sparse one, or, where
neither fits into memory, not at all. The fill of a sparse factorization is bounded by the profile of S in the reverse
Cuthill-McKee order.

**Source** of the order: A. George and J. Liu (1981), Computer solution of large sparse positive definite systems,
chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.optimize._sparse.structure import Blocks, RowGroups, Structure

SMALL = 2048  # columns: below this a dense S (32 MiB) is factored within the time of one sparse assembly
THIN = 0.1  # share of nonzeros in S below which sparse factors are smaller
STACKED = 1 << 22  # numbers of a dense W: 32 MiB
LARGE_PRODUCT = 30  # times that one large product is faster than many small ones, per multiplication: measured
MOST = 1 << 27  # numbers of one array: 1 GiB in float64


@dataclass(frozen=True, eq=False)
class Bucket:
    """Sums of about equally many terms: sum ``into[t]`` is that of X_i'Y_j over i in left[t] and j in right[t].

    A sum of fewer terms is filled up with the row of zeros that X and Y have behind their last one.
    """

    into: Tensor  # (T,)
    left: Tensor  # (T, k)
    right: Tensor  # (T, k)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Where sums of small matrices go in S: rows and columns, -1 for none; `mirrored` adds the transposes, too."""

    rows: Tensor  # (T, w)
    columns: Tensor  # (T, w)
    buckets: tuple[Bucket, ...]
    mirrored: bool


@dataclass(frozen=True, eq=False)
class Eliminated:
    """One eliminated parameter: the O groups that read it, and all pairs of them that share a block.

    `coupled` adds up each group with itself, and the pairs. Instead `stacked` ``(O e w,)`` says where each entry of
    W' goes in a dense matrix of a row for each column of S: where S is small, one large product replaces many.
    """

    blocks: Blocks
    groups: tuple[int, ...]
    held: tuple[Tensor, ...]  # of each group, the rows that read a block
    own: tuple[tuple[Bucket, ...], ...]  # of each group, the sums over the rows that share a block
    block: Tensor  # (O,)
    columns: Tensor  # (O, w), in S, -1 for none
    coupled: tuple[Tiles, ...]
    stacked: Tensor | None


@dataclass(frozen=True, eq=False)
class Elimination:
    """What of the normal equations depends on the structure alone."""

    structure: Structure
    reduced: Tensor  # (q,), the columns of J that remain
    own: tuple[Tiles, ...]  # of the groups
    eliminated: tuple[Eliminated, ...]
    dense: bool

    @property
    def size(self) -> int:
        return len(self.reduced)


def elimination(structure: Structure) -> Elimination | None:
    """What is where in the normal equations; None where their factors do not fit into memory."""
    remain = np.ones(structure.n, dtype=bool)
    kinds = sorted({g.eliminated for g in structure.groups if g.eliminated >= 0})
    for i in kinds:
        b = structure.blocks[i]
        remain[b.start : b.start + b.count * b.width] = False
    reduced = np.nonzero(remain)[0]
    place = np.full(structure.n + 1, -1, dtype=np.int64)  # the last is that of column -1
    place[reduced] = np.arange(len(reduced))
    left = [place[_host(g.columns)[:, : g.columns.shape[1] - g.last]] for g in structure.groups]
    if sum(columns.shape[0] * columns.shape[1] ** 2 for columns in left) > MOST:
        return None
    device = structure.colors.device
    own = tuple(_tiles(columns, device) for columns in left)
    eliminated = []
    for i in kinds:
        found = _eliminated(structure, i, left, len(reduced), device)
        if found is None:
            return None
        eliminated.append(found)
    tiles = [*own, *(t for e in eliminated for t in e.coupled)]
    if sum(t.rows.shape[0] * t.rows.shape[1] ** 2 for t in tiles) > MOST:
        return None
    dense = _dense(tiles, len(reduced))
    if dense is None:
        return None
    return Elimination(structure, torch.from_numpy(reduced).to(device), own, tuple(eliminated), dense)


def _dense(tiles: list[Tiles], q: int) -> bool | None:
    """Whether S is held as a dense matrix; None where neither form fits."""
    if q <= max(SMALL, 0):
        return True
    rows, columns = [np.arange(q)], [np.arange(q)]
    for t in tiles:
        i = np.broadcast_to(_host(t.rows)[:, :, None], (*t.rows.shape, t.columns.shape[1])).ravel()
        j = np.broadcast_to(_host(t.columns)[:, None, :], (*t.rows.shape, t.columns.shape[1])).ravel()
        kept = (i >= 0) & (j >= 0)
        rows += [i[kept], j[kept]]
        columns += [j[kept], i[kept]]
    i, j = np.concatenate(rows), np.concatenate(columns)
    S = scipy.sparse.csr_array(scipy.sparse.coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(q, q)))
    fits = q * q <= MOST
    if S.nnz > THIN * q * q:
        return True if fits else None
    return False if profile(S) <= MOST else True if fits else None


def profile(S: scipy.sparse.csr_array) -> int:
    """An upper bound of the entries of a Cholesky factor of S, its fullest columns kept to the end."""
    q = len(S.indptr) - 1
    full = np.diff(S.indptr) > max(q // 8, 8)
    kept = scipy.sparse.csr_array(S[~full][:, ~full])
    if not kept.nnz:
        return q * (1 + int(full.sum()))
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(kept, symmetric_mode=True)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    entries = scipy.sparse.coo_array(kept)
    reach = rank[entries.coords[0]] - rank[entries.coords[1]]
    widths = np.zeros(len(order), dtype=np.int64)
    np.maximum.at(widths, rank[entries.coords[0]], reach)
    return int(widths.sum()) + q + int(full.sum()) * q


def _eliminated(
    structure: Structure, i: int, left: list[np.ndarray], q: int, device: torch.device
) -> Eliminated | None:
    """The groups that read parameter i, and the pairs of them that share one of its blocks."""
    numbers = tuple(k for k, g in enumerate(structure.groups) if g.eliminated == i)
    width = max(left[k].shape[1] for k in numbers)
    held, block, columns = [], [], []
    for k in numbers:
        index = _block(structure.groups[k])
        kept = np.nonzero(index >= 0)[0]
        wide = np.full((len(kept), width), -1, dtype=np.int64)
        wide[:, : left[k].shape[1]] = left[k][kept]
        held.append(kept)
        block.append(index[kept])
        columns.append(wide)
    blocks, wide = np.concatenate(block), np.concatenate(columns)
    b = structure.blocks[i]
    counts = np.bincount(blocks, minlength=b.count)
    couples = int((counts * (counts + 1) // 2).sum())
    stacked, coupled = None, ()
    if q <= SMALL and b.count * q * b.width <= STACKED and b.count * q**2 <= LARGE_PRODUCT * couples * width**2:
        # entry (o, k, a) of Z goes to row wide[o, a] and column (block, k)
        rows = np.where(wide >= 0, wide, q)[:, None, :] * (b.count * b.width)
        columns = blocks[:, None] * b.width + np.arange(b.width)
        stacked = torch.from_numpy((rows + columns[:, :, None]).reshape(-1)).to(device)
    elif couples > MOST // 4:
        return None
    else:
        coupled = _coupled(blocks, counts, wide, device)
    return Eliminated(
        b,
        numbers,
        tuple(torch.from_numpy(kept).to(device) for kept in held),
        tuple(_alone(index, device) for index in block),
        torch.from_numpy(blocks).to(device),
        torch.from_numpy(wide).to(device),
        coupled,
        stacked,
    )


def _coupled(blocks: np.ndarray, counts: np.ndarray, wide: np.ndarray, device: torch.device) -> tuple[Tiles, ...]:
    """The sums over the groups alone, and over the pairs of them that share a block."""
    if not wide.shape[1]:
        return ()
    first, second = _pairs(blocks, counts)
    slots, kinds = _distinct(wide)
    tile, shapes = _distinct(np.stack([slots[first], slots[second]], 1))
    buckets = _buckets(tile, first, second, len(wide), device)
    rows, columns = (torch.from_numpy(kinds[shapes[:, k]]).to(device) for k in (0, 1))
    return _tiles(wide, device), Tiles(rows, columns, buckets, True)


def _alone(into: np.ndarray, device: torch.device) -> tuple[Bucket, ...]:
    """The sums of each term with itself."""
    every = np.arange(len(into))
    return _buckets(into, every, every, len(into), device)


def _buckets(
    into: np.ndarray, left: np.ndarray, right: np.ndarray, count: int, device: torch.device
) -> tuple[Bucket, ...]:
    """The terms X_left'Y_right of each sum, in rows of 1, 2, 4, ... terms; row `count` of X and Y is zero."""
    order = np.argsort(into, kind="stable")
    sums, begin, lengths = np.unique(into[order], return_index=True, return_counts=True)
    buckets = []
    for k in range(int(lengths.max(initial=0)).bit_length() + 1):
        size = 1 << k
        chosen = np.nonzero((lengths <= size) & (lengths > size // 2))[0]
        if not len(chosen):
            continue
        places = np.arange(size)
        held = places < lengths[chosen, None]
        terms = order[np.minimum(begin[chosen, None] + places, len(order) - 1)]
        first = torch.from_numpy(np.where(held, left[terms], count)).to(device)
        second = first if right is left else torch.from_numpy(np.where(held, right[terms], count)).to(device)
        buckets.append(Bucket(torch.from_numpy(sums[chosen]).to(device), first, second))
    return tuple(buckets)


def _pairs(blocks: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of different entries that have the same block, each once."""
    order = np.argsort(blocks, kind="stable")
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    before = np.arange(len(order)) - begin[blocks[order]]  # how many of the same block stand before
    first = np.repeat(np.arange(len(order)), before)
    ends = np.cumsum(before)
    second = np.arange(len(first)) - np.repeat(ends - before, before) + np.repeat(begin[blocks[order]], before)
    return order[first], order[second]


def _tiles(columns: np.ndarray, device: torch.device) -> Tiles:
    """Each group with itself, added up where groups have the same columns."""
    slot, kinds = _distinct(columns)
    rows = torch.from_numpy(kinds).to(device)
    return Tiles(rows, rows, _alone(slot, device), False)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of a matrix of integers, and which of them each row is."""
    if not rows.size:
        return np.zeros(len(rows), dtype=np.int64), rows[:1]
    with np.errstate(over="ignore"):  # a hash, by multiplication modulo 2^64
        keys = rows @ (np.int64(0x9E3779B97F4A7C1) * (2 * np.arange(rows.shape[1]) + 1) ** 5)
    _, at, inverse = np.unique(keys, return_index=True, return_inverse=True)
    kinds = rows[at]
    if bool((kinds[inverse] == rows).all()):
        return inverse.astype(np.int64), kinds
    kinds, inverse = np.unique(rows, axis=0, return_inverse=True)  # two rows share a key
    return inverse.reshape(-1).astype(np.int64), kinds


def _block(group: RowGroups) -> np.ndarray:
    assert group.block is not None  # by construction
    return _host(group.block)


def _host(t: Tensor) -> np.ndarray:
    return t.cpu().numpy()
