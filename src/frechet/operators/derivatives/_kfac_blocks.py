"""The factors of a layer from the sums over the data, and the operator of its block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.operators._constructors import block_diagonal, from_diagonal, from_matrix, kronecker
from frechet.operators._eigendecomposition import spectral
from frechet.operators._operator import LinearOperator
from frechet.operators.derivatives._kfac_columns import Kind
from frechet.operators.derivatives._kfac_layers import Layer
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """What stands for the block of one layer. Its rows are the layer's outputs; a bias is the last input.

    `inputs` is A ``(groups, in, in)``, or ``(tokens,)`` for an embedding; `outputs` is B ``(groups, out, out)``. A
    normalization has neither, and its exact `diagonal`.
    """

    names: tuple[str, ...]
    inputs: Tensor | None
    outputs: Tensor | None
    diagonal: Tensor | None = None


def shapes_of(layer: Layer, space: Space) -> list[tuple[int, ...]]:
    """Of A, of the number of its rows, and of B."""
    if layer.kind in ("scale", "other"):
        return [(layer.order(space).numel(),)]
    if layer.kind == "embedding":
        assert layer.weight is not None  # it has no other parameter
        tokens, width = space.shapes[space.names.index(layer.weight)]
        return [(tokens,), (1,), (1, width, width)]
    weight: Any = layer.module.weight
    out, into = weight.shape[0], weight[0].numel()
    out, into = (into, out) if layer.transposed else (out, into)
    columns = (into if layer.weight is not None else 0) + (layer.bias is not None)
    g = layer.groups
    return [(g, columns, columns), (1,), (g, out // g, out // g)]


def factors_from(layer: Layer, flat: Tensor, shapes: Sequence[tuple[int, ...]], kind: Kind) -> KroneckerFactors:
    """The factors of a layer from the sums of A, of its rows, and of B."""
    if layer.kind in ("scale", "other"):
        return KroneckerFactors(layer.names, None, None, flat)
    A, rows, B = (p.view(s) for p, s in zip(flat.split([torch.Size(s).numel() for s in shapes]), shapes, strict=True))
    B = torch.eye(B.shape[-1], dtype=B.dtype, device=B.device).expand_as(B) if kind == "forward_only" else B
    return KroneckerFactors(layer.names, A / torch.where(rows != 0, rows, 1.0), B)


def block_of(f: KroneckerFactors, space: Space) -> LinearOperator:
    """B kron A, for each group."""
    if f.diagonal is not None:
        return from_diagonal(f.diagonal.to(space.dtype))
    A, B = f.inputs, f.outputs
    assert A is not None
    assert B is not None
    if A.ndim == 1:  # an embedding: its rows are tokens
        return kronecker(from_diagonal(A.to(space.dtype)), _matrix(B[0], space))
    parts = [kronecker(_matrix(b, space), _matrix(a, space)) for a, b in zip(A, B, strict=True)]
    return parts[0] if len(parts) == 1 else block_diagonal(*parts)


def _matrix(M: Tensor, space: Space) -> LinearOperator:
    return from_matrix(((M + M.T) / 2).to(space.dtype), facts="positive_semidefinite")


def basis_of(f: KroneckerFactors) -> tuple[Tensor | None, Tensor] | None:
    """Eigenvectors of A (None for tokens) and B."""
    if f.inputs is None or f.outputs is None:
        return None
    Q_A = None if f.inputs.ndim == 1 else torch.linalg.eigh(f.inputs)[1]
    return Q_A, torch.linalg.eigh(f.outputs)[1]


def corrected_block(
    f: KroneckerFactors, basis: tuple[Tensor | None, Tensor], values: Tensor, space: Space
) -> LinearOperator:
    """The block with these second moments as eigenvalues, in the eigenvectors of the factors."""
    Q_A, Q_B = basis
    if Q_A is None:
        assert f.inputs is not None
        tokens = len(f.inputs)
        left = from_diagonal(torch.ones(tokens, dtype=space.dtype, device=space.device))
        return spectral(kronecker(left, from_matrix(Q_B[0].to(space.dtype))), values)
    parts = [
        spectral(kronecker(from_matrix(b.to(space.dtype)), from_matrix(a.to(space.dtype))), v)
        for a, b, v in zip(Q_A, Q_B, values.chunk(len(Q_A)), strict=True)
    ]
    return parts[0] if len(parts) == 1 else block_diagonal(*parts)
