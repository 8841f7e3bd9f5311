"""What a plan of bits costs in bit operations: multiplications times the bits of both factors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frechet.compress._sensitivity import Sensitivity
from frechet.objective import Objective
from frechet.operators.derivatives._kfac_layers import is_transposed


def bit_operations(objective: Objective, table: Sensitivity, *, activation_bits: int | None = None) -> Tensor:
    """Return the bit operations of one example for each weight and number of bits, a cost for `allocate_bits`.

    They are the multiplications of all layers with this weight times the bits of the weight and of the input. They are
    counted in a forward pass over the first batch. Embeddings have none.

    Args:
        objective: the objective, with one data term.
        table: a table of weights of Linear, convolutional and Embedding layers, from `sensitivity`.
        activation_bits: the bits of the inputs. Default: those of the weight, as integer kernels need.

    Raises:
        ValueError: a row of the table is no weight of such a layer, or of none that is called.

    Example:
        >>> import torch
        >>> from frechet import Objective, cross_entropy
        >>> from frechet.compress import bit_operations, sensitivity
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = Objective(model, cross_entropy(), [(torch.randn(9, 4), torch.randint(0, 3, (9,)))])
        >>> bit_operations(objective, sensitivity(objective, (2, 8)), activation_bits=8)  # 12 multiplications
        tensor([[192., 768.]], dtype=torch.float64)
    """
    if len(objective.parts) != 1:
        raise ValueError(f"bit_operations: objective must have one data term, got {len(objective.parts)}")
    multiplications = _multiplications(objective)
    found = []
    for name in table.names:
        if name not in multiplications:
            raise ValueError(
                f"bit_operations: rows must be weights of Linear, Conv or Embedding layers that are called, got "
                f"'{name}'; leave it out by sensitivity(weights=...)"
            )
        found.append([multiplications[name] * b * (activation_bits or b) for b in table.bits])
    return torch.tensor(found, dtype=torch.float64)


def _multiplications(objective: Objective) -> dict[str, float]:
    """Of each weight, in all layers that have it, for one example."""
    found: dict[str, float] = {}
    model = copy.deepcopy(objective.model)
    names = {id(p): name for name, p in model.named_parameters()}
    batch = next(iter(objective.batches()))

    def watched(name: str, layer: nn.Module, each: Callable[[Tensor, Tensor], int]) -> None:
        def count(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            found[name] = found.get(name, 0.0) + each(given[0] if given else out, out) / batch.examples

        layer.register_forward_hook(count)

    for layer in model.modules():
        name, each = names.get(id(getattr(layer, "weight", None))), _of_call(layer)
        if name is not None and each is not None:
            watched(name, layer, each)
    part = objective.parts[0]
    Objective(
        model, part.criterion, [next(iter(part.data))], split=part.split, dtype=part.dtype,
        dropout_seed=objective.dropout_seed,
    ).value()  # fmt: skip
    return found


def _of_call(layer: Any) -> Callable[[Tensor, Tensor], int] | None:
    """How many multiplications a call has, from its input and output; None for other kinds of layers."""
    if isinstance(layer, nn.Embedding):
        return lambda a, y: 0
    if is_transposed(layer):
        return lambda a, y: y.numel() * layer.weight.shape[0]
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return lambda a, y: y.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return lambda a, y: a.numel() * layer.weight[0].numel()
    return None
