"""Training predicted by the neural tangent kernel at its start, and how far the kernel has moved.

Gradient descent with rate eta on a mean of squared errors over m terms, for a model that is linear in its parameters:

    f_t = f_0 + K_x (I - (I - c K)^t) K^-1 (y - f_0),    c = 2 eta / m,    K = J J'

with K_x the kernel between the points asked for and those trained on. The filter (1 - (1 - c e)^t) / e of each
eigenvalue e needs no inverse. A wide network follows it, with an error that falls as about the root of the width.

**Source.** Jacot, Gabriel and Hongler, "Neural tangent kernel" (2018), arXiv 1806.07572. Lee et al., "Wide neural
networks of any depth evolve as linear models under gradient descent" (2019), arXiv 1902.06720.
**Differs from the source.** Discrete steps, exactly, in place of the flow.
**Cost.** One Jacobian product with as many columns as there are outputs; meant for up to about 2000 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators._structured import refuse_sharded
from frechet.operators.derivatives._jacobian import jacobian


@dataclass(frozen=True, eq=False)
class NtkPrediction(Result):
    """Outputs after t steps as the kernel predicts them, flat in data order, beside those at the start.

    `energies` is the share of the target's residual in each eigenvector of the kernel, largest eigenvalue first: what
    is learnt first.
    """

    outputs: Tensor
    start: Tensor = field(repr=False)
    eigenvalues: Tensor = field(repr=False)
    energies: Tensor = field(repr=False)
    largest_rate: float  # above which the predicted training is unstable


@dataclass(frozen=True)
class NtkDrift(Result):
    """How far a kernel moved: |K1 - K0| / |K0| in Frobenius norm, and 1 - the cosine between them."""

    relative: float
    misalignment: float


def ntk_prediction(
    objective: Objective, steps: int, rate: float, *, on: Objective | None = None, x: Tensor | None = None
) -> NtkPrediction:
    """Return what gradient descent on squared errors makes of the outputs, by the tangent kernel at the start.

    Args:
        objective: the objective on the training data, with `squared_error` and no penalty.
        steps: how many steps of gradient descent.
        rate: its learning rate.
        on: an objective of the same model on the data whose outputs are asked for. Default: the training data.
        x: the start ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import ntk_prediction
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> objective = Objective(model, squared_error(), [(torch.ones(1, 1), torch.ones(1, 1))])
        >>> ntk_prediction(objective, 2, 0.25).outputs  # 1 - (1 - 1/2)^2
        tensor([0.7500], dtype=torch.float64)
    """
    refuse_sharded("ntk_prediction", objective.space)
    part = objective.parts[0]
    if len(objective.parts) != 1 or objective.penalties or not isinstance(part.criterion, type(squared_error())):
        raise ValueError("ntk_prediction: the objective must be squared_error() on one data term without a penalty")
    if steps < 0 or not rate > 0:
        raise ValueError(f"ntk_prediction: steps must be at least 0 and rate positive, got {steps} and {rate}")
    x = objective.point if x is None else x
    start, targets = _outputs(objective, x)
    J = jacobian(objective, x)
    columns = J.T @ torch.eye(J.shape[0], dtype=x.dtype, device=x.device)
    K = (J @ columns).double().cpu()
    e, V = torch.linalg.eigh((K + K.T) / 2)
    c = 2 * rate * part.weight / len(targets)
    residual = V.T @ (targets - start)
    decay = (1 - c * e) ** steps
    # (1 - (1 - c e)^t) / e, whose limit at 0 is c t
    small = e.abs() <= 1e-12 * e.abs().max()
    factors = torch.where(small, c * steps, (1 - decay) / torch.where(small, 1.0, e))
    if on is None:
        cross, asked = K, start
    else:
        cross, asked = (jacobian(on, x) @ columns).double().cpu(), _outputs(on, x)[0]
    moved = cross @ (V @ (factors * residual))
    energy = residual.square().flip(0) / residual.square().sum().clamp(min=1e-300)
    top = float(e[-1])
    return NtkPrediction(asked + moved, asked, e.flip(0), energy, 2 * rate / (c * top) if top > 0 else float("inf"))


def ntk_drift(before: Tensor, after: Tensor) -> NtkDrift:
    """Return how far a tangent kernel has moved: its relative change, and 1 - the cosine between the two.

    Args:
        before: a kernel ``(m, m)``, such as ``ntk_matrix(objective).matrix`` at the start.
        after: the kernel on the same data later.

    Example:
        >>> import torch
        >>> from frechet.analyze import ntk_drift
        >>> found = ntk_drift(torch.eye(2), 2 * torch.eye(2))  # it grows, and keeps its direction
        >>> round(found.relative, 6), round(found.misalignment, 6)
        (1.0, 0.0)
    """
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"ntk_drift: both kernels must be (m, m), got {tuple(before.shape)} and {tuple(after.shape)}")
    a, b = before.double(), after.double()
    size = float(torch.linalg.matrix_norm(a))
    if size == 0:
        raise ValueError("ntk_drift: before must not be zero")
    cosine = float((a * b).sum()) / (size * max(float(torch.linalg.matrix_norm(b)), 1e-300))
    return NtkDrift(float(torch.linalg.matrix_norm(b - a)) / size, max(1 - cosine, 0.0))


def _outputs(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets, flat in data order, in float64."""
    snapshot, found, targets = objective.snapshot(x), [], []
    blocks = snapshot.space.unflatten(snapshot.x)
    with torch.no_grad():
        for part in snapshot.parts:
            with snapshot.running():
                for batch in part.batches(objective.space.device):
                    out = snapshot.forward(blocks, batch)
                    found.append(out.double().cpu().reshape(-1))
                    targets.append(torch.broadcast_to(batch.targets, out.shape).double().cpu().reshape(-1))
    return torch.cat(found), torch.cat(targets)
