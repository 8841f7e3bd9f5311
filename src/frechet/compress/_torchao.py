"""A plan of bits as torchao takes it, which has the kernels.

torchao stores integers from -2^(b-1) to 2^(b-1) - 1 with the scale max |w| / (2^(b-1) - 1/2) for each row, or for each
group of entries of a row. `torchao_rounding` lets torchao round, so that predictions are of what will be deployed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

MISSING = "torchao must be installed (pip install torchao); the plain dictionary is module_bits(plan.bits)"


def module_bits(bits: Mapping[str, int]) -> dict[str, int]:
    """Return the bits of each module from those of its weight: the plan as a plain dictionary for other tools.

    Example:
        >>> from frechet.compress import module_bits
        >>> module_bits({"layers.0.weight": 4, "head.weight": 8})
        {'layers.0': 4, 'head': 8}
    """
    wrong = [n for n in bits if n.rpartition(".")[2] != "weight"]
    if wrong:
        raise ValueError(f"module_bits: bits must be of weights of modules, got {wrong[0]!r}")
    return {n.removesuffix("weight").rstrip("."): b for n, b in bits.items()}


def torchao_config(model: nn.Module, bits: Mapping[str, int], *, group: int | None = None) -> Any:
    """Return the plan as a configuration of torchao, for ``quantize_(model, config, filter_fn=None)``.

    Args:
        model: the model in float32, float16 or bfloat16.
        bits: the number of bits for each weight of a Linear layer, from 1 to 8, such as ``plan.bits``.
        group: how many entries of a row share a scale. Default: the whole row.

    Raises:
        ImportError: torchao is not installed.
        ValueError: a name is no weight of a Linear layer, or a number is out of range.
    """
    modules = dict(model.named_modules())
    for name, b in module_bits(bits).items():
        if not isinstance(modules.get(name), nn.Linear):
            raise ValueError(
                f"torchao_config: bits must be of Linear layers, got '{name}' ({type(modules.get(name)).__name__}); "
                "give sensitivity(weights=...) the names of Linear layers alone"
            )
        if isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 8:
            raise ValueError(f"torchao_config: bits must lie between 1 and 8, got {b} for '{name}'")
    with _quiet():
        ao = _torchao("torchao_config")
        return ao.FqnToConfig({name: _weight_only(ao, b, group) for name, b in module_bits(bits).items()})


def torchao_rounding(weight: Tensor, bits: int, *, group: int | None = None) -> Tensor:
    """Return the weight as torchao reads it back after storing it: a quantizer for `sensitivity` and `quantized`.

    Args:
        weight: a matrix, which torchao takes in float32.
        bits: from 1 to 8.
        group: as in `torchao_config`.

    Raises:
        ImportError: torchao is not installed.
        ValueError: the weight is no matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"torchao_rounding: weight must be a matrix, got shape {tuple(weight.shape)}")
    with _quiet(), torch.no_grad():
        ao = _torchao("torchao_rounding")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=torch.float32)
        layer.weight.copy_(weight)
        ao.quantize_(layer, _weight_only(ao, bits, group))
        stored: Any = layer.weight
        return stored.dequantize().to(weight)


def _weight_only(ao: Any, bits: int, group: int | None) -> Any:
    granularity = ao.PerAxis(0) if group is None else ao.PerGroup(group)
    return ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity)


def _torchao(what: str) -> Any:
    try:
        return import_module("torchao.quantization")
    except ImportError as error:
        raise ImportError(f"{what}: {MISSING}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao says about kernels for other devices while it is imported."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
