"""Forward-mode rules of `torch.autograd.Function` that nest.

torch runs the `jvp` of a Function with forward mode off. A second forward derivative through plain operations of the
rule is then zero, without a word. Here forward mode stays on, and the saved tensors and tangents lose the tangent of
their own level, which the rule has in hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.objective._torch_internals import forward_mode_of_rules


def nested(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `jvp` of a Function made of `rule(ctx, saved, *tangents)`; the saved tensors are those for forward."""

    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_mode_of_rules():
            saved = [_primal(x) for x in ctx.saved_tensors]
            return rule(ctx, saved, *(_primal(t) for t in tangents))

    return jvp


def _primal(x: Any) -> Any:
    return forward_ad.unpack_dual(x).primal if isinstance(x, Tensor) else x


def summed(parts: list[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
