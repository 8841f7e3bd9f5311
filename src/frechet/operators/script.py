"""Straight-line code that is written down while operations happen: which tensors they read, made and wrote into.

Tensors are told apart by storage, so that views and writes in place are told apart from copies. A tensor that the
script did not make is a constant; what makes the constants may be a script of its own, `before` this one.

**Source.** Partial evaluation of the tangent program, as in `tape.py`.
**Cost**: some microseconds per operation, and the constants' memory where there is no script before this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

aten = torch.ops.aten
_OF_ITS_OWN, _OF_ZEROS = -1, -2  # in place of a storage: that of a tensor that nothing writes into
# what these make of zeros is zero
_ZEROS = {aten.zeros.default, aten.mm.default, aten.bmm.default, aten.mul.Tensor}


class Untraceable(Exception):
    """A product that is not one fixed sequence of operations on its vector."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor that the script makes, or is given; `storage` is shared with its views."""

    index: int
    storage: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(eq=False)
class Constant:
    """A tensor that was there, or what the script before makes of it; a copy where that is about to be overwritten."""

    of: Tensor | Slot | Constant
    zero: bool = False


Cell = Slot | Constant


def look_of(cell: Cell | Tensor) -> tuple[torch.Size, torch.dtype]:
    """Shape and dtype."""
    return look_of(cell.of) if isinstance(cell, Constant) else (cell.shape, cell.dtype)


@dataclass(frozen=True, eq=False)
class Step:
    operation: Any
    args: Any  # nested as they were given, tensors as slots and constants
    kwargs: dict[str, Any]
    results: list[Slot | None]
    writes: list[Slot] = field(default_factory=list)
    single: bool = True  # one tensor is returned, and not a tuple or list of them

    @property
    def reads(self) -> list[Slot]:
        return [a for a in _leaves((*self.args, *self.kwargs.values())) if isinstance(a, Slot)]


class Script:
    """The operations on `inputs` and on whatever is made of them; `name` says what these are, for errors.

    MemoryError where constants that were there, but for those in the storages `apart`, exceed `most` bytes. `anew` says
    that all operations are written down, also those that make something of nothing.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        name: str,
        most: float,
        apart: Iterable[int],
        *,
        before: Script | None = None,
        anew: bool = False,
    ) -> None:
        self.name, self.most, self.before, self.anew = name, most, before, anew
        self.blank = {_OF_ZEROS}  # storages that are known to hold zeros
        self.steps: list[Step] = []
        self.count, self.bytes = 0, 0
        self.slots: dict[tuple[Any, ...], Slot] = {}
        # storages that the script makes, each with its first slot; the weak reference keeps the key from being used
        # for another storage
        self.made: dict[int, tuple[StorageWeakRef, Slot]] = {}
        self.captured: dict[int, list[Constant]] = {storage: [] for storage in apart}
        self.inputs = [self._slot(t) for t in inputs]
        self.given = set(self.made)

    def write(self, func: Any, shown: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Any:
        """Carry out an operation on `args` and write it down with the arguments `shown`; returns what it returns."""
        if any(storage_of(t) in self.given for t in written):
            raise Untraceable(f"{func} writes into {self.name}")
        fresh = [t for t in written if storage_of(t) not in self.made]
        whole = len(written) == 1 and bool(fresh) and written[0] is args[0] and _fills_its_storage(written[0])
        operation = _functional(func) if whole else None
        overwritten = storage_of(written[0]) if operation is not None else None
        for t in fresh:
            self.spare(t)
            if operation is None:
                self._thaw(t)

        def cell(t: Tensor) -> Cell:  # the tape reads what is there before it is overwritten
            kept = not t._is_zerotensor() and storage_of(t) == overwritten
            return self._copy_of(t) if kept else self.cell(t)

        cells = mapped(cell, shown), {name: mapped(cell, a) for name, a in kwargs.items()}
        if operation is not None:  # a constant is overwritten: not in place, so that blocks can go through
            returned = func(*args, **kwargs)
            self.steps.append(Step(operation, *cells, [self._slot(written[0])]))
            return returned
        returned = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:  # unsqueeze_ and its like write a shape, not numbers
            self.steps.append(Step(_view_of(func), *cells, [self._slot(returned)]))
            return returned
        if written:
            self.blank -= {storage_of(t) for t in written}
            self.steps.append(Step(func, *cells, [], [self._slot(t) for t in written]))
            return returned
        single = isinstance(returned, Tensor)
        if not single and not isinstance(returned, tuple | list):
            return returned  # a number: of shapes and memory, or of what is fixed
        results = [returned] if single else list(returned)
        if not all(isinstance(r, Tensor | None) for r in results):
            raise Untraceable(f"{func} returns more than tensors for a tensor that depends on {self.name}")
        if any(self._views_a_constant(r, args) for r in results):
            return returned
        if func in _ZEROS and (func is aten.zeros.default or any(map(self.is_zero, cells[0][:2]))):
            self.blank |= {storage_of(r) for r in results}
        if not (single and place_of(returned) in self.slots):  # an alias has its slot
            named = [None if r is None or r._is_zerotensor() else self._slot(r) for r in results]
            self.steps.append(Step(func, *cells, named, single=single))
        return returned

    def filled(self, made: Tensor, number: float | None) -> Tensor:
        """Write down how `made` is made anew, full of a number or of anything; returns it."""
        where = {"dtype": made.dtype, "device": made.device}
        shape, slot = list(made.shape), self._slot(made)
        if number == 0:
            self.blank.add(storage_of(made))
        if number is not None and made.is_contiguous():
            self.steps.append(Step(aten.full.default, (shape, number), where, [slot]))
            return made
        self.steps.append(Step(aten.empty_strided.default, (shape, list(made.stride())), where, [slot]))
        if number is not None:
            self.steps.append(Step(aten.fill_.Scalar, (slot, number), {}, [], [slot]))
        return made

    def _views_a_constant(self, result: Tensor | None, args: tuple[Any, ...]) -> bool:
        if result is None or result._is_zerotensor() or storage_of(result) in self.made:
            return False
        return any(not t._is_zerotensor() and storage_of(t) == storage_of(result) for t in tensors_in(args))

    def is_zero(self, cell: Any) -> bool:
        """Whether a tensor is known to hold zeros, now."""
        return cell.zero if isinstance(cell, Constant) else isinstance(cell, Slot) and cell.storage in self.blank

    def cell(self, t: Tensor) -> Cell:
        """How the script names a tensor."""
        if t._is_zerotensor():
            return (
                self.zeros(t) if self.anew else Constant(self.before.zeros(t) if self.before else zeros(t), zero=True)
            )
        key = storage_of(t)
        if key not in self.made:
            constant = Constant(t.detach())
            if self.before is not None:
                made = self.before.cell(t)
                constant = Constant(made, self.before.is_zero(made))
            if key not in self.captured:
                self.captured[key] = []
                self.bytes += t.untyped_storage().nbytes() if self.before is None else 0
                if self.bytes > self.most:
                    raise MemoryError
            self.captured[key].append(constant)
            return constant
        if place_of(t) not in self.slots:  # a view that was made where operations are not seen
            if key in self.given:
                raise Untraceable(f"a view of {self.name} was made where it cannot be seen")
            base = self.made[key][1]
            geometry = (base, list(t.shape), list(t.stride()), t.storage_offset())
            self._add(aten.as_strided.default, *geometry, result=self._slot(t))
        return self.slots[place_of(t)]

    def spare(self, t: Tensor) -> None:
        """Copy what was read of a storage, made before or elsewhere, that is about to be overwritten."""
        for constant in self.captured.pop(storage_of(t), []):
            constant.of = constant.of.clone() if isinstance(constant.of, Tensor) else self._copied(constant.of)
        if self.before is not None:
            self.before.spare(t)

    def _copy_of(self, t: Tensor) -> Constant:
        """The present numbers of a tensor that the script does not make."""
        if self.before is not None:
            return Constant(self.before.copied(self.before.cell(t)))
        cell = self.cell(t.clone())
        assert isinstance(cell, Constant)
        return cell

    def copied(self, cell: Cell) -> Slot:
        """A copy of what the script makes, as it is now."""
        return self._add(aten.clone.default, cell, result=self.anonymous(*look_of(cell)))

    def _copied(self, of: Slot | Constant) -> Slot:
        assert self.before is not None  # else constants are tensors
        return self.before.copied(of)

    def zeros(self, t: Tensor) -> Slot:
        """Memory for a symbolic zero."""
        slot = self.anonymous(t.shape, t.dtype, _OF_ZEROS)
        self.steps.append(Step(aten.zeros.default, (list(t.shape),), {"dtype": t.dtype, "device": t.device}, [slot]))
        return slot

    def _thaw(self, t: Tensor) -> None:
        """Let a constant storage, about to receive something that the script made, be made by it from now on."""
        size = t.untyped_storage().nbytes() // t.element_size()
        whole = t.detach().as_strided((size,), (1,), 0)
        before = self._copy_of(whole)
        self._add(aten.clone.default, before, result=self._slot(whole))

    def _add(self, operation: Any, *args: Any, result: Slot) -> Slot:
        self.steps.append(Step(operation, args, {}, [result]))
        return result

    def anonymous(self, shape: torch.Size, dtype: torch.dtype, storage: int = _OF_ITS_OWN) -> Slot:
        """A new slot; of no storage that anything else could share."""
        self.count += 1
        return Slot(self.count - 1, storage, shape, dtype)

    def _slot(self, t: Tensor) -> Slot:
        place = place_of(t)
        slot = self.slots.get(place)
        if slot is None:
            slot = self.slots[place] = self.anonymous(t.shape, t.dtype, place[0])
            if place[0] not in self.made:
                self.made[place[0]] = (StorageWeakRef(t.untyped_storage()), slot)
        return slot


def storage_of(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def place_of(t: Tensor) -> tuple[Any, ...]:
    """Two tensors with the same place are the same numbers."""
    return (storage_of(t), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


def zeros(t: Tensor) -> Tensor:
    """Memory for a symbolic zero."""
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device)


def _leaves(nested: Any) -> Iterator[Any]:
    for a in nested:
        if isinstance(a, list | tuple):
            yield from _leaves(a)
        else:
            yield a


def mapped(f: Callable[[Tensor], Any], nested: Any) -> Any:
    """`nested` with f of every tensor in it; operations take nothing but lists and tuples of tensors."""
    if isinstance(nested, Tensor):
        return f(nested)
    if isinstance(nested, list | tuple):
        return type(nested)([mapped(f, a) for a in nested])
    return nested


def tensors_in(*nested: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for a in nested:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, list | tuple):
            found += tensors_in(*a)
    return found


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into."""
    found: list[Tensor] = []
    for i, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            found += tensors_in(args[i] if i < len(args) else kwargs.get(a.name))
    return found


def _fills_its_storage(t: Tensor) -> bool:
    return t.is_contiguous() and t.numel() * t.element_size() == t.untyped_storage().nbytes()


def _functional(func: Any) -> Any:
    """The operation that returns what `func` writes into its first argument; None where there is none of that name."""
    name = func._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") and not name.endswith("__") else None
    return getattr(packet, func._overloadname, None)


def _view_of(func: Any) -> Any:
    """The operation that returns the view which `func` makes of a tensor in place."""
    packet = getattr(aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
    view = getattr(packet, func._overloadname, None) or getattr(packet, "int", None)  # transpose_ is transpose.int
    if view is None or view._schema.returns[0].alias_info is None:
        raise Untraceable(f"{func} changes the memory of a tensor that depends on the vector")
    return view
