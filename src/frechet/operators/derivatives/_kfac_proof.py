"""Proofs that the gradient of each parameter is what its layer's inputs and slopes say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frechet.operators.derivatives._kfac_layers import Call, Layer
from frechet.operators.derivatives._kfac_sums import gradient
from frechet.space import Space

PROVED = 1e-3  # relative difference of gradients; what is forgotten is of their size


class Elsewhere(Exception):
    """Layers whose parameters' gradients are not those of their inputs and slopes, example by example."""

    def __init__(self, layers: Sequence[Layer], why: str) -> None:
        self.names = [n for layer in layers for n in layer.names]
        super().__init__(f"kfac: {why}, got {self.names[:4]}; leave them out with restrict=, or take others='diagonal'")


def prove_rows(calls: Sequence[Call], examples: int) -> None:
    """Raise where a layer's first axis is not that of the examples: whose row is whose cannot be known."""
    off = [c.layer for c in calls if not c.output.ndim or len(c.output) != examples]
    if off:
        raise Elsewhere(off, "the first axis of what goes into a layer must be the batch")


def prove(
    space: Space, gradients: list[Tensor], calls: Sequence[Call], slopes: Sequence[Tensor], layers: Sequence[Layer]
) -> None:
    """Raise where the gradients of the parameters are not what their layers' inputs and slopes say."""
    true, off = space.join(gradients), []
    for layer in layers:
        order = layer.order(space)
        total = torch.zeros(len(order), dtype=torch.float64, device=true.device)
        for call, b in zip(calls, slopes, strict=True):
            if call.layer is layer:
                total = total + gradient(call, b).double()
        expected = true[order].double()
        if float((total - expected).abs().max()) > PROVED * float(expected.abs().max()):
            off.append(layer)
    if off:
        raise Elsewhere(off, "parameters must be used in their layer alone")
