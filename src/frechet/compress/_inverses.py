"""Inverses of a model's curvature that a pruning asks for, with the weights that are gone taken out.

    fisher    (damping I + (1/m) sum_i g_i g_i')^-1 over the gradients of m examples (M-FAC)
    kfac      of K-FAC's Fisher matrix plus damping I
    nystrom   of a low-rank approximation of the Gauss-Newton matrix plus damping I
    dense     of the Gauss-Newton matrix plus damping I

Rows and columns of weights that are gone are left out of the curvature, so that the diagonal of the inverse is that of
the weights that stay. K-FAC has no such form: its diagonal is that of all.

Cost: of `fisher` two passes, the gradient of each example, and m^2 n; of `kfac` see there; of `nystrom` `rank`
products; of `dense` n products and n^3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from frechet.analyze._examples import Walk, walk_gradients
from frechet.analyze._single_examples import ExampleRoute, by_route
from frechet.linalg import nystrom
from frechet.objective import Objective
from frechet.operators import from_diagonal, from_matrix, identity, inverse, inverse_fisher
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives import gauss_newton, kfac
from frechet.space import generator

Kind = Literal["fisher", "kfac", "nystrom", "dense"]


def inverse_curvature(
    objective: Objective,
    kind: Kind = "fisher",
    *,
    damping: float,
    seed: int | None = None,
    examples: int | None = None,
    rank: int = 100,
    block: int | None = None,
    x: Tensor | None = None,
    kept: Tensor | None = None,
) -> LinearOperator:
    """Return the inverse of the damped curvature at x, among the weights that are kept.

    Args:
        objective: the objective. Penalties are left out of ``"fisher"`` and ``"kfac"``: the curvature of ``l2`` is a
            damping.
        kind: ``"fisher"``, ``"kfac"``, ``"nystrom"`` or ``"dense"``, see the module.
        damping: what is added to the curvature, > 0, in its unit.
        seed: of the examples that are drawn, and of the sketch.
        examples: how many examples' gradients ``"fisher"`` takes, drawn without replacement. Default: all.
        rank: the rank of ``"nystrom"``.
        block: how many entries a block of ``"fisher"`` has. Default: all are one.
        x: the point ``(n,)``. Default: the model's present parameters.
        kept: a mask ``(n,)`` of the weights that are there. Default: all.

    Raises:
        ValueError: the kind is unknown, the damping is not positive, or a seed is missing.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.compress import inverse_curvature
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
        >>> inverse_curvature(objective, "dense", damping=1.0).dense().round(decimals=4)  # of I + I
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    if kind not in ("fisher", "kfac", "nystrom", "dense"):
        raise ValueError(f"inverse_curvature: kind must be 'fisher', 'kfac', 'nystrom' or 'dense', got {kind!r}")
    if not 0 < damping < float("inf"):
        raise ValueError(f"inverse_curvature: damping must be a number > 0, got {damping}")
    if seed is None and (kind == "nystrom" or (kind == "fisher" and examples is not None)):
        raise ValueError(f"inverse_curvature: seed must be given for kind={kind!r}, got None")
    if kind == "fisher":
        G = example_rows(objective, examples, 0 if seed is None else seed, x)
        if kept is not None:
            G[:, ~kept] = 0.0
        return inverse_fisher(G, damping, domain=objective.space, block=block)
    if kind == "kfac":
        F = kfac(objective, x=x)
        return inverse(F + damping * identity(F.domain))
    A: LinearOperator = gauss_newton(objective, x=x)
    if kind == "dense":
        M = A.dense()
        if kept is not None:
            M = M * kept * kept[:, None]
        A = from_matrix(M, domain=A.domain, facts=A.facts)
        return inverse(A + damping * identity(A.domain))
    if kept is not None:
        P = from_diagonal(kept.to(A.domain.dtype), domain=A.domain)
        A = P @ A @ P
    assert seed is not None
    return nystrom(A, rank=min(rank, A.domain.dim), damping=damping, seed=seed)


def example_rows(objective: Objective, number: int | None, seed: int, x: Tensor | None) -> Tensor:
    """The gradients of examples of the data, without penalties, as rows ``(number, n)``."""

    def run(way: ExampleRoute) -> Tensor:
        rows: list[Tensor] = []
        wanted: Tensor | None = None
        first = 0

        def keep(G: Tensor, losses: Tensor, walk: Walk) -> None:
            nonlocal wanted, first
            if wanted is None:
                count = walk.examples if number is None else min(number, walk.examples)
                wanted = torch.randperm(walk.examples, generator=generator(seed, 0))[:count].sort().values
            here = wanted[(first <= wanted) & (wanted < first + len(G))] - first
            rows.append(G[here.to(G.device)] - walk.common)
            first += len(G)

        walk_gradients("inverse_curvature", objective, x, way, keep)
        return torch.cat(rows)

    return by_route("inverse_curvature", None, objective, run)


def example_second_moments(objective: Objective, x: Tensor | None) -> Tensor:
    """The mean over the examples of the squared entries of their gradients, without penalties, ``(n,)`` float64."""

    def run(way: ExampleRoute) -> Tensor:
        total, seen = torch.zeros(objective.space.dim, dtype=torch.float64, device=objective.space.device), 0

        def add(G: Tensor, losses: Tensor, walk: Walk) -> None:
            nonlocal total, seen
            total = total + (G - walk.common).double().square().sum(0)
            seen += len(G)

        walk_gradients("saliency", objective, x, way, add)
        return total / seen

    return by_route("saliency", None, objective, run)
