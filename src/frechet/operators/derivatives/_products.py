"""Products with derivatives as pure functions that autograd sees through.

For penalties on curvature, Jacobian norms, bilevel problems: whatever needs the derivative of a product. The operators
(`hessian(f, x)`, ...) run without a graph, so inside a training loss they would be constants; these are not.

Points and vectors are a tensor or a dict of tensors, alike in shape. Reverse mode only: every operation with a double
backward works.

**Source.** Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994); the transposed product
with a dummy cotangent: Townsend, "A new trick for calculating Jacobian vector products" (2017).
**Cost** in gradients of f: Hessian 2.3 to 3.6, Jacobian about 2, Gauss-Newton about 2.3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions
from frechet.objective._kernels import (
    ordinary,
    ordinary_mode,
    recurrence_without_cudnn,
    refuse_once_differentiable,
    unfused_attention,
)
from frechet.objective._torch_internals import autocast_left_out
from frechet.operators.derivatives._custom_functions import refused_cuts
from frechet.space import Point, Space, aligned, like, named

Leaves = tuple[list[Tensor], dict[str, Tensor]]  # differentiable blocks, and all parameters with these among them


@contextmanager
def second_order(what: str, device: torch.device, functions: Functions | None = None) -> Iterator[None]:
    """Second derivatives of the user's functions inside, outside of a pass over data, which does the same itself.

    Attention by kernels that have them, layers by formulas where theirs are wrong, in full precision. `functions` is
    what has been seen of the functions; without it all derivatives are taken as if a function took derivatives itself.
    """
    seen = Functions(nested=True) if functions is None else functions
    with differentiating(what, device), unfused_attention(), recurrence_without_cudnn(), autocast_left_out(), seen:
        yield


@contextmanager
def differentiating(what: str, device: torch.device) -> Iterator[None]:
    """Derivatives inside: no inference mode, and autograd's complaint about a missing one in one sentence."""
    try:
        with ordinary_mode(device):
            yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        missing = (
            "is not implemented",
            "not implemented for",
            "does not support it",
            "forward AD",
            "forward mode AD",
            "_efficientzerotensor",
            "Sparse",
            "result->level()",
            "Cannot access storage",
            "implement the jvp",
            "ZeroTensors are immutable",  # torch's mse_loss in forward mode
            "does not currently support double backward",
            "no autograd formula was registered",  # of an operator of torch.library
        )
        if isinstance(error, NotDifferentiable) and text.startswith("the backward of"):
            raise NotDifferentiable(f"{what}: {text}") from None
        if isinstance(error, NotDifferentiable) or not any(m in text for m in missing):
            raise
        raise NotDifferentiable(
            f"{what}: an operation of the model or the loss lacks the derivative that this product needs: "
            f"{text.splitlines()[0][:200]}; replace that operation, or try the other route="
        ) from error


@cache
def _load_forward_rules() -> None:
    """torch scripts its forward-mode rules at first use, and warns of its own deprecation, which `-W error` raises."""
    with warnings.catch_warnings(), torch.enable_grad(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        x = torch.ones(1, requires_grad=True)
        torch.autograd.grad(forward_ad.make_dual(x, torch.ones(1)).pow(2).sum(), x)


@contextmanager
def dual_numbers() -> Iterator[None]:
    """Forward-mode differentiation inside."""
    _load_forward_rules()
    with forward_ad.dual_level():
        yield


def columns(space: Space, V: Tensor) -> list[list[Tensor]]:
    """The columns of `V` ``(n, k)``, each as the blocks of `space`."""
    return [[aligned(block) for block in space.split(v)] for v in ordinary(V).T]


@torch.no_grad()
def add_into(row: list[Tensor], blocks: list[Tensor]) -> None:
    """Add `blocks` to the views in `row`, in place."""
    for view, block in zip(row, blocks, strict=True):
        view.add_(block)


@dataclass(frozen=True, eq=False)
class Sums:
    """The products with each vector, added up block by block: in given views, or in whatever comes first."""

    rows: list[list[Tensor]]  # an empty row has no memory yet

    def add(self, i: int, blocks: list[Tensor]) -> None:
        if self.rows[i]:
            add_into(self.rows[i], blocks)
        else:
            self.rows[i] = blocks

    def row(self, i: int, like: list[Tensor]) -> list[Tensor]:
        """Row i, to add into in place; its blocks are like these."""
        if not self.rows[i]:
            self.rows[i] = [torch.zeros_like(b) for b in like]
        return self.rows[i]


def grads(
    ys: Tensor | Sequence[Tensor],
    xs: Sequence[Tensor],
    us: Sequence[Tensor] | None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """autograd.grad with zeros where there is no dependence, and for outputs that depend on nothing."""
    ys = [ys] if isinstance(ys, Tensor) else list(ys)
    pairs = [(y, None if us is None else us[i]) for i, y in enumerate(ys) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in xs]
    outs, cots = [y for y, _ in pairs], [u for _, u in pairs]
    with ExitStack() as stack:
        if create_graph:
            custom = refuse_once_differentiable(outs)
            if custom:
                stack.enter_context(refused_cuts(custom))
        found = torch.autograd.grad(
            outs, list(xs), cots, retain_graph, create_graph, allow_unused=True, materialize_grads=True
        )
    return [g if g.layout is torch.strided else g.to_dense() for g in found]


def _opened(x: Point) -> tuple[Point, list[Tensor]]:
    """`x` with blocks that can be differentiated, keeping the graph of those that already can."""
    opened = [b if b.requires_grad else ordinary(b).detach().requires_grad_() for b in named(x).values()]
    return like(x, opened), opened


def _vector(name: str, x: Point, v: Point) -> list[Tensor]:
    same_kind = isinstance(x, Tensor) == isinstance(v, Tensor)
    if not same_kind or (not isinstance(x, Tensor) and not isinstance(v, Tensor) and list(x) != list(v)):
        raise TypeError(f"{name}: v must be structured like x (a tensor, or a dict with the same keys in order)")
    blocks = list(named(v).values())
    for a, b in zip(named(x).values(), blocks, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"{name}: v must have the shape of x, got {tuple(b.shape)} for {tuple(a.shape)}")
    return [ordinary(b) for b in blocks]


def hessian_product(f: Callable[..., Tensor], x: Point, v: Point) -> Tensor | dict[str, Tensor]:
    """Return (d^2 f / dx^2) v, shaped like x, as a differentiable function of x, v and what f closes over.

    Args:
        f: a scalar function.
        x: the point, a tensor or a dict of tensors.
        v: the vector, shaped like x.

    Example:
        >>> import torch
        >>> from frechet import hessian_product
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = hessian_product(lambda x: (x**3).sum(), x, torch.ones(2))  # 6 x
        >>> y
        tensor([ 6., 12.], grad_fn=<...>)
        >>> torch.autograd.grad(y.sum(), x)[0]
        tensor([6., 6.])
    """
    vs = _vector("hessian_product", x, v)
    with second_order("hessian_product", vs[0].device), torch.enable_grad():
        opened, xs = _opened(x)
        value = f(opened)
        if value.ndim:
            raise ValueError(f"hessian_product: f must return a scalar, got shape {tuple(value.shape)}")
        gs = grads(value, xs, None, create_graph=True)
        return like(x, grads(gs, xs, vs, create_graph=True))


def jacobian_product(f: Callable[..., Tensor], x: Point, v: Point) -> Tensor:
    """Return (df/dx) v, shaped like f(x), as a differentiable function of x, v and what f closes over.

    Args:
        f: a function to a tensor.
        x: the point, a tensor or a dict of tensors.
        v: the vector, shaped like x.

    Example:
        >>> import torch
        >>> from frechet import jacobian_product
        >>> jacobian_product(lambda x: x**2, torch.tensor([1.0, 3.0]), torch.ones(2)).detach()
        tensor([2., 6.])
    """
    vs = _vector("jacobian_product", x, v)
    with second_order("jacobian_product", vs[0].device), torch.enable_grad():
        opened, xs = _opened(x)
        y = f(opened)
        u = torch.zeros_like(y).requires_grad_()
        gs = grads(y, xs, [u], create_graph=True)
        return grads(gs, [u], vs, create_graph=True)[0]


def gauss_newton_product(
    f: Callable[..., Tensor], loss: Callable[[Tensor], Tensor], x: Point, v: Point
) -> Tensor | dict[str, Tensor]:
    """Return J' H J v, shaped like x, where J is the Jacobian of f at x and H the Hessian of `loss` at f(x).

    It is a differentiable function of x, v and what f and loss close over.

    Args:
        f: a function to a tensor.
        loss: a scalar function of f's value.
        x: the point, a tensor or a dict of tensors.
        v: the vector, shaped like x.

    Example:
        >>> import torch
        >>> from frechet import gauss_newton_product
        >>> A = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> x, v = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> gauss_newton_product(lambda x: A @ x, lambda y: (y**2).sum(), x, v).detach()
        tensor([2., 4.])
    """
    vs = _vector("gauss_newton_product", x, v)
    with second_order("gauss_newton_product", vs[0].device), torch.enable_grad():
        opened, xs = _opened(x)
        y = f(opened)
        u = torch.zeros_like(y).requires_grad_()
        Jv = grads(grads(y, xs, [u], create_graph=True), [u], vs, create_graph=True)[0]
        HJv = hessian_product(loss, y, Jv)
        assert isinstance(HJv, Tensor)  # y is a tensor
        return like(x, grads(y, xs, [HJv], create_graph=True))
