"""The curvature of the sum of all terms of an objective, in the structure that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from frechet.analyze._laplace.example_rows import ExampleRows
from frechet.analyze._laplace.structures import Full, OfLowRank, OnDiagonal, Structure, of_kfac
from frechet.analyze._single_examples import ExampleRoute, by_route
from frechet.linalg import eigsh
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive
from frechet.objective._kernels import ordinary_mode
from frechet.operators.derivatives import fisher
from frechet.operators.derivatives._kfac import kfac
from frechet.operators.derivatives._kfac_columns import roots_of
from frechet.operators.derivatives._kfac_sums import Sharing
from frechet.space import Space

Kind = Literal["full", "kron", "ekfac", "diagonal", "low_rank"]
KINDS = ("full", "kron", "ekfac", "diagonal", "low_rank")
MOST = 10_000  # parameters of which the dense matrix is formed, 800 MB


@dataclass(frozen=True)
class Asked:
    """Which structure, with its parameters."""

    structure: Kind
    rank: int
    sharing: Sharing
    joint: bool
    samples: int | None
    seed: int


def curvature_of(
    what: str, objective: Objective, snapshot: Snapshot, space: Space, asked: Asked, count: float, grown: float
) -> Structure:
    """The Fisher matrix of the sum of `count` terms, times `grown`, at the snapshot's point."""
    structure, count = asked.structure, count * grown
    double, names = space.with_dtype(torch.float64), list(space.names)
    if asked.samples is not None and structure not in ("kron", "ekfac"):
        raise ValueError(f"{what}: samples are drawn for structure='kron' and 'ekfac' alone, got {structure!r}")
    if structure in ("full", "diagonal"):
        if structure == "full" and space.dim > MOST:
            raise ValueError(
                f"{what}: structure='full' serves at most {MOST} parameters, got {space.dim}; use 'kron', or restrict="
            )
        found = by_route(
            what, None, objective, lambda way: summed_fisher(what, snapshot, space, structure == "full", way)
        )
        found = grown * found
        return Full(found, double) if structure == "full" else OnDiagonal(found, double)
    if structure in ("kron", "ekfac"):
        corrected = structure == "ekfac"
        K = kfac(
            objective,
            kind="fisher",
            sharing=asked.sharing,
            corrected=corrected,
            joint=asked.joint,
            x=snapshot.x,
            restrict=names,
            seed=None if asked.samples is None else asked.seed,
            samples=1 if asked.samples is None else asked.samples,
        )
        return of_kfac(K, corrected, count, double)
    if structure == "low_rank":
        if not 1 <= asked.rank <= space.dim:
            raise ValueError(f"{what}: rank must be between 1 and {space.dim}, got {asked.rank}")
        pairs = eigsh(fisher(objective, x=snapshot.x, restrict=names), asked.rank, seed=asked.seed)
        values = count * pairs.values.double().clamp_min(0)
        return OfLowRank(pairs.vectors.double(), values, double)
    raise ValueError(f"{what}: structure must be one of {', '.join(map(repr, KINDS))}, got {structure!r}")


def summed_fisher(what: str, snapshot: Snapshot, space: Space, dense: bool, route: ExampleRoute) -> Tensor:
    """sum_i J_i'C_i J_i over the examples, or its diagonal, in float64."""
    n = space.dim
    H = torch.zeros((n, n) if dense else (n,), dtype=torch.float64, device=space.device)

    def visit(part: Part, batch: Batch) -> None:
        found = rows.on(batch)
        criterion = snapshot.criterion(part, batch)
        check_additive(what, criterion, found.y, batch.targets, space.eps, batch.index)
        for u in roots_of(criterion, found.y, batch.targets, "fisher"):
            if not dense:
                H.add_(found.squares(u))
                continue
            for _, _, (G,) in found.rows([u]):
                H.add_((G.T @ G).double())

    with ordinary_mode(space.device), torch.no_grad():
        rows = ExampleRows.of(what, snapshot, space, route)
        with snapshot.installed(rows.blocks):
            snapshot.sweep(visit)
    return H
