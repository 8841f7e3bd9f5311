"""The parameters of a model with a plan applied, as they are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from frechet.compress._quantizer import uniform
from frechet.objective import Objective


def quantized(
    objective: Objective,
    bits: Mapping[str, int],
    *,
    quantizer: Callable[[Tensor, int], Tensor] = uniform,
    x: Tensor | None = None,
) -> Tensor:
    """Return the point ``(n,)`` with each named weight quantized: ``objective.value`` of it is the loss of the plan.

    Args:
        objective: the objective.
        bits: the number of bits of each weight that is quantized, as in a `BitPlan`.
        quantizer: as in `sensitivity`.
        x: the point ``(n,)``. Default: the model's present parameters. The model is not changed.

    Raises:
        ValueError: a name is no trainable parameter.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.compress import quantized
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
        >>> len(quantized(objective, {"weight": 2}).abs().unique()) <= 2
        True
    """
    space, point = objective.space, (objective.point if x is None else x).clone()
    unknown = [n for n in bits if n not in space.names]
    if unknown:
        raise ValueError(f"quantized: bits must name trainable parameters, got {unknown[0]!r}; see objective.space")
    blocks = space.unflatten(point)
    with torch.no_grad():
        for name, b in bits.items():
            point[space.block(name)] = quantizer(blocks[name], b).reshape(-1)
    return point
