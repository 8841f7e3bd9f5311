"""Spectral norms of a model's weight matrices and of their last updates, against those at which features move.

    |W|_2 ~ sqrt(out / in)    and    |dW|_2 ~ sqrt(out / in)

at every width are what keeps features of order one, and their change too. The ratios to sqrt(out / in) should not
depend on the width; a rule derives them from an assumed rank of the update, and this measures them.

**Source.** Yang, Simon and Bernstein, "A spectral condition for feature learning" (2023), arXiv 2310.17813.
**Differs from the source.** (1) Embeddings map a one-hot vector of the vocabulary, so (vocabulary, dim) is their
transpose. (2) A convolution with k x k taps counts as (out, in k k) against sqrt(out / in) / (k k), as Scion takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from frechet.linalg._shown import Result, Rows
from frechet.linalg._svds import svds
from frechet.objective._model import unwrap
from frechet.operators._constructors import from_matrix

DENSE = 1024  # rows or columns, above which the norm comes from products


@dataclass(frozen=True)
class MatrixNorms(Result):
    """One weight matrix: its spectral norm and that of its update, and both over the condition's sqrt(out / in)."""

    name: str
    fan_out: int
    fan_in: int
    norm: float
    ratio: float
    update: float | None = None
    update_ratio: float | None = None


@dataclass(frozen=True)
class SpectralCheck(Result):
    """The matrices of a model."""

    matrices: tuple[MatrixNorms, ...]

    def rate_factors(self) -> dict[str, float]:
        """By what each matrix's learning rate is to be multiplied for equal update ratios: the median over its own."""
        known = {m.name: m.update_ratio for m in self.matrices if m.update_ratio}
        if not known:
            raise ValueError("rate_factors: needs updates; call spectral_check(model, before=...) after a step")
        middle = float(torch.tensor(list(known.values())).median())
        return {name: middle / ratio for name, ratio in known.items()}

    def _table(self) -> Rows:
        def told(x: float | None) -> str:
            return "" if x is None else f"{x:.3g}"

        rows = [
            (m.name, f"{m.fan_out} x {m.fan_in}", told(m.norm), told(m.ratio), told(m.update), told(m.update_ratio))
            for m in self.matrices
        ]
        return ("matrix", "shape", "norm", "over sqrt(out/in)", "update", "over sqrt(out/in)"), rows


def spectral_check(
    model: nn.Module,
    before: Mapping[str, Tensor] | None = None,
    *,
    fused: Mapping[str, int] | None = None,
    seed: int = 0,
) -> SpectralCheck:
    """Return the spectral norms of a model's matrices, and of what they changed by, beside sqrt(out / in).

    Tied matrices come once. Vectors, such as biases and norms' weights, are left out.

    Args:
        model: the model.
        before: its parameters before an update, by name: ``{n: p.detach().clone() for n, p in
            model.named_parameters()}``. Default: updates are left out.
        fused: patterns of names of matrices that are several above each other, and how many: ``{"*qkv.weight": 3}``.
        seed: of the start vector, for matrices with more than 1024 rows and columns.

    Example:
        >>> import torch
        >>> from frechet.analyze import spectral_check
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 0.25)
        >>> found = spectral_check(model).matrices[0]
        >>> round(found.norm, 4), round(found.ratio, 4)  # 0.5 = sqrt(1 / 4)
        (0.5, 1.0)
    """
    inner, rows = unwrap(model), []
    lookups = {id(m.weight) for m in inner.modules() if isinstance(m, nn.Embedding)}
    for name, p in inner.named_parameters():
        if p.ndim < 2:
            continue
        if before is not None and name not in before:
            raise ValueError(f"spectral_check: before must hold every parameter, got none called '{name}'")
        change = None if before is None else p.detach() - before[name].to(p)
        parts = next((k for pattern, k in (fused or {}).items() if fnmatch(name, pattern)), 1)
        if p.shape[0] % parts:
            raise ValueError(f"spectral_check: fused must divide the {p.shape[0]} rows of '{name}', got {parts}")
        pieces = zip(p.detach().chunk(parts), [None] * parts if change is None else change.chunk(parts), strict=True)
        lookup, taps = id(p) in lookups, math.prod(p.shape[2:])
        for i, (W, dW) in enumerate(pieces):
            label = name if parts == 1 else f"{name}[{i}]"
            moved = None if dW is None else _matrix(dW, lookup)
            rows.append(_norms(label, _matrix(W, lookup), moved, taps, seed))
    return SpectralCheck(tuple(rows))


def _norms(name: str, W: Tensor, dW: Tensor | None, taps: int, seed: int) -> MatrixNorms:
    fan_out, fan_in = W.shape[0], W.shape[1] // taps
    wanted = math.sqrt(fan_out / fan_in) / taps
    norm = _spectral_norm(W, seed)
    update = None if dW is None else _spectral_norm(dW, seed)
    return MatrixNorms(name, fan_out, fan_in, norm, norm / wanted, update, None if update is None else update / wanted)


def _matrix(W: Tensor, lookup: bool) -> Tensor:
    return W.T if lookup else W.reshape(W.shape[0], -1)


def _spectral_norm(W: Tensor, seed: int) -> float:
    W = W.float() if W.dtype in (torch.float16, torch.bfloat16) else W
    if min(W.shape) <= DENSE:
        return float(torch.linalg.matrix_norm(W, 2))
    return float(svds(from_matrix(W), 1, seed=seed, rtol=1e-3).values[0])
