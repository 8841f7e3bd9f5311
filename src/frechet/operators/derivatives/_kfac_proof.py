"""Proofs that the gradient of each parameter is what its layer's inputs and slopes say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frechet.errors import UnusableObjective
from frechet.operators.derivatives._kfac_layers import Call, Layer
from frechet.operators.derivatives._kfac_sums import gradient
from frechet.space import Space

PROVED = 1e-3  # relative difference of gradients; what is forgotten is of their size


def refuse_mixed(calls: Sequence[Call], examples: int) -> None:
    """Raise where a layer's first axis is not that of the examples: whose row is whose cannot be known."""
    for call in calls:
        rows = len(call.output) if call.output.ndim else 0
        if rows != examples:
            raise UnusableObjective(
                f"kfac: the first axis of what goes into the layer of {call.layer.names} must be the batch, got {rows} "
                f"rows for {examples} examples; keep the batch axis, or leave the layer out with restrict="
            )


def prove(
    space: Space, gradients: list[Tensor], calls: Sequence[Call], slopes: Sequence[Tensor], layers: Sequence[Layer]
) -> None:
    """Raise where the gradients of the parameters are not what their layers' inputs and slopes say."""
    true = space.join(gradients)
    for layer in layers:
        order = layer.order(space)
        total = torch.zeros(len(order), dtype=torch.float64, device=true.device)
        for call, b in zip(calls, slopes, strict=True):
            if call.layer is layer:
                total = total + gradient(call, b).double()
        expected = true[order].double()
        off = float((total - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
        if off > PROVED:
            raise UnusableObjective(
                f"kfac: the gradient of {layer.names} must be that of its layer's inputs and outputs, got a relative "
                f"difference of {off:.2g}: a parameter is used outside of the layer; leave it out with restrict="
            )
