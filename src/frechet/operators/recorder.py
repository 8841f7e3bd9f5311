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
from torch.overrides import TorchFunctionMode
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
# what reads tensors of whole numbers and makes nothing of their values but values; others take lengths from them
_PLAIN_INDICES = {
    *(
        "embedding",
        "embedding_dense_backward",
        "index_select",
        "index",
        "index_put",
        "index_put_",
        "index_add",
        "gather",
    ),
    *(
        "scatter",
        "scatter_",
        "scatter_add",
        "scatter_add_",
        "masked_fill",
        "masked_fill_",
        "clone",
        "copy_",
        "_to_copy",
    ),
    *(
        "nll_loss_forward",
        "nll_loss_backward",
        "nll_loss2d_forward",
        "nll_loss2d_backward",
        "sum",
        "any",
        "all",
        "cumsum",
    ),
    *("max", "min", "amax", "argmax", "cat", "stack", "fill_", "zero_", "triu", "tril", "repeat", "constant_pad_nd"),
    *("max_pool2d_with_indices_backward", "lift_fresh"),
}
_READS_VALUES = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default}


class Reads(TorchFunctionMode):
    """Notices when Python reads the numbers of a tensor."""

    seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or getattr(func, "__name__", "") in READERS
        return func(*args, **(kwargs or {}))


READERS = frozenset(
    {
        *("tolist", "numpy", "__array__", "item", "data_ptr", "storage", "untyped_storage", "__dlpack__", "__format__"),
        *(
            "__float__",
            "__int__",
            "__bool__",
            "__index__",
            "__complex__",
            "__reduce_ex__",
            "__deepcopy__",
            "tensor_split",
        ),
    }
)


class Recorder(TorchDispatchMode):
    """Writes down the operations on whatever shares storage with the vector or was made from it.

    With `batch`, the tensors of a batch, all others too: its script is ``script.before``, and `alone` says whether
    which operations these are could hang on the numbers in the batch.
    """

    def __init__(
        self, vector: Sequence[Tensor], most: float, apart: Iterable[int], batch: Sequence[Tensor] | None
    ) -> None:
        super().__init__()
        self.before = None if batch is None else Script(batch, "the batch", most, apart, anew=True)
        self.script = Script(vector, "the vector", most, apart, before=self.before)
        self.alone = False

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
            self.alone = self.alone or _may_hang_on_values(func, tensors)
            if func in _SHAPE_ONLY:
                return self.before.filled(func(*args, **kwargs), _SHAPE_ONLY[func](args))
            return self.before.write(func, shown, args, kwargs, written)
        if func in _READS_VALUES:
            raise Untraceable(f"{func} reads values that depend on the vector")
        if seeded:
            raise Untraceable(f"{func} draws random numbers for a tensor that depends on the vector")
        return self.script.write(func, shown, args, kwargs, written)


def _may_hang_on_values(func: Any, tensors: list[Tensor]) -> bool:
    """Whether the shape of what an operation returns, or what comes after it, could depend on numbers in `tensors`."""
    if func.is_view:
        return False
    whole = [t for t in tensors if not t.is_floating_point()]
    if torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags:
        by_position = func is aten.index.Tensor and all(t.dtype not in (torch.bool, torch.uint8) for t in tensors[1:])
        return not by_position
    known = torch.Tag.pointwise in func.tags or func._opname in _PLAIN_INDICES
    return func.namespace != "aten" or (bool(whole) and not known)
