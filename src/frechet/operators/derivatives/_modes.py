"""Which way a product goes: strictly reverse mode, or forward mode inside.

Reverse works for the most operations and needs the least memory; it is the default of Hessians. Forward mode is the
default where only first derivatives are taken, for Gauss-Newton and its relatives: 1.7 to 1.9 gradients for a product
against 2.2 to 3.4, because the tangents ride on the one forward pass and no second backward is made. It cannot go
through the modules listed in `lacks_forward`; for these the default is reverse. What else it cannot go through is seen
in the first product, which then is computed in reverse mode, as are all later ones: `A.route` shows the route, and
`A.way.reason` why. A route that the user names does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions
from frechet.objective._model import backward_hooks
from frechet.objective._torch_internals import nodes_of, padding_row

Route = Literal["reverse", "forward"]
T = TypeVar("T")


@dataclass(eq=False)
class Way:
    """The route of an operator. Where the user left it open, it turns to reverse when forward mode cannot serve."""

    route: Route
    fixed: bool = True
    reason: str = ""  # why it turned

    def turns(self, error: NotDifferentiable) -> bool:
        """Turn to reverse mode for what forward mode could not do, if that is left to choose."""
        if self.fixed or self.route == "reverse":
            return False
        self.route, self.reason = "reverse", str(error)
        return True

    def along(self, product: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
        """What `product` gives by this route; where it turns, by the other, after `again`."""
        try:
            return product()
        except NotDifferentiable as error:
            if not self.turns(error):
                raise
        again()
        return product()


def lacks_forward(model: nn.Module) -> str | None:
    """The first module without a right forward mode in torch 2.13, named; None where there is none."""
    for name, m in model.named_modules():
        # an embedding's forward mode does not mask the padding row, so J and J' would not be adjoint
        padded = isinstance(m, nn.Embedding) and m.padding_idx is not None
        # on other devices than the processor these run as one fused operation, which has no forward mode
        fused = isinstance(m, nn.LSTMCell | nn.GRUCell) and m.weight_ih.device.type != "cpu"
        if isinstance(m, nn.RNNBase) or padded or fused:
            return f"'{name}' ({type(m).__name__})"
    return backward_hooks(model)  # it does not see them


def chosen(route: Route | None, model: nn.Module, what: str, *, gauss_newton: bool) -> Route:
    """`route`, checked, or the default for this model."""
    if route not in (None, "reverse", "forward"):
        raise ValueError(f"{what}: route must be 'reverse' or 'forward', got {route!r}")
    lacking = lacks_forward(model)
    if route == "forward" and lacking is not None:
        raise ValueError(f"{what}: route='forward' cannot go through module {lacking}; use route='reverse'")
    if route is not None:
        return route
    return "forward" if gauss_newton and lacking is None else "reverse"


@contextmanager
def forward_only(what: str, functions: Functions | None) -> Iterator[None]:
    """Forward mode through the user's functions inside; where it cannot be right, that in one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, NotDifferentiable):
            raise
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise NotDifferentiable(
            f"{what}: forward mode cannot go through this model or loss: {text}; use route='reverse'"
        ) from error
    if functions is not None and functions.hooked:
        raise NotDifferentiable(
            f"{what}: the model registers backward hooks, which forward mode does not see; use route='reverse'"
        )


def refuse_padded_embedding(y: Tensor, what: str) -> None:
    """Raise where the graph of `y` holds a functional embedding with a padding row: forward mode does not mask it."""
    for node in nodes_of([y]):
        row = padding_row(node)
        if row is not None:
            raise NotDifferentiable(
                f"{what}: an embedding with padding_idx={row} has a forward mode that is not the "
                "adjoint of its backward (its padding row is not masked); use route='reverse'"
            )
