"""What a plan of bits costs in bit operations: multiplications times the bits of both factors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from frechet.compress._sensitivity import Sensitivity
from frechet.objective import Objective


def bit_operations(objective: Objective, table: Sensitivity, *, activation_bits: int | None = None) -> Tensor:
    """Return the bit operations of one example for each weight and number of bits, a cost for `allocate_bits`.

    They are the multiplications of the layer times the bits of its weight and of its input. They are counted in a
    forward pass over the first batch.

    Args:
        objective: the objective, with one data term.
        table: a table of weights of Linear and convolutional layers, from `sensitivity`.
        activation_bits: the bits of the inputs. Default: those of the weight, as integer kernels need.

    Raises:
        ValueError: a row of the table is no weight of a Linear or convolutional layer that is called.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.compress import bit_operations, sensitivity
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = Objective(model, cross_entropy(), [(torch.randn(9, 4), torch.randint(0, 3, (9,)))])
        >>> bit_operations(objective, sensitivity(objective, (2, 8)), activation_bits=8)  # 12 multiplications
        tensor([[192., 768.]], dtype=torch.float64)
    """
    multiplications = _multiplications(objective)
    found = []
    for name in table.names:
        module = name.removesuffix("weight").rstrip(".")
        if module not in multiplications or name.rpartition(".")[2] != "weight":
            raise ValueError(f"bit_operations: rows must be weights of Linear and Conv layers, got '{name}'")
        found.append([multiplications[module] * b * (activation_bits or b) for b in table.bits])
    return torch.tensor(found, dtype=torch.float64)


def _multiplications(objective: Objective) -> dict[str, float]:
    """Of each Linear and convolutional layer, for one example."""
    found: dict[str, float] = {}
    model = copy.deepcopy(objective.model)
    batch = next(iter(objective.batches()))

    def watched(name: str, layer: Any) -> None:
        def count(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            found[name] = found.get(name, 0.0) + out.numel() * layer.weight[0].numel() / batch.examples

        layer.register_forward_hook(count)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            watched(name, module)
    part = objective.parts[0]
    Objective(model, part.criterion, [next(iter(part.data))], split=part.split, dtype=part.dtype).value()
    return found
