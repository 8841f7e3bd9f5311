"""Copies of tensors that keep what a recording may depend on: strides, overlaps, the bits of conjugation and negation.

A recording must not hold memory that is not its own: a loader may refill it, a user may change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_negated = torch.ops.aten._neg_view.default


def storage_of(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def place_of(t: Tensor) -> tuple[Any, ...]:
    """Two tensors with the same place are the same numbers."""
    return (storage_of(t), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype, t.is_conj(), t.is_neg())


def extent(t: Tensor) -> tuple[int, int]:
    """The elements of its storage, first and last but one, between which a tensor lies."""
    start = int(t.storage_offset())
    if not t.numel():
        return start, start
    return start, start + 1 + int(sum((size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)))


def stretches(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """For each tensor the number of the stretch of memory in which it lies, and where that begins and ends.

    Tensors whose extents overlap lie in one stretch; others have each their own.
    """
    if len({storage_of(t) for t in tensors}) == len(tensors):
        return [(i, *extent(t)) for i, t in enumerate(tensors)]
    number: list[tuple[int, int, int]] = [(-1, 0, 0)] * len(tensors)
    key = [(storage_of(t), str(t.dtype), *extent(t)) for t in tensors]
    order = sorted(range(len(tensors)), key=key.__getitem__)
    groups: list[list[int]] = []
    last: list[Any] = []
    end = -1
    for i in order:
        *kind, low, high = key[i]
        if kind != last or low >= end:
            groups.append([])
            end = high
        groups[-1].append(i)
        last, end = kind, max(end, high)
    for members in sorted(groups, key=min):
        low, high = min(key[i][-2] for i in members), max(key[i][-1] for i in members)
        for i in members:
            number[i] = (min(members), low, high)
    return number


@torch.no_grad()
def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors with their strides and overlaps, each stretch in memory of its own that begins with it."""
    flat: dict[int, Tensor] = {}
    found = []
    for t, (number, low, high) in zip(tensors, stretches(tensors), strict=True):
        base = t.detach()
        base = base.conj() if t.is_conj() else base
        base = _negated(base) if t.is_neg() else base
        if number not in flat:
            flat[number] = base.as_strided((high - low,), (1,), low).clone()
        copy = flat[number].as_strided(t.shape, t.stride(), t.storage_offset() - low)
        copy = _negated(copy) if t.is_neg() else copy
        found.append((copy.conj() if t.is_conj() else copy).requires_grad_(t.requires_grad))
    return found


def fills_its_memory(t: Tensor) -> bool:
    """Whether a tensor begins with its storage and ends with it."""
    low, high = extent(t)
    return low == 0 and high * t.element_size() == t.untyped_storage().nbytes()
