"""Gradients of expectations of random programs, each random choice with the estimator that suits it.

A program draws its choices through `draw(distribution, how)` and returns a number. Each choice is

- **pathwise**: z = g(noise, theta), and the derivative goes through z. The program must be continuous in z;
- **score**: z is drawn, and (f - baseline) d log p(z; theta) is added. The baseline is the mean of the other samples;
- **enumerated**: the program runs once for each value of z, weighted by p(z; theta). Nothing is random;
- **exact weights inside**: choices may depend on earlier ones, of any kind.

With w the product of the enumerated probabilities of a run, the derivative of

    sum over runs of ( w f + stop(w (f - baseline)) sum of log p over its scored choices )

has the mean d E f / d theta, whatever the mix.

**Source.** Becker et al., "Probabilistic programming with programmable variational inference" (2024), arXiv
2406.15742; Schulman et al., "Gradient estimation using stochastic computation graphs" (2015).
**Differs from the source:** programs are Python functions that run again for each enumerated value.
**Cost:** samples times the number of enumerated combinations, each a run and its backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from frechet.calculus.estimated._estimate import GradientEstimate

How = Literal["pathwise", "score", "enumerate"]
Draw = Callable[[Distribution, How], Tensor]


@contextmanager
def _stream(seed: int) -> Iterator[None]:
    """What torch's distributions draw inside follows from the seed; the global generator stays where it is."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


@dataclass(eq=False)
class _Run:
    """One run of the program: which values its enumerated choices take, and what it adds up."""

    seed: int
    prefix: list[int]
    sizes: list[int] = field(default_factory=list)
    weight: Tensor | float = 1.0
    score: Tensor | float = 0.0
    drawn: int = 0
    pathwise: int = 0

    def draw(self, distribution: Distribution, how: How = "pathwise") -> Tensor:
        """A value of the distribution, by the estimator `how`."""
        if how == "enumerate":
            return self._enumerated(distribution)
        self.drawn += 1
        with _stream(self.seed * 1_000_003 + self.drawn):
            if how == "pathwise":
                if not distribution.has_rsample:
                    raise ValueError(
                        "expectation_gradient: draw needs a distribution with pathwise derivatives for 'pathwise', "
                        f"got {type(distribution).__name__}; use 'score' or 'enumerate'"
                    )
                self.pathwise += 1
                return distribution.rsample()
            if how != "score":
                raise ValueError(f"expectation_gradient: draw takes 'pathwise', 'score' or 'enumerate', got {how!r}")
            with torch.no_grad():
                z = distribution.sample()
        self.score = self.score + distribution.log_prob(z).sum()
        return z

    def _enumerated(self, distribution: Distribution) -> Tensor:
        if not distribution.has_enumerate_support:
            raise ValueError(
                f"expectation_gradient: draw needs a distribution with finitely many values for 'enumerate', got "
                f"{type(distribution).__name__}; use 'score'"
            )
        if distribution.batch_shape.numel() > 1:
            raise ValueError(
                "expectation_gradient: draw enumerates one choice at a time, got a batch of "
                f"{distribution.batch_shape.numel()}; draw them in a loop"
            )
        support = distribution.enumerate_support(expand=True)
        position = len(self.sizes)
        self.sizes.append(len(support))
        if position == len(self.prefix):
            self.prefix.append(0)
        z = support[self.prefix[position]]
        self.weight = self.weight * distribution.log_prob(z).exp().sum()
        return z

    def following(self) -> list[int] | None:
        """The values of the next run, as an odometer counts, or None after the last."""
        values = self.prefix[: len(self.sizes)]
        while values and values[-1] == self.sizes[len(values) - 1] - 1:
            values.pop()
        return [*values[:-1], values[-1] + 1] if values else None


def expectation_gradient(
    program: Callable[[Tensor, Draw], Tensor],
    theta: Tensor,
    *,
    samples: int,
    seed: int,
) -> GradientEstimate:
    """Estimate the gradient of the expectation of a random program, choice by choice with its own estimator.

    Args:
        program: `program(theta, draw)` returns a scalar tensor. `draw(distribution, how)` gives a value of a
            `torch.distributions` distribution, where `how` is "pathwise", "score" or "enumerate".
        theta: the parameters, of any shape.
        samples: how many runs with their own noise, >= 2. A program whose choices are all enumerated is exact.
        seed: of the noise; torch's global generator is left alone.

    Returns:
        A `GradientEstimate`. It is unbiased if the program is continuous in what it draws "pathwise", which cannot be
        seen from runs: `bias_and_variance(pathwise, score, ...)` shows a jump as a bias.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Normal
        >>> from frechet.calculus.estimated import expectation_gradient
        >>> def program(theta, draw):
        ...     coin = draw(Bernoulli(theta.sigmoid()), "enumerate")
        ...     return (coin + draw(Normal(theta, 1.0), "pathwise")) ** 2
        >>> theta = torch.tensor(0.0, dtype=torch.float64)  # E = p + 2 p theta + theta^2 + 1, derivative p' + 2 p
        >>> found = expectation_gradient(program, theta, samples=400, seed=0)
        >>> low, high = found.interval(0.999)
        >>> bool(low <= 1.25 <= high)
        True
    """
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        raise TypeError("expectation_gradient: theta must be a real tensor")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"expectation_gradient: samples must be an integer >= 2, got {samples!r}")
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        runs = [_runs(program, leaf, seed * samples + i + 1) for i in range(samples)]
        values = torch.stack([sum(_weighted(r, y) for r, y in group) for group in runs])  # type: ignore[arg-type]
        total = values.detach().sum()
        draws = [
            _gradient(group, leaf, (total - value.detach()) / (samples - 1))
            for group, value in zip(runs, values, strict=True)
        ]
    D = torch.stack(draws)
    random = any(r.drawn for group in runs for r, _ in group)
    smooth = any(r.pathwise for group in runs for r, _ in group)
    return GradientEstimate(
        value=D.mean(0),
        standard_error=D.std(0) / math.sqrt(samples) if random else torch.zeros_like(theta),
        bias_bound=torch.zeros_like(theta),
        target="the gradient, for a program continuous in its pathwise choices" if smooth else "the gradient",
        samples=samples,
        evaluations=sum(map(len, runs)),
        seed=seed,
        degrees_of_freedom=samples - 1.0 if random else math.inf,
        method="mixed estimators" if random else "enumeration",
    )


def _runs(program: Any, theta: Tensor, seed: int) -> list[tuple[_Run, Tensor]]:
    """All runs of one sample: one for each combination of enumerated values."""
    found: list[tuple[_Run, Tensor]] = []
    prefix: list[int] | None = []
    while prefix is not None:
        run = _Run(seed, prefix)
        y = program(theta, run.draw)
        if not isinstance(y, Tensor) or y.numel() != 1:
            raise ValueError("expectation_gradient: program must return a scalar tensor")
        found.append((run, y.reshape(())))
        prefix = run.following()
    return found


def _weighted(run: _Run, y: Tensor) -> Tensor:
    return run.weight * y


def _gradient(group: list[tuple[_Run, Tensor]], theta: Tensor, baseline: Tensor) -> Tensor:
    surrogate = theta.new_zeros(())
    for run, y in group:
        surrogate = surrogate + run.weight * y
        if isinstance(run.score, Tensor):
            weight = run.weight.detach() if isinstance(run.weight, Tensor) else run.weight
            surrogate = surrogate + weight * (y.detach() - baseline) * run.score
    if not surrogate.requires_grad:
        return torch.zeros_like(theta)
    (g,) = torch.autograd.grad(surrogate, theta, allow_unused=True, materialize_grads=True)
    return g
