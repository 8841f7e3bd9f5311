"""A guard against tensors that a step closes over and a transform follows: their derivative would be lost.

Steps run on plain tensors, outside of the transforms of `torch.func` and of dual numbers around them. A tensor that
such a transform follows can come in only by a closure, or belongs to a transform that the step itself opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from frechet.objective._torch_internals import in_transform, is_followed, tree_flatten


class arguments_alone(TorchFunctionMode):
    """Refuses operations on tensors that a transform follows."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = () if in_transform() else tree_flatten((args, kwargs or {}))[0]
        for t in leaves:
            if isinstance(t, Tensor) and is_followed(t):
                raise ValueError(
                    "march: step must use what is differentiated only as its arguments, got a tensor of shape "
                    f"{tuple(t.shape)} that is closed over and would get no derivative; pass it in parameters="
                )
        return func(*args, **(kwargs or {}))
