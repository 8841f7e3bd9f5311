"""A tensor that carries its power series, and the interpreter of torch functions on it.

Every call of a torch function with such a tensor comes to `__torch_function__`:

1. Questions about shape, type and device are answered from the tensor's own metadata.
2. Frequent functions have a rule of their own (`_frequent.py`).
3. Operations of ATen have a rule by name (`_rules.py`).
4. Everything else is carried out once on plain values while the operations of ATen that it consists of are recorded
   (`_record.py`), and these are then interpreted.

Rules consist of ordinary differentiable torch functions on the coefficients, so autograd, forward mode and torch.func
see them from outside. A propagation inside another one has tensors whose coefficients are such tensors themselves: the
youngest frame among the arguments interprets, and takes all others for constants.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.taylor._arguments import words
from frechet.calculus.taylor._series import Coefficients, Frame
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import outside_of_function_subclasses, tree_flatten


class Memory:
    """Which tensors share memory, as far as they are alive: one of them may be written to only if it is alone."""

    def __init__(self) -> None:
        self._sharing: list[weakref.ref[Tensor]] = []
        self.exposed = False  # a plain tensor shares it

    def enter(self, t: Tensor) -> None:
        self._sharing = [r for r in self._sharing if r() is not None]
        self._sharing.append(weakref.ref(t))

    def alone(self, t: Tensor) -> bool:
        return not self.exposed and all(r() is None or r() is t for r in self._sharing)


class SeriesTensor(Tensor):
    """A tensor with the coefficients of its power series. It has no memory of its own."""

    frame: Frame
    c: Coefficients
    memory: Memory

    @staticmethod
    def make(frame: Frame, c: Coefficients, memory: Memory | None = None) -> SeriesTensor:
        value = c[0]
        assert value is not None
        t: SeriesTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            SeriesTensor, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        t.frame, t.c, t.memory = frame, c, memory or Memory()
        t.memory.enter(t)
        return t

    @property
    def value(self) -> Tensor:
        value = self.c[0]
        assert value is not None
        return value

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"SeriesTensor(order={self.frame.order}, directions={self.frame.directions}, value={self.value})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in METADATA:
            with outside_of_function_subclasses():
                return func(*args, **(kwargs or {}))
        return _interpret(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise NotDifferentiable(
            f"jet: {func} was called below the level of torch functions, by a torch.func transform, a compiled "
            "function or an extension inside the function; take derivatives of f by laplacian, "
            "differential_operator or "
            "jet, and call them on plain PyTorch code"
        )


def _interpret(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from frechet.calculus.taylor._interpret import interpret

    return interpret(func, args, kwargs)


def tensors_of(args: Any) -> Iterator[SeriesTensor]:
    """The tensors with a series among the arguments."""
    for a in args:
        if type(a) is SeriesTensor:
            yield a
        elif type(a) in (list, tuple):
            yield from tensors_of(a)
        elif isinstance(a, dict):
            yield from tensors_of(a.values())


def youngest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
    found = None
    for t in tensors_of((args, kwargs) if kwargs else args):
        if found is None or t.frame.age > found.age:
            found = t.frame
    assert found is not None
    return found


def series(t: Any, frame: Frame) -> Coefficients | None:
    """The coefficients of `t` in this frame; None for a constant."""
    return t.c if type(t) is SeriesTensor and t.frame is frame else None


def coefficients(t: Any, frame: Frame) -> Coefficients:
    """The coefficients of `t` in this frame, those of a constant included."""
    c = series(t, frame)
    return frame.empty(t) if c is None else c


def values(a: Any, frame: Frame) -> Any:
    """The arguments, with the value at t = 0 in place of each tensor of this frame."""
    if type(a) is SeriesTensor:
        return a.value if a.frame is frame else a
    if type(a) in (list, tuple):
        return type(a)(values(b, frame) for b in a)
    if isinstance(a, dict):
        return {k: values(b, frame) for k, b in a.items()}
    return a


def with_each(f: Callable[[Any], Any], a: Any) -> Any:
    """The arguments of an operation with `f` of each: lists, tuples and dicts are gone into."""
    if type(a) in (list, tuple):
        return type(a)([with_each(f, b) for b in a])
    if type(a) is dict:
        return {k: with_each(f, b) for k, b in a.items()}
    return f(a)


def constant(t: Any) -> Any:
    """The plain value, for every frame."""
    while type(t) is SeriesTensor:
        t.memory.exposed = True
        t = t.value
    return t


def leaves(tree: Any) -> list[Any]:
    return tree_flatten(tree)[0]


def fixed(t: Tensor) -> Tensor:
    """The plain value, of which no derivative is taken; for a rule's own decisions."""
    while type(t) is SeriesTensor:
        t = t.value
    return t.detach()


_GETTERS = words(
    "shape dtype device ndim layout is_cuda is_sparse is_quantized is_meta is_mps is_xpu is_cpu requires_grad is_leaf "
    "is_nested is_mkldnn itemsize names is_sparse_csr is_xla is_vulkan is_ipu is_maia is_mtia"
)
_METHODS = words(
    "size dim numel nelement element_size stride is_floating_point is_complex is_contiguous __len__ get_device "
    "is_signed type storage_offset is_conj is_neg __hash__ is_inference ndimension is_same_size __repr__ has_names "
    "dense_dim sparse_dim"
)

METADATA: set[Callable[..., Any]] = {
    *(getattr(Tensor, name).__get__ for name in _GETTERS if hasattr(Tensor, name)),
    *(getattr(Tensor, name) for name in _METHODS if hasattr(Tensor, name)),
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    torch.is_tensor,
    torch.is_conj,
    torch.is_neg,
    torch.is_inference,
    torch.is_same_size,
}
METADATA.discard(Tensor.type)  # with an argument it converts
