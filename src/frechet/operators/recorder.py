"""Every operation that PyTorch carries out while a product is computed, as it happens.

The operations that read the vector, or something made from it, are one script (`script.py`); what they read of
everything else are its constants. Either these are kept, or all other operations are written down too, in a script
before it that starts from the parameters and the batch. Operations are watched below autograd.

What cannot be recorded raises `Untraceable`: control flow or random numbers that depend on the vector, writing into it
or into the batch, and random numbers where the constants are to be computed anew.

Cost: the product, and some microseconds per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from frechet.operators.script import Script, Untraceable, aten, mapped, tensors_in, written_by, zeros

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


class Recorder(TorchDispatchMode):
    """Writes down the operations on whatever shares storage with the vector or was made from it.

    With `batch`, the tensors of a batch, all others too: its script is ``script.before``.
    """

    def __init__(
        self, vector: Sequence[Tensor], most: float, apart: Iterable[int], batch: Sequence[Tensor] | None
    ) -> None:
        super().__init__()
        self.before = None if batch is None else Script(batch, "the batch", most, apart, anew=True)
        self.script = Script(vector, "the vector", most, apart, before=self.before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._seen(func, args, kwargs or {})

    def _seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = tensors_in(args, list(kwargs.values())) if kwargs else tensors_in(args)
        mutable, made = func._schema.is_mutable, self.script.made
        zero = moving = False
        for t in tensors:
            if t._is_zerotensor():
                zero = True
            elif t.untyped_storage()._cdata in made:
                moving = True
        if not (zero or mutable or moving or self.before is not None):
            return func(*args, **kwargs)
        shown = args
        if zero:  # torch's symbolic zeros have no memory behind them
            if mutable and any(t._is_zerotensor() for t in written_by(func, args, kwargs)):
                raise Untraceable(f"{func} writes into a symbolic zero")
            args = mapped(lambda t: zeros(t) if t._is_zerotensor() else t, args)
        written = written_by(func, args, kwargs) if mutable else []
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if not moving or func in _SHAPE_ONLY:
            for t in written:
                self.script.spare(t)
            if self.before is None:
                return func(*args, **kwargs)
            if seeded:
                raise Untraceable(f"{func} draws random numbers, which would be others each time")
            if func in _SHAPE_ONLY:
                return self.before.filled(func(*args, **kwargs), _SHAPE_ONLY[func](args))
            return self.before.write(func, shown, args, kwargs, written)
        if func in _READS_VALUES:
            raise Untraceable(f"{func} reads values that depend on the vector")
        if seeded:
            raise Untraceable(f"{func} draws random numbers for a tensor that depends on the vector")
        return self.script.write(func, shown, args, kwargs, written)
