"""The forms g_i'A g_i of every example's gradient in any operator: curvatures along each example's own gradient.

Gradients come a chunk of examples at a time (see `_examples.py`), are multiplied by A as one block and forgotten. Their
mean is tr(A C) with C the uncentered second moment of the gradients, which `trace(A @ empirical_fisher(...))` estimates
from few products where N of them are too many.

**Source.** The ratio g'H g / g'g of batches as the sharpness that SGD feels: Andreyev and Beneventano, "Edge of
stochastic stability" (2024), arXiv 2412.20553.
**Differs from the source.** (1) Any operator. (2) Every example alone, not batches.
**Cost.** Two passes for the gradients and N products with A in blocks; `block` vectors beside the chunk of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.analyze._examples import Walk, walk_gradients
from frechet.analyze._single_examples import ExampleRoute, by_route
from frechet.errors import NonFinite
from frechet.objective import Objective
from frechet.operators._operator import LinearOperator


@dataclass(frozen=True, eq=False)
class ExampleQuadratics:
    """g_i'A g_i and |g_i|^2 of all examples in data order."""

    values: Tensor  # (N,) float64
    squared_norms: Tensor  # (N,) float64
    examples: int
    terms: float
    passes: int  # for the gradients; those of the products are A's own
    products: int
    route: ExampleRoute


def example_quadratics(
    objective: Objective,
    A: LinearOperator,
    *,
    x: Tensor | None = None,
    route: ExampleRoute | None = None,
    block: int = 16,
) -> ExampleQuadratics:
    """Return g_i'A g_i for the gradient g_i of every example, exactly.

    Args:
        objective: the objective. `example_gradients` says which models are refused.
        A: an operator on the objective's parameters. It need not be symmetric, nor come from this objective.
        x: the point ``(n,)``. Default: the model's present parameters.
        route: as in `example_gradients`.
        block: how many gradients are multiplied by A at a time.

    Example:
        >>> import torch
        >>> from frechet import Objective, identity, squared_error
        >>> from frechet.analyze import example_quadratics
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]
        >>> objective = Objective(model, squared_error(), data)
        >>> example_quadratics(objective, 3 * identity(objective.space)).values  # 3 (2 (w x - y) x)^2
        tensor([12., 48.], dtype=torch.float64)
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(f"example_quadratics: A must be a LinearOperator, got {type(A).__name__}")
    if isinstance(objective, Objective) and not A.domain == A.codomain == objective.space:
        raise ValueError(
            f"example_quadratics: A must map {objective.space!r} to itself, got {A!r}; make it without restrict="
        )
    if block < 1:
        raise ValueError(f"example_quadratics: block must be at least 1, got {block}")
    return by_route("example_quadratics", route, objective, lambda way: _quadratics(objective, A, x, way, block))


def _quadratics(
    objective: Objective, A: LinearOperator, x: Tensor | None, route: ExampleRoute, block: int
) -> ExampleQuadratics:
    values: list[Tensor] = []
    norms: list[Tensor] = []

    def use(G: Tensor, _losses: Tensor, walk: Walk) -> None:
        space = walk.snapshot.space
        for a in range(0, len(G), block):
            rows = G[a : a + block]
            image = (A @ rows.T).T
            values.extend(space.inner(g, Ag) for g, Ag in zip(rows, image, strict=True))
            norms.extend(space.inner(g, g) for g in rows)

    walk = walk_gradients("example_quadratics", objective, x, route, use)
    found = torch.stack(values).cpu()
    wrong = ~torch.isfinite(found)
    if bool(wrong.any()):
        raise NonFinite(f"example_quadratics: example {int(wrong.nonzero()[0])} gives a NaN or an infinity; check A")
    squared = torch.stack(norms).cpu()
    return ExampleQuadratics(found, squared, walk.examples, walk.terms, 2, walk.examples, walk.route)
