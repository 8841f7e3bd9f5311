"""The discriminator of a generative adversarial network, trained in the regime of its tangent kernel.

    f_t(x) = f_0(x) + J(x) d,        J(x) = d f(x) / d theta at the start

A discriminator that is trained by gradient flow for a time t, so wide that its kernel k = J J' stays, moves its
parameters by one vector d, which has a closed form. With n real and m generated points of weights 1 / n and 1 / m:

    integral probability metric    max mean_real f - mean_fake f        d = t (mean_real J - mean_fake J)'
    least squares, labels +1, -1   min mean (f - label)^2               d = J' W^1/2 phi(W^1/2 K W^1/2) W^1/2 (y - f_0)

with phi(e) = (1 - exp(-2 t e)) / e. Generated points that follow the gradient of f_t descend the squared maximum mean
discrepancy |mean_real J - mean_fake J|^2 of the kernel, in the first case.

**Source.** Franceschi et al., "A neural tangent kernel perspective of GANs" (2022), arXiv 2106.05566.
**Differs from the source.** (1) The kernel is that of the finite network at its present parameters; the discriminator
is then that network linearized, and nothing is infinite. f_0 is 0, or the network's present output. (2) The direction
d is one vector, so values and gradients at new points need no kernel between them and the data. (3) The activation must
be smooth: J of a finite ReLU network jumps where a unit switches, and gradients with respect to points miss the jumps,
which smooth out in the infinite limit alone. It is checked on segments from generated to real points.
**Cost.** One transposed product of the Jacobian; for least squares the kernel of n + m points too. A gradient with
respect to points takes one forward and one backward derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from frechet.errors import NotDifferentiable
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.objective._snapshot import Snapshot
from frechet.objective.criteria import squared_error
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._jacobian import jacobian
from frechet.operators.derivatives._products import _load_forward_rules

Loss = Literal["ipm", "least_squares"]
SEGMENTS, NODES = 8, 32  # on which the gradient is compared with the values
# Of the change of the values, that the gradient may miss. On points in the plane, widths 8 to 1024, networks of tanh,
# softplus, GELU and ELU missed less than 0.1 %; ReLU missed 5 to 38 % in the kernel's parametrization, and 0.2 to 4 %
# in torch's, where the last layer's kernel, which has no jumps, is most of it.
MISSED = 0.01


@dataclass(frozen=True, eq=False)
class NtkDiscriminator(Result):
    """A discriminator in the kernel regime: `direction` is what its parameters move by, flat ``(n,)``.

    `discrepancy` is the squared maximum mean discrepancy of the tangent kernel between real and generated points.
    `missed` is the part of the values' change from generated to real points that their gradient does not explain.
    """

    direction: Tensor = field(repr=False)
    discrepancy: float
    loss: Loss
    time: float
    centered: bool
    missed: float
    snapshot: Snapshot = field(repr=False)

    def values(self, points: Tensor) -> Tensor:
        """f_t at points, ``(k,)``."""
        with torch.no_grad():
            return self._outputs(points)

    def field(self, points: Tensor) -> Tensor:
        """The gradient of f_t with respect to each point, shaped as the points."""
        if self.missed > MISSED:
            raise NotDifferentiable(
                f"NtkDiscriminator.field: the gradient misses {100 * self.missed:.0f} % of how values change from "
                "generated to real points, because the kernel jumps where a ReLU switches; use a smooth activation, "
                "such as GELU or softplus"
            )
        return self._slopes(points)

    def _slopes(self, points: Tensor) -> Tensor:
        points = points.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._outputs(points).sum(), points)[0]

    def velocity(self, points: Tensor) -> Tensor:
        """How generated points move under the generator's loss: -f_t, or (f_t - 1)^2 for least squares."""
        slopes = self.field(points)
        if self.loss == "ipm":
            return slopes
        factor = 2 * (1 - self.values(points))
        return factor.reshape(-1, *[1] * (points.ndim - 1)).to(slopes) * slopes

    def _outputs(self, points: Tensor) -> Tensor:
        snapshot = self.snapshot
        blocks, moves = (snapshot.space.unflatten(v) for v in (snapshot.x, self.direction))
        _load_forward_rules()

        def outputs(b: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(snapshot.model, {**snapshot.constants, **b}, (points,)).reshape(-1)

        with snapshot.running():
            start, slope = torch.func.jvp(outputs, (dict(blocks),), (dict(moves),))  # pyright: ignore
        return slope if self.centered else start + slope


@dataclass(frozen=True, eq=False)
class NtkFlow(Result):
    """Where generated points went, and the squared discrepancy of the kernel before each step and at the end."""

    points: Tensor = field(repr=False)
    discrepancies: Tensor  # (steps + 1,)


def ntk_discriminator(
    model: nn.Module, real: Tensor, fake: Tensor, *, loss: Loss = "ipm", time: float = 1.0, centered: bool = True
) -> NtkDiscriminator:
    """Return the discriminator that training for some time makes of a model whose tangent kernel stays.

    Args:
        model: a discriminator with one output for each point.
        real: points of the data ``(n, ...)``.
        fake: generated points ``(m, ...)``.
        loss: "ipm", the difference of means, or "least_squares" with labels +1 and -1.
        time: how long it is trained by gradient flow: steps times rate.
        centered: whether it begins at 0, as if its first output were subtracted, or at the model's present output.

    Example:
        >>> import torch
        >>> from frechet.analyze import ntk_discriminator
        >>> model = torch.nn.Linear(2, 1, bias=False)  # the kernel is x'y
        >>> found = ntk_discriminator(model, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), time=2.0)
        >>> found.discrepancy, found.field(torch.zeros(1, 2))
        (2.0, tensor([[ 2., -2.]]))
    """
    if loss not in ("ipm", "least_squares"):
        raise ValueError(f"ntk_discriminator: loss must be 'ipm' or 'least_squares', got {loss!r}")
    if not time >= 0:
        raise ValueError(f"ntk_discriminator: time must be at least 0, got {time}")
    if not len(real) or not len(fake) or real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"ntk_discriminator: real and fake must be points of one shape, got {tuple(real.shape)} and "
            f"{tuple(fake.shape)}"
        )
    points = torch.cat([real.detach(), fake.detach()])
    objective = Objective(model, squared_error(), [(points, points.new_zeros(len(points), 1))])
    refuse_sharded("ntk_discriminator", objective.space)
    snapshot = objective.snapshot()
    snapshot.refuse_coupled("ntk_discriminator")
    J = jacobian(objective)
    if J.shape[0] != len(points):
        raise ValueError(f"ntk_discriminator: model must have one output a point, got {J.shape[0]} for {len(points)}")
    signs = torch.cat([real.new_ones(len(real)), -fake.new_ones(len(fake))]).to(snapshot.x)
    weights = torch.cat([real.new_full((len(real),), 1 / len(real)), fake.new_full((len(fake),), 1 / len(fake))])
    weights = weights.to(snapshot.x)
    between = J.T @ (signs * weights)
    discrepancy = float(objective.space.inner(between, between))
    made = partial(
        NtkDiscriminator, discrepancy=discrepancy, loss=loss, time=time, centered=centered, snapshot=snapshot
    )
    if loss == "ipm":
        direction = time * between
    else:
        start = made(torch.zeros_like(between), missed=0.0).values(points)
        direction = J.T @ _filtered(J, weights, signs - start, time)
    return made(direction, missed=_missed(made(direction, missed=0.0), real, fake))


def _filtered(J: LinearOperator, weights: Tensor, residual: Tensor, time: float) -> Tensor:
    """W^1/2 phi(W^1/2 K W^1/2) W^1/2 residual."""
    columns = J.T @ torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    root = weights.sqrt().double().cpu()
    K = (J @ columns).double().cpu() * root * root[:, None]
    e, V = torch.linalg.eigh((K + K.T) / 2)
    e = e.clamp(min=0.0)
    # (1 - exp(-2 t e)) / e, whose limit at 0 is 2 t
    phi = torch.where(e > 0, -torch.expm1(-2 * time * e) / torch.where(e > 0, e, 1.0), 2 * time)
    return (root * (V @ (phi * (V.T @ (root * residual.double().cpu()))))).to(weights)


def _missed(found: NtkDiscriminator, real: Tensor, fake: Tensor) -> float:
    """How much of f(real) - f(fake) the integral of the gradient misses, relative to the larger, over some pairs."""
    k = min(SEGMENTS, len(real), len(fake))
    a, b = fake[:k].detach(), real[:k].detach()
    nodes, weights = (torch.from_numpy(v).to(a) for v in np.polynomial.legendre.leggauss(NODES))
    s = ((nodes + 1) / 2).reshape(-1, *[1] * a.ndim)
    slopes = found._slopes((a + s * (b - a)).flatten(0, 1)).reshape(NODES, k, -1)
    inside = (weights[:, None] / 2 * (slopes * (b - a).reshape(k, -1)).sum(2)).sum(0)
    change = found.values(b) - found.values(a)
    size = max(float(inside.norm()), float(change.norm()))
    return float((inside - change).norm()) / size if size > 0 else 0.0


def ntk_flow(
    model: nn.Module, real: Tensor, fake: Tensor, *, rate: float, steps: int, loss: Loss = "ipm", time: float = 1.0
) -> NtkFlow:
    """Return where generated points go that follow a discriminator which is trained anew, from the model, at each step.

    Args:
        model: the discriminator before its training.
        real: points of the data ``(n, ...)``.
        fake: the generated points at the start ``(m, ...)``.
        rate: what a step moves a point by, over the gradient of the discriminator.
        steps: how many steps.
        loss: as in `ntk_discriminator`.
        time: as in `ntk_discriminator`.

    Example:
        >>> import torch
        >>> from frechet.analyze import ntk_flow
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> found = ntk_flow(model, torch.tensor([[3.0]]), torch.tensor([[1.0]]), rate=0.5, steps=2, time=1.0)
        >>> found.discrepancies  # (3 - z)^2
        tensor([4.0000, 1.0000, 0.2500], dtype=torch.float64)
    """
    if steps < 0 or not rate > 0:
        raise ValueError(f"ntk_flow: steps must be at least 0 and rate positive, got {steps} and {rate}")
    points, found = fake.detach().clone(), []
    for step in range(steps + 1):
        discriminator = ntk_discriminator(model, real, points, loss=loss, time=time)
        found.append(discriminator.discrepancy)
        if step < steps:
            points = points + rate * discriminator.velocity(points)
    return NtkFlow(points, torch.tensor(found, dtype=torch.float64))
