"""What modules keep beside parameters and buffers: caches, counters, flags, in plain attributes.

A model that keeps a tensor computed from its parameters (a position bias, a normalized weight) until it is told
otherwise would give the second pass a constant in its place. So every pass begins with the attributes as they were when
the operator was made, and leaves the user's model as it was.

Attributes are compared by identity, and the contents of plain dicts, lists and sets with them. What lies deeper, in
other objects or outside of the model, is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# what torch's own code keeps in a module: registered tensors and modules, hooks, the training flag
_TORCHS = frozenset(nn.Module().__dict__) | {"_compiled_call_impl", "forward"}

Contents = list[tuple[Any, Any]]  # containers, and copies of what they hold
Attributes = list[tuple[dict[str, Any], dict[str, Any], Contents]]


_KNOWN = ("torch.nn.", "torch.distributed.", "builtins", "typing", "abc")


def is_users(m: nn.Module) -> bool:
    """Whether a module is somebody's own: what it calls and keeps cannot be known.

    Classes that ``fully_shard`` makes of torch's layers are torch's; a traced `torch.fx.GraphModule` runs user's code.
    """
    return any(not c.__module__.startswith(_KNOWN) for c in type(m).__mro__)


def attributes_of(modules: Sequence[nn.Module]) -> Attributes:
    """The plain attributes of the modules that are not torch's own."""
    found: Attributes = []
    for m in modules:
        if is_users(m):
            kept = {k: v for k, v in m.__dict__.items() if k not in _TORCHS}
            contents: Contents = []
            for value in kept.values():
                _contents(value, contents)
            found.append((m.__dict__, kept, contents))
    return found


def _contents(value: Any, found: Contents) -> None:
    if type(value) in (dict, list, set):
        found.append((value, type(value)(value)))
        if type(value) is not set:
            for item in value.values() if type(value) is dict else value:
                _contents(item, found)


def _put(attributes: Attributes) -> None:
    for holder, kept, contents in attributes:
        for key in [k for k in holder if k not in kept and k not in _TORCHS]:
            del holder[key]
        for key, value in kept.items():
            if holder.get(key, holder) is not value:
                holder[key] = value
        for container, copy in contents:
            if differs(container, copy):
                _refill([(container, copy)])


def differs(container: Any, copy: Any) -> bool:
    """Whether a list, dict or set holds other objects than its copy."""
    if len(container) != len(copy):
        return True
    if isinstance(container, dict):
        return any(container.get(k, container) is not v for k, v in copy.items())
    if isinstance(container, set):
        return any(item not in container for item in copy)
    return any(a is not b for a, b in zip(container, copy, strict=True))


@dataclass(eq=False)
class Left:
    """What a forward pass left in the attributes of its modules, which a criterion may read: an auxiliary loss."""

    values: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    contents: Contents = field(default_factory=list)

    def look(self, attributes: Attributes) -> None:
        """Keep what differs now from the attributes with which the pass began."""
        self.values, self.contents = [], []
        for holder, kept, contents in attributes:
            for key, value in holder.items():
                if key not in _TORCHS and kept.get(key, kept) is not value:
                    self.values.append((holder, key, value))
            self.contents += [(c, type(c)(c)) for c, copy in contents if differs(c, copy)]

    def __bool__(self) -> bool:
        return bool(self.values or self.contents)

    def map(self, act: Callable[[Any], Any]) -> Left:
        """The same with `act(value)` in the place of each value, and of each item of lists and dicts."""

        def on(value: Any) -> Any:
            if type(value) is dict:
                return {k: on(v) for k, v in value.items()}
            return [on(v) for v in value] if type(value) is list else act(value)

        values = [(holder, key, on(value)) for holder, key, value in self.values]
        return Left(values, [(c, copy if type(copy) is set else on(copy)) for c, copy in self.contents])

    @contextmanager
    def placed(self) -> Iterator[None]:
        """The modules with these values in their attributes inside."""
        if not self:
            yield
            return
        before = [(holder, key, holder.get(key, _NOTHING)) for holder, key, _ in self.values]
        held = [(c, type(c)(c)) for c, _ in self.contents]
        for holder, key, value in self.values:
            holder[key] = value
        _refill(self.contents)
        try:
            yield
        finally:
            _refill(held)
            for holder, key, value in before:
                if value is _NOTHING:
                    holder.pop(key, None)
                else:
                    holder[key] = value


_NOTHING = object()


def _refill(contents: Contents) -> None:
    for container, copy in contents:
        container.clear()
        container.extend(copy) if isinstance(container, list) else container.update(copy)


@contextmanager
def put_back(attributes: Attributes, modules: Sequence[nn.Module], left: Left | None = None) -> Iterator[None]:
    """The modules with these attributes inside, and afterwards with those that they had before.

    `left` is told what differed at the end.
    """
    if not attributes:
        yield
        return
    before = attributes_of(modules)
    _put(attributes)
    try:
        yield
        if left is not None:
            left.look(attributes)
    finally:
        _put(before)
