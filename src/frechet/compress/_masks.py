"""Weights that stay at zero while a model trains on.

A mask for each parameter says which entries are kept. Gradients of the others would bring them back, and momentum even
where gradients are masked; so they are set to zero after every step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune


@torch.no_grad()
def keep_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Return the number of entries that are set to zero in the model: all that the masks do not keep.

    Call it after every ``optimizer.step()``. What it changes are the parameters in place: optimizers, schedulers,
    compiled and parallel models go on as they are.

    Args:
        model: the model.
        masks: for each parameter's name, which of its entries are kept, such as ``Pruned.masks``.

    Raises:
        ValueError: a name is no parameter, or a shape is wrong.

    Example:
        >>> import torch
        >>> from frechet.compress import keep_zeros
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> keep_zeros(model, {"weight": torch.tensor([[True, False]])})
        1
        >>> bool(model.weight[0, 1] == 0)
        True
    """
    zeros = 0
    for p, mask in _pairs("keep_zeros", model, masks):
        p.mul_(mask)
        zeros += int((~mask).sum())
    return zeros


def as_torch_prune(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Module, str]]:
    """Return the modules and names that now are masked by ``torch.nn.utils.prune``.

    Each weight becomes ``weight_orig`` times a buffer ``weight_mask`` in every forward pass, as by torch's own pruning,
    and ``torch.nn.utils.prune.remove(module, name)`` makes it plain again. A weight that several modules share is
    masked in each of them, and stays shared. Names of parameters change: make the optimizer afterwards.

    Args:
        model: the model, which is changed.
        masks: as for `keep_zeros`.

    Raises:
        ValueError: a name is no parameter, or a shape is wrong.

    Example:
        >>> import torch
        >>> from frechet.compress import as_torch_prune
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> as_torch_prune(model, {"0.weight": torch.tensor([[True, False]])})
        [(Linear(in_features=2, out_features=1, bias=False), 'weight')]
        >>> [name for name, _ in model.named_parameters()]
        ['0.weight_orig']
    """
    found = []
    for p, mask in _pairs("as_torch_prune", model, masks):
        for module in model.modules():
            for own, q in list(module.named_parameters(recurse=False)):
                if q is p:
                    torch_prune.custom_from_mask(module, own, mask)
                    found.append((module, own))
    return found


def _pairs(what: str, model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    parameters = dict(model.named_parameters())
    found = []
    for name, mask in masks.items():
        p = parameters.get(name)
        if p is None:
            raise ValueError(f"{what}: masks must name parameters of the model, got {name!r}")
        if mask.dtype != torch.bool or mask.shape != p.shape:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(f"{what}: the mask of '{name}' must be torch.bool of shape {tuple(p.shape)}, got {got}")
        found.append((p, mask.to(p.device)))
    return found
