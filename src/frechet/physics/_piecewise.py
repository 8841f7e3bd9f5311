"""Piecewise linear activations under second derivatives, which are zero there and say nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from frechet.calculus.taylor._tensor import SeriesTensor
from frechet.errors import NotDifferentiable
from frechet.objective._torch_internals import derivative_levels

PIECEWISE = {
    torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu, F.relu_, F.relu6, F.leaky_relu, F.hardtanh,
    F.prelu, F.rrelu, F.threshold, F.hardsigmoid, torch.prelu, torch.threshold,
}  # fmt: skip


class PiecewiseLinear(TorchFunctionMode):
    """Raise where a piecewise linear function of the point is differentiated twice."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        if func in PIECEWISE and args and _order(args[0]) >= 2:
            raise NotDifferentiable(
                f"collocation: condition '{self.name}' must have the derivatives that its residual takes, got second "
                f"derivatives of {func.__name__}, which are zero everywhere; take tanh, sin, softplus or gelu"
            )
        return func(*args, **(kwargs or {}))


def _order(t: Any) -> int:
    """How often the tensor is being differentiated where it is."""
    if type(t) is SeriesTensor:
        return t.frame.order
    return derivative_levels(t) if isinstance(t, torch.Tensor) else 0
