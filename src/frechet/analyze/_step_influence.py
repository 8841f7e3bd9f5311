"""The influence of each example on a metric through any training loop, such as that of two players.

A run is a map of states, s_{t+1} = step(s_t, w, t), with a weight w_n = 1 of each example. With the metric M of the
last state,

    u_T = grad M,   u_t = (d step / d s)' u_{t+1},   dM/dw_n = sum_t (d step / d w_n)' u_{t+1}

so that one transposed product for each step gives all examples at once. In a game of a generator and a discriminator
an example is seen by the discriminator alone, and reaches the generator through the states in between.

**Source.** S. Hara, A. Nitanda, T. Maehara (2019), Data cleansing for models trained with SGD, arXiv 1906.08473; N.
Terashita, H. Ohashi, S. Hara (2025), Data cleansing for GANs, arXiv 2504.00603, for two players.
**Differs from the source.** (1) The step is the user's own function, differentiated as it is. (2) States are kept at
every root-of-T-th step, and those between are computed again.
**Cost.** Each step three times, once with its backward pass. Memory: about 2 sqrt(T) states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._shown import Result

State = tuple[Tensor, ...]
Step = Callable[[State, Tensor, int], Sequence[Tensor]]


@dataclass(frozen=True, eq=False)
class StepRun(Result):
    """A run that can be gone through again. `last` is where it ended, `kept` holds some on the way by their number."""

    last: State = field(repr=False)
    steps: int
    step: Step = field(repr=False)
    weights: Tensor = field(repr=False)
    kept: dict[int, State] = field(repr=False)

    def backward(self) -> Iterator[tuple[int, State]]:
        """Every step from the last to the first, with the state before it."""
        for start, end in reversed(list(itertools.pairwise([*sorted(self.kept), self.steps]))):
            segment = [self.kept[start]]
            for t in range(start, end - 1):
                segment.append(_after(self.step, segment[-1], self.weights, t))
            yield from reversed(list(enumerate(segment, start)))


def run_steps(step: Step, start: Sequence[Tensor], steps: int, weights: Tensor) -> StepRun:
    """Return the run of a training loop that is written as a function of its state.

    Args:
        step: ``(state, weights, t) -> state``, made of torch operations. It takes its gradients by
            ``torch.autograd.grad(..., create_graph=True)``, and draws nothing that `t` does not fix: the first step is
            made twice, and must be the same.
        start: tensors: parameters of one model or of several players, moments.
        steps: how many.
        weights: of the examples ``(N,)``, by which the step multiplies their terms.

    Example:
        >>> import torch
        >>> from frechet.analyze import run_steps
        >>> y = torch.tensor([1.0, 3.0])
        >>> def step(state, w, t):
        ...     return (state[0] - 0.5 * (w * (state[0] - y)).mean(),)
        >>> run_steps(step, (torch.zeros(()),), 1, torch.ones(2)).last
        (tensor(1.),)
    """
    if weights.ndim != 1 or not weights.is_floating_point():
        raise ValueError(
            f"run_steps: weights must be floating (N,), got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    if steps < 1:
        raise ValueError(f"run_steps: steps must be at least 1, got {steps}")
    w, every, kept = weights.detach().clone(), max(1, math.isqrt(steps)), {}
    state: State = tuple(s.detach().clone() for s in start)
    for t in range(steps):
        if t % every == 0:
            kept[t] = state
        after = _after(step, state, w, t)
        if t == 0 and not all(map(_same, after, _after(step, state, w, t))):
            raise ValueError(
                "run_steps: step must return the same at a second call, got another state; draw noise from a generator "
                "that is seeded by t"
            )
        state = after
    return StepRun(state, steps, step, w, kept)


def step_influence(run: StepRun, metric: Callable[[State], Tensor]) -> Tensor:
    """Return dM/dw_n for every example n: how a metric of the last state changes with the example's weight.

    Leaving example n out of the run changes the metric by about minus this number.

    Args:
        run: of `run_steps`.
        metric: of the last state, a scalar.

    Returns:
        A tensor ``(N,)`` in float64.

    Raises:
        NotDifferentiable: the metric or the steps do not depend on what they are given by torch operations.
        NonFinite: the sweep overflows, as it does through a chaotic run.

    Example:
        >>> import torch
        >>> from frechet.analyze import run_steps, step_influence
        >>> y = torch.tensor([1.0, 3.0])
        >>> def step(state, w, t):
        ...     return (state[0] - 0.5 * (w * (state[0] - y)).mean(),)
        >>> run = run_steps(step, (torch.zeros(()),), 1, torch.ones(2))
        >>> step_influence(run, lambda state: 2 * state[0])
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    with torch.enable_grad():
        last = _leaves(run.last)
        value = metric(last)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise NotDifferentiable(
                "step_influence: metric must return a scalar that depends on the state by torch operations"
            )
        u = _pulled([value.reshape(())], [torch.ones_like(value).reshape(())], last)
    total = torch.zeros(len(run.weights), dtype=torch.float64, device=run.weights.device)
    seen = False
    for t, before in run.backward():
        with torch.enable_grad():
            state, w = _leaves(before), run.weights.clone().requires_grad_()
            pairs = [(a, b) for a, b in zip(run.step(state, w, t), u, strict=True) if a.requires_grad]
            *u, slope = _pulled([a for a, _ in pairs], [b for _, b in pairs], (*state, w))
        seen = seen or bool(slope.any())
        total += slope.double()
        if not bool(total.isfinite().all()):
            raise NonFinite(
                f"step_influence: the sweep must stay finite, got NaN or infinity at step {t}; take fewer steps"
            )
    if not seen:
        raise NotDifferentiable(
            "step_influence: the metric must depend on the weights through the steps, got no example that does"
        )
    return total


def _after(step: Step, state: State, weights: Tensor, t: int) -> State:
    with torch.enable_grad():
        made = step(_leaves(state), weights, t)
    shapes = [tuple(s.shape) for s in state]
    if len(made) != len(state) or [tuple(s.shape) for s in made] != shapes:
        raise ValueError(f"run_steps: step must return a state like its own, {shapes}, got another at step {t}")
    return tuple(s.detach() for s in made)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _leaves(state: State) -> State:
    return tuple(s.detach().clone().requires_grad_(s.is_floating_point()) for s in state)


def _pulled(outputs: list[Tensor], directions: list[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The transposed product, zeros where nothing depends."""
    leaves = [i for i in inputs if i.requires_grad]
    if not outputs:
        return [torch.zeros_like(i) for i in inputs]
    found = iter(torch.autograd.grad(outputs, leaves, directions, allow_unused=True, materialize_grads=True))
    return [next(found) if i.requires_grad else torch.zeros_like(i) for i in inputs]
