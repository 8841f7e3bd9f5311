"""Runs a random estimator probe by probe, and stops it at a tolerance without peeking.

A `Sampler` extends what it carries by a range of probes and reads an estimate with its standard error from it. `run`
drives any sampler: blocks of probes, one call of `observe` per block, resuming, and two kinds of end. Without `rtol`
the budget is spent. With `rtol` the interval is looked at after k_1, 2 k_1, 4 k_1, ... probes only; with J such looks
within the budget, each uses an interval of error probability 0.05 / J, so that by the union bound all of them cover
together with probability 0.95, whichever one stops the run.

**Source.** The union bound; that looking after every probe at the plain interval does not cover: Chow and Robbins
1965, On the asymptotic theory of fixed-width sequential confidence intervals, doi 10.1214/aoms/1177700156, whose
guarantee holds only in the limit. Student's quantile with fewer degrees of freedom for a sample variance of heavy
tails: Box 1954, doi 10.1214/aoms/1177728786.

**Differs from the source.** (1) The looks are few and fixed before the run. (2) The price of the looks is put into the
standard error that is returned, so that ``interval(0.95)`` is the interval that was tested. (3) Degrees of freedom are
half of the textbook's: z'Az is a skewed variable of few dominating eigenvalues, and (k - 1) / (1 + kurtosis / 2) with
an excess kurtosis of 2 makes intervals from 10 probes cover (`benchmarks/coverage.py`).

Cost: what the sampler costs; nothing of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import scipy
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Estimate
from frechet.space import Space

LEVEL = 0.95
LEVEL_FACTOR = 1.96  # the least factor between a standard error and the half-width of its `LEVEL` interval
FIRST_LOOK = 16  # probes before the first look of a run with rtol


@dataclass(frozen=True, eq=False)
class Reading:
    """What a sampler knows so far."""

    value: Tensor
    standard_error: Tensor
    degrees_of_freedom: float


@dataclass(frozen=True, eq=False)
class Sampler:
    """A random estimator: how to add probes and how to read the estimate.

    `extend(carry, probes)` takes None at the start and returns a new carry; it never changes the old one. A carry has
    `products`, the number of products spent so far.
    """

    method: str
    extend: Callable[[Any, range], Any]
    read: Callable[[Any], Reading]
    cost: int = 1  # products per probe, at most
    setup: int = 0  # products before the first probe, at most


@dataclass(frozen=True, eq=False)
class EstimateState:
    """A run of an estimator between two blocks of probes: to watch it, to save it, to resume it."""

    fingerprint: tuple[str, ...]
    probes: int
    products: int
    value: Tensor
    standard_error: Tensor
    carry: Any


Observe = Callable[[EstimateState], bool | None]


def degrees_of_freedom(k: int) -> float:
    """Student's degrees of freedom for a standard error estimated from k probes."""
    return max(1.0, (k - 1) / 2)


def looks(first: int, limit: int) -> list[int]:
    """Numbers of probes after which a run of at most `limit` probes may stop: doubling, ending at the limit."""
    at = []
    while first < limit:
        at.append(first)
        first *= 2
    return [*at, limit]


def shared_error(standard_error: Tensor, dof: float, count: int) -> Tensor:
    """The standard error whose `LEVEL` interval is the interval of error probability (1 - LEVEL) / `count`."""
    share = (1 - LEVEL) / count
    return standard_error * float(scipy.stats.t.ppf(1 - share / 2, dof) / scipy.stats.t.ppf((1 + LEVEL) / 2, dof))


def meets(value: Tensor, standard_error: Tensor, dof: float, rtol: float, space: Space) -> bool:
    """Whether q |standard error| <= rtol |value|; of a vector these are Euclidean norms."""
    q = float(scipy.stats.t.ppf((1 + LEVEL) / 2, dof))
    if value.ndim:
        return q * float(space.norm(standard_error)) <= rtol * float(space.norm(value))
    return q * float(standard_error) <= rtol * abs(float(value))


def finite(Y: Tensor, name: str, probes: range) -> Tensor:
    """`Y`, after it was found finite."""
    if not bool(torch.isfinite(Y).all()):
        raise NonFinite(
            f"{name}: products must be finite, got NaN or infinity for probes {probes.start} to {probes.stop - 1}; "
            "check the point and the data"
        )
    return Y


def check_request(name: str, seed: int | None, products: int | None, rtol: float | None, block: int, A: object) -> int:
    """The seed, after the arguments common to all estimators were found right."""
    if products is not None and (isinstance(products, bool) or not isinstance(products, int) or products < 1):
        raise ValueError(f"{name}: products must be a positive int, got {products!r}")
    if rtol is not None and not 0 < rtol < math.inf:
        raise ValueError(f"{name}: rtol must be positive and finite, got {rtol!r}")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"{name}: block must be a positive int, got {block!r}")
    if seed is None:
        raise ValueError(
            f"{name}: seed must be given where A has no closed form, got None for {A!r}; pass seed=0 to estimate it "
            "from random probes"
        )
    return seed


def run(
    name: str,
    sampler: Sampler,
    space: Space,
    *,
    seed: int,
    products: int,
    rtol: float | None,
    block: int,
    observe: Observe | None = None,
    resume: EstimateState | None = None,
) -> Estimate:
    """Spend `products` on the sampler, or fewer where `rtol` is met at one of the looks."""
    limit = (products - sampler.setup) // sampler.cost
    if limit < 1:
        raise ValueError(
            f"{name}: products must be at least {sampler.setup + sampler.cost} for method '{sampler.method}', "
            f"got {products}"
        )
    ends = [limit] if rtol is None else looks(FIRST_LOOK, limit)
    schedule = "" if rtol is None else f"rtol {rtol!r} within {products} products"
    fingerprint = (name, sampler.method, repr(space), f"seed {seed}", f"setup {sampler.setup}", schedule)
    k, carry = _start(name, fingerprint, limit, resume)
    ahead, stopped = [end for end in ends if end >= k], False
    while True:
        end = ahead.pop(0)
        while k < end and not stopped:
            step = range(k, min(k + block, end))
            carry, k = sampler.extend(carry, step), step.stop
            if observe is not None:
                now = sampler.read(carry)
                state = EstimateState(fingerprint, k, carry.products, now.value, now.standard_error, carry)
                stopped = bool(observe(state))
        reading = sampler.read(carry)
        dof = reading.degrees_of_freedom
        error = reading.standard_error if rtol is None else shared_error(reading.standard_error, dof, len(ends))
        converged = None if rtol is None else k == end and meets(reading.value, error, dof, rtol, space)
        if converged or stopped or not ahead:
            break
    return Estimate(
        reading.value,
        error,
        k,
        carry.products,
        seed,
        degrees_of_freedom=dof,
        converged=converged,
        method=sampler.method,
    )


def _start(name: str, fingerprint: tuple[str, ...], limit: int, resume: EstimateState | None) -> tuple[int, Any]:
    if resume is None:
        return 0, None
    if resume.fingerprint != fingerprint:
        raise ValueError(f"{name}: resume must come from the same run, got {resume.fingerprint}, not {fingerprint}")
    if resume.probes > limit:
        raise ValueError(f"{name}: products must allow the {resume.probes} probes of resume, got {limit} probes")
    return resume.probes, resume.carry
