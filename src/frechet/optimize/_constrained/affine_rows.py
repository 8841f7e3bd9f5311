"""Constraints that are affine in x: their Jacobian is computed once, and they have no curvature.

A constraint is taken as affine where its pulled-back cotangent J'u does not depend on x in autograd's graph. That is a
statement about the graph at one point, and a function may branch: so each value is compared with the affine one, and
where they differ by more than rounding, the constraint is curved from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frechet.operators.derivatives._products import grads
from frechet.optimize._constrained.backward_passes import Batches

ROUNDING = 8.0  # unit roundoffs a term, more than a sum of n terms is off by


@dataclass(frozen=True, eq=False)
class Affine:
    """c(x) = c + J (x - at), with the sizes of the terms of each row."""

    at: NDArray[np.float64]
    c: NDArray[np.float64]
    J: Tensor  # (m, n)
    matrix: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def explains(self, x: NDArray[np.float64], c: NDArray[np.float64], eps: float) -> bool:
        """Whether c is the affine value at x, to rounding."""
        if c.shape != self.c.shape:
            return False
        left = np.abs(self.c + self.matrix @ (x - self.at) - c)
        room = self.sizes + np.abs(self.matrix) @ np.abs(x) + np.abs(c)
        return bool((left <= ROUNDING * eps * room).all())


def affine_rows(
    parts: Sequence[Tensor],
    leaves: Sequence[Tensor],
    x: Tensor,
    batches: Batches,
    flat: Callable[[list[Tensor]], Tensor],
) -> dict[int, Affine]:
    """Return the affine ones among the constraints with values `parts` at x, by number.

    `flat` makes rows ``(m, n)`` of batched blocks; derivatives with graphs can be made where this is called.
    """
    found = {}
    at = x.detach().cpu().numpy().astype(np.float64)
    for i, part in enumerate(parts):
        if not part.requires_grad or not part.numel():
            continue
        u = torch.zeros_like(part).requires_grad_()
        pulled = [b for b in grads(part, list(leaves), [u], create_graph=True) if b.requires_grad]
        ones = [torch.ones_like(b) for b in pulled]
        again = torch.autograd.grad(pulled, list(leaves), ones, retain_graph=True, allow_unused=True) if pulled else ()
        if any(g is not None for g in again):
            continue
        J = flat(
            batches.pulled("rows", [part], leaves, [torch.eye(part.numel(), dtype=part.dtype, device=part.device)])
        )
        matrix = J.cpu().numpy().astype(np.float64)
        if not np.isfinite(matrix).all():
            continue
        c = part.detach().cpu().numpy().astype(np.float64)
        found[i] = Affine(at, c, J, matrix, np.abs(matrix) @ np.abs(at) + np.abs(c))
    return found
