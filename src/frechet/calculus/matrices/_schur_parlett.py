"""An analytic function of a general matrix, by its Schur form.

A = Q T Q' with T triangular. Eigenvalues that are close form a block; the blocks are brought together by rotations. A
block is evaluated by the Taylor series at its center, whose coefficients are Cauchy integrals on a circle. Coefficients
of negative order tell whether f is analytic in the circle. Blocks off the diagonal follow from T f(T) = f(T) T, by
Sylvester equations.

**Source.** Davies and Higham, "A Schur-Parlett algorithm for computing matrix functions" (2003). **Differs from the
source:** coefficients are integrals, so that derivatives of f are not asked for. **Cost:** 25 n^3 for the Schur form,
and at most 128 products of each block.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.calculus.matrices._general import Evaluator
from frechet.errors import NonFinite

CLOSE = 0.1  # eigenvalues nearer than this share a block, relative to the largest (the source's delta)
RADII = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.12)  # radii that are tried, in multiples of the block's own size
SLACK = 1.5  # a circle is this much wider than the eigenvalues in it
NODES = 256
ANALYTIC = 1e-13  # part of the largest value that coefficients of negative order may have by rounding
LARGEST_ERROR = 1e-6  # relative, above which there is no result


def analytic(name: str, f: Callable[[Tensor], Tensor]) -> Evaluator:
    """Return the evaluator of a function that takes complex tensors."""

    def value(z: np.ndarray) -> np.ndarray:
        found = f(torch.from_numpy(z))
        if not isinstance(found, Tensor) or found.shape != z.shape:
            raise ValueError(f"{name}: f must map each entry of a complex tensor to a number; give one as torch.exp")
        return found.resolve_conj().numpy()

    return Evaluator(name, in_numpy=lambda a: _function(name, value, a))


def _function(name: str, f: Callable[[np.ndarray], np.ndarray], a: np.ndarray) -> np.ndarray:
    T, Q = scipy.linalg.schur(a.astype(np.complex128), output="complex")[:2]
    block = _blocks(np.diag(T).copy())
    T, Q, block = _ordered(T, Q, block)
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1), len(block)]
    parts = [slice(i, j) for i, j in pairwise(edges)]
    F = np.zeros_like(T)
    for j, J in enumerate(parts):
        F[J, J] = _atomic(name, f, T[J, J])
        for i in range(j - 1, -1, -1):
            left = parts[i]
            right = F[left, left] @ T[left, J] - T[left, J] @ F[J, J]
            for k in range(i + 1, j):
                K = parts[k]
                right += F[left, K] @ T[K, J] - T[left, K] @ F[K, J]
            F[left, J] = scipy.linalg.solve_sylvester(T[left, left], -T[J, J], right)
    return Q @ F @ Q.conj().T


def _blocks(lam: np.ndarray) -> np.ndarray:
    """The number of the block of each eigenvalue: connected where they are close."""
    close = np.abs(lam[:, None] - lam) <= CLOSE * max(np.abs(lam).max(initial=0.0), np.finfo(float).tiny)
    number = np.full(len(lam), -1)
    for i in range(len(lam)):
        if number[i] < 0:
            reached = [i]
            number[i] = number.max() + 1
            while reached:
                new = np.flatnonzero(close[reached.pop()] & (number < 0))
                number[new] = number[i]
                reached += list(new)
    return number


def _ordered(T: np.ndarray, Q: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Schur form with the eigenvalues of a block together, by rotations of neighbours."""
    T, Q, block, n = T.copy(), Q.copy(), block.copy(), len(block)
    for end in range(n - 1, 0, -1):
        for i in range(end):
            if block[i] > block[i + 1]:
                c, s = T[i, i + 1], T[i + 1, i + 1] - T[i, i]
                G = np.array([[c, -s.conjugate()], [s, c.conjugate()]]) / np.hypot(abs(c), abs(s))
                T[:, i : i + 2] = T[:, i : i + 2] @ G
                T[i : i + 2] = G.conj().T @ T[i : i + 2]
                Q[:, i : i + 2] = Q[:, i : i + 2] @ G
                T[i + 1, i] = 0
                block[[i, i + 1]] = block[[i + 1, i]]
    return T, Q, block


def _atomic(name: str, f: Callable[[np.ndarray], np.ndarray], T: np.ndarray) -> np.ndarray:
    """f of a block whose eigenvalues are close: sum_k c_k r^k N^k with N = (T - center) / r nearly nilpotent."""
    lam = np.diag(T)
    if len(T) == 1:
        found = f(T)
        if not np.isfinite(found).all():
            raise NonFinite(f"{name}: f must be finite at the eigenvalues of A, got f({lam[0]:.3g}) = {found[0, 0]}")
        return found
    center = lam.mean()
    own, best, least = np.abs(lam - center).max(), None, np.inf
    size = max(np.abs(T - center * np.eye(len(T))).max(), CLOSE * abs(center), np.finfo(float).tiny)
    for r in [size * multiple for multiple in RADII if size * multiple > SLACK * own]:
        values = f(center + r * np.exp(2j * np.pi * np.arange(NODES) / NODES))
        c, largest = np.fft.fft(values) / NODES, np.abs(values).max()
        if not np.isfinite(largest) or np.abs(c[NODES // 2 :]).max() > ANALYTIC * largest:
            continue  # f has a singularity inside, or is not resolved
        found, powers = _series(c[: NODES // 2], (T - center * np.eye(len(T))) / r)
        error = np.finfo(float).eps * largest * powers
        if error < least:
            best, least = found, error
    if best is None or least > LARGEST_ERROR * np.abs(best).max():
        raise NonFinite(
            f"{name}: f must be analytic on a disc around the close eigenvalues of A near {center:.3g}, got none on "
            "which it is; give symmetric=True for a symmetric matrix, or move A from the singularity of f"
        )
    return best


def _series(c: np.ndarray, N: np.ndarray) -> tuple[np.ndarray, float]:
    """sum_k c_k N^k, and the sum of the sizes of the powers, by which errors of c are multiplied."""
    power, found, sizes = np.eye(len(N), dtype=N.dtype), np.zeros_like(N), 0.0
    for ck in c:
        found += ck * power
        size = np.abs(power).max()
        sizes += size
        power = power @ N
        if size == 0:
            break
    return found, sizes
