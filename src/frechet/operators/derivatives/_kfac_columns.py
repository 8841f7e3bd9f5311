"""Square roots of the matrices between a model and its loss, one vector like the outputs after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from frechet.objective.criteria import Criterion
from frechet.objective.criteria._custom import Custom
from frechet.operators._eigendecomposition import double

MOST_OUTPUTS = 1024  # of an example, each a backward pass

Kind = Literal["fisher", "gauss_newton", "empirical_fisher", "forward_only"]


def roots_of(criterion: Criterion, y: Tensor, targets: Any, kind: Kind) -> Iterator[Tensor]:
    """The columns of a square root of each example's matrix in the middle."""
    size = y[0].numel()
    if size > MOST_OUTPUTS:
        raise ValueError(
            f"kfac: an example must have at most {MOST_OUTPUTS} outputs, got {size}, each a backward pass; draw labels "
            "with kind='fisher', seed=0"
        )
    product = criterion.hessian_product if kind == "gauss_newton" else criterion.fisher_product
    # p - p^2 of a confident class loses its digits in single precision, and C its sign; a user's own function keeps y
    at = y if isinstance(criterion, Custom) else double(y)
    rows = []
    for d in range(size):
        unit = torch.zeros(len(y), size, dtype=at.dtype, device=at.device)
        unit[:, d] = 1.0
        rows.append(product(at, targets, unit.view_as(at)).detach().reshape(len(y), size))
    C = double(torch.stack(rows, 1))
    values, vectors = torch.linalg.eigh((C + C.transpose(1, 2)) / 2)
    # of saturated outputs only rounding is left, of either sign, so signs are read where they are not known
    semidefinite = not isinstance(criterion, Custom) and (kind == "fisher" or criterion.convex)
    if not semidefinite and bool((values < -1e-6 * values.abs().amax(1, keepdim=True)).any()):
        raise ValueError(
            f"kfac: the criterion must be convex in the outputs for kind={kind!r}, got the eigenvalue "
            f"{float(values.min()):.3g} of its Hessian"
        )
    roots = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    floor = 1e-12 * float(roots.abs().max()) if roots.numel() else 0.0
    for d in range(size):
        if float(roots[:, :, d].abs().max()) > floor:
            yield roots[:, :, d].to(y).view_as(y)
