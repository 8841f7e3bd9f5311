"""What the two methods of `eigsh` share: its arguments, where a run stands, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._basis import ROUNDING
from frechet.linalg._result import Spectrum, Status
from frechet.operators._operator import LinearOperator

Which = Literal["largest", "smallest", "both"]
Search = tuple[int, tuple[float, ...]]  # for further copies: the products when it began, and the values then

# probes far from 0, 1, ...: what deflates an estimate of the same seed must not be drawn from its probes
STREAM = 1 << 40


@dataclass(frozen=True, eq=False)
class EigshState:
    """Where a run of `eigsh` stands. `basis` and `image` are views of its memory: pickle or clone them to keep them."""

    fingerprint: tuple[object, ...]
    values: Tensor  # wanted Ritz values so far, descending
    residuals: Tensor
    products: int
    iterations: int
    basis: Tensor  # (n, j + p), or [X, P] of lobpcg
    image: Tensor | None  # A [X, P], lobpcg only
    matrix: Tensor  # T (j + p, j)
    drawn: int  # random vectors used
    scale: float  # largest norm of a product
    search: Search | None
    locked: float = 0.0  # residual of what has been locked
    first: int = 0  # the column at which the last random vector entered
    incomplete: bool = False  # a Krylov space ended, and copies of its eigenvalues may be among the wanted ones


@dataclass(frozen=True, eq=False)
class Run:
    """The arguments of one call."""

    A: LinearOperator
    k: int
    which: Which
    seed: int
    rtol: float
    atol: float
    limit: int
    fingerprint: tuple[object, ...]
    observe: Callable[[EigshState], bool] | None
    resume: EigshState | None

    def indices(self, j: int, count: int) -> np.ndarray:
        """Positions of the `count` best of j ascending values, in descending order of value."""
        count = min(count, j)
        top = {"largest": count, "smallest": 0, "both": (count + 1) // 2}[self.which]
        return np.r_[j - 1 : j - 1 - top : -1, count - top - 1 : -1 : -1].astype(int)

    def tolerance(self, values: np.ndarray, scale: float) -> np.ndarray:
        floor = max(self.atol, ROUNDING * self.A.domain.eps * scale)
        return np.maximum(self.rtol * np.abs(values), floor)

    def converged(self, values: np.ndarray, residuals: np.ndarray, scale: float, margin: float = 1.0) -> np.ndarray:
        """Which residuals are within `margin` times the tolerance, or as small as rounding lets them be."""
        floor = ROUNDING * self.A.domain.eps * scale
        return residuals <= np.maximum(margin * self.tolerance(values, scale), floor)


def spectrum(
    run: Run, values: np.ndarray, residuals: np.ndarray, done: np.ndarray, vectors: Tensor, scale: float,
    iterations: int, products: int, status: Status,
) -> Spectrum:  # fmt: skip
    rounded = np.hypot(residuals, ROUNDING * run.A.domain.eps * scale)
    return Spectrum(
        torch.from_numpy(values), vectors, torch.from_numpy(rounded), torch.from_numpy(done), iterations, products,
        status, space=run.A.domain,
    )  # fmt: skip


def applied(A: LinearOperator, W: Tensor, scale: float, products: int) -> tuple[Tensor, float]:
    """A W and the largest norm of a product so far."""
    AW = A @ W
    largest = float(A.domain.norm(AW).max()) if AW.shape[1] else 0.0
    if not math.isfinite(largest):
        which = f"products {products + 1} to {products + W.shape[1]}"
        raise NonFinite(f"eigsh: one of {which} (A @ V) holds a NaN or an infinity; check the data and the loss")
    return AW, max(scale, largest)
