"""What a recording depends on beside the numbers in a batch's tensors, and batches in memory of their own.

A model may decide by the structure of a batch (which keys, in which order, how nested), by shapes, dtypes, strides, by
which tensors overlap, by bits of conjugation and negation, by what requires grad, and by Python's values: their type
and value count, so that True is not 1. Other objects are the same only where they are identical.

Where a tensor begins in its storage does not count: products are recorded and played back on tensors that begin theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frechet.objective._torch_internals import tree_flatten, tree_map, tree_unflatten
from frechet.recording._copies import copies, fills_its_memory, stretches
from frechet.recording._program import Untraceable, is_ordinary

_VALUES = (bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True, eq=False)
class Look:
    """What a recording depends on: the tree of a batch, its leaves, and the objects among them."""

    tree: Any
    keys: str  # of mappings: by their text, as True == 1
    leaves: tuple[Any, ...]
    objects: tuple[Any, ...]

    def same_form(self, other: Look) -> bool:
        """Whether all but the identity of objects agrees."""
        return (self.keys, self.leaves) == (other.keys, other.leaves) and self.tree == other.tree

    def same(self, other: Look) -> bool:
        return self.same_form(other) and all(a is b for a, b in zip(self.objects, other.objects, strict=True))

    @property
    def shapes(self) -> list[tuple[Any, ...]]:
        """Shape and dtype of the tensors."""
        return [leaf[1:3] for leaf in self.leaves if leaf[0] is Tensor]


def seen(tree: Any) -> tuple[Look, list[Tensor]]:
    """What a recording with a batch depends on, and its tensors; Untraceable where these are not recorded."""
    leaves, spec = tree_flatten(tree)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for t in tensors:
        _refuse(t)
    places = iter(zip(tensors, stretches(tensors), strict=True))
    described, objects = [], []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            t, (number, low, _) = next(places)
            where = (t.stride(), t.storage_offset() - low, number, t.device)
            bits = (t.is_conj(), t.is_neg(), t.requires_grad, t.is_leaf)
            described.append((Tensor, tuple(t.shape), t.dtype, *where, *bits))
        elif type(leaf) in _VALUES or isinstance(leaf, np.generic):
            described.append((type(leaf), repr(leaf)))
        else:
            described.append((type(leaf),))
            objects.append(leaf)
    return Look(spec, repr(spec), tuple(described), tuple(objects)), tensors


def _refuse(t: Tensor) -> None:
    if type(t) is not Tensor or not is_ordinary(t):
        raise Untraceable(f"its batch holds a tensor of type {type(t).__name__}, layout {t.layout}")
    if any(name is not None for name in getattr(t, "names", ())) or t.__dict__:
        raise Untraceable("its batch holds a tensor with names or attributes")


def begun_anew(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors that begin their storages: copies, where they do not yet."""
    return tensors if all(map(fills_its_memory, tensors)) else copies(tensors)


def own(tree: Any) -> tuple[Any, list[Tensor]]:
    """A copy of a batch, and its tensors, which begin their storages."""
    leaves, spec = tree_flatten(tree)
    copied = copies([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    at = iter(copied)
    return tree_unflatten([next(at) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec), copied


def without_numbers(tree: Any) -> Any:
    """A batch of the same form that holds no memory."""
    return tree_map(lambda t: t.new_zeros([1] * t.ndim).expand(t.shape) if isinstance(t, Tensor) else t, tree)
