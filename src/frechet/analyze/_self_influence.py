"""Self-influence: what each example's own loss gains when it is left out of the training data.

    score_i  =  g_i'(H + damping I)^-1 g_i / N

with g_i the gradient of example i's term (see `_influence.py`). Large where an example is learnt by heart: wrong
labels, and rare cases.

**Source.** P. W. Koh, P. Liang (2017), Understanding black-box predictions via influence functions, arXiv 1703.04730,
section 5.4.
**Cost.** Two passes with a gradient for each example; for each of them a product with an inverse in closed form, or the
solution of a system.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._examples import Walk, _one_part, walk_gradients
from frechet.analyze._influence_systems import Curvature, systems_of
from frechet.analyze._single_examples import ExampleRoute, by_route, refuse_group
from frechet.linalg._shown import Result, Rows
from frechet.objective import Objective
from frechet.operators import LinearOperator


@dataclass(frozen=True, eq=False)
class SelfInfluence(Result):
    """`scores` ``(N,)`` float64: the change of each example's loss when it is left out, by its first order."""

    scores: Tensor
    losses: Tensor  # (N,) float64, of each example, times N / count
    damping: float
    curvature: str
    gauss_newton_residual: float  # the largest relative residual with the exact damped Gauss-Newton matrix

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """The k examples with the largest scores."""
        return [(int(i), float(self.scores[i])) for i in self.scores.argsort(descending=True)[:k]]

    def _line(self) -> str:
        return f"{len(self.scores)} examples, {self.curvature} + {self.damping:.3g}"

    def _table(self) -> Rows:
        return ("example", "change of its own loss when left out"), [(str(i), f"{c:.4g}") for i, c in self.top()]


def self_influence(
    objective: Objective,
    *,
    damping: float,
    curvature: Curvature | LinearOperator = "ekfac",
    rank: int | None = None,
    seed: int | None = None,
    rtol: float = 1e-6,
    max_iterations: int | None = None,
    x: Tensor | None = None,
) -> SelfInfluence:
    """Estimate what each example's own loss gains when the example is left out of the training data.

    Args:
        objective: the objective that was minimized.
        damping: what is added to the curvature, >= 0.
        curvature: as in `influence`. The default has a closed form; an exact one solves a system for each example.
        rank: as in `influence`.
        seed: as in `influence`.
        rtol: as in `influence`.
        max_iterations: as in `influence`.
        x: the point ``(n,)``. Default: the model's present parameters.

    Returns:
        A `SelfInfluence`.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import self_influence
        >>> X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> y = X[:, :1].clone()
        >>> y[4] += 3.0  # a wrong label
        >>> model = torch.nn.Linear(3, 1).double()
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]])), model.bias.zero_()
        >>> self_influence(Objective(model, squared_error(), [(X, y)]), damping=0.1).top(1)[0][0]
        4
    """
    if not damping >= 0:
        raise ValueError(f"self_influence: damping must be a number >= 0, got {damping}")
    snapshot, _ = _one_part("self_influence", objective, x)
    refuse_group(snapshot, "self_influence")
    systems = systems_of("self_influence", objective, curvature, damping, snapshot.x, rank, seed)
    plain = objective._with(objective.parts, ())

    def run(route: ExampleRoute) -> tuple[list[Tensor], list[Tensor], float]:
        scores: list[Tensor] = []
        losses: list[Tensor] = []
        worst = 0.0

        def use(G: Tensor, values: Tensor, walk: Walk) -> None:
            nonlocal worst
            solved = systems.solve(G.T, rtol, max_iterations)
            scores.append((G * solved.U.T).double().sum(1).cpu())
            losses.append(values.double().cpu() * walk.scale)
            worst = max(worst, float(systems.exact_residuals(G.T, solved.U).max()))

        walk_gradients("self_influence", plain, snapshot.x, route, use)
        return scores, losses, worst

    scores, losses, worst = by_route("self_influence", None, plain, run)
    found = torch.cat(scores)
    return SelfInfluence(found / len(found), torch.cat(losses), damping, systems.name, worst)
