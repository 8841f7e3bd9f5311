"""XDiag: the diagonal of an operator from a sketch of its range in which every probe is also a test.

diag A = diag(P A) + diag((I - P) A); with P on the range of A w_j, j != i, and signs w_i, w_i * (I - P) A w_i is an
unbiased estimate of the second part. The result is the mean over i.

**Source.** Epperly, Tropp and Webber 2024, XTrace: Making the most of every sample in stochastic trace estimation,
section 2.4, doi 10.1137/23M1548323.

**Differs from the source.** (1) A standard error for every entry, with the dependence of the estimates counted
(`_exchangeable.py`; at most `PAIRED` probes are paired). (2) Probes are added in blocks.

Cost of k probes: k products with A and k with A' (with A where it is symmetric); 2k vectors, and in reading k more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg._exchangeable import covariance, second_directions, unit_columns
from frechet.linalg._sequential import Reading, Sampler, degrees_of_freedom, finite
from frechet.linalg._xtrace import Sketch, extend_sketch, scaled, unit_of
from frechet.operators._operator import LinearOperator

PAIRED = 24
ROWS = 1 << 12


def xdiag(A: LinearOperator, seed: int) -> Sampler:
    """XDiag of A, two products per probe."""
    space = A.domain

    def extend(sketch: Sketch | None, probes: range) -> Sketch:
        old_Z = space.zeros(0) if sketch is None or sketch.Z is None else sketch.Z
        sketch, new = extend_sketch(space, sketch, finite(A @ space.random(probes, seed), "diagonal", probes))
        Z = torch.cat([old_Z.T, (A.T @ new).T]).T
        return Sketch(sketch.Q, sketch.R, Z, sketch.H, sketch.products + new.shape[1])

    def read(sketch: Sketch) -> Reading:
        unit, k, n = unit_of(sketch.R), sketch.probes, space.dim
        R, Z = sketch.R / unit, space.zeros(0) if sketch.Z is None else sketch.Z / unit
        Omega = space.random(range(k), seed)
        P, sigma, X = torch.linalg.svd(R, full_matrices=False)
        small = _small_matrices(P, sigma, X)
        blocks = [slice(a, a + ROWS) for a in range(0, max(space.length, 1), ROWS)]
        parts = [_rows(sketch.Q[rows], Z[rows], Omega[rows], small) for rows in blocks]
        value, variance, squares = (torch.cat(p) for p in zip(*parts, strict=True))
        floor = space.eps * math.sqrt(n) * squares.sqrt()
        if R.shape[0] < k:
            dropped = k * space.eps * float(sigma[0]) / math.sqrt(n) if sigma.numel() else 0.0
            return scaled(Reading(value, floor + dropped, degrees_of_freedom(k)), unit)
        return scaled(Reading(value, variance.sqrt().maximum(floor), degrees_of_freedom(k)), unit)

    return Sampler("xdiag", extend, read, cost=2)


@dataclass(frozen=True, eq=False)
class Small:
    """R = Q'A Omega in the basis P of its left singular vectors, and what leaving probes out removes from the sketch.

    Without probe i the sketch loses Q P s_i, without i and j also Q P v_ij. `S` is empty where R has not full rank.
    """

    P: Tensor
    R: Tensor
    S: Tensor  # (k, k)
    V: Tensor  # (m, k, m)
    rho: Tensor  # s_i'r_i
    tau: Tensor  # v_ij'r_i


def _small_matrices(P: Tensor, sigma: Tensor, X: Tensor) -> Small:
    R, k = sigma[:, None] * X, X.shape[1]
    if P.shape[0] < k:
        none = R.new_zeros(0, 0)
        return Small(P, R, none, none, none, none)
    S = unit_columns(X / sigma[:, None])
    m = min(k, PAIRED)
    V = second_directions(S, m)
    return Small(P, R, S, V, (S * R).sum(0), (V * R.T[:m, :, None]).sum(1))


def _rows(Q: Tensor, Z: Tensor, Omega: Tensor, small: Small) -> tuple[Tensor, Tensor, Tensor]:
    """Value, variance and mean squared product of some rows."""

    def times(M: Tensor, N: Tensor) -> Tensor:
        return M @ N.to(M.device, M.dtype)

    q, z = times(Q, small.P), times(Z, small.P)
    whole, squares = (q * z).sum(1), times(q, small.R).square().mean(1)
    if not small.S.numel():
        return whole, torch.zeros_like(whole), squares
    k, m = small.S.shape[1], small.V.shape[0]
    # estimate i is whole - qs_i zs_i + omega_i qs_i (s_i'r_i)
    correction = times(q, small.S) * (Omega * small.rho.to(Q.device, Q.dtype) - times(z, small.S))
    value = whole + correction.mean(1)
    if k == 1:
        return value, torch.full_like(value, math.inf), squares
    V = small.V.transpose(0, 1).reshape(k, m * m)
    qv, zv = times(q, V).view(-1, m, m), times(z, V).view(-1, m, m)
    d = qv * (zv - Omega[:, :m, None] * small.tau.to(Q.device, Q.dtype))  # [row, i, j]: estimate i minus i without j
    return value, correction.var(1) / k + covariance(d * d.transpose(1, 2)), squares
