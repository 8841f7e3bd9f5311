"""What is private in torch, in one place. Read in torch 2.13.

Each function here says which private name it uses and what it replaces that name by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.amp import autocast_mode
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, loss
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_unflatten as tree_unflatten

AnyConvolution = conv._ConvNd
AnyDropout = dropout._DropoutNd
AnyInstanceNorm = instancenorm._InstanceNorm
AnyLoss = loss._Loss
AnyNorm = batchnorm._NormBase  # by batch or by instance
ParametrizedSpectralNorm = parametrizations._SpectralNorm
ParametrizedWeightNorm = parametrizations._WeightNorm
make_dual = torch._C._VariableFunctions._make_dual  # type: ignore[attr-defined]  # what forward_ad.make_dual calls
weight_norm = torch._weight_norm  # type: ignore[attr-defined]  # what the modules' weight norm calls


@contextmanager
def backward_inside(mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Backward passes started inside run with `mode` entered: what they run again then sees the mode too.

    A function mode is left while it handles a call, `torch.autograd.grad` included. An activation checkpoint that is
    recomputed in that call would take other operations than its first run. Replaces
    `torch.autograd._engine_run_backward`.
    """
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(*args: Any, **keywords: Any) -> Any:
        with mode:
            return engine(*args, **keywords)

    torch.autograd._engine_run_backward = run  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.autograd._engine_run_backward = engine  # type: ignore[attr-defined]


class DispatchMode(TorchDispatchMode):
    """A mode that sees operations as the dispatcher does."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch would load its compiler, for a second or two, to keep it out of here
        return False


def outside_of_function_modes() -> AbstractContextManager[None]:
    """Function modes do not see the operations inside."""
    return torch._C.DisableTorchFunction()


def function_modes() -> list[Any]:
    """The function modes that are entered, outermost first."""
    return torch.overrides._get_current_function_mode_stack()


@contextmanager
def vmap_without_loops() -> Iterator[None]:
    """`vmap` raises inside for an operation without a rule, where it would print and fall back to a loop."""
    loops = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(loops)


def unchecked_grad(
    outs: Sequence[Tensor], xs: Sequence[Tensor], us: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Return what `torch.autograd.grad` returns for cotangents that are known to fit; None for an unused x.

    For graphs of a few operations, where its checks cost more than the pass. The graph is kept. Function modes stay
    entered: they do not see this call, only what runs again in it. Calls `torch.autograd.graph._engine_run_backward`.
    """
    return torch.autograd.graph._engine_run_backward(
        tuple(outs), tuple(us), True, create_graph, tuple(xs), True, accumulate_grad=False
    )


def unchecked_batched_grad(outs: Sequence[Tensor], xs: Sequence[Tensor], us: Sequence[Tensor]) -> list[Tensor | None]:
    """Return what `torch.autograd.grad(is_grads_batched=True)` returns for batches of cotangents that are known to fit.

    An operation without a rule for batches raises. As `torch._vmap_internals._vmap`, without its walks through trees.
    """
    size, loops = len(us[0]), functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    level = torch._C._vmapmode_increment_nesting()  # type: ignore[attr-defined]
    try:
        batches = [torch._add_batch_dim(u, 0, level) for u in us]  # type: ignore[attr-defined]
        found = unchecked_grad(outs, xs, batches)
        return [None if g is None else torch._remove_batch_dim(g, level, size, 0) for g in found]  # type: ignore[attr-defined]
    finally:
        torch._C._vmapmode_decrement_nesting()  # type: ignore[attr-defined]
        functorch._set_vmap_fallback_enabled(loops)


@contextmanager
def autocast_left_out() -> Iterator[None]:
    """``torch.autocast`` regions entered inside change nothing: a model's own would round derivatives.

    Replaces `torch.autocast.__enter__` and `__exit__`.
    """
    kind: Any = autocast_mode.autocast
    enter, leave = kind.__enter__, kind.__exit__
    kind.__enter__ = lambda self: self
    kind.__exit__ = lambda self, *_: None
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


@contextmanager
def reentrant_checkpoints_call(act: Callable[[Any], None]) -> Iterator[None]:
    """Activation checkpoints with use_reentrant=True call `act` inside.

    Replaces `torch.utils.checkpoint.check_backward_validity`, which only they call.
    """
    checked = torch.utils.checkpoint.check_backward_validity
    torch.utils.checkpoint.check_backward_validity = act
    try:
        yield
    finally:
        torch.utils.checkpoint.check_backward_validity = checked


@contextmanager
def checkpoints_draw_again() -> Iterator[None]:
    """Activation checkpoints begun inside draw the same numbers when they run again, by whatever generator.

    torch puts its own generators back, unless preserve_rng_state=False, and neither NumPy's nor Python's. Replaces
    `torch.utils.checkpoint._checkpoint_without_reentrant_generator`.
    """
    module: Any = torch.utils.checkpoint
    begun = module._checkpoint_without_reentrant_generator

    def begin(fn: Callable[..., Any], preserve: bool = True, *rest: Any, **keywords: Any) -> Any:
        drawn = np.random.get_state(), random.getstate()

        def again(*args: Any, **given: Any) -> Any:
            now = np.random.get_state(), random.getstate()
            np.random.set_state(drawn[0])
            random.setstate(drawn[1])
            try:
                return fn(*args, **given)
            finally:
                np.random.set_state(now[0])
                random.setstate(now[1])

        return begun(again, True, *rest, **keywords)

    module._checkpoint_without_reentrant_generator = begin
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator = begun


def in_transform() -> bool:
    """Whether a torch.func transform is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]


def in_forward_mode() -> bool:
    """Whether a level of dual numbers is open."""
    return forward_ad._current_level >= 0


def is_followed(t: Tensor) -> bool:
    """Whether a torch.func transform or a level of dual numbers follows `t`."""
    if torch._C._functorch.is_functorch_wrapped_tensor(t):  # type: ignore[attr-defined]
        return True
    if not in_forward_mode():
        return False
    with forward_mode_of_rules():
        return forward_ad.unpack_dual(t).tangent is not None


def without_needless_graph(t: Tensor) -> Tensor:
    """`t`, without its graph where gradients are off: a function that takes derivatives itself has run with them."""
    needless = t.requires_grad and not torch.is_grad_enabled() and not in_forward_mode() and not in_transform()
    return t.detach() if needless else t


def differentiable(t: Tensor) -> Tensor:
    """`t`, or its like that requires a gradient; a dual number keeps its tangent."""
    if t.requires_grad or in_transform():
        return t
    if in_forward_mode() and forward_ad.unpack_dual(t).tangent is not None:
        return t.requires_grad_()
    return t.detach().requires_grad_()


def backward_pass() -> int:
    """The number of the backward pass in which this is called, -1 outside of one."""
    return torch._C._current_graph_task_id()  # type: ignore[attr-defined]


def in_dispatch_mode() -> bool:
    """Whether somebody watches every operation, as a recording does: then no value must be read."""
    return torch._C._len_torch_dispatch_stack() > 0


def nodes_of(ys: Sequence[Tensor]) -> KeysView[Any]:
    """All nodes of the graph that `ys` hang on, in an order that only the graph's shape decides."""
    waiting = [y.grad_fn for y in ys if y.grad_fn is not None]
    nodes: dict[Any, None] = dict.fromkeys(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in nodes:
                nodes[node] = None
                waiting.append(node)
    return nodes.keys()


def padding_row(node: Any) -> int | None:
    """The number of the row of an embedding that gets no gradient; None: the node is of another operation."""
    padded = type(node).__name__ == "EmbeddingBackward0" and 0 <= node._saved_padding_idx < 1 << 62
    return int(node._saved_padding_idx) if padded else None


def padding_rows(nodes: Iterable[Any]) -> Iterator[tuple[Tensor, int]]:
    """The leaves that are weights of embeddings with a padding row, and its number."""
    for node in nodes:
        row = padding_row(node)
        if row is not None and hasattr(behind := node.next_functions[0][0], "variable"):
            yield behind.variable, row


def function_of(node: Any) -> type[torch.autograd.Function] | None:
    """The class of a node that a `torch.autograd.Function` made; None for torch's own operations."""
    return node._forward_cls if isinstance(node, BackwardCFunction) else None  # type: ignore[attr-defined]


def is_users_function(node: Any) -> bool:
    """Whether a node was made by a `torch.autograd.Function` that is neither torch's nor ours."""
    made = function_of(node)
    return made is not None and not made.__module__.startswith(("torch.", "frechet."))


def dtypes_of(node: Any) -> set[torch.dtype]:
    """The dtypes of what an operation returned."""
    return {m.dtype for m in node._input_metadata}


def cotangents_like(node: Any) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    """Shape, dtype and device of the cotangents that a node's backward takes."""
    return [(torch.Size(m.shape), m.dtype, m.device) for m in node._input_metadata]


def set_cudnn(enabled: bool) -> bool:
    """Switch cuDNN on or off, also where torch's global flags are frozen, and return what it was."""
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(enabled)
    return before


functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
outside_of_transforms = temporarily_clear_interpreter_stack


@contextmanager
def recurrence_without_mkldnn() -> Iterator[None]:
    """Recurrent layers by their elementary operations."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def without_dual_numbers() -> AbstractContextManager[Any]:
    """Dual numbers are taken for their primal parts inside."""
    return forward_ad._set_fwd_grad_enabled(False)  # type: ignore[attr-defined]


def forward_mode_of_rules() -> AbstractContextManager[Any]:
    """Forward mode stays on. torch turns it off in the `jvp` of a Function, and outer tangents of plain operations are
    lost.

    Replaces `forward_ad._set_fwd_grad_enabled`.
    """
    return forward_ad._set_fwd_grad_enabled(True)


def outside_of_function_subclasses() -> AbstractContextManager[None]:
    """``__torch_function__`` of tensor subclasses is not called inside."""
    return torch._C.DisableTorchFunctionSubclass()


def decomposition_of(op: OpOverload) -> Callable[..., Any] | None:
    """What torch writes an operation as, in operations below it."""
    from torch._decomp import decomposition_table  # a second of imports, which most programs do not need

    return decomposition_table.get(op)


def derivative_levels(t: torch.Tensor) -> int:
    """How many derivatives of torch.func are being taken of `t` where this is called."""
    levels, inner = 0, torch._C._functorch  # type: ignore[attr-defined]
    while inner.is_functorch_wrapped_tensor(t):  # type: ignore[attr-defined]
        levels += inner.is_gradtrackingtensor(t)  # type: ignore[attr-defined]
        t = inner.get_unwrapped(t)  # type: ignore[attr-defined]
    return levels
