"""Functions on plain tensors whose derivatives, of any order and in either mode, are such functions again.

The derivative of a solution is a solution of linear equations, whose derivative is one again. `Nested` puts a function
of tensors into the graph so that it always runs on plain tensors, outside of every transform of `torch.func` around it,
where autograd may be used freely; what it needs of its inputs is kept, its own graph is not. For y = g(x)

    backward    the function (x, u) -> g'(x)'u        `Pulled`
    jvp         the function (x, t) -> g'(x) t        `Pushed`

Under `vmap` it runs once for each entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.operators.derivatives._products import grads, second_order

TensorFunction = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Pulled:
    """(x_1 ... x_n, u_1 ...) -> the gradients of sum_i <u_i, g_i(x)> with respect to the `wanted` inputs."""

    g: TensorFunction
    wanted: tuple[int, ...]
    n: int

    def __call__(self, *args: Tensor) -> list[Tensor]:
        opened = opened_for_gradients(args[: self.n], self.wanted)
        ys = self.g(*opened)
        return grads(ys, [opened[i] for i in self.wanted], list(args[self.n :]), create_graph=_in_graph(args))


@dataclass(frozen=True)
class Pushed:
    """(x_1 ... x_n, t_1 ...) -> the directional derivatives of g(x) as the `moved` inputs move by t."""

    g: TensorFunction
    moved: tuple[int, ...]
    n: int

    def __call__(self, *args: Tensor) -> list[Tensor]:
        opened = opened_for_gradients(args[: self.n], self.moved)
        ys = self.g(*opened)
        u = [torch.zeros_like(y).requires_grad_() for y in ys]
        pulled = grads(ys, [opened[i] for i in self.moved], u, create_graph=True)
        return grads(pulled, u, list(args[self.n :]), create_graph=_in_graph(args))


def opened_for_gradients(xs: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
    """`xs`, with those `wanted` as nodes of their own, so that a gradient stops there and is a partial one."""
    found = list(xs)
    for i in wanted:
        found[i] = xs[i].view_as(xs[i]) if xs[i].requires_grad else xs[i].detach().requires_grad_()
    return found


def _in_graph(args: Sequence[Tensor]) -> bool:
    return any(a.requires_grad for a in args)


class Nested(torch.autograd.Function):
    """``Nested.apply(g, *x)`` is the tuple g(x), differentiable."""

    @staticmethod
    def forward(g: TensorFunction, *xs: Tensor) -> tuple[Tensor, ...]:
        with second_order("implicit", xs[0].device), torch.enable_grad():
            return tuple(y.detach() for y in g(*[x.detach() for x in xs]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.g = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[Tensor | None, ...]:
        xs = ctx.saved_tensors
        wanted = tuple(i for i in range(len(xs)) if ctx.needs_input_grad[i + 1])
        found: list[Tensor | None] = [None] * (len(xs) + 1)
        for i, gradient in zip(wanted, Nested.apply(Pulled(ctx.g, wanted, len(xs)), *xs, *us), strict=True):
            found[i + 1] = gradient
        return tuple(found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        # no arithmetic here: torch turns forward mode off in a jvp rule, and a direction of a jvp around would be lost
        xs = ctx.saved_tensors
        given = {i: t for i, t in enumerate(tangents[1:]) if t is not None}
        return Nested.apply(Pushed(ctx.g, tuple(given), len(xs)), *xs, *given.values())

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return one_by_one(info.batch_size, in_dims[1:], args[1:], lambda *row: Nested.apply(args[0], *row))


def one_by_one(
    size: int, dims: Sequence[int | None], xs: Sequence[Tensor], f: Callable[..., tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The outputs of f for each entry of a batch, stacked, and the axes along which they are."""
    rows = [f(*[x if d is None else x.select(d, i) for x, d in zip(xs, dims, strict=True)]) for i in range(size)]
    stacked = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return stacked, (0,) * len(stacked)
