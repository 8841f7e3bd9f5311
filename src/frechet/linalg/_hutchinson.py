"""Averages of z'A z over random probes, as they are and behind a sketch of the range of A.

tr A = tr(Q'A Q) + tr(P A P) for Q with orthonormal columns and P = I - QQ': the first part is computed, the second
averaged over probes. Hutch++ spends a part of its budget on Q. With a tolerance nobody knows the budget before: there
XTrace runs until its k vectors would weigh, and where that was not enough, the range that it found is the Q.

**Source.** See `_trace.py` and `_xtrace.py`; the standard errors: `_quadratic_forms.py`.

**Differs from the source.** Projected probes are scaled to their expected length (sqrt(n - r)); the bars come from the
probes after the sketch, which are independent given it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from frechet.linalg._quadratic_forms import Samples, inners, length, no_samples, on_sphere, reading, with_signs
from frechet.linalg._sequential import Reading, Sampler, finite
from frechet.linalg._symmetry import refuse_asymmetric
from frechet.linalg._xtrace import Sketch, draw, xtrace
from frechet.operators._operator import Fact, LinearOperator


def hutchinson(A: LinearOperator, seed: int) -> Sampler:
    """z'A z over probes of signs z, of mean tr A and variance 2 sum_{i != j} A_ij^2 for a symmetric A."""
    space, symmetric = A.domain, Fact.SYMMETRIC in A.facts

    def extend(now: Samples | None, probes: range) -> Samples:
        Z = space.random(probes, seed)
        Y = finite(A @ Z, "trace", probes)
        refuse_asymmetric(A, Z, Y, "trace")
        return with_signs(space, now or no_samples(), Z, Y)

    return Sampler("hutchinson", extend, lambda samples: reading(space, samples, symmetric))


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
        Omega = draw(space, range(sketch), seed)
        Y = finite(A @ Omega, "trace", range(sketch))
        refuse_asymmetric(A, Omega, Y, "trace")
        Q, _ = space.orthonormalize(Y)
        captured = float(inners(space, Q, A @ Q).sum()) if Q.shape[1] else 0.0
        return Deflated(Q, captured, no_samples(length(space, Y), sketch), sketch + Q.shape[1])

    def extend(now: Deflated | None, probes: range) -> Deflated:
        # the sketch has used the first probes of the seed
        return deflated(A, now or start(), range(sketch + probes.start, sketch + probes.stop), seed)

    return Sampler("hutch++", extend, lambda now: deflated_reading(A, now), setup=2 * sketch)


def deflated(A: LinearOperator, now: Deflated, probes: range, seed: int) -> Deflated:
    """`now` with more samples from the complement of its Q."""
    space, Q = A.domain, now.Q
    Z, n = complement(A, Q, probes, seed), space.dim - Q.shape[1]
    Y = finite(A @ Z, "trace", probes)
    image = Y - Q @ space.gram(Q, Y).to(Y.device, Y.dtype)
    return Deflated(Q, now.captured, on_sphere(space, now.samples, Z, Y, image, n), now.spent)


def complement(A: LinearOperator, Q: Tensor, probes: range, seed: int) -> Tensor:
    """Probes on the sphere of radius sqrt(n - r) in the complement of Q's r columns."""
    space = A.domain
    Z = draw(space, probes, seed)
    Z = Z - Q @ space.gram(Q, Z).to(Z.device, Z.dtype)
    return Z * (math.sqrt(space.dim - Q.shape[1]) / space.norm(Z)).to(Z.device, Z.dtype)


def deflated_reading(A: LinearOperator, now: Deflated) -> Reading:
    return reading(A.domain, now.samples, Fact.SYMMETRIC in A.facts, now.captured)


def xtrace_then_probes(A: LinearOperator, seed: int, most: int) -> Sampler:
    """XTrace for the first `most` probes, two products each; then its Q stays, and further probes cost one product."""
    exchangeable = xtrace(A, seed)

    def behind(sketch: Sketch) -> Deflated:
        seen = no_samples(math.hypot(*sketch.R.flatten().tolist()), sketch.probes)
        return Deflated(sketch.Q, float(sketch.H.trace()), seen, sketch.products)

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
        return exchangeable.read(now) if isinstance(now, Sketch) else deflated_reading(A, now)

    return Sampler("xtrace, then probes", extend, read, setup=most)
