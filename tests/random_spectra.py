"""Random matrices on which error bars are tested: nobody chose them one by one.

`draw(seed)` gives a family member: a kind, a size from 5 to 2 000 (log-uniform) and random parameters. Two sets of
kinds: the error bars were designed while looking at `KINDS`, and `HELD_OUT` was only measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Generator = np.random.Generator


@dataclass(frozen=True, eq=False)
class Drawn:
    """A float64 matrix, what is known of it, and how it came about."""

    name: str
    matrix: Tensor
    facts: tuple[str, ...]  # for `from_callable`

    @property
    def symmetric(self) -> bool:
        return bool(self.facts)


def _scaled(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.abs(values).max()), 1e-300)


def rotated(values: np.ndarray, g: Generator) -> np.ndarray:
    """The matrix with these eigenvalues (zeros may be left out of the end) and random eigenvectors."""
    n, r = len(values), int(np.flatnonzero(values)[-1]) + 1 if np.any(values) else 1
    Q = np.linalg.qr(g.standard_normal((n, r)))[0]
    return (Q * values[:r]) @ Q.T


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, np.zeros(n - len(values))])


def _vector(n: int, g: Generator) -> np.ndarray:
    """Entries from equal signs to a few that carry all."""
    kind = g.integers(4)
    if kind == 0:
        return g.choice([-1.0, 1.0], n)
    if kind == 1:
        return g.standard_normal(n)
    return np.exp(g.uniform(0.3, 1.5) * g.standard_normal(n)) * g.choice([-1.0, 1.0], n)


def rank_one(n: int, g: Generator) -> np.ndarray:
    v = _vector(n, g)
    return g.choice([-1.0, 1.0]) * np.outer(v, v)


def low_rank(n: int, g: Generator) -> np.ndarray:
    r = int(g.integers(1, max(2, min(n, 40)) + 1))
    return rotated(_padded(np.exp(-g.uniform(0, 3) * np.arange(r)) * g.choice([-1.0, 1.0]), n), g)


def outlier(n: int, g: Generator) -> np.ndarray:
    bulk = g.standard_normal(n) if g.random() < 0.5 else g.random(n)
    bulk[0] = 10 ** g.uniform(0, 6) * g.choice([-1.0, 1.0])
    return rotated(bulk, g)


def pareto(n: int, g: Generator) -> np.ndarray:
    return rotated(g.pareto(g.uniform(0.5, 2), n) + 1, g)


def indefinite_pareto(n: int, g: Generator) -> np.ndarray:
    return rotated((g.pareto(g.uniform(0.5, 2), n) + 1) * g.choice([-1.0, 1.0], n), g)


def cancelling(n: int, g: Generator) -> np.ndarray:
    r = int(g.integers(1, n // 2 + 1))
    half = np.exp(g.uniform(0, 2) * g.standard_normal(r))
    return rotated(_padded(np.concatenate([half, -half * (1 + 1e-3 * g.standard_normal(r))]), n), g)


def ones_by_blocks(n: int, g: Generator) -> np.ndarray:
    """Ones on diagonal blocks, the first of which may be all, on a diagonal."""
    M, a = np.diag(g.random(n)), 0
    while a < n:
        b = a + int(g.integers(2, max(3, n) + 1))
        M[a:b, a:b] += g.uniform(0.1, 1)
        a = b
    return M


def dense_blocks(n: int, g: Generator) -> np.ndarray:
    M, a = np.zeros((n, n)), 0
    while a < n:
        b = min(n, a + int(g.integers(2, max(3, n // 2) + 1)))
        G = g.standard_normal((b - a, b - a)) * np.exp(g.standard_normal())
        M[a:b, a:b] = G @ G.T if g.random() < 0.5 else G + G.T
        a = b
    return M


def triangular(n: int, g: Generator) -> np.ndarray:
    return np.triu(np.ones((n, n)) if g.random() < 0.5 else np.abs(g.standard_normal((n, n))))


def full(n: int, g: Generator) -> np.ndarray:
    G = g.standard_normal((n, n))
    return (G + G.T) / 2 + g.uniform(-3, 3) * np.eye(n)


def power_law(n: int, g: Generator) -> np.ndarray:
    return rotated(np.arange(1, n + 1) ** -g.uniform(0.3, 3), g)


def wishart(n: int, g: Generator) -> np.ndarray:
    m = int(g.integers(1, 2 * n))
    G = g.standard_normal((n, m)) * np.exp(g.uniform(0, 1.5) * g.standard_normal(m))
    return G @ G.T / m


def arrow(n: int, g: Generator) -> np.ndarray:
    M = np.diag(g.random(n))
    M[0, 1:] = M[1:, 0] = g.standard_normal(n - 1)
    return M


def banded(n: int, g: Generator) -> np.ndarray:
    M = np.diag(np.exp(g.standard_normal(n)))
    for d in range(1, min(n, 1 + int(g.integers(1, 6)))):
        M += np.diag(c := g.standard_normal(n - d), d) + np.diag(c, -d)
    return M


def graph_laplacian(n: int, g: Generator) -> np.ndarray:
    W = np.triu(g.random((n, n)) < min(1.0, g.uniform(1, 8) / n), 1).astype(float)
    W += W.T
    return np.diag(W.sum(1)) - W


def kronecker(n: int, g: Generator) -> np.ndarray:
    a = max(1, round(math.sqrt(n)))
    left, right = g.standard_normal((a, 3)), g.standard_normal((n // a, 2))
    M = np.zeros((n, n))
    K = np.kron(left @ left.T, right @ right.T)
    M[: len(K), : len(K)] = K
    return M


def non_normal(n: int, g: Generator) -> np.ndarray:
    return g.standard_normal((n, n)) @ np.diag(np.exp(g.uniform(0, 2) * g.standard_normal(n)))


def two_scales(n: int, g: Generator) -> np.ndarray:
    r = int(g.integers(2, max(3, min(n, 12))))
    bulk = 0.05 * g.chisquare(1, n)
    bulk[:r] = 10 ** g.uniform(0, 3, r) * g.choice([-1.0, 1.0], r)
    return rotated(bulk, g)


KINDS: dict[str, Callable[[int, Generator], np.ndarray]] = {
    f.__name__: f
    for f in (
        rank_one, low_rank, outlier, pareto, indefinite_pareto, cancelling, ones_by_blocks, dense_blocks, triangular,
        full,
    )
}  # fmt: skip
HELD_OUT: dict[str, Callable[[int, Generator], np.ndarray]] = {
    f.__name__: f for f in (power_law, wishart, arrow, banded, graph_laplacian, kronecker, non_normal, two_scales)
}


def draw(kind: str, seed: int, most: int = 2000) -> Drawn:
    """A member of one kind, of at most `most` rows. Its largest entry is about one."""
    g = np.random.default_rng([seed, *kind.encode()])
    n = round(math.exp(g.uniform(math.log(5), math.log(most))))
    M = (KINDS | HELD_OUT)[kind](n, g)
    M = M / np.abs(M).max()
    facts: tuple[str, ...] = ()
    if np.array_equal(M, M.T) or np.allclose(M, M.T, rtol=1e-10, atol=1e-14):
        M = (M + M.T) / 2
        facts = ("symmetric",)
        if float(np.linalg.eigvalsh(M)[0]) >= -1e-12 * float(np.linalg.norm(M, 2)):
            facts = ("positive_semidefinite",)
    return Drawn(f"{kind} {n}", torch.from_numpy(M), facts)
