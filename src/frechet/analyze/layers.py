"""Curvature by layer: every block's part of the trace, and the largest eigenvalue of every diagonal block.

One set of random signs z serves all blocks: the sum of z_j (A z)_j over a block's entries has mean the trace of its
diagonal block, and the sums over all blocks add up to Hutchinson's estimate of the whole trace. A block's share is the
ratio of two such means; its interval is the set of ratios r at which (block - r whole) is not significant (Fieller).

The largest eigenvalues need one Krylov space per block, on the operator restricted to it.

**Source.** Hutchinson, Communications in Statistics 18 (1989), doi 10.1080/03610918908812806. Fieller, "Some problems
in interval estimation", JRSS B 16 (1954).
**Cost.** Traces: `probes` products and a block of `block` vectors. Tops: the products of each `eigsh`, each of which
costs less than a whole product.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from frechet.linalg.eigsh import eigsh
from frechet.linalg.result import Estimate, Spectrum
from frechet.objective import Objective
from frechet.operators.gauss_newton import gauss_newton
from frechet.operators.hessian import hessian
from frechet.operators.operator import Fact, LinearOperator
from frechet.space import Space

ROOT = "(root)"  # the module of parameters without a prefix

Groups = Literal["module", "block"]


@dataclass(frozen=True, eq=False)
class LayerTrace:
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
class LayerTraces:
    """`modules` join the blocks with one prefix before the last dot (weight and bias); both lists add up to `total`."""

    blocks: tuple[LayerTrace, ...]
    modules: tuple[LayerTrace, ...]
    total: Estimate
    level: float
    seed: int
    products: int


@dataclass(frozen=True, eq=False)
class LayerTop:
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
class LayerTops:
    """One entry per layer in the model's order. A `products` of a block costs less than one of the whole operator."""

    layers: tuple[LayerTop, ...]
    operator: str
    seed: int
    products: int


def layer_traces(
    A: LinearOperator, *, seed: int, probes: int = 30, level: float = 0.95, block: int = 16
) -> LayerTraces:
    """The trace of every diagonal block of a symmetric A, and of the blocks of every module, from the same probes.

    Standard errors are those of the mean of `probes` draws, with Student's t of probes - 1 degrees of freedom, and at
    least the rounding of the sums. `block` products are computed at once.

    Example:
        >>> import torch
        >>> from frechet import Space, from_diagonal, layer_traces
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
    space, rows = A.domain, []
    for a in range(0, probes, block):
        Z = space.random(range(a, min(a + block, probes)), seed)
        rows.append(_block_sums(space, Z, A @ Z))
    draws, sizes = (torch.cat([part[i] for part in rows]) for i in (0, 1))  # (probes, blocks): sums, and of squares
    draws = draws.cpu()
    rounding = space.eps * sizes.cpu().mean(0).sqrt()  # of one block's sum
    whole = _estimate(draws.sum(1), float(rounding.square().sum().sqrt()), probes, seed)

    def layer(name: str, members: list[int]) -> LayerTrace:
        x = draws[:, members].sum(1)
        trace = _estimate(x, float(rounding[members].square().sum().sqrt()), probes, seed)
        share, lower, upper = _fieller(x, draws.sum(1), level, trace, whole)
        blocks = tuple(space.names[i] for i in members)
        return LayerTrace(name, blocks, sum(space.sizes[i] for i in members), trace, share, lower, upper)

    separate = tuple(layer(name, [i]) for i, name in enumerate(space.names))
    joined = tuple(layer(name, members) for name, members in _modules(space).items())
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
    """The largest eigenvalue of the diagonal block of every module (or every parameter block) of the objective.

    Each has converged when its residual is at most rtol times its size; `max_products` bounds each one's products.

    Example:
        >>> import torch
        >>> from frechet import Objective, layer_tops, squared_error
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


def _block_sums(space: Space, Z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """z'y and the sum of (z_j y_j)^2 over every block, for every column: two (k, blocks) in float64."""
    sums, squares = [], []
    for name in space.names:
        part, rows = space.restrict(glob.escape(name)), space.block(name)
        pairs = [(z, y) for z, y in zip(Z[rows].T, Y[rows].T, strict=True)]
        sums.append(torch.stack([part.inner(z, y) for z, y in pairs]))
        squares.append(torch.stack([part.inner(z * y, z * y) for z, y in pairs]))
    if not sums:
        empty = torch.zeros(Z.shape[1], 0, dtype=torch.float64)
        return empty, empty
    return torch.stack(sums, 1), torch.stack(squares, 1)


def _estimate(draws: Tensor, rounding: float, probes: int, seed: int) -> Estimate:
    error = torch.clamp(draws.std() / math.sqrt(probes), min=rounding)
    return Estimate(
        draws.mean(), error, probes, probes, seed, degrees_of_freedom=probes - 1, method="hutchinson, shared probes"
    )


def _fieller(x: Tensor, y: Tensor, level: float, top: Estimate, bottom: Estimate) -> tuple[float, float, float]:
    """mean x / mean y with the ends of its confidence set (all reals where mean y is not significant)."""
    a, b = float(x.mean()), float(y.mean())
    if b == 0.0:
        return math.nan, -math.inf, math.inf
    t = float(stats.t.ppf(0.5 + level / 2, len(x) - 1))
    covariance = torch.cov(torch.stack([x, y])) / len(x)
    # the rounding floors enter as independent errors: they matter only where nothing is random
    vxx = max(float(covariance[0, 0]), float(top.standard_error) ** 2)
    vyy = max(float(covariance[1, 1]), float(bottom.standard_error) ** 2)
    vxy = float(covariance[0, 1])
    lead, middle, last = b * b - t * t * vyy, a * b - t * t * vxy, a * a - t * t * vxx
    if lead <= 0:
        return a / b, -math.inf, math.inf
    root = math.sqrt(max(middle * middle - lead * last, 0.0))
    return a / b, min((middle - root) / lead, a / b), max((middle + root) / lead, a / b)
