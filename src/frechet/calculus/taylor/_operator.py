"""Linear differential operators on functions of points, by Taylor mode with a collapsed last coefficient.

An operator is a weighted sum of derivatives along straight lines through the point (`_symbol.py`). Those of one order
are propagated together, and their sum is carried in place of the last coefficient of each. Derivatives of lower order
along the same lines are read from the same pass.

**Source.** Dangel, Siebert, Zeinhofer and Walther, "Collapsing Taylor mode automatic differentiation" (2025); Li et
al., "A computational framework for neural network-based variational Monte Carlo with Forward Laplacian" (2023), is the
case of second order. **Differs from the source:** the collapse is in the rules, and no graph is rewritten. Several
operators share one pass.
**Cost** of R lines and order K: 1 + (K-1) R + 1 tensors of each layer. The Laplacian in d dimensions takes d + 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frechet.calculus.taylor._alone import require_alone
from frechet.calculus.taylor._jet import propagated
from frechet.calculus.taylor._series import Coefficients, Frame
from frechet.calculus.taylor._symbol import Powers, Sparse, Symbol, coordinates, powers_of, symbol_of
from frechet.objective._torch_internals import tree_flatten, tree_unflatten

Function = Callable[[Tensor], Any]
OneSymbol = str | Mapping[Sequence[int], float]


@dataclass(frozen=True)
class Pass:
    """One propagation: lines, their order, and what each operator takes from each coefficient."""

    order: int
    lines: tuple[Sparse, ...]
    weights: dict[int, list[list[float]]]  # order -> operator -> weight of each line


def passes_of(operators: Sequence[Powers]) -> tuple[Pass, ...]:
    """Return the propagations that serve all operators, from the highest order down."""
    open_terms = {K: [dict(p.get(K, {})) for p in operators] for K in {K for p in operators for K in p if K}}
    found = []
    for K in sorted(open_terms, reverse=True):
        lines = tuple(dict.fromkeys(v for terms in open_terms[K] for v in terms))
        if not lines:
            continue
        weights = {}
        for k in range(1, K + 1):
            terms = open_terms.get(k)
            if terms is not None and {v for t in terms for v in t} <= set(lines):
                weights[k] = [[t.get(v, 0.0) for v in lines] for t in terms]
                open_terms[k] = [{} for _ in terms]
        found.append(Pass(K, lines, weights))
    return tuple(found)


def differential_operator(
    f: Function,
    operator: OneSymbol | Sequence[OneSymbol],
    *,
    variables: str | Sequence[str] | None = None,
    chunk: int | None = None,
) -> Function:
    """Return the function x -> (A f)(x) for a linear differential operator A with constant coefficients.

    The function is differentiable in x and in whatever f reads, to any order, and works on all points at once.

    Args:
        f: a function that maps each point alone (two evaluations test it), points (..., d) to values (...) or (..., m),
            made of torch functions.
        operator: text, as "u_t - 0.1*u_xx + u", or {multi-index: coefficient}, as {(1, 0): 1.0, (0, 2): -0.1}. A list
            of operators, as ["u", "u_x", "u_xx + u_yyyy"], gives a function that returns a list, in as few passes as
            possible.
        variables: the letters of the d coordinates in their order, for text.
        chunk: the most lines propagated together, >= 1; fewer lines take less memory and more passes. Default: all.

    Example:
        >>> import torch
        >>> from frechet.calculus.taylor import differential_operator
        >>> def wave(p):
        ...     return torch.sin(p[..., 0] - 2 * p[..., 1])
        >>> p = torch.rand(5, 2, dtype=torch.float64)
        >>> residual = differential_operator(wave, "4*u_xx - u_yy", variables="xy")(p)
        >>> bool(residual.abs().max() < 1e-12)
        True
    """
    several = isinstance(operator, list | tuple)
    given = list(operator) if several else [operator]
    if not given:
        raise ValueError("differential_operator: operator must hold at least one operator, got an empty list")
    symbols = [symbol_of(o, variables) for o in given]  # type: ignore[arg-type]
    needed = len(list(variables)) if variables is not None else coordinates(symbols)
    sizes = {len(i) for o in given if isinstance(o, Mapping) for i in o}
    dimension = max(sizes) if sizes else needed if variables is not None else None
    _check(f, chunk, "differential_operator")
    passes, constants = passes_of([powers_of(s) for s in symbols]), [s.get((), 0.0) for s in symbols]

    def applied(x: Tensor) -> Any:
        found = _run(f, x, passes, constants, dimension, chunk)
        return found if several else found[0]

    return applied


def _run(
    f: Function,
    x: Tensor,
    passes: Sequence[Pass],
    constants: Sequence[float],
    dimension: int | None,
    chunk: int | None,
    name: str = "differential_operator",
) -> list[Any]:
    """Return what each operator makes of f at x; `constants` are the factors of f itself."""
    d = _points(x, name, dimension)
    values: list[Any] = []
    structure: Any = None
    totals: list[list[Tensor | None]] = []  # operator -> output of f
    for p in passes:
        size = chunk or len(p.lines)
        for start in range(0, len(p.lines), size):
            part = slice(start, start + size)
            weights = {k: x.new_tensor([row[part] for row in rows]) for k, rows in p.weights.items()}
            found, structure = along(f, x, dense(p.lines[part], d, x), p.order, weights[p.order])
            if not totals:
                require_alone(name, f, x, [c[0] for c in found])
                values = [c[0] for c in found]
                totals = [[None] * len(found) for _ in constants]
            for k, w in weights.items():
                taken = [_taken(c, k, w) for c in found]
                for m, row in enumerate(totals):
                    totals[m] = [_plus(t, None if y is None else y[m]) for t, y in zip(row, taken, strict=True)]
    if not totals:
        values, structure = tree_flatten(f(x))
        totals = [[None] * len(values) for _ in constants]
    return [
        tree_unflatten([_completed(t, v, a) for t, v in zip(row, values, strict=True)], structure)
        for row, a in zip(totals, constants, strict=True)
    ]


def _completed(total: Tensor | None, value: Tensor, factor: float) -> Tensor:
    """The derivatives and the term in f itself."""
    found = _plus(total, value * factor if factor else None)
    return torch.zeros_like(value) if found is None else found


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _taken(c: Coefficients, k: int, weights: Tensor) -> Tensor | None:
    """k! times the weighted sums over lines of coefficient k: rows are operators. The last one is summed already."""
    t = c[k]
    if t is None:
        return None
    t = t if k == len(c) - 1 else torch.tensordot(weights.to(t.dtype), t, 1)
    return t * float(math.factorial(k))


def along(
    f: Function, x: Tensor, lines: Tensor, order: int, sums: Tensor | int | None
) -> tuple[list[Coefficients], Any]:
    """Propagate straight lines with directions (R, d), the same at every point, or (R, *x.shape)."""
    if lines.ndim == 2:
        lines = lines.reshape(len(lines), *(1 for _ in x.shape[:-1]), x.shape[-1]).expand(len(lines), *x.shape)
    frame = Frame(order, len(lines), sums)
    return propagated(f, x, [frame.summed(lines) if frame.collapsed(1) else lines], frame)


def dense(lines: Sequence[Sparse], d: int, like: Tensor) -> Tensor:
    """The directions as rows of a matrix."""
    found = torch.zeros(len(lines), d, dtype=like.dtype)
    for r, line in enumerate(lines):
        for j, h in line:
            found[r, j] = h
    return found.to(like.device)


def _points(x: Any, name: str, dimension: int | None = None) -> int:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
        told = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: x must be a tensor of real points, (..., d), got {told}")
    if dimension is not None and x.shape[-1] != dimension:
        raise ValueError(
            f"{name}: x must have {dimension} coordinates on its last axis, as the operator, got {x.shape[-1]}"
        )
    return x.shape[-1]


def _check(f: Any, chunk: Any, name: str) -> None:
    if not callable(f):
        raise TypeError(f"{name}: f must be a function of points, got {type(f).__name__}")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"{name}: chunk must be an integer >= 1 or None, got {chunk!r}")


# --- the two that everyone needs --------------------------------------------------------------------------------------


class LaplacianParts(NamedTuple):
    """The Laplacian with what the same pass knows."""

    value: Any
    gradient: Any  # one more axis than the value, of length d, or of the number of directions
    laplacian: Any


def laplacian(
    f: Function, *, directions: Tensor | None = None, lower: bool = False, chunk: int | None = None
) -> Function:
    """Return the function x -> sum of the second derivatives of f along all coordinates.

    The function is differentiable in x and in whatever f reads, to any order, and works on all points at once.

    Args:
        f: a function that maps each point alone (two evaluations test it), points (..., d) to values (...) or (..., m),
            made of torch functions.
        directions: (R, d), for the sum of second derivatives along these vectors, which is the trace of S' S H for S =
            `directions`. Default: the coordinates.
        lower: return a `LaplacianParts` with value and gradient too, from the same pass.
        chunk: the most directions propagated together, >= 1. Default: all.

    Example:
        >>> import torch
        >>> from frechet.calculus.taylor import laplacian
        >>> x = torch.rand(7, 3, dtype=torch.float64)
        >>> torch.allclose(laplacian(lambda x: x.square().sum(-1))(x), torch.full((7,), 6.0, dtype=torch.float64))
        True
    """
    _check(f, chunk, "laplacian")
    if directions is not None and (not isinstance(directions, Tensor) or directions.ndim != 2 or not len(directions)):
        told = tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__
        raise ValueError(f"laplacian: directions must be a tensor of shape (R, d) with R >= 1, got {told}")

    def applied(x: Tensor) -> Any:
        d = _points(x, "laplacian", None if directions is None else directions.shape[1])
        V = torch.eye(d, dtype=x.dtype, device=x.device) if directions is None else directions
        if V.dtype != x.dtype or V.device != x.device:
            raise TypeError(
                f"laplacian: directions must be {x.dtype} on {x.device} as x, got {V.dtype} on {V.device}; convert them"
            )
        parts = [along(f, x, rows, 2, 1) for rows in V.split(chunk or len(V))]
        require_alone("laplacian", f, x, [c[0] for c in parts[0][0]])
        structure = parts[0][1]
        outputs = [_laplacian_parts([part[0][i] for part in parts], V) for i in range(len(parts[0][0]))]
        value, slope, curvature = (tree_unflatten([o[i] for o in outputs], structure) for i in range(3))
        return LaplacianParts(value, slope, curvature) if lower else curvature

    return applied


def _laplacian_parts(chunks: Sequence[Coefficients], V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = chunks[0][0]
    assert value is not None
    total = None
    for c in chunks:
        total = _plus(total, c[2])
    slopes = [value.new_zeros(1, *value.shape) if c[1] is None else c[1] for c in chunks]
    if chunks[0][1] is None:
        slopes = [value.new_zeros(len(V), *value.shape)]
    curvature = torch.zeros_like(value) if total is None else 2 * total.squeeze(0)
    return value, torch.cat(slopes).movedim(0, -1), curvature


def bilaplacian(f: Function, *, chunk: int | None = None) -> Function:
    """Return the function x -> (Laplacian of the Laplacian of f)(x), exactly, in one pass of order four.

    In d dimensions it takes d^2 straight lines: all e_i, and e_i + e_j and e_i - e_j for i < j.

    Args:
        f: a function that maps each point alone (two evaluations test it), points (..., d) to values (...) or (..., m),
            made of torch functions.
        chunk: the most lines propagated together, >= 1. Default: all.

    Example:
        >>> import torch
        >>> from frechet.calculus.taylor import bilaplacian
        >>> x = torch.rand(4, 3, dtype=torch.float64)
        >>> y = bilaplacian(lambda x: x.square().sum(-1).square())(x)
        >>> torch.allclose(y, torch.full_like(y, 120.0))
        True
    """
    _check(f, chunk, "bilaplacian")

    def applied(x: Tensor) -> Any:
        d = _points(x, "bilaplacian")
        return _run(f, x, passes_of([powers_of(squared_laplacian(d))]), [0.0], d, chunk, "bilaplacian")[0]

    return applied


def squared_laplacian(d: int) -> Symbol:
    found: Symbol = {((i, 4),): 1.0 for i in range(d)}
    for i in range(d):
        for j in range(i + 1, d):
            found[(i, 2), (j, 2)] = 2.0
    return found
