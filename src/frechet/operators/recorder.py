"""Every operation that PyTorch carries out on a vector, and on whatever is made from it, as it happens.

While a product is computed, the operations that read the vector, or something made from it, are written down; what they
read of everything else are constants. It is watched below autograd, by storage, so that views and writes in place are
told apart from copies.

What cannot be recorded raises `Untraceable`: control flow or random numbers that depend on the vector, writing into it.

Cost: the product, and some microseconds per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Map = Callable[[list[Tensor]], list[Tensor]]

aten = torch.ops.aten
# what these return does not depend on the values of what they are given
_SHAPE_ONLY = {
    getattr(aten, name).default
    for name in (
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
        "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided",
    )
}  # fmt: skip
_READS_VALUES = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default}


class Untraceable(Exception):
    """A product that is not one fixed sequence of operations on its vector."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor that depends on the vector; `storage` is shared with its views."""

    index: int
    storage: int


@dataclass(eq=False)
class Constant:
    tensor: Tensor  # exchanged for a copy where the original is about to be overwritten


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


def storage_of(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def place_of(t: Tensor) -> tuple[Any, ...]:
    """Two tensors with the same place are the same numbers."""
    return (storage_of(t), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


def _leaves(nested: Any) -> Iterator[Any]:
    for a in nested:
        if isinstance(a, list | tuple):
            yield from _leaves(a)
        else:
            yield a


def _mapped(f: Callable[[Tensor], Any], nested: Any) -> Any:
    """`nested` with f of every tensor in it; operations take nothing but lists and tuples of tensors."""
    if isinstance(nested, Tensor):
        return f(nested)
    if isinstance(nested, list | tuple):
        return type(nested)([_mapped(f, a) for a in nested])
    return nested


def _tensors(*nested: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for a in nested:
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, list | tuple):
            found += _tensors(*a)
    return found


class Recorder(TorchDispatchMode):
    """Writes down the operations on whatever shares storage with the vector or was made from it."""

    def __init__(self, vector: Sequence[Tensor], most: float) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.slots: dict[tuple[Any, ...], Slot] = {}
        # storages that depend on the vector, each with its first slot; the weak reference keeps the key from being
        # used for another storage
        self.moving: dict[int, tuple[StorageWeakRef, Slot]] = {}
        self.captured: dict[int, list[Constant]] = {}
        self.bytes, self.most = 0, most
        self.vector = [self._slot(t) for t in vector]
        self.given = set(self.moving)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._seen(func, args, kwargs or {})

    def _seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = _tensors(args, list(kwargs.values())) if kwargs else _tensors(args)
        mutable = func._schema.is_mutable
        zero = moving = False
        for t in tensors:
            zero = zero or t._is_zerotensor()
            moving = moving or t.untyped_storage()._cdata in self.moving
        if not (zero or mutable or moving):
            return func(*args, **kwargs)
        if zero:  # torch's symbolic zeros have no memory behind them
            if mutable and any(t._is_zerotensor() for t in _written(func, args, kwargs)):
                raise Untraceable(f"{func} writes into a symbolic zero")
            args = _mapped(lambda t: _zeros(t) if t._is_zerotensor() else t, args)
            tensors = _tensors(args, list(kwargs.values()))
        written = _written(func, args, kwargs) if mutable else []
        if func in _SHAPE_ONLY or not any(storage_of(t) in self.moving for t in tensors):
            for t in written:
                self._spare(t)
            return func(*args, **kwargs)
        if func in _READS_VALUES:
            raise Untraceable(f"{func} reads values that depend on the vector")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"{func} draws random numbers for a tensor that depends on the vector")
        for t in written:
            if storage_of(t) in self.given:
                raise Untraceable(f"{func} writes into the vector")
        fresh = [t for t in written if storage_of(t) not in self.moving]
        whole = len(written) == 1 and bool(fresh) and written[0] is args[0] and _fills_its_storage(written[0])
        result = _functional(func) if whole else None
        read = args
        for t in fresh:
            self._spare(t)
            if result is None:
                self._thaw(t)
            else:  # the tape reads what is there before it is overwritten
                overwritten = storage_of(t)
                read = _mapped(lambda a, key=overwritten: a.clone() if storage_of(a) == key else a, args)
        cells = _mapped(self.cell, read), {name: _mapped(self.cell, a) for name, a in kwargs.items()}
        if result is not None:  # a constant is overwritten: not in place, so that blocks can go through
            returned = func(*args, **kwargs)
            self.steps.append(Step(result, *cells, [self._slot(written[0])]))
            return returned
        returned = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:  # unsqueeze_ and its like write a shape, not numbers
            self.steps.append(Step(_view_of(func), *cells, [self._slot(returned)]))
            return returned
        if written:
            self.steps.append(Step(func, *cells, [], [self._slot(t) for t in written]))
            return returned
        single = isinstance(returned, Tensor)
        if not single and not isinstance(returned, tuple | list):
            return returned  # a fact about shapes and memory
        results = [returned] if single else list(returned)
        if not all(isinstance(r, Tensor | None) for r in results):
            raise Untraceable(f"{func} returns more than tensors for a tensor that depends on the vector")
        if not (single and place_of(returned) in self.slots):  # an alias has its slot
            named = [None if r is None or r._is_zerotensor() else self._slot(r) for r in results]
            self.steps.append(Step(func, *cells, named, single=single))
        return returned

    def cell(self, t: Tensor) -> Slot | Constant:
        """How the tape names a tensor."""
        if t._is_zerotensor():
            return Constant(_zeros(t))
        key = storage_of(t)
        if key not in self.moving:
            constant = Constant(t.detach())
            if key not in self.captured:
                self.captured[key] = []
                self.bytes += t.untyped_storage().nbytes()
                if self.bytes > self.most:
                    raise MemoryError
            self.captured[key].append(constant)
            return constant
        if place_of(t) not in self.slots:  # a view that was made where operations are not seen
            if key in self.given:
                raise Untraceable("a view of the vector was made where it cannot be seen")
            base = self.moving[key][1]
            geometry = (base, list(t.shape), list(t.stride()), t.storage_offset())
            self.steps.append(_step(aten.as_strided.default, *geometry, result=self._slot(t)))
        return self.slots[place_of(t)]

    def _slot(self, t: Tensor) -> Slot:
        place = place_of(t)
        slot = self.slots.get(place)
        if slot is None:
            slot = self.slots[place] = Slot(len(self.slots), place[0])
            self.moving.setdefault(place[0], (StorageWeakRef(t.untyped_storage()), slot))
        return slot

    def _spare(self, t: Tensor) -> None:
        """Copy what was kept of a constant storage that is about to be overwritten."""
        for constant in self.captured.pop(storage_of(t), []):
            constant.tensor = constant.tensor.clone()

    def _thaw(self, t: Tensor) -> None:
        """Let a constant storage, about to receive something that depends on the vector, depend on it from now on."""
        size = t.untyped_storage().nbytes() // t.element_size()
        whole = t.detach().as_strided((size,), (1,), 0)
        before = Constant(whole.clone())
        self.steps.append(_step(aten.clone.default, before, result=self._slot(whole)))


def _step(operation: Any, *args: Any, result: Slot) -> Step:
    return Step(operation, args, {}, [result])


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
    view = getattr(packet, func._overloadname, None)
    if view is None or view._schema.returns[0].alias_info is None:
        raise Untraceable(f"{func} changes the memory of a tensor that depends on the vector")
    return view


def _zeros(t: Tensor) -> Tensor:
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into."""
    found: list[Tensor] = []
    for i, a in enumerate(func._schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            found += _tensors(args[i] if i < len(args) else kwargs.get(a.name))
    return found
