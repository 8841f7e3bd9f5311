"""Training of two or more players as a map, and the influence of every example from one backward sweep.

    x_p <- update_p(x_p, d L_p / d x_p),    L_p = (1 / B) sum_i w_i term_i(x_1, x_2, ...) + rest(x_1, x_2, ...)

Data enter the loss of one player, the discriminator, and reach the other through the mixed second derivatives
d^2 L_G / d x_G d x_D. The adjoint of a round of steps carries both, so with u the adjoint of all states after a round,
the influence of its examples is the derivative of the round in their weights along u. One sweep gives all of them.

**Source.** Terashita, Ohashi, Nonaka and Kanemaru, "Influence estimation for generative adversarial networks" (2021),
arXiv 2101.08367.
**Differs from the source.** (1) Any update rule of `sgd_update` and `adam_update`, with all buffers, and any number of
players, who move in turn or at once. (2) States are kept at every root-of-T-th round, and those between are computed
again. (3) The examples of a batch come from one derivative, not one product each.
**Cost.** A sweep takes T rounds forward and T rounds with a second derivative. Memory: about 2 sqrt(T) states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.analyze._trajectory import State, Update
from frechet.linalg._shown import Result
from frechet.space._variables import Point, Variables

Points = tuple[Any, ...]  # of every player, as given: a tensor or a dict of tensors
Terms = Callable[[Points, Tensor, int], "Tensor | tuple[Tensor, Tensor]"]
Order = Literal["alternating", "simultaneous"]


@dataclass(frozen=True)
class Player(Result):
    """One player: what it minimizes, and how it steps.

    ``loss(points, rows, t)`` of all players' points, the examples of round t, and t returns the terms ``(B,)`` of the
    examples, whose mean counts, or a scalar that no example enters, or both as a pair. It must return the same at a
    second call: draw noise from a generator that is seeded by t.
    """

    loss: Terms = field(repr=False)
    update: Update


@dataclass(frozen=True, eq=False)
class Game(Result):
    """A run of several players that can be gone through again. `x` are their points where it ended, as given."""

    players: tuple[Player, ...]
    order: Order
    rows: tuple[Tensor, ...] = field(repr=False)
    kept: dict[int, tuple[State, ...]] = field(repr=False)
    x: Points = field(repr=False)
    examples: int
    variables: tuple[Variables, ...] = field(repr=False)

    @property
    def steps(self) -> int:
        """How many rounds it has."""
        return len(self.rows)

    def backward(self) -> Iterator[tuple[int, tuple[State, ...]]]:
        """Every round from the last to the first, with the states before it."""
        ends = [*sorted(self.kept), self.steps]
        for start, end in reversed(list(itertools.pairwise(ends))):
            states, segment = self.kept[start], []
            for t in range(start, end):
                segment.append((t, states))
                states = self.round(states, None, t)
            yield from reversed(segment)

    def round(self, states: tuple[State, ...], weights: Tensor | None, t: int) -> tuple[State, ...]:
        """The states after round t, as a function of those before it and of the weights of its examples."""
        return _round(self.players, self.variables, self.order, states, weights, self.rows[t], t)


def game_trajectory(
    players: Sequence[Player], x0: Sequence[Point], rows: Sequence[Tensor], *, examples: int,
    order: Order = "alternating",
) -> Game:  # fmt: skip
    """Return the training run of several players, such as a generator and a discriminator.

    `trajectory_influence` of it is the influence of every example. `.x` is where it ends.

    Args:
        players: what each minimizes, and its update rule.
        x0: where each begins, a tensor or a dict of tensors, such as ``dict(model.named_parameters())``.
        rows: for each round, the numbers of the examples of its batch.
        examples: how many examples there are.
        order: whether a player sees the moves of those before it in a round ("alternating"), or all move at once.

    Example:
        >>> import torch
        >>> from frechet.analyze import Player, game_trajectory, sgd_update, trajectory_influence
        >>> data = torch.tensor([1.0, 3.0])
        >>> critic = Player(lambda x, rows, t: (-x[0] * data[rows], x[0] * x[1] + x[0] ** 2), sgd_update(0.5))
        >>> generator = Player(lambda x, rows, t: -x[0] * x[1], sgd_update(1.0))
        >>> start = [torch.zeros(()), torch.zeros(())]
        >>> run = game_trajectory([critic, generator], start, [torch.arange(2)], examples=2)
        >>> run.x  # the critic moves to half of the mean, and the generator to it
        (tensor(1.), tensor(1.))
        >>> trajectory_influence(run, (None, torch.ones(())))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    if len(players) != len(x0) or not players:
        raise ValueError(f"game_trajectory: x0 must hold a start for each player, got {len(x0)} of {len(players)}")
    if order not in ("alternating", "simultaneous"):
        raise ValueError(f"game_trajectory: order must be 'alternating' or 'simultaneous', got {order!r}")
    variables = tuple(Variables.of(x) for x in x0)
    flat = [v.flatten(x).detach().clone() for v, x in zip(variables, x0, strict=True)]
    states: tuple[State, ...] = tuple(
        (x, *(torch.full_like(x, b) for b in p.update.buffers)) for p, x in zip(players, flat, strict=True)
    )
    chosen = tuple(torch.as_tensor(r, dtype=torch.long).reshape(-1) for r in rows)
    every = max(1, math.isqrt(max(len(chosen), 1)))
    kept: dict[int, tuple[State, ...]] = {0: states}
    for t, r in enumerate(chosen):
        if not len(r) or int(r.min()) < 0 or int(r.max()) >= examples:
            raise ValueError(
                f"game_trajectory: rows must hold numbers of examples from 0 to {examples - 1}, got {r.tolist()[:5]}"
            )
        if t and t % every == 0:
            kept[t] = states
        after = _round(players, variables, order, states, None, r, t)
        if t == 0:
            _check_repeats(after, _round(players, variables, order, states, None, r, t))
        states = after
    x = tuple(v.unflatten(s[0]) for v, s in zip(variables, states, strict=True))
    return Game(tuple(players), order, chosen, kept, x, examples, variables)


def game_influence(run: Game, metric_gradient: Sequence[Point | None]) -> Tensor:
    """dM/dw_n for every example n, from the gradient of M in every player's point; None where M does not see one."""
    if len(metric_gradient) != len(run.players):
        raise ValueError(
            f"trajectory_influence: metric_gradient must hold one for each of {len(run.players)} players, or None, got "
            f"{len(metric_gradient)}"
        )
    adjoint: tuple[State, ...] = tuple(
        tuple(_start(v, g, s) if i == 0 else torch.zeros_like(s) for i, s in enumerate(state))
        for v, g, state in zip(run.variables, metric_gradient, run.kept[0], strict=True)
    )
    total = torch.zeros(run.examples, dtype=torch.float64)
    for t, states in run.backward():
        weights = torch.ones(len(run.rows[t]), dtype=states[0][0].dtype, device=states[0][0].device)
        back = torch.func.vjp(lambda s, w, t=t: run.round(s, w, t), states, weights)[1]
        adjoint, slopes = back(adjoint)
        total.index_add_(0, run.rows[t].cpu(), slopes.double().cpu())
    return total


def _start(variables: Variables, gradient: Point | None, x: Tensor) -> Tensor:
    flat = torch.zeros_like(x) if gradient is None else variables.flatten(gradient).detach().to(x)
    if flat.shape != x.shape:
        raise ValueError(
            f"trajectory_influence: metric_gradient must have shape {tuple(x.shape)} for each player, got "
            f"{tuple(flat.shape)}"
        )
    return flat


def _round(
    players: Sequence[Player], variables: Sequence[Variables], order: Order, states: tuple[State, ...],
    weights: Tensor | None, rows: Tensor, t: int,
) -> tuple[State, ...]:  # fmt: skip
    after = list(states)
    for p, player in enumerate(players):
        at = [s[0] for s in (after if order == "alternating" else states)]

        def value(x: Tensor, p: int = p, at: list[Tensor] = at, player: Player = player) -> Tensor:
            points = tuple(v.unflatten(x if q == p else at[q]) for q, v in enumerate(variables))
            return _mean(player.loss(points, rows, t), weights, len(rows))

        after[p] = player.update.step(states[p], torch.func.grad(value)(at[p]), t)
    return tuple(after)


def _mean(found: Tensor | tuple[Tensor, Tensor], weights: Tensor | None, size: int) -> Tensor:
    """The weighted mean of the terms of examples, and what no example enters."""
    terms, rest = found if isinstance(found, tuple) else (found, None)
    if terms.ndim == 0 and rest is None:
        return terms
    if terms.shape != (size,) or (rest is not None and rest.ndim):
        raise ValueError(
            f"game_trajectory: a loss must return terms ({size},) of its examples, a scalar, or both as a pair, got "
            f"{tuple(terms.shape)}" + ("" if rest is None else f" and {tuple(rest.shape)}")
        )
    mean = terms.mean() if weights is None else (weights * terms).sum() / size
    return mean if rest is None else mean + rest


def _check_repeats(first: tuple[State, ...], second: tuple[State, ...]) -> None:
    for p, (a, b) in enumerate(zip(first, second, strict=True)):
        if not torch.equal(a[0].nan_to_num(), b[0].nan_to_num()):
            raise ValueError(
                f"game_trajectory: the loss of player {p} must return the same at a second call, got another gradient; "
                "draw its noise from a generator that is seeded by t"
            )
