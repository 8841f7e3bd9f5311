"""Which way a product goes: strictly reverse mode, or forward mode inside.

Reverse works for the most operations and needs the least memory. Forward mode wins for the Gauss-Newton products of
convolutions, whose double backward computes terms that nobody asked for (a factor 1.6 on a residual network), and
cannot go through the modules listed in `lacks_forward`. `A.route` shows the choice; nothing switches on failure.
"""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

Route = Literal["reverse", "forward"]


def lacks_forward(model: nn.Module) -> str | None:
    """The first module without a right forward mode in torch 2.13, named; None where there is none."""
    for name, m in model.named_modules():
        old_norm = any(type(h).__name__ in ("WeightNorm", "SpectralNorm") for h in m._forward_pre_hooks.values())
        new_norm = parametrize.is_parametrized(m)
        # an embedding's forward mode does not mask the padding row, so J and J' would not be adjoint
        padded = isinstance(m, nn.Embedding) and m.padding_idx is not None
        if isinstance(m, nn.RNNBase | nn.TransformerEncoderLayer) or old_norm or new_norm or padded:
            return f"'{name}' ({type(m).__name__})"
    return None


def chosen(route: Route | None, model: nn.Module, what: str, *, gauss_newton: bool) -> Route:
    """`route`, checked, or the default for this model."""
    if route not in (None, "reverse", "forward"):
        raise ValueError(f"{what}: route must be 'reverse' or 'forward', got {route!r}")
    lacking = lacks_forward(model)
    if route == "forward" and lacking is not None:
        raise ValueError(f"{what}: route='forward' cannot go through module {lacking}; use route='reverse'")
    if route is not None:
        return route
    convolves = any(isinstance(m, _ConvNd) for m in model.modules())
    return "forward" if gauss_newton and convolves and lacking is None else "reverse"
