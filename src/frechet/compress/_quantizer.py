"""Uniform quantizers: what a weight becomes when it is stored in few bits and read back.

    Q(w) = s clamp(round(w / s) + z) - s z

with one scale s for the tensor, for each channel, or for each group of so many entries along a row. Symmetric:
z = 0 and s = max |w| / (2^(b-1) - 1), the integers from -2^(b-1) + 1 on. Affine: s = (max - min) / (2^b - 1), and z
such that 0 is stored exactly.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["tensor", "channel"]


def uniform(
    weight: Tensor, bits: int, *, scale: Scale | int = "channel", symmetric: bool = True, axis: int = 0
) -> Tensor:
    """Return the weight as it is after rounding to `bits` bits.

    Args:
        weight: a tensor of any shape.
        bits: from 2 to 16, or 1 where not symmetric.
        scale: one scale for the ``"tensor"``, for each ``"channel"``, or for each group of that many entries of a
            channel, which they must divide.
        symmetric: whether 0 is in the middle of the range.
        axis: of the channels. Default: 0, the outputs of Linear and Conv layers; those of GPT-2 in transformers have
            their outputs on axis 1.

    Returns:
        A tensor like the weight, with at most ``2^bits`` values for each scale.

    Raises:
        ValueError: bits are out of range, or groups do not divide the rows.

    Example:
        >>> import torch
        >>> from frechet.compress import uniform
        >>> uniform(torch.tensor([[0.1, -0.9, 1.0], [2.5, 0.0, -4.0]]), 2)
        tensor([[ 0., -1.,  1.],
                [ 4.,  0., -4.]])
    """
    least = 2 if symmetric else 1
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 16:
        raise ValueError(f"uniform: bits must be an int from {least} to 16, got {bits!r}")
    if not -max(weight.ndim, 1) <= axis < max(weight.ndim, 1):
        raise ValueError(f"uniform: axis must be one of {weight.ndim}, got {axis}")
    if axis:
        return uniform(weight.movedim(axis, 0), bits, scale=scale, symmetric=symmetric).movedim(0, axis)
    rows = _rows(weight, scale)
    if not rows.numel():
        return weight.clone()
    if symmetric:
        top = 2 ** (bits - 1) - 1
        s = rows.abs().amax(1, keepdim=True) / top
        s = torch.where(s > 0, s, torch.ones_like(s))
        found = (rows / s).round().clamp(-top, top) * s
    else:
        top = 2**bits - 1
        low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
        s = (high - low) / top
        s = torch.where(s > 0, s, torch.ones_like(s))
        z = (-low / s).round()
        found = ((rows / s).round() + z).clamp(0, top) * s - z * s
    return found.reshape(weight.shape)


def _rows(weight: Tensor, scale: Scale | int) -> Tensor:
    """The entries that share a scale, as rows."""
    if scale == "tensor" or (scale == "channel" and weight.ndim < 2):
        return weight.reshape(1, -1)
    if scale == "channel":
        return weight.reshape(len(weight), -1)
    if isinstance(scale, str | bool) or scale < 1:
        raise ValueError(f"uniform: scale must be 'tensor', 'channel' or a group's size >= 1, got {scale!r}")
    row = weight[0].numel() if weight.ndim > 1 else weight.numel()
    if row % scale:
        raise ValueError(f"uniform: groups must divide the rows, got groups of {scale} in rows of {row} entries")
    return weight.reshape(-1, scale)
