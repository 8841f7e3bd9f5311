"""The Jacobian on one batch in forward mode, and proofs that products in reverse mode are adjoint to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.objective import Batch, Snapshot
from frechet.objective._head import Head
from frechet.objective._model import backward_hooks
from frechet.objective._torch_internals import in_dispatch_mode
from frechet.operators.derivatives._custom_functions import refuse_nonadjoint, refuse_nonlinear
from frechet.operators.derivatives._modes import forward_only
from frechet.operators.derivatives._products import dual_numbers
from frechet.space import Space


def prove_adjoint(
    what: str, s: Snapshot, batch: Batch, y: Tensor, leaves: list[Tensor], u: Tensor, transposed: list[Tensor]
) -> None:
    """Once for each operator in reverse mode whose model has hooks or functions of its own: J v is the adjoint of J'u.

    `transposed` is J'u with its graph.
    """
    functions = s.functions
    if functions is None or functions.adjoint or batch.index or in_dispatch_mode():
        return
    if changes_gradients(s):
        refuse_nonadjoint(what, y, leaves, u, transposed)
    functions.adjoint = True


def prove_linear(what: str, s: Snapshot, batch: Batch, y: Tensor, leaves: list[Tensor]) -> None:
    """Once for each operator whose model has hooks or functions of its own: J'u is linear in u."""
    functions = s.functions
    if functions is None or functions.adjoint or functions.linear or batch.index or in_dispatch_mode():
        return
    if changes_gradients(s) and y.requires_grad:
        refuse_nonlinear(what, y, leaves)
    functions.linear = True


def changes_gradients(s: Snapshot) -> bool:
    """Whether the model has backward hooks, or functions with a backward of their own, as far as was seen."""
    own = s.functions is not None and (s.functions.custom or s.functions.hooked)
    return own or backward_hooks(s.model) is not None


def primal_and_tangent(
    s: Snapshot,
    space: Space,
    blocks: Mapping[str, Tensor],
    v: list[Tensor],
    batch: Batch,
    head: Head | None = None,
    what: str = "jacobian",
) -> tuple[Tensor, Tensor]:
    """The outputs on one batch (with a `head`, what goes into it) and J v, without a graph."""
    with torch.no_grad(), forward_only(what, s.functions), dual_numbers():
        duals = {name: forward_ad.make_dual(blocks[name].detach(), t) for name, t in zip(space.names, v, strict=True)}
        primal, derivative = forward_ad.unpack_dual(s.forward({**blocks, **duals}, batch, head))
        # a model that takes derivatives itself has run with a graph
        primal = primal.detach()
        return primal, torch.zeros_like(primal) if derivative is None else derivative.detach()
