"""The three regions of a training Jacobian, told apart from directions that no step of training ever sees.

    J = d x_T / d x_0 = U S V'        chaotic: s above 1,    bulk: s at 1 with u = v,    stable: s below 1

A direction v with H_t v = 0 at every step is carried through plain training unchanged whatever the data: a weight of
an input that is always 0, the same number added to all logits. Such exact null directions make a bulk that says nothing
about training. They are the null space of sum_t H_t^2, and are taken off before the regions are counted.

**Source.** Belrose and Scherlis, "Understanding gradient descent through the training Jacobian" (2024), arXiv
2412.07003.
**Differs from the source.** Exact null directions are counted apart. On small networks they can be the whole bulk.
**Cost.** Dense: T Hessian products with as many columns as there are parameters, and an eigendecomposition; so for at
most a few thousand parameters. `svds` of the training Jacobian minus the identity serves larger ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.analyze._trajectory import State, Trajectory, tangent_of_step
from frechet.linalg._shown import Result
from frechet.operators.derivatives._hessian import hessian

MOST = 3000  # parameters: three dense matrices of this size take 0.2 GB in float64


@dataclass(frozen=True, eq=False)
class TrainingRegions(Result):
    """How many singular values of the training Jacobian lie in which region, off the exact null directions.

    `values` are the singular values there, largest first, and `alignments` |u'v| of their vectors. `trivial` counts the
    null directions; `null` is an orthonormal basis of them.
    """

    chaotic: int
    bulk: int
    stable: int
    between: int  # neither in the bulk nor outside of its margin
    trivial: int
    values: Tensor = field(repr=False)
    alignments: Tensor = field(repr=False)
    null: Tensor = field(repr=False)  # (n, trivial)


def training_regions(run: Trajectory, *, width: float = 0.01, margin: float = 0.1) -> TrainingRegions:
    """Return the regions of the training Jacobian of a run: directions amplified, kept and forgotten.

    Args:
        run: the training run, in float64.
        width: a singular value belongs to the bulk if it is within this of 1.
        margin: it is chaotic above 1 + margin, and stable below 1 - margin.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import sgd_update, training_regions, trajectory
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> X = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # its second weight is never seen
        >>> objective = Objective(model, squared_error(), [(X, torch.zeros(1, 1, dtype=torch.float64))])
        >>> found = training_regions(trajectory(objective, [torch.tensor([0])], sgd_update(0.25)))
        >>> found.stable, found.bulk, found.trivial
        (1, 0, 1)
    """
    space = run.objective.space
    if space.dtype != torch.float64:
        raise ValueError(
            f"training_regions: the objective must be in float64, got {space.dtype}; null directions are exact"
        )
    if space.dim > MOST:
        raise ValueError(
            f"training_regions: needs at most {MOST} parameters, got {space.dim}; use svds of training_jacobian(run) "
            "minus the identity"
        )
    if not 0 < width <= margin < 1:
        raise ValueError(f"training_regions: needs 0 < width <= margin < 1, got {width} and {margin}")
    eye = torch.eye(space.dim, dtype=space.dtype, device=space.device)
    tangents: State = (eye, *(torch.zeros_like(eye) for _ in run.update.buffers))
    seen = torch.zeros_like(eye)
    for t, part, state, g in run.forward():
        H = hessian(part, state[0]) @ eye
        H = (H + H.T) / 2
        seen += H @ H
        tangents = tangent_of_step(run.update, state, g, t, tangents, H @ tangents[0])
    e, basis = torch.linalg.eigh(seen)
    none = e <= space.dim * space.eps * float(e[-1])
    null, Q = basis[:, none], basis[:, ~none]
    U, s, Vt = torch.linalg.svd(Q.T @ tangents[0] @ Q)
    aligned = (U * Vt.T).sum(0).abs()
    chaotic, stable, bulk = s > 1 + margin, s < 1 - margin, (s - 1).abs() <= width
    counts = [int(region.sum()) for region in (chaotic, bulk, stable)]
    return TrainingRegions(counts[0], counts[1], counts[2], len(s) - sum(counts), null.shape[1], s, aligned, null)
