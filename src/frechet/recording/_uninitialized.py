"""Memory that an operation returns without writing it, and which of its elements have been written since.

Code outside of PyTorch, such as NumPy, may write it unseen: then a recording would play back whatever the allocator
hands out, which may even be right for a while. So nothing of it is read before a recorded write, element by element;
and while a recording is proved, such memory is filled with NaN, or with the largest whole number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frechet.objective._torch_internals import TorchDispatchMode
from frechet.recording._copies import storage_of

_EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "empty_quantized"}
_OVERWRITING = {"fill_", "zero_"}


def leaves_uninitialized(func: Any) -> bool:
    """Whether an operation returns memory that it has not written."""
    return func.namespace == "aten" and func._opname in _EMPTY


def overwrites(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments whose numbers an operation replaces without reading them."""
    if func.namespace != "aten" or not func._schema.is_mutable:
        return []
    if func._opname == "copy_":  # what is not written stays so where it is copied to
        return [args[0], args[1]]
    if func._opname in _OVERWRITING:
        return [args[0]]
    outs = [kwargs.get(a.name) for a in func._schema.arguments if a.is_out]
    return [t for t in outs if isinstance(t, Tensor)]


class Uninitialized:
    """Storages with elements that nobody has written, each with the flags of those that have been."""

    def __init__(self) -> None:
        self.written: dict[int, tuple[int, Tensor]] = {}  # with the bytes of an element

    def add(self, t: Tensor) -> None:
        size = t.element_size()
        self.written[storage_of(t)] = size, torch.zeros(t.untyped_storage().nbytes() // size, dtype=torch.bool)

    def write(self, t: Tensor, source: Tensor | None = None) -> None:
        """Note that all elements of a tensor are written, or those that are so in the `source` of a copy."""
        flags = None if source is None or not self.holds(source) else self._flags(source)
        if flags is not None and storage_of(t) not in self.written:
            self.add(t)
            self.written[storage_of(t)][1].fill_(True)
        size, written = self.written.get(storage_of(t), (0, None))
        if written is not None and size == t.element_size():
            _seen_as(t, written).copy_(torch.tensor(True) if flags is None else flags)
            if bool(written.all()):
                del self.written[storage_of(t)]

    def _flags(self, t: Tensor) -> Tensor:
        size, written = self.written[storage_of(t)]
        return _seen_as(t, written) if size == t.element_size() else torch.zeros(t.shape, dtype=torch.bool)

    def holds(self, t: Tensor) -> bool:
        """Whether elements of a tensor are not known to be written."""
        return storage_of(t) in self.written and not bool(self._flags(t).all())


def _seen_as(t: Tensor, flags: Tensor) -> Tensor:
    return flags.as_strided(t.shape, t.stride(), t.storage_offset())


class FilledWithNaN(TorchDispatchMode):
    """Inside, memory that operations leave uninitialized holds NaN, or the largest whole number."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch would load its compiler, for a second or two, to keep it out of here
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if leaves_uninitialized(func):
            if made.is_floating_point() or made.is_complex():
                made.fill_(torch.nan)
            elif made.dtype is not torch.bool and made.device.type == "cpu":  # elsewhere such an index ends the context
                made.fill_(torch.iinfo(made.dtype).max)
        return made
