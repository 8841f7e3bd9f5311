"""A training run as a map, and its Jacobian as an operator.

    s_{t+1} = update(s_t, g_t),    g_t = gradient of batch t at x_t,    s = (x, buffers)

The tangent of a step is elementwise but for d g = H_t d x, a Hessian product; the adjoint of a step is its mirror.
The Jacobian d x_T / d x_0 is the product of all steps. Its leading singular vectors are directions in which training is
chaotic, its small ones those that training forgets, and in the rest it is nearly the identity.

**Source.** Belrose and Scherlis, "Understanding gradient descent through the training Jacobian" (2024), arXiv
2412.07003.
**Differs from the source.** (1) No matrix is formed. (2) Momentum and Adam with all their buffers: the path through the
second moment counts. (3) States are kept at every root-of-T-th step, and those between are computed again.
**Cost.** A product with the Jacobian takes T gradients and T Hessian products, one with its transpose a second pass of
gradients. Memory: about 2 sqrt(T) states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.objective._data import rows_of
from frechet.objective._structure import examples_of
from frechet.operators._constructors import from_callable
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import _load_forward_rules

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Update(Result):
    """An update rule as a function of one coordinate: ``step((x, *buffers), g, t) -> (x, *buffers)``, t from 0.

    `step` acts on every entry alone, so it may be given entries of any shape. `buffers` are their first values.
    """

    name: str
    step: Callable[[State, Tensor, int], State] = field(repr=False)
    buffers: tuple[float, ...] = ()


def sgd_update(
    rate: float | Sequence[float], *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Update:  # fmt: skip
    """Return the update of `torch.optim.SGD`.

    Args:
        rate: the learning rate, or one for every step.
        momentum: the factor of the buffer.
        dampening: as in torch; the first step has none.
        nesterov: whether the step looks ahead.
        weight_decay: a multiple of x that is added to the gradient.

    Example:
        >>> import torch
        >>> from frechet.analyze import sgd_update
        >>> sgd_update(0.5).step((torch.tensor([1.0]),), torch.tensor([1.0]), 0)
        (tensor([0.5000]),)
    """

    def step(s: State, g: Tensor, t: int) -> State:
        x, g, eta = s[0], g + weight_decay * s[0], _rate(rate, t)
        if not momentum:
            return (x - eta * g,)
        m = momentum * s[1] + (1.0 if t == 0 else 1 - dampening) * g
        return x - eta * (g + momentum * m if nesterov else m), m

    return Update("SGD", step, (0.0,) if momentum else ())


def adam_update(
    rate: float | Sequence[float], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, decoupled: bool = True,
) -> Update:  # fmt: skip
    """Return the update of `torch.optim.AdamW`, or of `torch.optim.Adam` with ``decoupled=False``.

    Args:
        rate: the learning rate, or one for every step.
        betas: the factors of the two moments.
        eps: what is added to the root of the second moment.
        weight_decay: the decay.
        decoupled: whether the decay shrinks x, and is not a part of the gradient.

    Example:
        >>> import torch
        >>> from frechet.analyze import adam_update
        >>> adam_update(0.5, eps=0.0).step((torch.ones(1), torch.zeros(1), torch.zeros(1)), torch.ones(1), 0)[0]
        tensor([0.5000])
    """
    b1, b2 = betas

    def step(s: State, g: Tensor, t: int) -> State:
        (x, m, v), eta = s, _rate(rate, t)
        if decoupled:
            x = x * (1 - eta * weight_decay)
        else:
            g = g + weight_decay * x
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        square = v / (1 - b2 ** (t + 1))
        # a coordinate without a gradient so far does not move, and its root has no derivative
        root = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
        return x - eta * (m / (1 - b1 ** (t + 1))) / (root + eps), m, v

    return Update("AdamW" if decoupled else "Adam", step, (0.0, 0.0))


def _rate(rate: float | Sequence[float], t: int) -> float:
    return float(rate[t]) if isinstance(rate, Sequence) else rate


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """A run that can be gone through again: its batches, its update, and its states at some steps.

    `x` is where it ended. `rows` are the examples of each batch, in data order.
    """

    objective: Objective = field(repr=False)
    update: Update
    rows: tuple[Tensor, ...] = field(repr=False)
    kept: dict[int, State] = field(repr=False)
    x: Tensor
    examples: int

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.rows)

    def batch(self, t: int) -> Objective:
        """The objective on the batch of step t."""
        return on_rows(self.objective, self.rows[t])[0]

    def forward(self) -> Iterator[tuple[int, Objective, State, Tensor]]:
        """Every step: its number, the objective on its batch, the state before it, and the gradient."""
        state = self.kept[0]
        for t in range(self.steps):
            part = self.batch(t)
            g = part.gradient(state[0])
            yield t, part, state, g
            state = self.update.step(state, g, t)

    def backward(self) -> Iterator[tuple[int, Objective, State, Tensor]]:
        """The same from the last step to the first; states between those that are kept are computed again."""
        ends = [*sorted(self.kept), self.steps]
        for start, end in reversed(list(itertools.pairwise(ends))):
            state, segment = self.kept[start], []
            for t in range(start, end):
                part = self.batch(t)
                g = part.gradient(state[0])
                segment.append((t, part, state, g))
                state = self.update.step(state, g, t)
            yield from reversed(segment)


def trajectory(objective: Objective, rows: Sequence[Tensor], update: Update, *, x0: Tensor | None = None) -> Trajectory:
    """Return the training run that takes one step of `update` on each batch of examples in turn.

    The model is left as it is. `trajectory(...).x` is where training ends.

    Args:
        objective: the objective on all data, which are a list of batches in memory.
        rows: for each step, the numbers of the examples of its batch.
        update: such as `sgd_update` or `adam_update`.
        x0: the start ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import sgd_update, trajectory, training_jacobian
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.ones(2, 1), torch.zeros(2, 1))])  # w^2
        >>> run = trajectory(objective, [torch.tensor([0]), torch.tensor([1])], sgd_update(0.25))
        >>> training_jacobian(run).dense()  # (1 - 2/4)^2
        tensor([[0.2500]])
    """
    refuse_sharded("trajectory", objective.space)
    objective.snapshot().refuse_coupled("trajectory")
    x = objective.point if x0 is None else x0.clone()
    state: State = (x, *(torch.full_like(x, b) for b in update.buffers))
    every = max(1, math.isqrt(max(len(rows), 1)))
    kept: dict[int, State] = {0: state}
    chosen = tuple(torch.as_tensor(r, dtype=torch.long).reshape(-1) for r in rows)
    size = sum(examples_of(b) for b in objective.parts[0].data)
    for t, r in enumerate(chosen):
        if not len(r) or int(r.min()) < 0 or int(r.max()) >= size:
            raise ValueError(
                f"trajectory: rows must hold numbers of examples from 0 to {size - 1}, got {r.tolist()[:5]}"
            )
        if t and t % every == 0:
            kept[t] = state
        state = update.step(state, on_rows(objective, r)[0].gradient(state[0]), t)
    return Trajectory(objective, update, chosen, kept, state[0], size)


def training_jacobian(run: Trajectory) -> LinearOperator:
    """Return d x_T / d x_0, the derivative of where training ends in where it began, as an operator.

    `svds` of it minus the identity finds the directions that training amplifies and those that it forgets.

    Args:
        run: the training run.

    Example:
        See `trajectory`.
    """
    space, update = run.objective.space, run.update

    def matmat(V: Tensor) -> Tensor:
        tangents: State = (V, *(torch.zeros_like(V) for _ in update.buffers))
        for t, part, state, g in run.forward():
            dg = hessian(part, state[0]) @ tangents[0]
            tangents = tangent_of_step(update, state, g, t, tangents, dg)
        return tangents[0]

    def rmatmat(U: Tensor) -> Tensor:
        adjoint: State = (U, *(torch.zeros_like(U) for _ in update.buffers))
        for t, part, state, g in run.backward():
            adjoint, ug = adjoint_of_step(update, state, g, t, adjoint)
            adjoint = (adjoint[0] + hessian(part, state[0]) @ ug, *adjoint[1:])
        return adjoint[0]

    return from_callable(matmat, rmatmat=rmatmat, domain=space, codomain=space)


def on_rows(objective: Objective, rows: Tensor) -> tuple[Objective, Tensor]:
    """The objective on some examples, and their numbers in the order in which they come."""
    part, pieces, order, start = objective.parts[0], [], [], 0
    raw: Any = part.data
    for batch in raw:
        n = examples_of(batch)
        here = rows[(rows >= start) & (rows < start + n)]
        if here.numel():
            pieces.append(rows_of(batch, here - start))
            order.append(here)
        start += n
    made = objective._with((replace(part, data=pieces, population=None),), objective.penalties)
    return made, torch.cat(order)


def tangent_of_step(update: Update, state: State, g: Tensor, t: int, tangents: State, dg: Tensor) -> State:
    """The tangents (n, k) after a step, from those before it and of the gradient."""

    def step(*args: Tensor) -> State:
        return update.step(args[:-1], args[-1], t)

    _load_forward_rules()

    def one(*d: Tensor) -> State:
        return torch.func.jvp(step, (*state, g), d)[1]

    return torch.func.vmap(one, in_dims=1, out_dims=1)(*tangents, dg)


def adjoint_of_step(update: Update, state: State, g: Tensor, t: int, adjoint: State) -> tuple[State, Tensor]:
    """The adjoints (n, k) before a step, and that of the gradient, from those after it."""

    def step(*args: Tensor) -> State:
        return update.step(args[:-1], args[-1], t)

    back = torch.func.vjp(step, *state, g)[1]
    *before, ug = torch.func.vmap(lambda *u: back(u), in_dims=1, out_dims=1)(*adjoint)
    return tuple(before), ug
