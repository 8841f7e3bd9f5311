"""Averages of z'A z over random probes, as they are and behind a sketch of the range of A.

tr A = tr(Q'A Q) + tr(P A P) for Q with orthonormal columns and P = I - QQ': the first part is computed, the second
averaged over probes. Hutch++ spends a part of its budget on Q. With a tolerance nobody knows the budget before: there
XTrace runs until its k vectors would weigh, and where that was not enough, the range that it found is the Q.

**Source.** See `trace.py` and `xtrace.py`.

**Differs from the source.** Projected probes are scaled to their expected length (sqrt(n - r)); the bars come from the
probes after the sketch, which are independent given it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.linalg.sequential import Reading, Sampler, degrees_of_freedom, finite
from frechet.linalg.xtrace import Sketch, draw, xtrace
from frechet.operators.operator import LinearOperator
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class Samples:
    """Independent samples x_1, ..., x_k of a trace, and the summed squares of the products behind them."""

    x: Tensor  # (k,) float64
    squares: float
    squared: int  # how many products `squares` adds up

    @property
    def products(self) -> int:
        return self.x.numel()


def inners(space: Space, U: Tensor, V: Tensor) -> Tensor:
    """u_j'v_j of two blocks' columns, float64 (k,)."""
    return torch.stack([space.inner(u, v) for u, v in zip(U.T, V.T, strict=True)])


def mean_of(space: Space, samples: Samples, shift: float = 0.0) -> Reading:
    x, k = samples.x, samples.x.numel()
    if k == 1:
        return Reading(shift + x[0], x.new_tensor(math.inf), degrees_of_freedom(k))
    floor = x.new_tensor(space.eps * math.sqrt(space.dim * samples.squares / samples.squared))
    return Reading(shift + x.mean(), (x.var() / k).sqrt().maximum(floor), degrees_of_freedom(k))


def hutchinson(A: LinearOperator, seed: int) -> Sampler:
    """z'A z over probes of signs z, of mean tr A and variance 2 sum_{i != j} A_ij^2 for a symmetric A."""
    space = A.domain

    def extend(now: Samples | None, probes: range) -> Samples:
        Z = space.random(probes, seed)
        Y = finite(A @ Z, "trace", probes)
        x, squares = inners(space, Z, Y), float(inners(space, Y, Y).sum())
        if now is None:
            return Samples(x, squares, len(probes))
        return Samples(torch.cat([now.x, x]), now.squares + squares, now.squared + len(probes))

    return Sampler("hutchinson", extend, lambda samples: mean_of(space, samples))


@dataclass(frozen=True, eq=False)
class Deflated:
    """Q with orthonormal columns, tr Q'A Q, and samples of the trace of A on the complement of Q."""

    Q: Tensor
    captured: float
    samples: Samples
    spent: int  # products of the sketch

    @property
    def products(self) -> int:
        return self.spent + self.samples.products


def hutch_plus_plus(A: LinearOperator, seed: int, sketch: int) -> Sampler:
    """tr(Q'A Q) + tr(P A P) with Q the range of A times `sketch` probes, P = I - QQ' and the second part sampled."""
    space = A.domain
    if not 0 <= sketch < space.dim:
        raise ValueError(f"trace: sketch must lie between 0 and {space.dim - 1}, got {sketch}")

    def start() -> Deflated:
        Y = finite(A @ draw(space, range(sketch), seed), "trace", range(sketch))
        Q, _ = space.orthonormalize(Y)
        captured = float(inners(space, Q, A @ Q).sum()) if Q.shape[1] else 0.0
        squares = float(inners(space, Y, Y).sum()) if sketch else 0.0
        return Deflated(Q, captured, Samples(torch.zeros(0, dtype=torch.float64), squares, sketch), sketch + Q.shape[1])

    def extend(now: Deflated | None, probes: range) -> Deflated:
        # the sketch has used the first probes of the seed
        return deflated(A, now or start(), range(sketch + probes.start, sketch + probes.stop), seed)

    return Sampler("hutch++", extend, lambda now: mean_of(space, now.samples, now.captured), setup=2 * sketch)


def deflated(A: LinearOperator, now: Deflated, probes: range, seed: int) -> Deflated:
    """`now` with more samples from the complement of its Q."""
    space, Q, seen = A.domain, now.Q, now.samples
    Z = draw(space, probes, seed)
    Z = Z - Q @ space.gram(Q, Z).to(Z.device, Z.dtype)
    Z = Z * (math.sqrt(space.dim - Q.shape[1]) / space.norm(Z)).to(Z.device, Z.dtype)
    Y = finite(A @ Z, "trace", probes)
    x, squares = inners(space, Z, Y), seen.squares + float(inners(space, Y, Y).sum())
    seen = Samples(torch.cat([seen.x.to(x.device), x]), squares, seen.squared + len(probes))
    return Deflated(Q, now.captured, seen, now.spent)


def xtrace_then_probes(A: LinearOperator, seed: int, most: int) -> Sampler:
    """XTrace for the first `most` probes, two products each; then its Q stays, and further probes cost one product."""
    space, exchangeable = A.domain, xtrace(A, seed)

    def behind(sketch: Sketch) -> Deflated:
        none = Samples(torch.zeros(0, dtype=torch.float64), float(sketch.R.square().sum()), sketch.probes)
        return Deflated(sketch.Q, float(sketch.H.trace()), none, sketch.products)

    def extend(now: Sketch | Deflated | None, probes: range) -> Sketch | Deflated:
        if isinstance(now, Deflated):
            return deflated(A, now, probes, seed)
        sketch = now
        if probes.start < most:
            sketch = exchangeable.extend(sketch, range(probes.start, min(probes.stop, most)))
        assert sketch is not None  # a run starts at probe 0
        rest = range(max(probes.start, most), probes.stop)
        return deflated(A, behind(sketch), rest, seed) if len(rest) else sketch

    def read(now: Sketch | Deflated) -> Reading:
        return exchangeable.read(now) if isinstance(now, Sketch) else mean_of(space, now.samples, now.captured)

    return Sampler("xtrace, then probes", extend, read, setup=most)
