"""What the frozen parts of a model return, computed once where a stage runs the model again and again.

A module without trainable parameters computes the same from the same inputs, wherever the parameters are: the body
under a head that is studied alone costs a hundred heads. Inside of a `Remembered` such a module runs twice for each of
its inputs, the second time with all trainable parameters moved. Both runs must give the same bits; from then on the
module returns what it returned.

Inputs are compared by value. A module is left alone, and runs as ever, where its outputs hang on more than its inputs:
its two runs differ, it draws random numbers, it changes its buffers, attributes or inputs, its output requires a
gradient, hooks watch what is inside of it, or somebody writes into what it returned.

**Cost:** two runs of each frozen part for each input, and a copy of its inputs and outputs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frechet.objective._attributes import Attributes, attributes_of, differs
from frechet.objective._snapshot import Snapshot
from frechet.objective._structure import leaves_of, mapped
from frechet.objective._torch_internals import in_dispatch_mode, in_forward_mode, in_transform

MISSES = 256  # new inputs after which a module that never met one again is left alone
SAMPLES = 16  # numbers of an input by which it is looked up, before all are compared
MOST = 1 << 29  # bytes that all modules together may hold


@dataclass(eq=False)
class Remembered:
    """A context in which the frozen parts of a snapshot's model remember; it may be entered many times.

    The frozen parameters, the buffers and the kernels must be the same each time.
    """

    snapshot: Snapshot
    parts: list[_Frozen] | None = None

    def __enter__(self) -> None:
        if self.parts is None:
            held = _Held()
            self.parts = [_Frozen(m, self.snapshot, held) for m in _frozen(self.snapshot)]
        for part in self.parts:
            if not part.alone and "forward" not in part.module.__dict__:
                part.run = part.module.forward
                part.module.__dict__["forward"] = part._call

    def __exit__(self, *_: object) -> None:
        for part in self.parts or ():
            part.module.__dict__.pop("forward", None)


def _frozen(snapshot: Snapshot) -> list[nn.Module]:
    """The outermost modules in which nothing moves and nobody watches."""
    if snapshot.space.shard is not None or snapshot.group is not None:
        return []
    moved = {id(holder[key]) for name in snapshot.space.names for holder, key in snapshot.places[name]}
    found: list[nn.Module] = []

    def visit(m: nn.Module) -> None:
        inside = tuple(m.modules())
        parameters = [p for sub in inside for p in sub._parameters.values() if p is not None]
        if parameters and not any(id(p) in moved for p in parameters):
            if not any(map(_watched, inside)):
                found.append(m)
            return
        for child in m.children():
            visit(child)

    visit(snapshot.model)
    return list({id(m): m for m in found}.values())


def _watched(m: nn.Module) -> bool:
    """Whether running a module does more than its forward, or its forward cannot be exchanged."""
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    exchanged = "forward" in m.__dict__ or m._compiled_call_impl is not None or "_orig_mod" in m._modules
    return any(hooks) or exchanged or isinstance(m, torch.jit.ScriptModule)


@dataclass(eq=False)
class _Entry:
    given: list[Any]  # copies
    attributes: Attributes
    returned: Any
    leaves: list[Any]
    versions: list[int]
    proved: bool = False

    def whole(self) -> bool:
        """Whether nobody changed what was returned."""
        now = list(_inside(self.returned))
        same = len(now) == len(self.leaves) and all(a is b for a, b in zip(now, self.leaves, strict=True))
        return same and _versions(now) == self.versions


@dataclass(eq=False)
class _Held:
    """The memory that all modules hold."""

    bytes: int = 0


@dataclass(eq=False)
class _Frozen:
    """What stands in the place of a module's forward."""

    module: nn.Module
    snapshot: Snapshot
    held: _Held
    alone: bool = False  # it does not remember
    run: Callable[..., Any] = lambda: None
    entries: dict[Any, _Entry] = field(default_factory=dict)
    bytes: int = 0
    useful: bool = False  # it met an input again

    def _call(self, *args: Any, **keywords: Any) -> Any:
        given = list(leaves_of((args, keywords)))
        if self.alone or not _plain(given):
            return self.run(*args, **keywords)
        modules = tuple(self.module.modules())
        kept, key = attributes_of(modules), (_mode(modules, args, keywords), *map(_digest, given))
        known = self.entries.get(key)
        if known is not None and not _equal(known.given, given):
            return self.run(*args, **keywords)  # other numbers with the same sums
        if known is not None and not (_same(known.attributes, kept) and known.whole()):
            self._forget()
            return self.run(*args, **keywords)
        if known is not None and known.proved:
            return known.returned
        return self._watch(known, given, key, kept, modules, args, keywords)

    def _watch(
        self,
        known: _Entry | None,
        given: list[Any],
        key: tuple[Any, ...],
        kept: Attributes,
        modules: Sequence[nn.Module],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> Any:
        """Run the module, and hold its outputs against those that it gave for these inputs before, if it did."""
        copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in given]
        touched = [b for m in modules for b in m._buffers.values() if b is not None]
        before = _versions([*touched, *given]), _generators()
        with nullcontext() if known is None else _moved(self.snapshot):
            returned = self.run(*args, **keywords)
        after = _versions([*touched, *given]), _generators()
        leaves = list(_inside(returned))
        pure = before == after and _plain(leaves) and _same(kept, attributes_of(modules))
        right = pure and not _share_memory(leaves, given)
        if known is not None:
            known.proved = self.useful = right and _equal(known.leaves, leaves)
        if not right or (known is not None and not known.proved):
            self._forget()
            # what was returned with other parameters is not this module's value here
            return returned if known is None else self.run(*args, **keywords)
        if known is None:
            size = sum(t.nbytes for t in (*leaves, *copies) if isinstance(t, Tensor))
            full = self.held.bytes + size > MOST
            if not full:
                self.held.bytes, self.bytes = self.held.bytes + size, self.bytes + size
                self.entries[key] = _Entry(copies, kept, returned, leaves, _versions(leaves))
            if not self.useful and (full or len(self.entries) > MISSES):
                self._forget()
        return returned

    def _forget(self) -> None:
        self.alone = True
        self.held.bytes -= self.bytes
        self.entries.clear()


@contextmanager
def _moved(snapshot: Snapshot) -> Iterator[None]:
    """The trainable parameters at another point, whoever holds them: a frozen part does not notice."""
    found = {id(t): t for name in snapshot.space.names for holder, key in snapshot.places[name] for t in [holder[key]]}
    kept = [(t, t.data) for t in found.values()]
    try:
        for t, data in kept:
            t.data = data + (0.01 * data.abs() + 0.01)
        yield
    finally:
        for t, data in kept:
            t.data = data


def _plain(leaves: Sequence[Any]) -> bool:
    """Whether these are numbers, words and ordinary tensors that no derivative is taken of."""
    if in_transform() or in_forward_mode() or in_dispatch_mode():
        return False
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.requires_grad or leaf.layout is not torch.strided or leaf.is_nested or type(leaf) is not Tensor:
                return False
        elif not isinstance(leaf, bool | int | float | str | None | type | torch.dtype | torch.device):
            return False
    return True


def _inside(tree: Any, depth: int = 6) -> Iterator[Any]:
    """The leaves of what a module returned, and what objects in it hold: caches of keys and values are such."""
    for leaf in leaves_of(tree):
        if (
            depth
            and hasattr(leaf, "__dict__")
            and not isinstance(leaf, Tensor | nn.Module | type)
            and not callable(leaf)
        ):
            yield type(leaf)
            yield from _inside(dict(vars(leaf)), depth - 1)
        else:
            yield leaf


def _versions(leaves: Sequence[Any]) -> list[int]:
    return [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]


def _share_memory(returned: Sequence[Any], given: Sequence[Any]) -> bool:
    places = {leaf.untyped_storage().data_ptr() for leaf in given if isinstance(leaf, Tensor)}
    return any(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in places for t in returned)


def _mode(modules: Sequence[nn.Module], args: Any, keywords: Any) -> tuple[Any, ...]:
    """What else decides a result: the structure of the arguments, training flags, and how torch computes."""
    empty = repr(mapped((args, keywords), lambda leaf: type(leaf).__name__))
    how = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype())
    casts = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return (empty, tuple(m.training for m in modules), *how, *casts)


def _digest(leaf: Any) -> Any:
    """What finds an input again: shape, sum and a few numbers of a tensor, a constant itself."""
    if not isinstance(leaf, Tensor):
        return leaf
    flat = leaf.reshape(-1)
    some = flat[:: max(1, len(flat) // SAMPLES)].tolist()
    return (
        tuple(leaf.shape),
        leaf.dtype,
        flat.sum(dtype=torch.complex128 if leaf.is_complex() else torch.float64).item(),
        *some,
    )


def _equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two lists of tensors and constants are the same, bit by bit."""
    if len(a) != len(b):
        return False
    for one, two in zip(a, b, strict=True):
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            if type(one) is not type(two) or one != two:
                return False
            continue
        like = one.dtype == two.dtype and one.device == two.device and one.shape == two.shape
        if not like or one.stride() != two.stride() or not torch.equal(_bits(one), _bits(two)):
            return False
    return True


def _bits(t: Tensor) -> Tensor:
    return t.resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)


def _same(a: Attributes, b: Attributes) -> bool:
    """Whether the modules keep the same objects in their attributes."""
    if len(a) != len(b):
        return False
    for (_, one, held), (_, two, holds) in zip(a, b, strict=True):
        if one.keys() != two.keys() or any(two[k] is not v for k, v in one.items()) or len(held) != len(holds):
            return False
        if any(x is not y or differs(u, v) for (x, u), (y, v) in zip(held, holds, strict=True)):
            return False
    return True


def _generators() -> tuple[Any, ...]:
    """The states of the random generators, to be compared."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()] if cuda else []
    numpy = np.random.get_state(legacy=False)["state"]  # type: ignore[call-overload]
    return (torch.get_rng_state().numpy().tobytes(), numpy["pos"], numpy["key"].tobytes(), random.getstate(), devices)
