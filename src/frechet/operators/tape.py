"""A linear map as the tensor operations that its vector goes through, recorded once and played back.

While a product A v is computed, every operation that PyTorch carries out is seen. Those that read v, or something made
from v, are written on the tape; all others are done once, and what the tape reads of their results it keeps: the tape
is A with the primal computation folded into constants. Operations whose results nobody reads are dropped, so a product
pays neither for the forward pass nor for unused halves of double backward formulas. Random draws are among the
constants: the same map at every application. A tape is straight Python code; blocks of vectors go through it by `vmap`.

What cannot be recorded raises `Untraceable`: control flow or random numbers that depend on v, writing into v.

**Source.** Partial evaluation of the tangent program: Radul, Paszke, Frostig, Johnson and Maclaurin 2023, You only
linearize once, doi 10.1145/3571236.

**Differs from the source.** (1) Nothing is traced symbolically: the first product is computed and watched (below
autograd, by storage, so that views and writes in place are told apart from copies), which costs a product and some
microseconds per operation. (2) Code that computes outside of PyTorch is not seen; `Tape.agrees` compares with a product
that was not recorded.

Cost: recording 2 to 6 gradients; memory: the constants, 2 to 3 times what a gradient keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
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
class _Slot:
    """A tensor that depends on the vector; `storage` is shared with its views."""

    index: int
    storage: int


@dataclass(eq=False)
class _Constant:
    tensor: Tensor  # exchanged for a copy where the original is about to be overwritten


@dataclass(frozen=True, eq=False)
class _Step:
    operation: Any
    args: Any  # nested as they were given, tensors as slots and constants
    kwargs: dict[str, Any]
    results: list[_Slot | None]
    writes: list[_Slot] = field(default_factory=list)
    single: bool = True  # one tensor is returned, and not a tuple or list of them

    @property
    def reads(self) -> list[_Slot]:
        return [a for a in _leaves((*self.args, *self.kwargs.values())) if isinstance(a, _Slot)]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _place(t: Tensor) -> tuple[Any, ...]:
    """Two tensors with the same place are the same numbers."""
    return (_storage(t), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


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
    return [a for a in _leaves(nested) if isinstance(a, Tensor)]


class _Recorder(TorchDispatchMode):
    """Writes down the operations on whatever shares storage with the vector or was made from it."""

    def __init__(self, vector: Sequence[Tensor], most: float) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.slots: dict[tuple[Any, ...], _Slot] = {}
        # storages that depend on the vector, each with its first slot; the weak reference keeps the key from being
        # used for another storage
        self.moving: dict[int, tuple[StorageWeakRef, _Slot]] = {}
        self.captured: dict[int, list[_Constant]] = {}
        self.bytes, self.most = 0, most
        self.vector = [self._slot(t) for t in vector]
        self.given = set(self.moving)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._seen(func, args, kwargs or {})

    def _seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = _tensors(args, list(kwargs.values()))
        mutable = func._schema.is_mutable
        if any(t._is_zerotensor() for t in tensors):  # torch's symbolic zeros have no memory behind them
            if mutable and any(t._is_zerotensor() for t in _written(func, args, kwargs)):
                raise Untraceable(f"{func} writes into a symbolic zero")
            args = _mapped(lambda t: _zeros(t) if t._is_zerotensor() else t, args)
            tensors = _tensors(args, list(kwargs.values()))
        written = _written(func, args, kwargs) if mutable else []
        if func in _SHAPE_ONLY or not any(_storage(t) in self.moving for t in tensors):
            for t in written:
                self._spare(t)
            return func(*args, **kwargs)
        if func in _READS_VALUES:
            raise Untraceable(f"{func} reads values that depend on the vector")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"{func} draws random numbers for a tensor that depends on the vector")
        for t in written:
            if _storage(t) in self.given:
                raise Untraceable(f"{func} writes into the vector")
        fresh = [t for t in written if _storage(t) not in self.moving]
        whole = len(written) == 1 and bool(fresh) and written[0] is args[0] and _fills_its_storage(written[0])
        result = _functional(func) if whole else None
        read = args
        for t in fresh:
            self._spare(t)
            if result is None:
                self._thaw(t)
            else:  # the tape reads what is there before it is overwritten
                overwritten = _storage(t)
                read = _mapped(lambda a, key=overwritten: a.clone() if _storage(a) == key else a, args)
        cells = _mapped(self.cell, read), {name: _mapped(self.cell, a) for name, a in kwargs.items()}
        if result is not None:  # a constant is overwritten: not in place, so that blocks can go through
            returned = func(*args, **kwargs)
            self.steps.append(_Step(result, *cells, [self._slot(written[0])]))
            return returned
        returned = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:  # unsqueeze_ and its like write a shape, not numbers
            self.steps.append(_Step(_view_of(func), *cells, [self._slot(returned)]))
            return returned
        if written:
            self.steps.append(_Step(func, *cells, [], [self._slot(t) for t in written]))
            return returned
        single = isinstance(returned, Tensor)
        if not single and not isinstance(returned, tuple | list):
            return returned  # a fact about shapes and memory
        results = [returned] if single else list(returned)
        if not all(isinstance(r, Tensor | None) for r in results):
            raise Untraceable(f"{func} returns more than tensors for a tensor that depends on the vector")
        if not (single and _place(returned) in self.slots):  # an alias has its slot
            named = [None if r is None or r._is_zerotensor() else self._slot(r) for r in results]
            self.steps.append(_Step(func, *cells, named, single=single))
        return returned

    def cell(self, t: Tensor) -> _Slot | _Constant:
        """How the tape names a tensor."""
        if t._is_zerotensor():
            return _Constant(_zeros(t))
        key = _storage(t)
        if key not in self.moving:
            constant = _Constant(t.detach())
            if key not in self.captured:
                self.captured[key] = []
                self.bytes += t.untyped_storage().nbytes()
                if self.bytes > self.most:
                    raise MemoryError
            self.captured[key].append(constant)
            return constant
        if _place(t) not in self.slots:  # a view that was made where operations are not seen
            if key in self.given:
                raise Untraceable("a view of the vector was made where it cannot be seen")
            base = self.moving[key][1]
            geometry = (base, list(t.shape), list(t.stride()), t.storage_offset())
            self.steps.append(_step(aten.as_strided.default, *geometry, result=self._slot(t)))
        return self.slots[_place(t)]

    def _slot(self, t: Tensor) -> _Slot:
        place = _place(t)
        slot = self.slots.get(place)
        if slot is None:
            slot = self.slots[place] = _Slot(len(self.slots), place[0])
            self.moving.setdefault(place[0], (StorageWeakRef(t.untyped_storage()), slot))
        return slot

    def _spare(self, t: Tensor) -> None:
        """Copy what was kept of a constant storage that is about to be overwritten."""
        for constant in self.captured.pop(_storage(t), []):
            constant.tensor = constant.tensor.clone()

    def _thaw(self, t: Tensor) -> None:
        """Let a constant storage, about to receive something that depends on the vector, depend on it from now on."""
        size = t.untyped_storage().nbytes() // t.element_size()
        whole = t.detach().as_strided((size,), (1,), 0)
        before = _Constant(whole.clone())
        self.steps.append(_step(aten.clone.default, before, result=self._slot(whole)))


def _step(operation: Any, *args: Any, result: _Slot) -> _Step:
    return _Step(operation, args, {}, [result])


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


# --- the tape ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tape:
    """A recorded linear map: its code, the constants it reads, and the objects that its code names."""

    code: str
    constants: list[Tensor]
    objects: list[Any]
    run: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], list[Tensor]]
    steps: int

    @torch.no_grad()
    def __call__(self, vector: Sequence[Tensor]) -> list[Tensor]:
        return self.run(vector, self.constants, self.objects)

    @torch.no_grad()
    def block(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The map of k vectors at once, stacked along a leading axis of each block."""

        def run(*v: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.run(v, self.constants, self.objects))

        return torch.vmap(run)(*vectors)

    def compiled(self) -> Tape:
        """The same map through torch.compile."""
        return replace(self, run=torch.compile(self.run, fullgraph=True, dynamic=False))

    @property
    def storages(self) -> dict[int, int]:
        """The bytes behind the constants, by storage."""
        return {_storage(t): t.untyped_storage().nbytes() for t in self.constants}

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


def record(product: Map, vector: list[Tensor], most: float = math.inf) -> Tape:
    """The tape of `product`, by computing it for `vector` once. MemoryError where constants exceed `most` bytes."""
    recorder = _Recorder(vector, most)
    with recorder:
        results = product(vector)
    results = [recorder.cell(t) for t in results]
    steps = _needed(recorder.steps, results)
    code, constants, objects = _written_out(steps, recorder.vector, results)
    return Tape(code, constants, objects, _compiled(code), len(steps))


def _needed(steps: list[_Step], results: list[_Slot | _Constant]) -> list[_Step]:
    """The steps on which the results depend: those that make a slot, or write into a storage, that is read later."""
    read = {r.index for r in results if isinstance(r, _Slot)}
    storages = {r.storage for r in results if isinstance(r, _Slot)}
    kept: list[_Step] = []
    for step in reversed(steps):
        made = any(r is not None and r.index in read for r in step.results)
        if made or any(w.storage in storages for w in step.writes):
            kept.append(step)
            for a in step.reads:
                read.add(a.index)
                storages.add(a.storage)
    return kept[::-1]


def _written_out(
    steps: list[_Step], vector: list[_Slot], results: list[_Slot | _Constant]
) -> tuple[str, list[Tensor], list[Any]]:
    """Python code for the steps, with each tensor dropped after its last use."""
    constants: list[Tensor] = []
    objects: list[Any] = []
    known: dict[Any, str] = {}

    def listed(o: Any, key: Any, letter: str, where: list[Any]) -> str:
        if key not in known:
            known[key] = f"{letter}[{len(where)}]"
            where.append(o)
        return known[key]

    def text(o: Any) -> str:
        match o:
            case _Slot():
                return f"s{o.index}"
            case _Constant():
                return listed(o.tensor, ("constant", *_place(o.tensor)), "c", constants)
            case None | bool() | int():
                return repr(o)
            case float() if math.isfinite(o):
                return repr(o)
            case list():
                return f"[{', '.join(map(text, o))}]"
            case tuple():
                return f"({''.join(text(x) + ', ' for x in o)})"
            case _:
                return listed(o, ("object", id(o)), "o", objects)

    last = {r.index: len(steps) for r in results if isinstance(r, _Slot)}
    for i in range(len(steps) - 1, -1, -1):
        for a in steps[i].reads:
            last.setdefault(a.index, i)
    lines = ["def run(v, c, o):", *(f" s{slot.index} = v[{i}]" for i, slot in enumerate(vector))]
    for i, step in enumerate(steps):
        call = ", ".join([*map(text, step.args), *(f"{name}={text(a)}" for name, a in step.kwargs.items())])
        names = [f"s{r.index}" if r is not None and r.index in last else "_" for r in step.results]
        target = "_" if not names else names[0] if step.single else "".join(n + ", " for n in names)
        lines.append(f" {target} = {text(step.operation)}({call})")
        dead = {f"s{a.index}" for a in step.reads if last[a.index] == i}
        dead |= {"_"} & set(names) if len(names) > 1 else set()
        if dead:
            lines.append(f" {' = '.join(sorted(dead))} = None")
    lines.append(f" return [{', '.join(map(text, results))}]")
    return "\n".join(lines), constants, objects


@lru_cache(maxsize=64)
def _compiled(code: str) -> Callable[..., list[Tensor]]:
    # batches of one shape have one code; nothing in it comes from outside but numbers and the names made above
    names: dict[str, Any] = {}
    exec(compile(code, "<tape>", "exec"), names)
    return names["run"]
