"""Every operation that PyTorch carries out while a product is computed, as it happens.

The operations that read the vector, or something made from it, are one program (`_program.py`); what they read of
everything else are its constants. Either these are kept, or all other operations are written down too, in a program
before it that starts from the parameters and the batch. Operations are watched below autograd.

What cannot be recorded is noted in `failure`, and the product goes on unwatched: control flow or random numbers that
depend on the vector, writing into it or into the batch, tensors that are not strided, and random numbers where the
constants are to be computed anew. Nothing is raised from here: some of PyTorch's own calls end the process then.

Cost: the product, and some microseconds per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from frechet.objective._torch_internals import TorchDispatchMode, outside_of_function_modes
from frechet.recording._copies import storage_of
from frechet.recording._program import (
    Call,
    Program,
    Untraceable,
    aten,
    is_ordinary,
    mapped,
    tensors_in,
    written_by,
    zeros,
)

Map = Callable[[list[Tensor]], list[Tensor]]

# what these return does not depend on the values of what they are given; with what they fill it, by their arguments
_SHAPE_ONLY: dict[Any, Callable[[tuple[Any, ...]], float | None]] = {
    getattr(aten, name).default: fill
    for names, fill in (
        (("zeros_like", "new_zeros"), lambda args: 0),
        (("ones_like", "new_ones"), lambda args: 1),
        (("full_like",), lambda args: args[1]),
        (("new_full",), lambda args: args[2]),
        (("empty_like", "new_empty", "new_empty_strided", "rand_like", "randn_like"), lambda args: None),
    )
    for name in names
}
_READS_VALUES = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default}


class Watch(TorchDispatchMode):
    """Writes down the operations on whatever shares storage with the vector or was made from it.

    With `batch`, the tensors of a batch, all others too: their program is `before`.
    """

    def __init__(
        self, vector: Sequence[Tensor], most: float, apart: Iterable[int], batch: Sequence[Tensor] | None
    ) -> None:
        super().__init__()
        apart = tuple(apart)
        self.before = None if batch is None else Program(batch, "the batch", most, apart, anew=True)
        self.program = Program(vector, "the vector", most, apart, before=self.before)
        self.failure: Untraceable | MemoryError | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch would load its compiler, for a second or two, to keep it out of here
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with outside_of_function_modes():  # else modes above would see each look at a tensor
            return self._watched(func, args, kwargs or {})

    def _watched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = None
        if self.failure is None:
            try:
                call = self._announced(func, args, kwargs)
            except (Untraceable, MemoryError) as error:
                self.failure = error
        if call is None:
            return func(*args, **kwargs)
        returned = func(*call.args, **kwargs)
        try:
            _write(call, returned)
        except (Untraceable, MemoryError) as error:
            self.failure = error
        return returned

    def _announced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """What is to be written down of an operation, and the arguments to carry it out with; None for as it is."""
        tensors = tensors_in(args, list(kwargs.values())) if kwargs else tensors_in(args)
        odd = next((t for t in tensors if not is_ordinary(t)), None)
        if odd is not None:
            raise Untraceable(f"{func} takes a tensor of type {type(odd).__name__}, layout {odd.layout}")
        mutable, made = func._schema.is_mutable, self.program.made
        zero = any(t._is_zerotensor() for t in tensors)
        moving = any(storage_of(t) in made for t in tensors if not t._is_zerotensor())
        if not (zero or mutable or moving or self.before is not None):
            return None
        shown = args
        if zero:  # torch's symbolic zeros have no memory behind them
            if mutable and any(t._is_zerotensor() for t in written_by(func, args, kwargs)):
                raise Untraceable(f"{func} writes into a symbolic zero")
            args = mapped(lambda t: zeros(t) if t._is_zerotensor() else t, args)
        written = written_by(func, args, kwargs) if mutable else []
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if moving and func not in _SHAPE_ONLY:
            if func in _READS_VALUES:
                raise Untraceable(f"{func} reads values that depend on the vector")
            if seeded:
                raise Untraceable(f"{func} draws random numbers for a tensor that depends on the vector")
            return self.program.announced(func, shown, args, kwargs, written)
        for t in written:
            self.program.spare(t)
        return self._announced_before(func, shown, args, kwargs, written, seeded)

    def _announced_before(
        self, func: Any, shown: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor], seeded: bool
    ) -> Call | None:
        if self.before is None:
            return Call(None, func, args, kwargs)
        if seeded:
            raise Untraceable(f"{func} draws random numbers, which would be others each time")
        if func in _SHAPE_ONLY:
            return Call(self.before, func, args, kwargs, fill=(_SHAPE_ONLY[func](args),))
        return self.before.announced(func, shown, args, kwargs, written)


def _write(call: Call, returned: Any) -> None:
    if call.program is None:
        return
    if call.fill:
        call.program.filled(returned, *call.fill)
    else:
        call.program.write(call, returned)
