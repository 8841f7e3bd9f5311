"""How well a format of few bits, or of few entries, can hold random numbers: a measure of its capacity.

    error  =  min over c > 0 of  E |w - c R(w / c)|^2,     w standard normal

with R the rounding of the format at unit scale. It is 0 for exact numbers and 1 for a format that holds nothing. One
number compares integers, sparsity and both together, before any model is trained.

**Source.** A. Panferov et al. (2025), Unified scaling laws for compressed representations, arXiv 2506.01863 (the error
as the capacity of a format); J. Max (1960), Quantizing for minimum distortion, IRE Trans. Inf. Theory 6 (the values of
uniform quantizers).
**Cost.** Some forty roundings of `size` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg import Estimate
from frechet.space import euclidean

SCALES = torch.logspace(-3, 1.3, 44, dtype=torch.float64)  # steps of 16 bits lie near 1e-3, of 1 bit near 1.6
GOLDEN = (math.sqrt(5) - 1) / 2


def format_error(
    rounding: Callable[[Tensor], Tensor], *, seed: int, rows: int = 256, columns: int = 256, scaled: bool = True
) -> Estimate:
    """Estimate the mean squared error of a format on standard normal numbers, with the scale that makes it least.

    Args:
        rounding: a function of a matrix that returns it as it is read back, at unit scale: ``w.round().clamp(-7, 7)``
            for integers of 4 bits.
        seed: of the numbers.
        rows: of the matrix.
        columns: of the matrix, for formats of groups along rows.
        scaled: whether the scale is searched. Where `rounding` chooses its own, as `uniform` does, give False.

    Returns:
        An `Estimate` whose `method` names the scale. Its standard error is that over the rows, at that scale.

    Raises:
        NonFinite: the rounding returns what is not finite.
        ValueError: it returns another shape.

    Example:
        >>> from frechet.compress import format_error
        >>> found = format_error(lambda w: w.round().clamp(-1, 1), seed=0)  # three levels: 0.190 (Max)
        >>> abs(float(found.value) - 0.190) < 0.005
        True
    """
    if rows < 2 or columns < 1:
        raise ValueError(f"format_error: there must be at least 2 rows and a column, got {rows} and {columns}")
    w = euclidean(rows * columns, torch.float64, "cpu").random(0, seed, "gaussian").view(rows, columns)

    def errors(c: float) -> Tensor:
        found = rounding((w / c).clone())
        if not isinstance(found, Tensor) or found.shape != w.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"format_error: rounding must return the matrix's shape {tuple(w.shape)}, got {got}")
        if not bool(found.isfinite().all()):
            raise NonFinite("format_error: rounding must return finite numbers, got NaN or infinity")
        return (w - c * found.double()).square().mean(1)

    c = _least(lambda c: float(errors(c).mean())) if scaled else 1.0
    each = errors(c)
    return Estimate(
        value=each.mean(), standard_error=each.std() / math.sqrt(rows), samples=rows, products=0, seed=seed,
        degrees_of_freedom=rows - 1, method=f"scale {c:.4g}",
    )  # fmt: skip


def _least(error: Callable[[float], float]) -> float:
    """The scale of the least error: the best of a grid, then golden sections between its neighbours."""
    found = [error(float(c)) for c in SCALES]
    best = min(range(len(found)), key=found.__getitem__)
    low, high = (math.log(float(SCALES[min(max(best + k, 0), len(found) - 1)])) for k in (-1, 1))
    for _ in range(16):
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, b) if error(math.exp(a)) <= error(math.exp(b)) else (a, high)
    return math.exp((low + high) / 2)
