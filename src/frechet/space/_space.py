"""What a vector is: named blocks of one flat tensor, and every reduction and random draw on it.

A vector of a `Space` is one flat tensor ``(n,)``; a block of k vectors is ``(n, k)``, stored as the transpose of a
contiguous ``(k, n)`` because Gram-Schmidt reads whole vectors. Sums over the n entries run in chunks in the working
dtype and add the chunks in float64: a plain float32 norm of 10 million entries is wrong in the fourth digit, and
converting the vector to float64 first costs two hundred times as much.

Probe j of a seed is drawn alone, from a generator seeded by ``(seed, j)``: asking for more probes extends the first
ones and never changes them.

With a `shard` the processes of a group hold each vector together: here n is the number of entries of all of them, and a
tensor has the `length` entries that this process holds. Reductions then add up over the group, and are collective; a
random vector is this process's part of the one that an unsharded space draws (whole, on the host, for a moment).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from frechet.space._draws import generator
from frechet.space._shard import Shard

CHUNK = 1 << 14
QR_ROWS = 1 << 16

Probe = Literal["rademacher", "gaussian", "sphere"]


def _normalized(device: torch.device | str) -> torch.device:
    """The device that a tensor made on `device` says it is on: a type alone means its current device."""
    device = torch.device(device)
    if device.index is not None or device.type in ("cpu", "meta"):
        return device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):  # a space may name a device that this machine lacks
        return torch.device(device.type, 0)


def _double(t: Tensor) -> Tensor:
    """`t` in float64, on the host where the device has no float64."""
    return t.cpu().double() if t.device.type == "mps" else t.double()


@dataclass(frozen=True)
class Space:
    """A finite-dimensional real vector space: names and shapes of the blocks, one dtype, one device.

    Compares by value; ``cuda`` equals ``cuda:0``.

    Example:
        >>> import torch
        >>> from frechet.space import Space
        >>> space = Space(("weight", "bias"), ((2, 3), (2,)), torch.float64)
        >>> space
        R^8 (2 blocks, float64, cpu)
        >>> space.unflatten(torch.arange(8.0, dtype=torch.float64))["bias"]
        tensor([6., 7.], dtype=torch.float64)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (torch.device is immutable)
    shard: Shard | None = None

    def __post_init__(self) -> None:
        names, shapes = tuple(self.names), tuple(tuple(int(d) for d in s) for s in self.shapes)
        if len(names) != len(shapes):
            raise ValueError(f"Space: names and shapes must have the same length, got {len(names)} and {len(shapes)}")
        if len(set(names)) != len(names):
            raise ValueError(f"Space: names must be distinct, got {names}")
        if self.dtype.is_complex:
            raise TypeError(
                f"Space: dtype must be real, got {self.dtype}; derivatives here are real linear maps: view a complex "
                "tensor as real with torch.view_as_real"
            )
        if not self.dtype.is_floating_point:
            raise TypeError(f"Space: dtype must be a floating-point type, got {self.dtype}")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "device", _normalized(self.device))
        _ = self.held  # checks the shard

    @classmethod
    def of(cls, tree: Mapping[str, Tensor]) -> Space:
        """The space in which `tree` (name -> tensor) is one vector. All tensors must share one dtype and one device."""
        for name, t in tree.items():
            if not isinstance(t, Tensor):
                raise TypeError(f"Space.of: block '{name}' must be a tensor, got {type(t).__name__}")
        dtypes = {t.dtype for t in tree.values()}
        devices = {_normalized(t.device) for t in tree.values()}
        if len(dtypes) > 1:
            first = {d: next(n for n, t in tree.items() if t.dtype == d) for d in dtypes}
            listed = ", ".join(f"'{n}' is {str(d).removeprefix('torch.')}" for d, n in sorted(first.items(), key=str))
            raise TypeError(f"Space.of: all blocks must have one dtype, got {listed}; convert with model.to(dtype)")
        if len(devices) > 1:
            raise ValueError(f"Space.of: all blocks must be on one device, got {sorted(map(str, devices))}")
        dtype = dtypes.pop() if dtypes else torch.get_default_dtype()
        device = devices.pop() if devices else torch.device("cpu")
        return cls(tuple(tree), tuple(tuple(t.shape) for t in tree.values()), dtype, device)

    def __repr__(self) -> str:
        blocks = f"{len(self.names)} block" + ("" if len(self.names) == 1 else "s")
        part = "" if self.shard is None else f", {self.length} on rank {self.shard.group.rank}"
        return f"R^{self.dim} ({blocks}, {str(self.dtype).removeprefix('torch.')}, {self.device}{part})"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries per block."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def dim(self) -> int:
        """n, the number of entries of a vector."""
        return sum(self.sizes)

    @cached_property
    def held(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the pieces of the blocks that this process holds: `shapes`, where there is no shard."""
        return self.shapes if self.shard is None else self.shard.held(self.shapes)

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.held)

    @cached_property
    def length(self) -> int:
        """The number of entries of a vector that this process holds: n, where there is no shard."""
        return sum(self._lengths)

    @cached_property
    def unsharded(self) -> Space:
        """The space of whole vectors."""
        return self if self.shard is None else replace(self, shard=None)

    @cached_property
    def _slices(self) -> dict[str, slice]:
        ends = np.cumsum((0, *self._lengths)).tolist()
        return {name: slice(a, b) for name, a, b in zip(self.names, ends[:-1], ends[1:], strict=True)}

    @property
    def eps(self) -> float:
        """Unit roundoff of the working dtype (torch.finfo(dtype).eps)."""
        return torch.finfo(self.dtype).eps

    # --- conversion -----------------------------------------------------------------------------------------------

    def flatten(self, tree: Mapping[str, Tensor]) -> Tensor:
        """The flat vector ``(n,)`` of a dict with exactly this space's names, shapes, dtype and device."""
        missing, extra = set(self.names) - set(tree), set(tree) - set(self.names)
        if missing or extra:
            raise ValueError(
                f"Space.flatten: keys must be the {len(self.names)} block names; missing {sorted(missing)[:3]}, "
                f"unknown {sorted(extra)[:3]}"
            )
        for name, shape in zip(self.names, self.held, strict=True):
            if tuple(tree[name].shape) != shape:
                raise ValueError(
                    f"Space.flatten: block '{name}' must have shape {shape}, got {tuple(tree[name].shape)}"
                )
            if tree[name].dtype != self.dtype:
                raise TypeError(f"Space.flatten: block '{name}' must be {self.dtype}, got {tree[name].dtype}")
            if _normalized(tree[name].device) != self.device:
                raise ValueError(f"Space.flatten: block '{name}' must be on {self.device}, got {tree[name].device}")
        return self.join([tree[name] for name in self.names])

    def join(self, blocks: Iterable[Tensor]) -> Tensor:
        """The flat vector of blocks given in this space's order, unchecked."""
        parts = [b.reshape(-1) for b in blocks]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype, device=self.device)

    def unflatten(self, v: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector `v` ``(n,)``, by name."""
        if v.shape != (self.length,):
            raise ValueError(f"Space.unflatten: v must have shape ({self.length},), got {tuple(v.shape)}")
        return dict(zip(self.names, self.split(v), strict=True))

    def split(self, v: Tensor) -> list[Tensor]:
        """Views of the flat vector `v` in block order, unchecked."""
        return [part.view(shape) for part, shape in zip(v.split(self._lengths), self.held, strict=True)]

    def block(self, name: str) -> slice:
        """Where block `name` lies in a flat vector."""
        if name not in self._slices:
            raise KeyError(f"Space.block: unknown block '{name}'; the names are {list(self.names)[:8]}")
        return self._slices[name]

    def restrict(self, patterns: str | Iterable[str]) -> Space:
        """The subspace of the blocks whose name matches one of the glob `patterns` (``"layers.*.weight"``)."""
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.names):
                raise ValueError(
                    f"Space.restrict: pattern '{pattern}' must match a block, got none of {list(self.names)[:8]}"
                )
        kept = [i for i, name in enumerate(self.names) if any(fnmatchcase(name, p) for p in patterns)]
        shard = None if self.shard is None else replace(self.shard, rows=tuple(self.shard.rows[i] for i in kept))
        names, shapes = tuple(self.names[i] for i in kept), tuple(self.shapes[i] for i in kept)
        return Space(names, shapes, self.dtype, self.device, shard)

    def indices(self, subspace: Space) -> Tensor:
        """Positions ``(m,)`` of the blocks of `subspace` in a flat vector of this space."""
        parts = [torch.arange(self.block(n).start, self.block(n).stop) for n in subspace.names]
        return torch.cat(parts).to(self.device) if parts else torch.zeros(0, dtype=torch.long, device=self.device)

    def vector(self, values: Mapping[str, float]) -> Tensor:
        """Return a vector that is constant on blocks, from ``{pattern: value}``.

        Where several patterns match a block, the last one counts. A block that no pattern matches raises.

        For diagonals such as per-group damping, prior precisions or learning rates.
        """
        v = torch.full((self.length,), math.nan, dtype=self.dtype, device=self.device)
        for pattern, value in values.items():
            for name in self.restrict(pattern).names:
                v[self.block(name)] = value
        for name in self.names:
            if self.block(name).start < self.block(name).stop and bool(v[self.block(name)].isnan().any()):
                raise ValueError(f"Space.vector: every block needs a value, got none for '{name}'; add {{'*': value}}")
        return v

    def zeros(self, k: int | None = None) -> Tensor:
        """A zero vector ``(n,)``, or a block ``(n, k)`` in the library's memory layout."""
        if k is None:
            return torch.zeros(self.length, dtype=self.dtype, device=self.device)
        return torch.zeros(k, self.length, dtype=self.dtype, device=self.device).T

    def units(self, columns: range) -> Tensor:
        """The unit vectors of these numbers, as a block."""
        E = self.unsharded.zeros(len(columns))
        E[columns.start : columns.stop].fill_diagonal_(1.0)
        return self.own(E)

    def with_dtype(self, dtype: torch.dtype) -> Space:
        """The same blocks in another dtype."""
        return replace(self, dtype=dtype)

    # --- shards ---------------------------------------------------------------------------------------------------

    def own(self, whole: Tensor) -> Tensor:
        """What this process holds of a whole vector or block: the tensor itself, where there is no shard."""
        if self.shard is None:
            return whole
        rows = whole if whole.ndim == 1 else whole.T
        parts = self.shard.pieces(rows, self.sizes, self.shapes)
        found = torch.cat(parts, -1) if parts else rows.clone()
        return found if whole.ndim == 1 else found.T

    def whole(self, v: Tensor) -> Tensor:
        """The whole vector or block that the processes hold together, on each of them. Collective with a shard."""
        if self.shard is None:
            return v
        rows = v if v.ndim == 1 else v.T
        found = v.new_zeros(*rows.shape[:-1], self.dim)
        views = self.shard.pieces(found, self.sizes, self.shapes)
        for view, piece in zip(views, rows.split(self._lengths, -1), strict=True):
            view.copy_(piece)
        found = self.shard.group.sum(found, copy=False)
        return found if v.ndim == 1 else found.T

    def _added(self, t: Tensor) -> Tensor:
        """The sum of `t` over the processes that hold a vector together."""
        return t if self.shard is None or not t.numel() else self.shard.group.sum(t, copy=False)

    def finite(self, V: Tensor) -> bool:
        """Whether all entries of `V`, those of all processes, are finite."""
        return not bool(self._added((~torch.isfinite(V)).sum()))

    # --- reductions -----------------------------------------------------------------------------------------------

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """u'v as a float64 scalar tensor, from two vectors ``(n,)``."""
        return self._added(self._inner(u, v))

    def _inner(self, u: Tensor, v: Tensor) -> Tensor:
        if self.dtype == torch.float64:
            return torch.dot(u, v)
        whole = self.length - self.length % CHUNK
        product = u * v
        total = _double(product[whole:].sum())
        if whole:
            total = total + _double(product[:whole].view(-1, CHUNK).sum(1)).sum()
        return total

    def norm(self, v: Tensor) -> Tensor:
        """The Euclidean norm as a float64 scalar tensor; of a block ``(n, k)`` the k norms of its columns.

        Where squares leave the range of the dtype, the entries are divided by the largest of them first.
        """
        columns = v.T if v.ndim > 1 else v[None]
        if not len(columns):
            return torch.zeros(0, dtype=torch.float64, device=_double(v).device)
        squares = self._added(torch.stack([self._inner(c, c) for c in columns]))
        roots = squares.sqrt()
        # each square that underflows loses at most `tiny`
        safe = (squares > self.dim * torch.finfo(self.dtype).tiny / self.eps) & torch.isfinite(squares)
        if v.device.type == "cpu":
            for j in (~safe).nonzero()[:, 0].tolist():
                roots[j] = self._scaled_norm(columns[j])
        else:  # two passes more cost less than a wait for the device
            roots = torch.where(safe, roots, torch.stack([self._scaled_norm(c) for c in columns]))
        return roots if v.ndim > 1 else roots[0]

    def _scaled_norm(self, v: Tensor) -> Tensor:
        """The norm of entries whose squares are no numbers of the dtype."""
        # the sum of the processes' largest entries: as good a unit as the largest of all
        unit = self._added(_double(v.abs().max() if v.numel() else v.sum()))
        usable = (unit != 0) & torch.isfinite(unit)
        by = torch.where(usable, unit, torch.ones_like(unit))
        parts = (_double(v[a : a + CHUNK]) / by for a in range(0, self.length, CHUNK))
        found = by * self._added(sum((torch.dot(p, p) for p in parts), torch.zeros_like(unit))).sqrt()
        return torch.where(usable, found, unit)

    def gram(self, U: Tensor, V: Tensor) -> Tensor:
        """U'V as a float64 matrix ``(k, l)``, from blocks ``(n, k)`` and ``(n, l)``; U may be kept in fewer bits."""
        if self.dtype == U.dtype == torch.float64:
            return self._added(U.T @ V)
        total = torch.zeros(U.shape[1], V.shape[1], dtype=torch.float64, device=_double(U[:0]).device)
        for a in range(0, self.length, CHUNK):
            total += _double(U[a : a + CHUNK].T.to(self.dtype) @ V[a : a + CHUNK])
        return self._added(total)

    def orthonormalize(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Q ``(n, r)`` with orthonormal columns and R ``(r, k)`` in float64 such that V = Q R; r is the numerical rank.

        Householder QR of row chunks in float64, then of the stacked triangles (TSQR; Demmel, Grigori, Hoemmen and
        Langou 2012, doi 10.1137/080731992). A direction is dropped when its singular value is at most
        ``min(n, k) * eps * largest``; then R is no longer triangular.
        """
        parts = [torch.linalg.qr(_double(V[a : a + QR_ROWS])) for a in range(0, max(self.length, 1), QR_ROWS)]
        Q2, R = (torch.eye(parts[0][1].shape[0], dtype=torch.float64), parts[0][1])
        if len(parts) > 1:
            Q2, R = torch.linalg.qr(torch.cat([r for _, r in parts]))
        Q2 = Q2.to(R.device)
        if self.shard is not None and V.shape[1]:
            Q3, R = self.shard.stacked(R)
            Q2 = Q2 @ Q3
        P, S, W = torch.linalg.svd(R, full_matrices=False)
        keep = len(S) * self.eps * S.max() < S if S.numel() else S > 0
        if not bool(keep.all()):
            Q2, R = Q2 @ P[:, keep], S[keep, None] * W[keep]
        Q = torch.empty(R.shape[0], self.length, dtype=self.dtype, device=self.device)
        row, top = 0, 0
        for q, r in parts:
            Q[:, row : row + q.shape[0]] = (q @ Q2[top : top + r.shape[0]]).T.to(self.device, self.dtype)
            row, top = row + q.shape[0], top + r.shape[0]
        return Q.T, R

    # --- random vectors -------------------------------------------------------------------------------------------

    def random(self, probe: int | range, seed: int, kind: Probe = "rademacher") -> Tensor:
        """Random vector number `probe` of `seed` ``(n,)``, or for a range the block ``(n, len(range))``.

        Entries have mean 0 and E[z z'] = I: signs (``rademacher``), normal (``gaussian``), or a Gaussian direction of
        length sqrt(n) (``sphere``). The same on every device and in every dtype.
        """
        if isinstance(probe, range):
            block = self.zeros(len(probe))
            for i, j in enumerate(probe):
                block[:, i] = self.random(j, seed, kind)
            return block
        g = generator(seed, probe)
        if kind == "rademacher":
            z = self.own(torch.randint(0, 2, (self.dim,), generator=g, dtype=torch.int8))
            return z.to(self.device, self.dtype).mul_(2).sub_(1)
        if kind not in ("gaussian", "sphere"):
            raise ValueError(f"Space.random: kind must be 'rademacher', 'gaussian' or 'sphere', got {kind!r}")
        z = torch.randn(self.dim, generator=g, dtype=torch.float64)
        if kind == "sphere" and self.dim:
            z *= math.sqrt(self.dim) / torch.linalg.vector_norm(z)
        return self.own(z).to(self.dtype).to(self.device)


def aligned(t: Tensor) -> Tensor:
    """Return `t`, copied if it is not contiguous or begins at no multiple of 16 bytes, as `view_as_complex` needs."""
    if t.is_contiguous() and t.storage_offset() * t.element_size() % 16 == 0:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def euclidean(n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Space:
    """Return R^n as a space with one unnamed block.

    Args:
        n: the dimension.
        dtype: the dtype of its vectors.
        device: the device of its vectors.
    """
    return Space(("",), ((n,),), dtype, torch.device(device))
