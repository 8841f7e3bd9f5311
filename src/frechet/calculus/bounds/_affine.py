"""Affine maps of flattened examples: products with W, with its transpose, and with |W|.

Every map acts on the last axis. `terms` is the length of the longest sum in a product and `terms_back` in a product
with the transpose, for the bounds of their rounding errors; `uncertain` is how far the stored weights may be from the
weights of the layer, relatively, where these are themselves computed (batch normalization).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Sort = Literal["signed", "size", "positive", "negative"]  # W, |W|, max(W, 0), max(-W, 0)


def sorted_weight(W: Tensor, part: Sort) -> Tensor:
    """A part of a matrix of weights."""
    match part:
        case "signed":
            return W
        case "size":
            return W.abs()
        case "positive":
            return W.clamp(min=0.0)
    return (-W).clamp(min=0.0)


class Affine(ABC):
    """z -> W z + bias."""

    terms: int
    terms_back: int
    bias: Tensor | None
    uncertain: float

    @abstractmethod
    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor: ...  # (..., in) -> (..., out)

    @abstractmethod
    def back(self, L: Tensor, part: Sort = "signed") -> Tensor: ...  # (..., out) -> (..., in), W' or |W|'

    def shift(self) -> Tensor | float:
        """The bias, or zero."""
        return 0.0 if self.bias is None else self.bias


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """A matrix on the last axis of examples of shape (lead, in)."""

    weight: Tensor  # (out, in)
    bias: Tensor | None
    lead: int = 1
    uncertain = 0.0

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.weight.shape[1]

    @property
    def terms_back(self) -> int:  # type: ignore[override]
        return self.weight.shape[0]

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        W = sorted_weight(self.weight, part)
        return (Z.reshape(*Z.shape[:-1], self.lead, W.shape[1]) @ W.T).flatten(-2)

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        W = sorted_weight(self.weight, part)
        return (L.reshape(*L.shape[:-1], self.lead, W.shape[0]) @ W).flatten(-2)


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A convolution of images as sums of products: torch's own kernels may transform, and round otherwise."""

    weight: Tensor  # (out, in / groups, height, width)
    bias: Tensor | None
    image: tuple[int, int, int]  # channels, height, width
    result: tuple[int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    uncertain = 0.0

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.weight[0].numel()

    @property
    def terms_back(self) -> int:  # type: ignore[override]
        return self.weight.shape[0] // self.groups * self.weight[0, 0].numel()

    def _matrix(self, part: Sort) -> Tensor:
        W = sorted_weight(self.weight, part)
        return W.reshape(self.groups, W.shape[0] // self.groups, -1)

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        kernel = self.weight.shape[-2:]
        X = F.unfold(Z.reshape(-1, *self.image), kernel, self.dilation, self.padding, self.stride)
        X = X.reshape(X.shape[0], self.groups, -1, X.shape[-1])
        return (self._matrix(part) @ X).reshape(*Z.shape[:-1], -1)

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        Y = L.reshape(-1, self.groups, self.result[0] // self.groups, self.result[1] * self.result[2])
        X = (self._matrix(part).mT @ Y).flatten(1, 2)
        kernel, size = self.weight.shape[-2:], self.image[1:]
        return F.fold(X, size, kernel, self.dilation, self.padding, self.stride).reshape(*L.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Diagonal(Affine):
    """Each number times a weight of its own."""

    weight: Tensor  # (n,)
    bias: Tensor | None
    uncertain: float = 0.0
    terms: int = 1
    terms_back: int = 1

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        return Z * sorted_weight(self.weight, part)

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        return self.apply(L, part)


@dataclass(frozen=True, eq=False)
class Selection(Affine):
    """Numbers moved to other places: output i is input index[i] - 1, and zero where index[i] is 0."""

    index: Tensor  # (out,)
    size: int  # of the input
    terms: int = 1
    bias = None
    uncertain = 0.0

    @cached_property
    def terms_back(self) -> int:  # type: ignore[override]
        """How often a number is taken at most."""
        return max(1, int(torch.bincount(self.index, minlength=2)[1:].max()))

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        found = F.pad(Z, (1, 0)).index_select(-1, self.index)
        return found * 0.0 if part == "negative" else found

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        Z = L.new_zeros(*L.shape[:-1], self.size + 1)
        found = Z.index_add_(-1, self.index, L)[..., 1:]
        return found * 0.0 if part == "negative" else found


@dataclass(frozen=True, eq=False)
class Averages(Affine):
    """Means of numbers, as pooling takes them: a linear function with weights >= 0."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]  # of an example
    terms: int  # numbers in a mean
    terms_back: int  # means that hold one number
    bias = None
    uncertain = 0.0

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        found = self.function(Z.reshape(-1, *self.shape)).reshape(*Z.shape[:-1], -1)
        return found * 0.0 if part == "negative" else found

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        with torch.enable_grad():
            Z = L.new_zeros(L.shape[:-1].numel(), *self.shape).requires_grad_()
            Y = self.function(Z)
            (found,) = torch.autograd.grad(Y, Z, L.reshape(Y.shape))
        return found.reshape(*L.shape[:-1], -1) * (0.0 if part == "negative" else 1.0)


@dataclass(frozen=True, eq=False)
class Transposed(Affine):
    """The transpose of a map, without its bias."""

    map: Affine
    bias = None

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.map.terms_back

    @property
    def terms_back(self) -> int:  # type: ignore[override]
        return self.map.terms

    @property
    def uncertain(self) -> float:  # type: ignore[override]
        return self.map.uncertain

    def apply(self, Z: Tensor, part: Sort = "signed") -> Tensor:
        return self.map.back(Z, part)

    def back(self, L: Tensor, part: Sort = "signed") -> Tensor:
        return self.map.apply(L, part)
