"""Where the vectors of a Krylov space are kept, and how new ones are made orthogonal to them.

An iteration reads its n-by-m basis a few times per step and the operator never does, so the basis need not lie where
the products are computed, nor have their precision. ``storage`` says where:

    "device"                          beside the vectors, as they are
    "host"                            in the host's memory, as they are; two vectors travel per step
    "float32" "bfloat16" "float16"    beside the vectors, each entry rounded to this type when a vector is stored

All arithmetic is in the space's own precision: what is read is converted, a part at a time. With V the stored vectors
and u the unit roundoff of the storage (2^-24, 2^-8, 2^-11),

    A V = V T + r e' + F,   ||F e_j|| <= u ||A||,   |V'V - I| <= 2 u

whatever the steps: a stored vector is orthogonal to those before it up to its own rounding, which does not add up. The
rounding of many entries is nearly orthogonal to everything, so for vectors that spread over n entries the last number
is about u / sqrt(n), and F is about u beta_j. What is combined from such a basis (a Ritz vector) is off by up to u in
norm: its residual, of up to u ||A||, must be measured and not read off T. ``float16`` is eight times as precise as
``bfloat16`` in the same memory; entries below 6e-8 become zero, which matters beyond n = 10^9.

**Source.** Two passes of Gram-Schmidt suffice: L. Giraud, J. Langou and M. Rozloznik 2005,
doi 10.1016/j.camwa.2005.08.009. Bases in reduced precision: J. Aliaga, H. Anzt, T. Grützmacher, E. Quintana-Orti and
A. Tomas 2023, "Compressed basis GMRES on high-performance graphics processing units", doi 10.1177/10943420221115140.

**Differs from the source.** (1) Lanczos instead of GMRES; every vector is orthogonalized against what is stored and
not against what was meant to be.

Cost: m vectors of memory in the storage's type; a step reads the basis four times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.space import Space

Storage = Literal["device", "host", "float32", "bfloat16", "float16"]

ROUNDING = 10.0  # a remainder below ROUNDING * eps * (largest product so far) counts as zero
ROWS = 1 << 16  # of a block that are rotated or converted at a time


@dataclass(frozen=True, eq=False)
class Basis:
    """The columns of `block` ``(n, m)``, which may lie elsewhere than the vectors of `space`, or in fewer bits.

    `fixed` ``(n, p)`` is an orthonormal block to which all columns are kept orthogonal, as it is.
    """

    space: Space
    block: Tensor
    fixed: Tensor | None = None

    @property
    def size(self) -> int:
        """m, the number of columns that there is room for."""
        return self.block.shape[1]

    @property
    def rounded(self) -> bool:
        """Whether vectors are rounded when they are stored."""
        return self.block.dtype != self.space.dtype

    @cached_property
    def home(self) -> Space:
        """The space of vectors that lie where the block does."""
        return replace(self.space, device=self.block.device)

    def column(self, j: int) -> Tensor:
        """Column j as a vector of the space: a view, where it is kept as it is."""
        return self.block[:, j].to(self.space.device, self.space.dtype)

    def append(self, j: int, w: Tensor, scale: float, source: str) -> tuple[Tensor, float, float]:
        """Orthogonalize `w` twice against the fixed block and the first j columns; store the unit remainder in j.

        Returns the coefficients h ``(p + j,)`` (float64, on the host) and the norm beta of the remainder, so that
        w = [fixed, block[:, :j]] h + beta block[:, j], and the largest norm of a `w` so far. Where the remainder is
        rounding noise, or there is no column left, beta is 0 and nothing is stored. `source` names the product in the
        error for a NaN.
        """
        home = self.home
        blocks = [*([] if self.fixed is None else [self.fixed.to(home.device)]), self.block[:, :j]]
        sizes = [V.shape[1] for V in blocks]
        w, h = w.to(home.device), torch.zeros(sum(sizes), dtype=torch.float64)
        if sum(sizes):
            w = w.clone()  # it may be a view of the block (A = I)
            for _ in range(2):
                c = torch.cat([home.gram(V, w[:, None])[:, 0] for V in blocks])
                for V, part in zip(blocks, c.split(sizes), strict=True):
                    _subtract(V, part.to(w), w)
                h += c.cpu()
        beta = float(home.norm(w))
        length = math.hypot(*h.tolist(), beta)
        if not math.isfinite(length):
            raise NonFinite(f"{source} holds a NaN or an infinity; check the point, the data and the loss for overflow")
        scale = max(scale, length)
        if beta <= ROUNDING * home.eps * scale or j == self.size:
            return h, 0.0, scale
        if self.rounded:
            self.block[:, j] = w / beta
        else:
            torch.div(w, beta, out=self.block[:, j])
        return h, beta, scale

    def start(self, v: Tensor, caller: str, name: str) -> float:
        """Store the unit part of `v` orthogonal to the fixed block in column 0; the norm of that part."""
        space = self.space
        if v.ndim != 1 or v.shape[0] != space.length:
            raise ValueError(f"{caller}: {name} must have shape ({space.length},), got {tuple(v.shape)}")
        if v.dtype != space.dtype:
            raise TypeError(
                f"{caller}: {name} must be {space.dtype}, got {v.dtype}; convert with {name}.to({space.dtype})"
            )
        if v.device != space.device:
            raise ValueError(f"{caller}: {name} must be on {space.device}, got {v.device}; move it with {name}.to(...)")
        _, beta, scale = self.append(0, v, 0.0, f"{caller}: {name}")
        if scale == 0.0:
            raise ValueError(f"{caller}: {name} must be non-zero, got zeros")
        if beta == 0.0:
            raise ValueError(f"{caller}: {name} must not lie in the span of deflate, got a vector of that span")
        return beta

    def combine(self, j: int, S: np.ndarray) -> Tensor:
        """The first j columns times the small matrix `S`, a block of the space."""
        V = self.block[:, :j]
        if not self.rounded:
            return combine(V, S).T.to(self.space.device).T
        C, found = _small(S, V.device, self.space.dtype), self.home.zeros(S.shape[1])
        for a in range(0, len(V), ROWS):
            found[a : a + ROWS] = (C @ V[a : a + ROWS].T.to(C.dtype)).T
        return found

    def rotate(self, j: int, p: int, S: np.ndarray) -> None:
        """Replace the first j columns by their combinations `S` ``(j, k)``; the p columns after them follow."""
        k, C = S.shape[1], _small(S, self.block.device, self.space.dtype)
        for a in range(0, len(self.block), ROWS):  # in place: a second basis would double the memory
            part = self.block[a : a + ROWS]
            moved = torch.cat([C @ part[:, :j].T.to(C.dtype), part[:, j : j + p].T.to(C.dtype)])
            part[:, : k + p] = moved.T

    def swap(self, a: int, b: int) -> None:
        """Exchange two columns."""
        W = self.block
        W[:, a], W[:, b] = W[:, b].clone(), W[:, a].clone()


def new_basis(space: Space, size: int, storage: Storage, caller: str, fixed: Tensor | None = None) -> Basis:
    """Room for `size` vectors of `space`."""
    dtype, device = kept_as(space, storage, caller)
    return Basis(space, torch.zeros(size, space.length, dtype=dtype, device=device).T, fixed)


def kept_as(space: Space, storage: Storage, caller: str) -> tuple[torch.dtype, torch.device]:
    """The type and the place of the vectors of `space` in a storage."""
    if storage not in get_args(Storage):
        names = ", ".join(repr(s) for s in get_args(Storage))
        raise ValueError(f"{caller}: storage must be one of {names}, got {storage!r}")
    if storage == "device":
        return space.dtype, space.device
    if storage == "host":
        return space.dtype, torch.device("cpu")
    dtype = getattr(torch, storage)
    # a type with as many bits would gain nothing
    return (dtype if dtype.itemsize < space.dtype.itemsize else space.dtype), space.device


def roundoff(space: Space, storage: Storage, caller: str) -> float:
    """u, by which an entry is rounded at most, relative to itself, when it is stored; 0 where it is not."""
    dtype, _ = kept_as(space, storage, caller)
    return 0.0 if dtype == space.dtype else torch.finfo(dtype).eps / 2


def combine(V: Tensor, S: np.ndarray) -> Tensor:
    """V S as a block in the library's layout, for a small matrix `S`."""
    return torch.mm(_small(S, V.device, V.dtype), V.T).T


def _small(S: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The transpose of a small matrix beside a block."""
    return torch.from_numpy(np.ascontiguousarray(S.T)).to(device, dtype)


def _subtract(V: Tensor, c: Tensor, w: Tensor) -> None:
    """w -= V c, in the precision of `w`."""
    if V.dtype == w.dtype:
        w.addmv_(V, c, alpha=-1)
        return
    for a in range(0, len(w), ROWS):
        w[a : a + ROWS].addmv_(V[a : a + ROWS].to(w.dtype), c, alpha=-1)
