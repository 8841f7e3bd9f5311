"""Least squares of small triangles for many problems at once, each operation one on the whole batch.

The problems lie along the last dimension: matrices are ``(n, m, b)``, columns first, vectors ``(m, b)``. A triangle is
the list of its rows, each from its diagonal on.

**Source.** A. Bjorck (1967), Solving linear least squares problems by Gram-Schmidt orthogonalization, doi
10.1007/BF01934122 (modified Gram-Schmidt with the right-hand side as a last column is as stable as Householder's).
"""

from __future__ import annotations

import torch
from torch import Tensor


def length(v: Tensor) -> Tensor:
    """The norms of the columns of ``(m, b)``, also where squares are no numbers."""
    unit = units(v, 0)
    return unit * (v / unit).square().sum(0).sqrt()


def lengths(J: Tensor) -> Tensor:
    """The norms ``(n, b)`` of the columns of each matrix, also where squares are no numbers."""
    unit = units(J, 1)
    return unit * (J / unit[:, None]).square().sum(1).sqrt()


def units(v: Tensor, dim: int) -> Tensor:
    """Powers of two near the largest entries along a dimension, 1 where these are zero or no numbers."""
    largest = v.abs().amax(dim)
    some = (largest > 0) & largest.isfinite()
    return torch.where(some, torch.exp2(torch.where(some, largest, 1.0).log2().round()), 1.0)


def triangle(A: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor]:
    """The rows of R, from the diagonal on, and z = Q'c of A = Q R by modified Gram-Schmidt.

    A is ``(n, m, b)``. A column that depends on the ones before has a zero row.
    """
    n, m, _ = A.shape
    W = torch.cat([A, c[None]])
    floor = max(m, n) * torch.finfo(A.dtype).eps * A.square().sum((0, 1)).sqrt()
    rows = []
    for _ in range(n):
        pivot = W[0].square().sum(0).sqrt()
        alive = pivot > floor
        q = W[0] * torch.where(alive, 1 / pivot, 0.0)
        row = (W[1:] * q).sum(1)
        W = W[1:] - row[:, None] * q
        rows.append(torch.cat([(pivot * alive)[None], row]))
    return [row[:-1] for row in rows], torch.stack([row[-1] for row in rows])


def product(R: list[Tensor], v: Tensor) -> Tensor:
    """R v."""
    return torch.stack([(row * v[k:]).sum(0) for k, row in enumerate(R)])


def damped(R: list[Tensor], z: Tensor, damping: Tensor) -> tuple[list[Tensor], Tensor]:
    """The triangle of [R; sqrt(damping) I] and its right-hand side."""
    n, b = z.shape
    A = torch.zeros(n, 2 * n, b, dtype=z.dtype, device=z.device)
    root = damping.sqrt()
    for k in range(n):
        A[k:, k] = R[k]
        A[k, n + k] = root
    return triangle(A, torch.cat([z, torch.zeros_like(z)]))


def substituted(R: list[Tensor], z: Tensor) -> Tensor:
    """q with R q = -z, zero where a pivot is."""
    q: list[Tensor] = []
    for k in reversed(range(len(z))):
        rest = z[k] - sum((R[k][j] * q[-j] for j in range(1, len(R[k]))), start=torch.zeros_like(z[k]))
        q.append(torch.where(R[k][0] > 0, rest / R[k][0], 0.0))
    return -torch.stack(q[::-1])


def first_damping(R: list[Tensor], z: Tensor, radius: Tensor) -> Tensor:
    """The smallest of 1e-8, 1e-7, ... (the columns have norm one) whose step stays within the radius."""
    damping = torch.full_like(radius, 1e-3)
    for _ in range(30):
        far = length(substituted(*damped(R, z, damping))) > radius
        if not bool(far.any()):
            break
        damping = torch.where(far, 10 * damping, damping)
    return damping


def boxed(
    J: Tensor, r: Tensor, D: Tensor, free: Tensor, p: Tensor, damping: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """`p` made feasible: entries that leave the box stop at its side, and the others are solved for again."""
    for _ in range(len(p)):
        out = free & ((p < low) | (p > high))
        if not bool(out.any()):
            break
        free = free & ~out
        held = torch.where(free, 0.0, torch.minimum(torch.maximum(p, low), high))
        R, z = triangle(torch.where(free[:, None], J / D[:, None], 0.0), r + (J * held[:, None]).sum(0))
        p = held + substituted(*damped(R, z, damping)) / D
    return torch.minimum(torch.maximum(p, low), high)
