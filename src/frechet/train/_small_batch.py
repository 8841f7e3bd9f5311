"""Damped Gauss-Newton directions of a small batch, exactly: one system of the size of its outputs.

With J ``(m, n)`` the Jacobian of all outputs of the batch, H their block-diagonal Hessian and s the criterion's slope,
both divided by the number of terms,

    (J'H J + c D) d = -J's    <=>    d = -D^-1 J'q,   (c I + H K) q = s,   K = J D^-1 J'

so that neither an n x n matrix nor the inverse of H occurs: the Hessian of a softmax is singular. For another
right-hand side g, d = -D^-1 (g - J'(c I + H K)^-1 H J D^-1 g) / c.

**Source.** M. A. Duncan, H. Guttman (2024), Exact Gauss-Newton optimization for training deep neural networks, arXiv
2405.14402; the identity is that of W. W. Hager (1989), doi 10.1137/1031049.
**Differs from the source.** Any criterion that is a sum over examples; any diagonal D; any right-hand side.
**Cost.** The gradients of each output of each example by vmap, m^2 n multiplications, a factorization of an m x m
matrix in float64; m n numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import RAISED
from frechet.objective._structure import mapped, tensors_of
from frechet.operators.derivatives._products import second_order
from frechet.space import Space

# Rows cost about b C^2 n multiplications in K, conjugate gradients about 40 gradients of 6 b n for b examples with C
# outputs each: the exact solution is the cheaper one where C^2 b is less than their ratio.
CHEAP = 256
BYTES = 1 << 28  # of the Jacobian


class Unbatchable(NotDifferentiable):
    """A model that vmap cannot go through."""


@dataclass(frozen=True, eq=False)
class GramDirection:
    """A direction with g'd for the objective's gradient, and d'G d; `gradients` counts the batch's passes."""

    d: Tensor
    slope: float
    bend: float
    gradients: int


def exact_direction(
    objective: Objective, x: Tensor, space: Space, gradient: Tensor | None, damping: float, D: Tensor, solver: str
) -> GramDirection | None:
    """The direction where `solver` asks for it; None for conjugate gradients."""
    if solver == "gram":
        return gram_direction(objective, x, space, gradient, damping, D)
    if solver == "cg" or not small_enough(objective, space):
        return None
    try:
        return gram_direction(objective, x, space, gradient, damping, D)
    except Unbatchable:  # the other solver is as good; `iterations` says which it was
        return None


def small_enough(objective: Objective, space: Space) -> bool:
    """Whether the exact solution takes less time than conjugate gradients, and memory that is there."""
    served = objective.group is None and not objective.penalties and all(_plain(p) for p in objective.parts)
    if not served or objective.space.shard is not None or objective.dropout_seed is not None:
        return False
    snapshot = objective.snapshot()
    if snapshot.coupled:
        return False
    b = C = 0
    with second_order("gauss_newton_step", space.device), torch.no_grad():
        for part in objective.parts:
            for batch in part.batches(space.device):
                with snapshot.running():
                    y = snapshot.forward(space_blocks(snapshot), batch)
                b, C = b + len(y), max(C, y[0].numel() if len(y) else 0)
                if b * C * C > CHEAP:
                    return False
    return b * C < space.dim and b * C * space.dim * torch.finfo(space.dtype).bits // 8 <= BYTES


def space_blocks(snapshot: Snapshot) -> dict[str, Tensor]:
    return snapshot.space.unflatten(snapshot.x)


def _plain(part: Part) -> bool:
    return part.head is None and part.criterion.convex and part.criterion.additive and part.weight > 0


def gram_direction(
    objective: Objective, x: Tensor, space: Space, gradient: Tensor | None, damping: float, D: Tensor
) -> GramDirection:
    """The direction for the objective's own gradient, or for another right-hand side."""
    _refuse(objective)
    J, H, s = _rows(objective.snapshot(x), space)
    scaled = J / D
    K = space.gram(scaled.T, J.T)
    system = damping * torch.eye(len(K), dtype=K.dtype, device=K.device) + _apply(H, K)
    if gradient is None:
        q = torch.linalg.solve(system, s)
        d = -(scaled.T @ q.to(J))
    else:
        g = gradient / D
        pushed = space.gram(J.T, g[:, None])
        q = torch.linalg.solve(system, _apply(H, pushed))[:, 0]
        d = -(g - scaled.T @ q.to(J)) / damping
    Jd = space.gram(J.T, d[:, None])
    slope, bend = float((s * Jd[:, 0]).sum()), float((Jd * _apply(H, Jd)).sum())
    return GramDirection(d, slope, max(bend, 0.0), max(len(h[0]) for h in H))


def _refuse(objective: Objective) -> None:
    what = "gauss_newton_step: solver='gram' needs"
    if objective.group is not None:
        raise ValueError(f"{what} the examples on one process, got {objective.group.size}; use solver='cg'")
    if objective.penalties:
        raise ValueError(f"{what} an objective without penalty, got one; use weight decay, or solver='cg'")
    for part in objective.parts:
        if not _plain(part):
            raise ValueError(
                f"{what} a convex criterion that is a sum over examples, without head=, got "
                f"{type(part.criterion).__name__}; use solver='cg'"
            )


def _rows(snapshot: Snapshot, space: Space) -> tuple[Tensor, list[Tensor], Tensor]:
    """J ``(m, n)``, the blocks ``(b, C, C)`` of H for each batch, and s ``(m,)``; H and s in float64."""
    snapshot.refuse_coupled("gauss_newton_step: solver='gram'")
    blocks = space_blocks(snapshot)
    rows: list[Tensor] = []
    hessians: list[Tensor] = []
    slopes: list[Tensor] = []
    with second_order("gauss_newton_step", space.device), torch.no_grad(), snapshot.installed(blocks):
        for part in snapshot.parts:
            found, terms = [], 0.0
            with snapshot.running():
                for batch in part.batches(space.device):
                    found.append(_of_batch(snapshot, part, batch, blocks, space))
                    terms += float(snapshot.count(part, batch))
            rows += [J for J, _, _ in found]
            hessians += [part.weight / terms * H for _, H, _ in found]
            slopes += [part.weight / terms * s for _, _, s in found]
    return torch.cat(rows), hessians, torch.cat(slopes)


def _of_batch(
    snapshot: Snapshot, part: Part, batch: Batch, blocks: dict[str, Tensor], space: Space
) -> tuple[Tensor, Tensor, Tensor]:
    y = snapshot.forward(blocks, batch)
    criterion = snapshot.criterion(part, batch)
    b, C = len(y), y[0].numel()
    columns = []
    for c in range(C):
        unit = torch.zeros(b, C, dtype=y.dtype, device=y.device)
        unit[:, c] = 1.0
        columns.append(criterion.hessian_product(y, batch.targets, unit.view(y.shape)).reshape(b, C))
    H = torch.stack(columns, 2).double()
    s = criterion.score(y, batch.targets).reshape(-1).double()
    J, alone = _jacobian(snapshot, batch, blocks, space, b, C)
    if (alone - y).abs().max() > 1e4 * space.eps * max(float(y.abs().max()), 1e-30):
        raise UnusableObjective(
            f"gauss_newton_step: batch {batch.index}: the output of each example alone must be its output in the "
            "batch, got another one; the model couples the examples: use solver='cg'"
        )
    return J, H, s


def _jacobian(
    snapshot: Snapshot, batch: Batch, blocks: dict[str, Tensor], space: Space, b: int, C: int
) -> tuple[Tensor, Tensor]:
    """Rows (example, output) of the Jacobian, and the outputs of each example alone."""
    flat = tensors_of(batch.inputs)
    at = [i for i, t in enumerate(flat) if t.ndim and t.shape[0] == b]
    own = {n: blocks[n].detach() for n in space.names}

    def alone(parameters: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        given, number = dict(zip(at, rows, strict=True)), count()

        def put(leaf: Any) -> Any:
            row = given.get(next(number)) if isinstance(leaf, Tensor) else None
            return leaf if row is None else row.unsqueeze(0)

        inputs = mapped(batch.inputs, put)
        return snapshot.forward({**blocks, **parameters}, Batch(inputs, None, batch.index))

    def pulled(rows: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        found = torch.func.vjp(lambda p: alone(p, rows), own)
        y, pull = found[0], found[1]
        units = torch.eye(C, dtype=y.dtype, device=y.device).view(C, *y.shape)
        return torch.func.vmap(pull)(units)[0], y

    try:
        by_block, outputs = torch.func.vmap(pulled)([flat[i] for i in at])
    except (torch.OutOfMemoryError, NotDifferentiable, UnusableObjective):
        raise
    except RAISED as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise Unbatchable(
            f"gauss_newton_step: solver='gram' needs a model that vmap can go through, got: {text[:200]}; use "
            "solver='cg'"
        ) from error
    return torch.cat([g.reshape(b * C, -1) for g in by_block.values()], 1), outputs.squeeze(1)


def _apply(H: list[Tensor], V: Tensor) -> Tensor:
    """H V for V ``(m, k)`` in float64."""
    parts, row = [], 0
    for block in H:
        b, C = block.shape[:2]
        parts.append((block @ V[row : row + b * C].view(b, C, -1)).reshape(b * C, -1))
        row += b * C
    return torch.cat(parts)
