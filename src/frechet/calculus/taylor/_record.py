"""The operations of ATen that one torch function consists of, recorded while it runs on plain values.

**Values.** Tensors with a series are represented by their values at t = 0; everything else by itself. Random numbers
are drawn here once, and stay what they were. Branches on values are taken as they are at t = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._tensor import SeriesTensor, with_each
from frechet.objective._torch_internals import (
    TorchDispatchMode,
    functorch,
    outside_of_transforms,
    recurrence_without_mkldnn,
    tree_map,
    without_dual_numbers,
)


@dataclass
class Call:
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    returned: Any
    drawn: Any = None  # a copy of what was returned, where it is random


@dataclass
class Recording:
    calls: list[Call] = field(default_factory=list)
    stands_for: dict[int, Tensor] = field(default_factory=dict)  # id of a plain tensor -> what it represents
    kept: list[Any] = field(default_factory=list)  # alive, so that no id is used twice
    returned: Any = None

    written: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # plain tensors and what they held

    def plain(self, t: Any) -> Any:
        """A plain tensor with the value of t at t = 0; t itself where it is plain."""
        found = t
        while type(found) is SeriesTensor:
            found = found.value
        if not isinstance(found, Tensor):
            return found
        if functorch.is_functorch_wrapped_tensor(found):
            found = _without_transforms(found)
        if found is t:
            return t
        found = found.detach()
        self.stands_for[id(found)] = t
        self.kept.append(found)
        return found


def _without_transforms(t: Tensor) -> Tensor:
    while functorch.is_functorch_wrapped_tensor(t):
        axis = functorch.maybe_get_bdim(t)
        t = functorch.get_unwrapped(t)
        if axis >= 0:
            t = t.select(axis, 0)
    return t


class _Recorder(TorchDispatchMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        if func._schema.is_mutable and args and id(args[0]) in self.recording.stands_for:
            self.recording.written.append((args[0], args[0].clone()))
        returned = func(*args, **kwargs)
        call = Call(func, args, kwargs, returned)
        if torch.Tag.nondeterministic_seeded in func.tags:
            call.drawn = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, returned)
        self.recording.calls.append(call)
        return returned


def record(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Recording:
    """Run `func` on plain values and write down its operations."""
    found = Recording()
    with (
        recurrence_without_mkldnn(),
        outside_of_transforms(),  # else torch.func transforms around would wrap what is recorded
        torch.no_grad(),
        without_dual_numbers(),
    ):
        args, kwargs = with_each(found.plain, tuple(args)), with_each(found.plain, kwargs)
        with _Recorder(found):
            found.returned = func(*args, **kwargs)
        for t, before in reversed(found.written):
            t.copy_(before)
    return found
