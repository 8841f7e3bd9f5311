"""Which columns of a Jacobian each of its rows reads: declared by blocks, or given as a sparse pattern.

A declaration names, for each parameter, the rows of that parameter that a group of residuals reads: in bundle
adjustment ``{"cameras": camera, "points": point}`` with two index tensors ``(G,)``, one entry for each observation. The
residual ``(G, ...)`` has G groups of equal length, and the k-th row of a parameter ``(B, ...)`` is one block.

Two blocks that no group reads together share a color, and one product with J finds all columns of a color. A parameter
of which each group reads one block at most can be eliminated: its part of J'J is block diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Union

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.optimize._sparse.coloring import colored, meetings
from frechet.space import Space

Reads = Mapping[str, "Tensor | str"]
# SciPy's types in quotes, so that scipy.sparse is loaded where it is used
Declared = Union[
    Tensor, Reads, Mapping[str, "Reads | Tensor"], "scipy.sparse.sparray", "scipy.sparse.spmatrix", Literal["find"]
]

WIDEST = 64  # columns of a block that is worth eliminating


@dataclass(frozen=True, eq=False)
class Blocks:
    """`count` blocks of `width` columns each, the first of which is column `start`: the `rows` of one parameter.

    One block is the whole parameter, where some group reads all of it.
    """

    name: str
    start: int
    count: int
    width: int
    rows: int


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Groups of rows ``rows (G, d)`` that read ``columns (G, w)``, -1 for none.

    `slots` has which of the structure's blocks begin at which place. The last `last` columns belong to one block of
    ``structure.blocks[eliminated]``, number ``block (G,)``.
    """

    rows: Tensor
    columns: Tensor
    slots: tuple[tuple[int, int], ...] = ()
    last: int = 0
    eliminated: int = -1
    block: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Structure:
    """The sparsity of a Jacobian ``(m, n)``: groups of rows, and the color ``(n,)`` of each column, -1 if unread."""

    m: int
    n: int
    groups: tuple[RowGroups, ...]
    blocks: tuple[Blocks, ...]
    colors: Tensor
    count: int  # of colors
    declared: bool  # by blocks
    by_rows: bool = True  # whether rows are tried first

    def nonzeros(self) -> int:
        return sum(g.rows.shape[1] * int((g.columns >= 0).sum()) for g in self.groups)


def structured(declared: object, space: Space, single: bool, returned: object) -> Structure:
    """The structure that a caller declares, for parameters in `space` and the result `returned` of the residual."""
    parts = {"": returned} if isinstance(returned, Tensor) else returned
    if not isinstance(parts, Mapping) or not all(isinstance(y, Tensor) for y in parts.values()):
        raise TypeError("least_squares: residual must return a tensor or a dict of tensors where structure is given")
    sizes = {name: y.numel() for name, y in parts.items()}
    device = next(iter(parts.values())).device
    pattern = _pattern(declared, sum(sizes.values()), space.dim)
    if pattern is not None:
        return from_pattern(pattern, sum(sizes.values()), space.dim, device)
    reads = _by_part(declared, single, isinstance(returned, Tensor), sizes)
    return _from_blocks(reads, space, sizes, device)


def from_pattern(pattern: scipy.sparse.csr_array, m: int, n: int, device: torch.device) -> Structure:
    """The structure of a sparse matrix; its rows are gathered by their length, rounded up to a power of two."""
    lengths, groups, reads = np.diff(pattern.indptr), [], []
    for width in [0, *(1 << k for k in range(max(n, 1).bit_length() + 1))]:
        rows = np.nonzero((lengths <= width) & (lengths > width // 2 if width else lengths == 0))[0]
        if not len(rows) or not width:
            continue
        place = np.arange(width)
        held = place < lengths[rows, None]
        where = np.minimum(pattern.indptr[rows, None] + place, max(pattern.nnz - 1, 0))
        columns = np.where(held, pattern.indices[where], -1).astype(np.int64)
        groups.append(RowGroups(_tensor(rows[:, None], device), _tensor(columns, device)))
        reads.append(columns)
    incidence = pattern.astype(np.int64)
    graph = scipy.sparse.csr_array(incidence.T @ incidence)
    graph.setdiag(0)
    graph.eliminate_zeros()
    colors = np.where(np.bincount(pattern.indices, minlength=n) > 0, colored(graph), -1)
    count = int(colors.max(initial=-1)) + 1
    return Structure(m, n, tuple(groups), (Blocks("", 0, n, 1, n),), _tensor(colors, device), count, False)


# --- declared blocks --------------------------------------------------------------------------------------------------


def _pattern(declared: object, m: int, n: int) -> scipy.sparse.csr_array | None:
    """The pattern where one is given: a sparse matrix of SciPy or torch, or a boolean tensor."""
    if isinstance(declared, Tensor):
        if declared.layout is torch.strided and declared.dtype is not torch.bool:
            return None
        kept = declared.detach().cpu().to_sparse_coo().coalesce().indices().numpy()
        found = scipy.sparse.coo_array((np.ones(kept.shape[1]), (kept[0], kept[1])), shape=tuple(declared.shape))
    elif scipy.sparse.issparse(declared):
        found = scipy.sparse.coo_array(declared)
        found.data = np.ones(len(found.data))
    else:
        return None
    if found.shape != (m, n):
        raise ValueError(f"least_squares: structure must have the shape of the Jacobian {(m, n)}, got {found.shape}")
    rows = scipy.sparse.csr_array(found)
    rows.sum_duplicates()
    return rows


def _by_part(declared: Any, single: bool, one: bool, sizes: dict[str, int]) -> dict[str, Mapping[str, object]]:
    """What each tensor of the residual reads."""
    if single and isinstance(declared, Tensor):
        declared = {"": declared}
    elif single and isinstance(declared, Mapping):
        declared = {part: {"": index} for part, index in declared.items()}
    if not isinstance(declared, Mapping):
        raise TypeError(
            "least_squares: structure must be a dict of index tensors by parameter, an index tensor where x0 is a "
            f"tensor, or a sparse matrix, got {type(declared).__name__}"
        )
    nested = bool(declared) and all(isinstance(r, Mapping) for r in declared.values())
    if one:
        if nested:
            raise ValueError(
                "least_squares: structure must map parameters to index tensors where the residual is one tensor"
            )
        return {"": declared}
    if not nested or set(declared) != set(sizes):
        raise ValueError(
            f"least_squares: structure must have one dict for each tensor of the residual, {sorted(sizes)}, got "
            f"{sorted(map(str, declared))}"
        )
    return {part: declared[part] for part in sizes}


def _from_blocks(
    reads: dict[str, Mapping[str, object]], space: Space, sizes: dict[str, int], device: torch.device
) -> Structure:
    blocks = _blocks(reads, space)
    place = {b.name: i for i, b in enumerate(blocks)}
    indices: list[dict[int, np.ndarray]] = []
    for part, size in sizes.items():
        read = {place[name]: _index(name, index, blocks[place[name]]) for name, index in reads[part].items()}
        counts = {i: len(index) for i, index in read.items() if len(index.shape)}
        groups = max(counts.values(), default=1)
        for i, count in counts.items():
            if count != groups:
                raise ValueError(
                    f"least_squares: structure must have as many rows for each parameter, got {groups} and {count} "
                    f"for '{blocks[i].name}'"
                )
        if size % groups if groups else size:
            raise ValueError(
                f"least_squares: structure must have one row for each group of residuals, got {groups} rows for "
                f"{size} residuals, which is no multiple of it"
            )
        whole = np.zeros((groups, 1), dtype=np.int64)
        indices.append({i: index if len(index.shape) else whole for i, index in read.items()})
    eliminated = _eliminated(blocks, indices)
    groups, first = [], 0
    for index, size in zip(indices, sizes.values(), strict=True):
        groups += _groups(index, blocks, eliminated, first, size, device)
        first += size
    colors, count = _colors(blocks, indices, space.dim)
    return Structure(first, space.dim, tuple(groups), tuple(blocks), _tensor(colors, device), count, True)


def _blocks(reads: dict[str, Mapping[str, object]], space: Space) -> list[Blocks]:
    """The blocks of each parameter: its rows, or the whole of it where some group reads all."""
    blocks = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        asked = [read[name] for read in reads.values() if name in read]
        size = math.prod(shape)
        whole = not shape or any(isinstance(index, str) for index in asked)
        if not shape and any(isinstance(index, Tensor) for index in asked):
            raise ValueError(f"least_squares: structure must be 'all' for the scalar '{name}', got an index")
        count = 1 if whole else shape[0]
        rows = shape[0] if shape else 1
        blocks.append(Blocks(name, space.block(name).start, count, size // count if count else 0, rows))
    known = {b.name for b in blocks}
    unknown = [name for read in reads.values() for name in read if name not in known]
    if unknown:
        raise ValueError(f"least_squares: structure must name parameters of x0, got {unknown[0]!r}")
    return blocks


def _index(name: str, index: object, blocks: Blocks) -> np.ndarray:
    """The blocks that each group reads ``(G, k)``, each once; of no dimension where every group reads the whole."""
    if isinstance(index, str) and index == "all":
        return np.zeros((), dtype=np.int64)
    if not isinstance(index, Tensor) or index.dtype.is_floating_point or index.dtype.is_complex or index.ndim > 2:
        got = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else repr(index)
        raise TypeError(
            f"least_squares: structure of '{name}' must be 'all' or a tensor of integers (groups,) or (groups, k), "
            f"got {got}"
        )
    found = index.detach().cpu().numpy().astype(np.int64)
    if not found.ndim:
        raise TypeError(f"least_squares: structure of '{name}' must have one row for each group, got a single number")
    if found.size and not -1 <= found.min() <= found.max() < blocks.rows:
        raise ValueError(
            f"least_squares: structure of '{name}' must lie between 0 and {blocks.rows - 1}, or be -1 for none, got "
            f"{int(found.min())} to {int(found.max())}"
        )
    found = np.array(found.reshape(len(found), -1 if found.size else found.shape[1] if found.ndim == 2 else 1))
    if blocks.count == 1:
        return np.where((found >= 0).any(1), 0, -1)[:, None]
    for b in range(1, found.shape[1]):
        found[(found[:, :b] == found[:, b : b + 1]).any(1), b] = -1
    return found


def _eliminated(blocks: list[Blocks], indices: list[dict[int, np.ndarray]]) -> list[int]:
    """The parameters whose part of J'J is block diagonal together, the largest first."""

    def single(i: int) -> bool:
        return all(i not in index or index[i].shape[1] == 1 for index in indices)

    def apart(i: int, j: int) -> bool:
        return not any(i in index and j in index for index in indices)

    able = [i for i, b in enumerate(blocks) if b.count > 1 and 0 < b.width <= WIDEST and single(i)]
    chosen: list[int] = []
    for i in sorted(able, key=lambda i: -blocks[i].count * blocks[i].width):
        if all(apart(i, j) for j in chosen) and any(i in index for index in indices):
            chosen.append(i)
    return chosen


def _groups(
    index: dict[int, np.ndarray],
    blocks: list[Blocks],
    eliminated: list[int],
    first: int,
    size: int,
    device: torch.device,
) -> list[RowGroups]:
    if not size or not index:
        return []
    count = len(next(iter(index.values())))
    rows = first + np.arange(size).reshape(count, -1)
    order = sorted(index, key=lambda i: i in eliminated)
    columns = np.concatenate([_columns(blocks[i], index[i]) for i in order], 1)
    kinds = [i for i in order for _ in range(index[i].shape[1])]
    ends = np.cumsum([blocks[i].width for i in kinds])
    slots = tuple((i, int(end) - blocks[i].width) for i, end in zip(kinds, ends, strict=True))
    found = RowGroups(_tensor(rows, device), _tensor(columns, device), slots)
    if order[-1] not in eliminated:
        return [found]
    block = _tensor(index[order[-1]][:, 0], device)
    return [replace(found, last=blocks[order[-1]].width, eliminated=order[-1], block=block)]


def _columns(blocks: Blocks, index: np.ndarray) -> np.ndarray:
    found = blocks.start + blocks.width * index[:, :, None] + np.arange(blocks.width)
    return np.where(index[:, :, None] >= 0, found, -1).reshape(len(index), -1)


def _colors(blocks: list[Blocks], indices: list[dict[int, np.ndarray]], n: int) -> tuple[np.ndarray, int]:
    """The color of each column: those of a parameter stand in a row, parameters that never meet share theirs."""
    colors, spans = np.full(n, -1, dtype=np.int64), {}
    for i, b in enumerate(blocks):
        if not any(i in index for index in indices):
            continue
        own = colored(meetings([index[i] for index in indices if i in index], b.count))
        need = (int(own.max(initial=0)) + 1) * b.width
        met = [spans[j] for j in spans if any(i in index and j in index for index in indices)]
        start = next(s for s in sorted({0, *(end for _, end in met)}) if all(s + need <= a or s >= e for a, e in met))
        spans[i] = (start, start + need)
        read = np.isin(np.arange(b.count), np.concatenate([index[i].ravel() for index in indices if i in index]))
        own_columns = np.where(read[:, None], start + own[:, None] * b.width + np.arange(b.width), -1)
        colors[b.start : b.start + b.count * b.width] = own_columns.reshape(-1)
    return colors, max((end for _, end in spans.values()), default=0)


def _tensor(a: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)).to(device)
