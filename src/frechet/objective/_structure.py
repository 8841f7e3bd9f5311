"""Nested structures of tensors: what a batch holds and what a model returns.

A structure is a tensor, or a dict, list, tuple, named tuple, dataclass or torch distribution of structures; anything
else in it is kept as it is. Mappings of other classes (tokenizers' batches) become dicts where they are rebuilt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.nn.utils.rnn import PackedSequence

from frechet.objective._attributes import Left


def is_record(tree: object) -> bool:
    """Whether this is an instance of a dataclass, and no mapping (transformers' outputs are both)."""
    return is_dataclass(tree) and not isinstance(tree, type | Mapping)


def is_distribution(tree: object) -> bool:
    """Whether this is one of torch's distributions, or a transformation in one: a structure of its attributes."""
    return isinstance(tree, Distribution | Transform)


def mapped(tree: Any, act: Callable[[Any], Any]) -> Any:
    """The structure with `act(leaf)` in the place of every leaf."""
    if isinstance(tree, Mapping):
        return {key: mapped(value, act) for key, value in tree.items()}
    if isinstance(tree, PackedSequence):
        order = [None if i is None else act(i) for i in (tree.sorted_indices, tree.unsorted_indices)]
        # the lengths stay on the processor, where recurrent layers read them
        return PackedSequence(act(tree.data), tree.batch_sizes, *order)
    if isinstance(tree, tuple | list):
        found = [mapped(value, act) for value in tree]
        if type(tree) in (tuple, list):
            return type(tree)(found)
        return type(tree)(*found) if hasattr(tree, "_fields") else type(tree)(found)
    if is_record(tree):
        made = copy.copy(tree)
        for slot in fields(tree):
            object.__setattr__(made, slot.name, mapped(getattr(tree, slot.name), act))
        return made
    if is_distribution(tree):
        made = copy.copy(tree)
        made.__dict__.update({name: mapped(value, act) for name, value in tree.__dict__.items()})
        return made
    return act(tree)


def leaves_of(tree: Any) -> Iterator[Any]:
    """The leaves of a structure in order."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves_of(value)
    elif isinstance(tree, PackedSequence):
        yield from (p for p in (tree.data, tree.sorted_indices, tree.unsorted_indices) if p is not None)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves_of(value)
    elif is_record(tree):
        for slot in fields(tree):
            yield from leaves_of(getattr(tree, slot.name))
    elif is_distribution(tree):
        for value in tree.__dict__.values():
            yield from leaves_of(value)
    else:
        yield tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a structure in order."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]


def fresh(tree: Any) -> Any:
    """The structure with copies of its tensors, so that whoever takes it may write into them.

    Tensors of which several entries are one number in memory (`expand`) are no copies: torch refuses to write there.
    """
    return mapped(tree, _copied)


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    strided = leaf.layout is torch.strided
    if strided and any(step == 0 and size > 1 for step, size in zip(leaf.stride(), leaf.shape, strict=True)):
        return leaf
    return leaf.clone()


def examples_of(inputs: Any, targets: Any = None) -> int:
    """The number of examples of a batch: the length of the example axis (axis 0) of its targets, or of its inputs.

    A list whose items are no tensors with an axis (dicts, tuples, numbers) has one item for each example. A list of
    tensors has too, where the inputs have as many examples as the list has items and the tensors do not.
    """
    known = _examples(inputs, None)
    found = _examples(targets, known)
    return found if found is not None else known if known is not None else 1


def _examples(tree: Any, known: int | None) -> int | None:
    if isinstance(tree, Tensor):
        return int(tree.shape[0]) if tree.ndim else None
    if isinstance(tree, PackedSequence):
        return int(tree.batch_sizes[0])
    if isinstance(tree, list) and tree and not all(isinstance(item, Tensor) and item.ndim for item in tree):
        kinds = {type(item) for item in tree}
        if len(kinds) == 1 and not isinstance(tree[0], list):
            return len(tree)
    items: list[Any] = []
    if isinstance(tree, Mapping):
        items = list(tree.values())
    elif isinstance(tree, tuple | list):
        items = list(tree)
    elif is_record(tree):
        items = [getattr(tree, slot.name) for slot in fields(tree)]
    found = [size for size in (_examples(item, known) for item in items) if size is not None]
    if known is not None and found and isinstance(tree, list) and len(tree) == known and known not in found:
        return known  # one ragged tensor for each example
    if known is not None and known in found:
        return known
    return found[0] if found else None


def is_cut(tree: Any, size: int) -> bool:
    """Whether a list has one item for each of `size` examples."""
    if not isinstance(tree, list) or len(tree) != size or len({type(item) for item in tree}) > 1:
        return False
    return not any(isinstance(item, Tensor) and item.ndim and len(item) == size for item in tree)


def has_rows(tree: Any, size: int) -> bool:
    """Whether some part of a structure has one row, or one item, for each of `size` examples."""
    if isinstance(tree, PackedSequence):
        return False
    if isinstance(tree, Tensor):
        return not tree.is_nested and bool(tree.ndim) and len(tree) == size
    if is_cut(tree, size):
        return True
    if isinstance(tree, Mapping):
        return any(has_rows(value, size) for value in tree.values())
    if isinstance(tree, tuple | list):
        return any(has_rows(item, size) for item in tree)
    return is_record(tree) and any(has_rows(getattr(tree, slot.name), size) for slot in fields(tree))


def rows_of(tree: Any, rows: slice, size: int) -> Any:
    """The given examples of a structure that holds `size` of them; what belongs to no example stays whole."""
    if isinstance(tree, PackedSequence) or (isinstance(tree, Tensor) and tree.is_nested):
        kind = "PackedSequence" if isinstance(tree, PackedSequence) else "nested tensor"
        raise TypeError(
            f"Objective: a {kind} cannot be cut into examples; give padded tensors, or batches of one example each"
        )
    if isinstance(tree, Mapping):
        return {key: rows_of(value, rows, size) for key, value in tree.items()}
    if is_cut(tree, size):
        return tree[rows]
    if isinstance(tree, tuple | list) or is_record(tree):
        return _each(tree, lambda item: rows_of(item, rows, size))
    return tree[rows] if isinstance(tree, Tensor) and tree.ndim and len(tree) == size else tree


def _each(tree: Any, act: Callable[[Any], Any]) -> Any:
    """A tuple, list or record with `act` applied to its items."""
    if is_record(tree):
        made = copy.copy(tree)
        for slot in fields(tree):
            object.__setattr__(made, slot.name, act(getattr(tree, slot.name)))
        return made
    found = [act(item) for item in tree]
    return type(tree)(*found) if hasattr(tree, "_fields") else type(tree)(found)


@dataclass(eq=False)
class Layout:
    """How the tensors that a model returned lie in one real tensor, on which derivatives act.

    `like` is None where the model returned one real tensor, which then is that tensor.
    """

    like: Any = None
    shapes: tuple[torch.Size, ...] = ()  # of the real tensors in their order, complex ones with a last axis of 2
    order: tuple[int, ...] = ()  # which of them stands at each place of the structure
    rowwise: bool = False  # the real tensor has one row for each example
    left: Left = field(default_factory=Left)  # what the pass left in attributes of the model

    def pack(self, tree: Any) -> Tensor:
        """The real tensor: as it is, or all tensors side by side, ``(examples, m)`` where they agree on axis 0."""
        if isinstance(tree, Tensor) and not tree.is_complex():
            self.like = None
            return tree
        moving = [t for t in tensors_of(tree) if _moves(t)]
        once = {id(t): t for t in moving}  # one tensor may stand at several places
        self.order = tuple(list(once).index(id(t)) for t in moving)
        reals = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in once.values()]
        if not reals:
            raise TypeError(
                "Objective: the model must return a tensor, a tuple, list, dict, dataclass or torch distribution of "
                f"tensors, or something with .logits, got {type(tree).__name__}; wrap it in a module that returns what "
                "the criterion takes"
            )
        self.like, self.shapes = mapped(tree, _slot), tuple(t.shape for t in reals)
        if isinstance(tree, Tensor):
            self.rowwise = bool(tree.ndim)
            return reals[0]
        sizes = {t.shape[0] if t.ndim else None for t in reals}
        self.rowwise = len(sizes) == 1 and None not in sizes
        if self.rowwise and len(reals) == 1:
            return reals[0]
        return torch.cat([t.flatten(1) if self.rowwise and t.ndim > 1 else self._column(t) for t in reals], -1)

    @property
    def of_logits(self) -> bool:
        """Whether the real tensor is what the structure calls its logits, which are all that it holds."""
        return len(self.shapes) == 1 and isinstance(getattr(self.like, "logits", None), Tensor) and self.rowwise

    def _column(self, t: Tensor) -> Tensor:
        return t.reshape(len(t), 1) if self.rowwise else t.reshape(-1)

    def unpack(self, y: Tensor) -> Any:
        """What the model returned, from the real tensor."""
        if isinstance(self.like, Tensor):
            return torch.view_as_complex(y.contiguous())
        alone = self.rowwise and len(self.shapes) == 1
        pieces, a = [y] if alone else [], 0
        for shape in () if alone else self.shapes:
            width = shape[1:].numel() if self.rowwise else shape.numel()
            piece = y[..., a : a + width]
            pieces.append(piece.reshape(len(y), *shape[1:]) if self.rowwise else piece)
            a += width
        left = iter(self.order)

        def put(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not _moves(leaf):
                return leaf
            number = next(left)
            piece, shape = pieces[number], self.shapes[number]
            piece = piece if self.rowwise else piece.view(shape)
            return torch.view_as_complex(piece.contiguous()) if leaf.is_complex() else piece

        return mapped(self.like, put)


def _slot(leaf: Any) -> Any:
    """An empty tensor in the place of one that moves, which would be held with its graph."""
    return torch.empty(0, dtype=leaf.dtype) if isinstance(leaf, Tensor) and _moves(leaf) else leaf


def _moves(t: Tensor) -> bool:
    """Whether a tensor that a model returned can depend on its parameters."""
    return t.is_floating_point() or t.is_complex()
