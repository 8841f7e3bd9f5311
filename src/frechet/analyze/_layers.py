"""Curvature by layer: every block's part of the trace, and the largest eigenvalue of every diagonal block.

One set of random signs z serves all blocks: the sum of z_j (A z)_j over a block's entries has mean the trace of its
diagonal block, and the sums over all blocks add up to Hutchinson's estimate of the whole trace. A block's share is the
ratio of two such means; its interval is the set of ratios r at which (block - r whole) is not significant (Fieller).

Standard errors come from the products and not from the spread of a few sums, which is far too small where one
eigenvalue dominates (`linalg/_quadratic_forms.py`). With b a block, c the others and off(.) the entries off the
diagonal,

    Var x_b = 2 off(A_bb)^2 + |A_bc|^2
    Var (x_b - r x) = 2 (1 - r)^2 off(A_bb)^2 + (1 - 2r)^2 |A_bc|^2 + 2 r^2 off(A_cc)^2

where off(A_bb)^2 + |A_bc|^2 = sum over b of Var (z_j y_j), and |A_bb|^2 = E (z_b'y'_b) (z'_b'y_b) over pairs of probes.

The largest eigenvalues need one Krylov space per block, on the operator restricted to it.

**Source.** Hutchinson, Communications in Statistics 18 (1989), doi 10.1080/03610918908812806. Fieller, "Some problems
in interval estimation", JRSS B 16 (1954).
**Differs from the source.** The standard errors.
**Cost.** Traces: `probes` products and three blocks of `block` vectors. Tops: the products of each `eigsh`, each of
which costs less than a whole product.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from typing import Any, Literal

import scipy
import torch
from torch import Tensor

from frechet.linalg._diagonal import power_of_two
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Estimate, Spectrum
from frechet.linalg._sequential import degrees_of_freedom
from frechet.linalg._shown import Result, Rows
from frechet.linalg._symmetry import refuse_asymmetric
from frechet.objective import Objective
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.space import Space

ROOT = "(root)"  # the module of parameters without a prefix

Groups = Literal["module", "block"]


@dataclass(frozen=True, eq=False)
class LayerTrace(Result):
    """The trace of one diagonal block and its share of the whole trace, in [lower, upper] with the level asked for.

    A share may be negative or above 1 where the operator is indefinite; its interval is everything where the whole
    trace cannot be told from zero.
    """

    name: str
    blocks: tuple[str, ...]
    size: int
    trace: Estimate
    share: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class LayerTraces(Result):
    """`modules` join the blocks with one prefix before the last dot (weight and bias); both lists add up to `total`."""

    blocks: tuple[LayerTrace, ...]
    modules: tuple[LayerTrace, ...]
    total: Estimate
    level: float
    seed: int
    products: int

    def _line(self) -> str:
        return f"{len(self.modules)} modules, total {float(self.total):.5g}, {self.products} products"

    def _table(self) -> Rows:
        rows = []
        for m in self.modules:
            low, high = map(float, m.trace.interval(self.level))
            share = f"{m.share:.1%} [{m.lower:.1%}, {m.upper:.1%}]"
            rows.append((m.name, str(m.size), f"{float(m.trace):.4g} [{low:.4g}, {high:.4g}]", share))
        return ("module", "size", "trace", "share"), rows

    def plot(self, axes: Any) -> Any:
        """Draw the modules' traces with their intervals into matplotlib's `axes`; returns them."""
        halves = [float(m.trace.interval(self.level)[1] - m.trace.value) for m in self.modules]
        axes.barh([m.name for m in self.modules], [float(m.trace) for m in self.modules], xerr=halves)
        axes.invert_yaxis()
        axes.set_xlabel("trace")
        return axes


@dataclass(frozen=True, eq=False)
class LayerTop(Result):
    """The largest eigenvalue of one diagonal block; some eigenvalue of it lies within `residual` of `value`."""

    name: str
    blocks: tuple[str, ...]
    size: int
    value: float
    residual: float
    converged: bool
    products: int
    vector: Tensor  # (size,), in the space of the blocks


@dataclass(frozen=True, eq=False)
class LayerTops(Result):
    """One entry per layer in the model's order. A `products` of a block costs less than one of the whole operator."""

    layers: tuple[LayerTop, ...]
    operator: str
    seed: int
    products: int

    def _table(self) -> Rows:
        rows = [(t.name, str(t.size), f"{t.value:.5g}", f"{t.residual:.2g}") for t in self.layers]
        return ("layer", "size", "largest eigenvalue", "residual"), rows

    def plot(self, axes: Any) -> Any:
        """Draw the layers' largest eigenvalues into matplotlib's `axes`; returns them."""
        axes.barh([t.name for t in self.layers], [t.value for t in self.layers], xerr=[t.residual for t in self.layers])
        axes.invert_yaxis()
        axes.set_xlabel("largest eigenvalue")
        return axes


def layer_traces(
    A: LinearOperator, *, seed: int, probes: int = 30, level: float = 0.95, block: int = 16
) -> LayerTraces:
    """Estimate the trace of every diagonal block of a symmetric A, and of each module, from one set of probes.

    Intervals are those of Student's t with (probes - 1) / 2 degrees of freedom. Standard errors are at least the
    rounding of the sums. Those of shares are at least what the spread of the draws says, with (probes - 1) degrees of
    freedom.

    Args:
        A: a symmetric operator on a space with several blocks.
        seed: the seed of the random probes.
        probes: the number of products.
        level: the probability with which each interval covers.
        block: how many products are computed at once. The pairs of probes in one such block tell the diagonal blocks
            from those between layers.

    Example:
        >>> import torch
        >>> from frechet import Space, from_diagonal
        >>> from frechet.analyze import layer_traces
        >>> space = Space(("a.weight", "a.bias", "b.weight"), ((2,), (1,), (1,)), torch.float64)
        >>> A = from_diagonal(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), domain=space)
        >>> [(m.name, float(m.trace), round(m.share, 6)) for m in layer_traces(A, seed=0, probes=2).modules]
        [('a', 6.0, 0.6), ('b', 4.0, 0.4)]
    """
    if Fact.SYMMETRIC not in A.facts:
        raise ValueError(f"layer_traces: A must be symmetric, got {A!r}; declare it where it is known to be")
    if probes < 2 or block < 1:
        raise ValueError(f"layer_traces: probes must be at least 2 and block at least 1, got {probes} and {block}")
    if not 0 < level < 1:
        raise ValueError(f"layer_traces: level must lie between 0 and 1, got {level}")
    seen = _products(A, seed, probes, block)
    whole = _estimate(seen, slice(None), seed)

    def layer(name: str, members: list[int]) -> LayerTrace:
        space = A.domain
        trace = _estimate(seen, members, seed)
        share, lower, upper = _fieller(seen, members, level)
        blocks = tuple(space.names[i] for i in members)
        return LayerTrace(name, blocks, sum(space.sizes[i] for i in members), trace, share, lower, upper)

    separate = tuple(layer(name, [i]) for i, name in enumerate(A.domain.names))
    joined = tuple(layer(name, members) for name, members in _modules(A.domain).items())
    return LayerTraces(separate, joined, whole, level, seed, probes)


def layer_tops(
    objective: Objective,
    kind: Literal["hessian", "gauss_newton"] = "hessian",
    *,
    seed: int,
    groups: Groups = "module",
    rtol: float = 1e-2,
    max_products: int | None = None,
    x: Tensor | None = None,
) -> LayerTops:
    """Return the largest eigenvalue of the diagonal block of every module, or of every block of parameters.

    Args:
        objective: the objective.
        kind: ``"hessian"`` or ``"gauss_newton"``.
        seed: the seed of the start vectors.
        groups: ``"module"`` joins the blocks of a module (weight and bias), ``"block"`` takes each by itself.
        rtol: an eigenvalue has converged when its residual is at most rtol times its size.
        max_products: the largest number of products for each eigenvalue. Default: that of `eigsh`.
        x: the point ``(n,)``. Default: the model's present parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import layer_tops
        >>> model = torch.nn.Linear(2, 1)
        >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))]
        >>> tops = layer_tops(Objective(model, squared_error(), data), groups="block", seed=0, rtol=1e-5)
        >>> [(t.name, round(t.value, 4)) for t in tops.layers]  # X'X = diag(1, 4); 2
        [('weight', 4.0), ('bias', 2.0)]
    """
    if kind not in ("hessian", "gauss_newton"):
        raise ValueError(f"layer_tops: kind must be 'hessian' or 'gauss_newton', got {kind!r}")
    if groups not in ("module", "block"):
        raise ValueError(f"layer_tops: groups must be 'module' or 'block', got {groups!r}")
    space, names = objective.space, objective.space.names
    made = _modules(space) if groups == "module" else {name: [i] for i, name in enumerate(names)}
    found = []
    for name, members in made.items():
        size = sum(space.sizes[i] for i in members)
        if size == 0:
            continue
        patterns = [glob.escape(names[i]) for i in members]  # names are literal, not patterns
        operator = hessian if kind == "hessian" else gauss_newton
        A = operator(objective, x=x, restrict=patterns)
        spectrum = eigsh(A, 1, seed=seed, rtol=rtol, max_products=max_products)
        found.append(_top(name, tuple(names[i] for i in members), size, spectrum))
    return LayerTops(tuple(found), kind, seed, sum(top.products for top in found))


def _top(name: str, blocks: tuple[str, ...], size: int, spectrum: Spectrum) -> LayerTop:
    value, residual, converged = (float(t[0]) for t in (spectrum.values, spectrum.residuals, spectrum.converged))
    return LayerTop(name, blocks, size, value, residual, bool(converged), spectrum.products, spectrum.vectors[:, 0])


def _modules(space: Space) -> dict[str, list[int]]:
    """Positions of the blocks of each module, in the order of their first block."""
    made: dict[str, list[int]] = {}
    for i, name in enumerate(space.names):
        made.setdefault(name.rpartition(".")[0] or ROOT, []).append(i)
    return made


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the probes say about every block, in units of `unit` (of `unit` squared), so that squares are numbers.

    `pairs[a]` holds, for one block of probes, z_i'y_j on every block of parameters; its diagonal is in `draws`.
    """

    draws: Tensor  # (probes, blocks): z'y on the block
    spread: Tensor  # (blocks,): off(A_bb)^2 + |A_bc|^2
    squares: Tensor  # (blocks,): sum of A_jj^2, estimated without bias
    rounding: Tensor  # (blocks,): squared rounding error of a sum
    pairs: list[Tensor]  # each (blocks, k, k)
    unit: float


def _products(A: LinearOperator, seed: int, probes: int, block: int) -> _Sums:
    space = A.domain
    parts = [(space.restrict(glob.escape(name)), space.block(name)) for name in space.names]
    mean, pairs, unit = space.zeros(), [], 1.0
    deviations = sizes = torch.zeros(len(parts), dtype=torch.float64)

    def lengths(X: Tensor) -> Tensor:
        """The squared length of every block of the columns of X, all added up."""
        return torch.stack([part.norm(X[rows]).square().sum() for part, rows in parts]).cpu()

    for a in range(0, probes if parts else 0, block):
        Z = space.random(range(a, min(a + block, probes)), seed)
        Y = A @ Z
        refuse_asymmetric(A, Z, Y, "layer_traces")
        unit = power_of_two(float(space.norm(Y[:, 0]))) if a == 0 else unit
        Y, b = Y / unit, Z.shape[1]
        pairs.append(torch.stack([part.gram(Z[rows], Y[rows]) for part, rows in parts]).cpu())
        X = Z * Y
        center = X.mean(1)
        gap = center - mean
        deviations = deviations + lengths(X - center[:, None]) + lengths(gap[:, None]) * (a * b / (a + b))
        mean, sizes = mean + gap * (b / (a + b)), sizes + lengths(Y)
    if not parts:
        none = torch.zeros(0, dtype=torch.float64)
        return _Sums(torch.zeros(probes, 0, dtype=torch.float64), none, none, none, [], 1.0)
    spread = deviations / (probes - 1)
    draws = torch.cat([p.diagonal(dim1=1, dim2=2).T for p in pairs])
    # |mean|^2 holds a share of the spread
    squares = lengths(mean[:, None]) - spread / probes
    return _Sums(draws, spread, squares, space.eps**2 * sizes / probes, pairs, unit)


def _variances(seen: _Sums, members: list[int] | slice) -> tuple[float, float, float]:
    """off(A_bb)^2, |A_bc|^2 and off(A_cc)^2 for the joined blocks `members`, the first with a standard error added.

    In a share of about a half the second cancels, and the first is most of the variance.
    """
    spread, total = float(seen.spread[members].sum()), float(seen.spread.sum())
    own = spread  # without pairs the block counts as alone: that is the larger variance
    if len(seen.pairs[0][0]) > 1 and spread < total:
        both = [pairs[members].sum(0) for pairs in seen.pairs if pairs.shape[1] > 1]
        # of every probe, its mean over the others of its block of probes
        means = torch.cat([((M * M.T).sum(0) - M.diagonal().square()) / (len(M) - 1) for M in both])
        own = float(means.mean() + means.std() / math.sqrt(len(means)) - seen.squares[members].sum())
        own = min(max(own, 0.0), spread)
    return own, spread - own, max(total - 2 * spread + own, 0.0)


def _estimate(seen: _Sums, members: list[int] | slice, seed: int) -> Estimate:
    own, across, _ = _variances(seen, members)
    probes = len(seen.draws)
    error = math.sqrt(max((2 * own + across) / probes, float(seen.rounding[members].sum())))
    value, error = (
        torch.as_tensor(t, dtype=torch.float64) * seen.unit for t in (seen.draws[:, members].sum(1).mean(), error)
    )
    return Estimate(
        value, error, probes, probes, seed, degrees_of_freedom=degrees_of_freedom(probes),
        method="hutchinson, shared probes",
    )  # fmt: skip


def _fieller(seen: _Sums, members: list[int], level: float) -> tuple[float, float, float]:
    """A block's share of the trace and the ends of its confidence set, all reals where the whole is not significant.

    The set is that of two together: with variances from the products, and from the spread of the draws. Where a share
    is about a half the first is a difference that nearly cancels; where one eigenvalue dominates the second is small.
    """
    x, whole = seen.draws[:, members].sum(1), seen.draws.sum(1)
    probes, a, b = len(x), float(x.mean()), float(whole.mean())
    if b == 0.0:
        return math.nan, -math.inf, math.inf
    own, across, rest = _variances(seen, members)
    # rounding matters only where nothing is random, and counts as independent errors there
    known = (
        max((2 * own + across) / probes, float(seen.rounding[members].sum())),
        2 * (own + across) / probes,
        max((2 * own + 4 * across + 2 * rest) / probes, float(seen.rounding.sum())),
    )
    spread = torch.cov(torch.stack([x, whole])) / probes
    drawn = float(spread[0, 0]), float(spread[0, 1]), float(spread[1, 1])
    degrees = degrees_of_freedom(probes)
    ends = [_set(a, b, *known, _t(level, degrees)), _set(a, b, *drawn, _t(level, 2 * degrees))]
    return a / b, min(low for low, _ in ends), max(high for _, high in ends)


def _t(level: float, degrees: float) -> float:
    return float(scipy.stats.t.ppf(0.5 + level / 2, degrees))


def _set(a: float, b: float, vxx: float, vxy: float, vyy: float, t: float) -> tuple[float, float]:
    """The ratios r at which a - r b is at most t of its standard errors."""
    lead, middle, last = b * b - t * t * vyy, a * b - t * t * vxy, a * a - t * t * vxx
    if lead <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(middle * middle - lead * last, 0.0))
    return min((middle - root) / lead, a / b), max((middle + root) / lead, a / b)
