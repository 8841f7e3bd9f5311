"""Traces and Frobenius norms from one set of random probes, with what is known of the operator taken out first.

With orthonormal V and the diagonal matrix D of its Rayleigh quotients, C = V D V' and random signs z,

    tr A_b = tr C_b + E z_b'((A - C) z)_b        for every diagonal block b,
    ||A||^2 = sum D^2 + E ||(A - C) z||^2        since <A - C, C> = 0,

whatever V is; the better its columns are as eigenvectors, the smaller the spread of what is drawn. One product serves
all blocks and the norm. In a space of few dimensions unit vectors take the place of the signs, and nothing is random.

**Source.** Hutchinson, Communications in Statistics 18 (1989), doi 10.1080/03610918908812806. Fieller, JRSS B 16
(1954).
**Differs from the source.** Computed eigenpairs serve as a control variate.
**Cost.** One product per probe, in blocks.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.linalg._result import Estimate, Spectrum, exact_estimate
from frechet.linalg._sequential import degrees_of_freedom
from frechet.operators._operator import Fact, LinearOperator

STREAM = 1 << 39  # far from the probes of the density


@dataclass(frozen=True, eq=False)
class Sizes:
    """What the probes have shown: unbiased draws of every block's trace and of the squared Frobenius norm.

    `exact`: the probes were all unit vectors, and the draws are to be added up instead of averaged.
    """

    names: tuple[str, ...]
    draws: Tensor  # (probes, blocks), float64
    squares: Tensor  # (probes,), float64
    rounding: float  # of a draw of the whole trace
    exact: bool
    seed: int
    semidefinite: bool  # whether no part of the trace can be negative

    @property
    def probes(self) -> int:
        return self.squares.numel()

    @property
    def trace(self) -> Estimate:
        return self.of(self.draws.sum(1))

    @property
    def frobenius(self) -> Estimate:
        """The norm, by the delta method from its square."""
        square = self.of(self.squares)
        value = square.value.clamp_min(0).sqrt()
        if self.exact:
            return exact_estimate(float(value), self.probes, "exact")
        error = square.standard_error / (2 * value) if float(value) > 0 else square.standard_error.sqrt()
        return Estimate(
            value, error, self.probes, self.probes, self.seed, degrees_of_freedom=square.degrees_of_freedom,
            method="random signs, computed eigenpairs taken out",
        )  # fmt: skip

    def of(self, draws: Tensor) -> Estimate:
        """The estimate from one draw per probe."""
        p = self.probes
        if self.exact:
            return exact_estimate(float(draws.sum()), p, "exact")
        spread = draws.std() / math.sqrt(p) if p > 1 else draws.new_tensor(math.inf)
        return Estimate(
            draws.mean(), spread.clamp_min(self.rounding), p, p, self.seed, degrees_of_freedom=degrees_of_freedom(p),
            method="random signs, computed eigenpairs taken out",
        )  # fmt: skip

    @property
    def mixed(self) -> bool:
        """Whether some module's part of the trace is below zero."""
        return any(float(x.mean()) < 0 for x in self.modules().values())

    def modules(self) -> dict[str, Tensor]:
        """The draws of each module's trace."""
        return grouped(self.names, self.draws)

    def share(self, draws: Tensor, level: float = 0.95) -> tuple[float, float, float]:
        """The part of the whole trace that `draws` make, with its interval (Fieller).

        All reals where the trace may be 0, and where parts of it may be negative: there are no shares then.
        """
        whole = self.draws.sum(1)
        if not self.semidefinite and self.mixed:
            return float(draws.mean() / whole.mean()) if float(whole.mean()) else math.nan, -math.inf, math.inf
        if self.exact:
            share = float(draws.sum() / whole.sum()) if float(whole.sum()) else math.nan
            return (share, share, share) if math.isfinite(share) else (share, -math.inf, math.inf)
        return fieller(draws, whole, level, self.rounding)


def grouped(names: tuple[str, ...], draws: Tensor) -> dict[str, Tensor]:
    """The sums of the blocks' columns over each module."""
    made: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        module = name.rpartition(".")[0] or "(root)"
        made[module] = made[module] + draws[:, i] if module in made else draws[:, i]
    return made


def fieller(x: Tensor, y: Tensor, level: float, rounding: float) -> tuple[float, float, float]:
    """mean x / mean y with the ends of its confidence set."""
    a, b, k = float(x.mean()), float(y.mean()), x.numel()
    if b == 0.0 or k < 2:
        return (a / b if b else math.nan), -math.inf, math.inf
    t = float(scipy.stats.t.ppf(0.5 + level / 2, degrees_of_freedom(k)))
    covariance = torch.cov(torch.stack([x, y])) / k
    vxx, vxy = float(covariance[0, 0]) + rounding**2, float(covariance[0, 1])
    vyy = float(covariance[1, 1]) + rounding**2
    lead, middle, last = b * b - t * t * vyy, a * b - t * t * vxy, a * a - t * t * vxx
    if lead <= 0:
        return a / b, -math.inf, math.inf
    root = math.sqrt(max(middle * middle - lead * last, 0.0))
    return a / b, min((middle - root) / lead, a / b), max((middle + root) / lead, a / b)


@torch.no_grad()
def sizes(
    A: LinearOperator,
    count: Callable[[Sizes | None], int],
    *,
    known: Spectrum | None,
    seed: int,
    block: int,
    exact: bool,
    observe: Callable[[Sizes], bool],
    before: Sizes | None,
) -> Sizes:
    """Return `before` with more probes, `block` at a time, until ``count(sizes)`` says that no more are wanted.

    ``exact=True`` multiplies all unit vectors instead, if `before` is None. `observe` stops the run by returning True.
    """
    space, now, semidefinite = A.domain, before, Fact.POSITIVE_SEMIDEFINITE in A.facts
    C = None if known is None or not known.values.numel() else known
    taken_out = space.zeros(0) if C is None else C.vectors
    values = torch.zeros(0, dtype=torch.float64) if C is None else C.values.cpu()
    traces = _block_sums(A, taken_out, taken_out * values.to(taken_out)).sum(0)  # of the blocks of C
    square = float(values.square().sum())
    if exact and before is None:
        return _by_unit_vectors(A, seed, block)
    wanted = count(now)
    while wanted > 0:
        size, first = min(block, wanted), 0 if now is None else now.probes
        Z = space.random(range(STREAM + first, STREAM + first + size), seed)
        Y = A @ Z
        if not space.finite(Y):
            raise NonFinite(f"trace: product {first + 1} or one after it holds a NaN or an infinity")
        rest = Y - (taken_out * values.to(taken_out)) @ space.gram(taken_out, Z).to(Z) if C is not None else Y
        draws = _block_sums(A, Z, rest) + traces
        squares = space.norm(rest).square().cpu() + square
        # a sum of n rounded products of signs and entries: as in `hutchinson`
        rounding = space.eps * math.sqrt(space.dim * float(space.norm(Y).square().mean()))
        if now is not None:
            draws, squares = torch.cat([now.draws, draws]), torch.cat([now.squares, squares])
            rounding = max(rounding, now.rounding)
        now = Sizes(space.names, draws, squares, rounding, False, seed, semidefinite)
        if observe(now):
            break
        wanted = count(now)
    assert now is not None  # the first count is positive
    return now


def _by_unit_vectors(A: LinearOperator, seed: int, block: int) -> Sizes:
    space, draws, squares = A.domain, [], []
    for a in range(0, space.dim, block):
        Z = space.units(range(a, min(a + block, space.dim)))
        Y = A @ Z
        if not space.finite(Y):
            raise NonFinite(f"trace: product {a + 1} or one after it holds a NaN or an infinity")
        draws.append(_block_sums(A, Z, Y))
        squares.append(space.norm(Y).square().cpu())
    semidefinite = Fact.POSITIVE_SEMIDEFINITE in A.facts
    return Sizes(space.names, torch.cat(draws), torch.cat(squares), 0.0, True, seed, semidefinite)


def _block_sums(A: LinearOperator, U: Tensor, V: Tensor) -> Tensor:
    """u_b'v_b over every block b, for every pair of columns: (k, blocks), float64, on the host."""
    space, sums = A.domain, []
    for name in space.names:
        part, rows = space.restrict(glob.escape(name)), space.block(name)
        sums.append(torch.stack([part.inner(u, v) for u, v in zip(U[rows].T, V[rows].T, strict=True)]) if U.shape[1]
                    else torch.zeros(0, dtype=torch.float64))  # fmt: skip
    return torch.stack([s.cpu() for s in sums], 1)


def relative_error(estimate: Estimate) -> float:
    """The half-width of the 0.95 interval relative to the value."""
    low, high = (float(end) for end in estimate.interval())
    value = abs(float(estimate.value))
    return (high - low) / 2 / value if value > 0 else (0.0 if high == low else math.inf)


def widths(now: Sizes) -> dict[str, float]:
    """What is printed of `now`, and how wide its interval is: relative for trace and norm, absolute for shares.

    A share's width counts relative to the share, or to a tenth where it is smaller.
    """
    found = {"trace": relative_error(now.trace), "Frobenius norm": relative_error(now.frobenius)}
    for module, draws in now.modules().items() if now.semidefinite else ():
        share, low, high = now.share(draws)
        found[module] = (high - low) / 2 / max(abs(share), 0.1) if math.isfinite(high - low) else math.inf
    return found


def probes_for(now: Sizes, goal: float, width: float) -> float:
    """How many probes would bring an interval of this relative width down to `goal`."""
    return now.probes * (width / goal) ** 2 if math.isfinite(width) else math.inf
