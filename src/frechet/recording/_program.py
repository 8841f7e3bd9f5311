"""Straight-line code that is written down while operations happen: which tensors they read, made and wrote into.

Tensors are told apart by storage, geometry and the bits that conjugate or negate them, so that views and writes in
place are told apart from copies. A tensor that the program did not make is a constant; what makes the constants may be
a program of its own, `before` this one. Where memory is read that no recorded operation has written
(`_uninitialized.py`), NumPy or other code has filled it: what it holds then becomes a constant, for it would hold
anything when it is played back.

**Source.** Partial evaluation of the tangent program, as in `_replay.py`.
**Cost**: some microseconds per operation, and the constants' memory where there is no program before this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from frechet.recording._copies import extent, place_of, storage_of
from frechet.recording._uninitialized import Uninitialized, leaves_uninitialized, overwrites

aten = torch.ops.aten
_PLAIN = Tensor.__dict__["__torch_dispatch__"]  # what classes of tensors have that dispatch nothing
_OF_ITS_OWN, _OF_ZEROS = -1, -2  # in place of a storage: that of a tensor that nothing writes into
# what these make of zeros is zero
_ZEROS = {aten.zeros.default, aten.mm.default, aten.bmm.default, aten.mul.Tensor}


class Untraceable(Exception):
    """A product that is not one fixed sequence of operations on its vector."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor that the program makes, or is given; `storage` is shared with its views."""

    index: int
    storage: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(eq=False)
class Constant:
    """A tensor that was there, or what the program before makes of it; a copy where that is about to be overwritten."""

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


@dataclass(frozen=True, eq=False)
class Call:
    """An operation that is about to be carried out on `args`, to be written down with `cells` in a program.

    `instead` is the operation that returns what `func` writes, where a constant is overwritten as a whole.
    """

    program: Program | None
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    written: list[Tensor] = field(default_factory=list)
    cells: tuple[Any, dict[str, Any]] = ((), {})
    instead: Any = None
    fill: tuple[float | None, ...] = ()  # what it fills a tensor with, where it does no more than that


class Program:
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
        before: Program | None = None,
        anew: bool = False,
    ) -> None:
        self.name, self.most, self.before, self.anew = name, most, before, anew
        # what is not made anew is read as it is: there, memory that others write is no danger
        self.uninitialized = Uninitialized() if anew else None if before is None else before.uninitialized
        self.blank = {_OF_ZEROS}  # storages that are known to hold zeros
        self.steps: list[Step] = []
        self.count, self.bytes = 0, 0
        self.slots: dict[tuple[Any, ...], Slot] = {}
        # storages that the program makes, each with the first tensor in it; the weak reference keeps the key from
        # being used for another storage
        self.made: dict[int, tuple[StorageWeakRef, Slot]] = {}
        self.flagged: set[int] = set()  # slots of tensors with a bit that conjugates or negates them
        self.captured: dict[int, list[Constant]] = {storage: [] for storage in apart}
        self.apart = frozenset(self.captured)
        self.inputs = [self._slot(t) for t in inputs]
        self.given = set(self.made)

    # --- one operation: announced, carried out by the caller, written down

    def announced(self, func: Any, shown: Any, args: Any, kwargs: dict[str, Any], written: list[Tensor]) -> Call:
        """An operation to be carried out on `args`, of which those `shown` may be symbolic zeros."""
        if any(storage_of(t) in self.given for t in written):
            raise Untraceable(f"{func} writes into {self.name}")
        fresh = [t for t in written if storage_of(t) not in self.made]
        whole = len(written) == 1 and bool(fresh) and written[0] is args[0] and _fills_its_storage(written[0])
        if whole and func is aten.copy_.default and look_of(args[1]) == look_of(args[0]):
            self.spare(args[0])
            self._fill(args[1])
            cells = (self.cell(shown[1]),), {"memory_format": torch.contiguous_format}
            return Call(self, func, args, kwargs, written, cells, aten.clone.default)  # vmap has no rule for copy
        instead = _functional(func) if whole else None
        overwritten = storage_of(written[0]) if instead is not None else None
        unread = {id(t) for t in overwrites(func, args, kwargs)}
        for t in fresh:
            self.spare(t)
            if instead is None:
                self._thaw(t)

        def cell(t: Tensor) -> Cell:  # what is there before it is overwritten is read then
            if id(t) not in unread and not func.is_view:
                self._fill(t)
            kept = not t._is_zerotensor() and storage_of(t) == overwritten
            return self._copy_of(t) if kept else self.cell(t)

        cells = mapped(cell, shown), {name: mapped(cell, a) for name, a in kwargs.items()}
        return Call(self, func, args, kwargs, written, cells, instead)

    def write(self, call: Call, returned: Any) -> None:
        """Write down an operation that was announced, and has `returned` this."""
        func, written = call.func, call.written
        if self.uninitialized is not None:
            for t in written:
                self.uninitialized.write(t, call.args[1] if func is aten.copy_.default else None)
        if call.instead is not None:  # a constant is overwritten: not in place, so that blocks can go through
            self.steps.append(Step(call.instead, *call.cells, [self._slot(written[0])]))
        elif torch.Tag.inplace_view in func.tags:  # unsqueeze_ and its like write a shape, not numbers
            self.steps.append(Step(_view_of(func), *call.cells, [self._slot(returned)]))
        elif written:
            self.blank -= {storage_of(t) for t in written}
            self.steps.append(Step(func, *call.cells, [], [self._slot(t) for t in written]))
        elif isinstance(returned, Tensor | tuple | list):  # else a number: of shapes and memory, or of what is fixed
            self._write_results(call, returned)

    def _write_results(self, call: Call, returned: Any) -> None:
        single = isinstance(returned, Tensor)
        results = [returned] if single else list(returned)
        if not all(r is None or (isinstance(r, Tensor) and is_ordinary(r)) for r in results):
            raise Untraceable(f"{call.func} returns more than tensors in ordinary memory")
        if any(self._views_a_constant(r, call.args) for r in results):
            return
        if leaves_uninitialized(call.func) and self.uninitialized is not None:
            self.uninitialized.add(returned)
        is_zeros = call.func is aten.zeros.default
        if call.func in _ZEROS and (is_zeros or any(map(self.is_zero, call.cells[0][:2]))):
            self.blank |= {storage_of(r) for r in results}
        if not (single and place_of(returned) in self.slots):  # an alias has its slot
            named = [None if r is None or r._is_zerotensor() else self._slot(r) for r in results]
            self.steps.append(Step(call.func, *call.cells, named, single=single))

    def filled(self, made: Tensor, number: float | None) -> None:
        """Write down how `made` is made anew, full of a number or of anything."""
        where = {"dtype": made.dtype, "device": made.device}
        shape, slot = list(made.shape), self._slot(made)
        if number == 0:
            self.blank.add(storage_of(made))
        if number is not None and made.is_contiguous():
            self.steps.append(Step(aten.full.default, (shape, number), where, [slot]))
            return
        self.steps.append(Step(aten.empty_strided.default, (shape, list(made.stride())), where, [slot]))
        if number is not None:
            self.steps.append(Step(aten.fill_.Scalar, (slot, number), {}, [], [slot]))
        elif self.uninitialized is not None:
            self.uninitialized.add(made)

    # --- tensors by name

    def is_zero(self, cell: Any) -> bool:
        """Whether a tensor is known to hold zeros, now."""
        return cell.zero if isinstance(cell, Constant) else isinstance(cell, Slot) and cell.storage in self.blank

    def result(self, t: Tensor) -> Cell:
        """How the program names a tensor that somebody reads in the end."""
        if not is_ordinary(t):
            raise Untraceable(f"the product is a {t.layout} tensor")
        self._fill(t)
        return self.cell(t)

    def cell(self, t: Tensor) -> Cell:
        """How the program names a tensor."""
        if t._is_zerotensor():
            if self.anew:
                return self.zeros(t)
            return Constant(self.before.zeros(t) if self.before else zeros(t), zero=True)
        key = storage_of(t)
        if key not in self.made:
            return self._constant(t, key)
        if place_of(t) not in self.slots:  # a view that was made where operations are not seen
            base = self.made[key][1]
            if key in self.given or t.is_conj() or t.is_neg() or base.dtype != t.dtype or base.index in self.flagged:
                raise Untraceable(f"a view of {self.name}, or of what is made of it, was made where it cannot be seen")
            geometry = (base, list(t.shape), list(t.stride()), t.storage_offset())
            self._add(aten.as_strided.default, *geometry, result=self._slot(t))
        return self.slots[place_of(t)]

    def _constant(self, t: Tensor, key: int) -> Constant:
        constant = Constant(t.detach())
        if self.before is not None:
            made = self.before.cell(t)
            constant = Constant(made, self.before.is_zero(made))
        known = self.captured.setdefault(key, [])
        if self.before is None and key not in self.apart:
            size = t.untyped_storage().nbytes()
            held = sum(_bytes_of(c.of) for c in known)
            self.bytes += max(0, min(size, held + _bytes_of(t)) - min(size, held))
            if self.bytes > self.most:
                raise MemoryError
        known.append(constant)
        return constant

    def _fill(self, t: Tensor) -> None:
        """Let memory that no recorded operation has written hold what it holds now: other code has filled it."""
        if self.uninitialized is None or t._is_zerotensor() or not self.uninitialized.holds(t):
            return
        if not self.anew:
            if storage_of(t) in self.made or self.before is None:
                raise Untraceable(f"memory that depends on {self.name} is read before it is written")
            self.before._fill(t)
            return
        slot = self.cell(t)
        assert isinstance(slot, Slot)  # only what the program makes is known to be unwritten
        self.blank.discard(storage_of(t))
        self.steps.append(Step(aten.copy_.default, (slot, Constant(t.detach().clone())), {}, [], [slot]))
        self.uninitialized.write(t)

    def _views_a_constant(self, result: Tensor | None, args: tuple[Any, ...]) -> bool:
        if result is None or result._is_zerotensor() or storage_of(result) in self.made:
            return False
        return any(not t._is_zerotensor() and storage_of(t) == storage_of(result) for t in tensors_in(args))

    # --- constants that are overwritten

    def spare(self, t: Tensor) -> None:
        """Copy what was read of a storage, made before or elsewhere, that is about to be overwritten."""
        for constant in self.captured.pop(storage_of(t), []):
            constant.of = constant.of.clone() if isinstance(constant.of, Tensor) else self._copied(constant.of)
        if self.before is not None:
            self.before.spare(t)

    def _copy_of(self, t: Tensor) -> Constant:
        """The present numbers of a tensor that the program does not make."""
        if self.before is not None:
            return Constant(self.before.copied(self.before.cell(t)))
        cell = self.cell(t.clone())
        assert isinstance(cell, Constant)
        return cell

    def copied(self, cell: Cell) -> Slot:
        """A copy of what the program makes, as it is now."""
        return self._add(aten.clone.default, cell, result=self.anonymous(*look_of(cell)))

    def _copied(self, of: Slot | Constant) -> Slot:
        assert self.before is not None  # else constants are tensors
        return self.before.copied(of)

    def _thaw(self, t: Tensor) -> None:
        """Let a constant storage, about to receive something that the program made, be made by it from now on."""
        if t.is_conj() or t.is_neg():
            raise Untraceable(f"a conjugated or negated view receives what depends on {self.name}")
        size = t.untyped_storage().nbytes() // t.element_size()
        whole = t.detach().as_strided((size,), (1,), 0)
        before = self._copy_of(whole)
        self._add(aten.clone.default, before, result=self._slot(whole))

    # --- slots

    def zeros(self, t: Tensor) -> Slot:
        """Memory for a symbolic zero."""
        slot = self.anonymous(t.shape, t.dtype, _OF_ZEROS)
        self.steps.append(Step(aten.zeros.default, (list(t.shape),), {"dtype": t.dtype, "device": t.device}, [slot]))
        return slot

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
            if t.is_conj() or t.is_neg():
                self.flagged.add(slot.index)
            if place[0] not in self.made:
                self.made[place[0]] = (StorageWeakRef(t.untyped_storage()), slot)
        return slot


def is_ordinary(t: Tensor) -> bool:
    """Whether a tensor is numbers in strided memory of its own kind, and no wrapper of others."""
    strided = t.layout is torch.strided and not t.is_quantized and not t.is_nested
    return strided and getattr(type(t), "__torch_dispatch__", _PLAIN) is _PLAIN


def zeros(t: Tensor) -> Tensor:
    """Memory for a symbolic zero."""
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device)


def _bytes_of(t: Any) -> int:
    if not isinstance(t, Tensor):
        return 0
    low, high = extent(t)
    return (high - low) * t.element_size()


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
    return [a for a in _leaves(nested) if isinstance(a, Tensor)]


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
