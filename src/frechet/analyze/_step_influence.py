"""The influence of each example on a metric through any training loop, such as that of two players.

A run is a map of states, s_{t+1} = step(s_t, w, t), with a weight w_n = 1 of each example. With the metric M of the
last state,

    u_T = grad M,   u_t = (d step / d s)' u_{t+1},   dM/dw_n = sum_t (d step / d w_n)' u_{t+1}

so that one transposed product for each step gives all examples at once. In a game of a generator and a discriminator
an example is seen by the discriminator alone, and reaches the generator through the states in between.

**Source.** S. Hara, A. Nitanda, T. Maehara (2019), Data cleansing for models trained with SGD, arXiv 1906.08473; N.
Terashita, H. Ohashi, S. Hara (2025), Data cleansing for GANs, arXiv 2504.00603, for two players.
**Differs from the source.** The step is the user's own function, differentiated as it is.
**Cost.** The states of all steps; a step and its backward pass for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from frechet.errors import NonFinite, NotDifferentiable

State = tuple[Tensor, ...]
Step = Callable[[State, Tensor, int], Sequence[Tensor]]
WHAT = "step_influence"


def run_steps(step: Step, start: Sequence[Tensor], steps: int, weights: Tensor) -> list[State]:
    """Return the states of a run, from the start to the last.

    Args:
        step: ``(state, weights, t) -> state``, made of torch operations. It takes its gradients by
            ``torch.autograd.grad(..., create_graph=True)``, and draws nothing that `t` does not fix.
        start: tensors: parameters, moments.
        steps: how many.
        weights: of the examples ``(N,)``, by which the step multiplies their terms.

    Example:
        >>> import torch
        >>> from frechet.analyze import run_steps
        >>> y = torch.tensor([1.0, 3.0])
        >>> run_steps(lambda s, w, t: (s[0] - 0.5 * (w * (s[0] - y)).mean(),), (torch.zeros(()),), 1, torch.ones(2))
        [(tensor(0.),), (tensor(1.),)]
    """
    states: list[State] = [tuple(s.detach() for s in start)]
    for t in range(steps):
        with torch.enable_grad():
            made = step(
                tuple(s.requires_grad_(s.is_floating_point()) for s in _copied(states[-1])), weights.detach(), t
            )
        states.append(_like(states[-1], made, t))
    return states


def step_influence(step: Step, states: Sequence[State], metric: Callable[[State], Tensor], weights: Tensor) -> Tensor:
    """Return dM/dw_n for every example n: how a metric of the last state changes with the example's weight.

    Leaving example n out of the run changes the metric by about minus this number.

    Args:
        step: as in `run_steps`.
        states: of the run, from `run_steps`.
        metric: of the last state, a scalar.
        weights: of the examples in the run ``(N,)``.

    Returns:
        A tensor ``(N,)`` in float64.

    Raises:
        NotDifferentiable: the metric or the steps do not depend on what they are given by torch operations.
        NonFinite: the sweep overflows, as it does through a chaotic run.

    Example:
        >>> import torch
        >>> from frechet.analyze import run_steps, step_influence
        >>> y, w = torch.tensor([1.0, 3.0]), torch.ones(2)
        >>> def step(state, w, t):
        ...     return (state[0] - 0.5 * (w * (state[0] - y)).mean(),)
        >>> run = run_steps(step, (torch.zeros(()),), 1, w)
        >>> step_influence(step, run, lambda state: 2 * state[0], w)
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    if len(states) < 2:
        raise ValueError(f"{WHAT}: states must have the start and a step at least, got {len(states)}")
    if weights.ndim != 1 or not weights.is_floating_point():
        raise ValueError(f"{WHAT}: weights must be floating (N,), got {weights.dtype} of shape {tuple(weights.shape)}")
    with torch.enable_grad():
        last = tuple(s.requires_grad_(s.is_floating_point()) for s in _copied(states[-1]))
        value = metric(last)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise NotDifferentiable(
                f"{WHAT}: metric must return a scalar that depends on the state by torch operations"
            )
        u = _pulled([value.reshape(())], [torch.ones_like(value).reshape(())], last)
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    seen = False
    for t in reversed(range(len(states) - 1)):
        with torch.enable_grad():
            state = tuple(s.requires_grad_(s.is_floating_point()) for s in _copied(states[t]))
            w = weights.detach().clone().requires_grad_()
            pairs = [(a, b) for a, b in zip(step(state, w, t), u, strict=True) if a.requires_grad]
            *u, slope = _pulled([a for a, _ in pairs], [b for _, b in pairs], (*state, w))
        seen = seen or bool(slope.any())
        total += slope.double()
        if not bool(total.isfinite().all()):
            raise NonFinite(f"{WHAT}: the sweep must stay finite, got NaN or infinity at step {t}; take fewer steps")
    if not seen:
        raise NotDifferentiable(
            f"{WHAT}: the metric must depend on the weights through the steps, got no example that does"
        )
    return total


def _copied(state: State) -> list[Tensor]:
    return [s.detach().clone() for s in state]


def _pulled(outputs: list[Tensor], directions: list[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The transposed product, zeros where nothing depends."""
    leaves = [i for i in inputs if i.requires_grad]
    if not outputs:
        return [torch.zeros_like(i) for i in inputs]
    found = iter(torch.autograd.grad(outputs, leaves, directions, allow_unused=True, materialize_grads=True))
    return [next(found) if i.requires_grad else torch.zeros_like(i) for i in inputs]


def _like(before: State, made: Sequence[Tensor], t: int) -> State:
    shapes = [tuple(s.shape) for s in before]
    if len(made) != len(before) or [tuple(s.shape) for s in made] != shapes:
        raise ValueError(f"run_steps: step must return a state like its own, {shapes}, got another at step {t}")
    return tuple(s.detach() for s in made)
