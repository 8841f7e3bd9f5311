"""What questions to an operator will cost, and what fits into memory, before any of them is asked.

A product is measured with one vector, with two and, where they fit, with eight, after one that does not count. A block
of k vectors is taken to cost what the first vector costs and k - 1 times what each further one added; a job costs its
products and the vectors that it keeps. Bytes are those above what is in use when the plan is made. Where a Krylov basis
does not fit as it is, the plan names the storage that does, at the least loss: on the host if that is another memory,
then in fewer bits.

The number of products of `eigsh` depends on the spectrum. A few products of Lanczos' method tell where eigenvalues lie
and how many. `eigsh` then runs on a diagonal matrix with such eigenvalues: those at the ends one by one, those of the
bulk in groups, of which the start vector has the length that it has in the operator's eigenspaces.

**Cost:** four products and one of eight vectors, and max(4 k, 30) of Lanczos' method, each where it fits; more, one per
halving, where the product does not fit and the objective has a head.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.linalg._basis import Storage, kept_as, roundoff
from frechet.linalg._eigsh import eigsh
from frechet.linalg._krylov import Lanczos, lanczos
from frechet.linalg._shown import Result, Rows
from frechet.operators._constructors import from_callable
from frechet.operators._operator import Fact, LinearOperator
from frechet.operators.derivatives._jacobian import OutputJacobian
from frechet.operators.derivatives._sum_over_data import SumOverData
from frechet.recording import free_memory, peak_above, start_peak
from frechet.space import Space

MOST_AT_ONCE = 256  # vectors: more bring no speed
SAMPLE = 30  # products that tell how many eigsh will take
EDGE = 1000  # eigenvalues at each end that the diagonal matrix has one by one
GROUPS = 2000  # of eigenvalues between them
SETTLED = 0.05  # of the distance to the next: a Ritz value with a residual below it stands for one eigenvalue
MANY = 8  # vectors of the largest product that is measured
MOST_BASES = 12  # first bases that a run may take


@dataclass(frozen=True)
class Job(Result):
    """One question: how many products it usually takes, in which time, and the most memory it needs at once."""

    name: str
    products: int
    seconds: float
    bytes: int | None
    vectors: int  # kept beside those of a product
    fits: bool | None
    storage: Storage | None = None  # in which its basis fits; None: it has none, or fits in no storage
    stored_bytes: int | None = None  # as `bytes`, with that storage; on the host it is the basis that is left out
    roundoff: float = 0.0  # of that storage


@dataclass(frozen=True)
class Plan(Result):
    """The measured cost of a product, what fits into `budget` bytes, and what jobs will take. `print` it."""

    operator: str
    budget: int
    product_seconds: float
    product_bytes: int | None  # None where the system does not tell
    vector_seconds: float  # each further vector of a block
    vector_bytes: int | None
    vectors_at_once: int  # in one block, 1 at least
    kept_vectors: int  # as a Krylov basis, beside a product
    examples: int | None  # per batch; None: the batches fit as they are
    head_rows: int | None  # tokens that go through the objective's head at once; None: no head, or its chunks fit
    jobs: tuple[Job, ...]

    def _table(self) -> Rows:
        rows = [(j.name, str(j.products), f"{j.seconds:.3g} s", _size(j.bytes), _fits(j.fits)) for j in self.jobs]
        return ("job", "products", "time", "memory", "fits"), rows

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The plan in words, a line each."""
        yield f"products with {self.operator}, {_size(self.budget)} to spend:"
        yield (
            f"a product takes {self.product_seconds:.3g} s and {_size(self.product_bytes)}, each further vector of a "
            f"block {self.vector_seconds:.3g} s and {_size(self.vector_bytes)}"
        )
        yield f"at once fit: {self.vectors_at_once} vectors in a block, or {self.kept_vectors} as a basis"
        if self.head_rows is not None:
            yield f"the chunks of the head do not fit: Objective(..., head_rows={self.head_rows})"
        if self.examples is not None:
            yield f"the batches do not fit: objective.in_pieces({self.examples})"
        for job in self.jobs:
            short = "" if job.fits is not False else ", which does not fit"
            if short and job.storage is not None:
                short += f"; {_size(job.stored_bytes)} with storage='{job.storage}'"
                loss = f"residuals of up to {job.roundoff:.1g} times the largest eigenvalue"
                short += f" ({loss})" if job.roundoff else " (two vectors travel per product)"
            yield f"{job.name}: about {job.products} products, {job.seconds:.3g} s, {_size(job.bytes)}{short}"


def plan(
    A: LinearOperator,
    budget: int | None = None,
    *,
    k: int = 10,
    products: int = 100,
    probes: int = 8,
    steps: int = 40,
    sample: int | None = None,
) -> Plan:
    """Tell what products with A cost, what fits into memory, and what three common jobs will take.

    The jobs are the defaults of `eigsh` for the k largest pairs, of `trace` and of `spectral_density`. Times scale with
    the load of the machine.

    Args:
        A: a square operator.
        budget: bytes that may be used. Default: what is free.
        k: the number of eigenpairs of the first job.
        products: the products of the trace.
        probes: the probes of the spectral density.
        steps: the steps of each of these probes.
        sample: how many products with A tell the number that `eigsh` will take. Default: max(4 k, 30), where their
            vectors fit. With 0, `eigsh` is assumed to end with its first basis of max(2 k + 30, 40) vectors.

    Example:
        >>> import torch
        >>> from frechet import hessian, plan
        >>> found = plan(hessian(lambda x: (x**4).sum(), torch.ones(1000)), budget=10**9)
        >>> found.examples is None, [job.name for job in found.jobs]
        (True, ['10 largest eigenpairs', 'trace', 'spectral density'])
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(f"plan: A must be an operator, got {type(A).__name__}; write plan(hessian(objective))")
    if A.domain != A.codomain:
        raise ValueError(f"plan: A must be square on one space, got {A!r}")
    space = A.domain
    budget = free_memory(space.device) if budget is None else budget
    if budget <= 0:
        raise ValueError(f"plan: budget must be a positive number of bytes, got {budget}")
    one, two = space.random(range(1), 0), space.random(range(2), 0)
    _measured(A, one)  # the first product loads what it needs
    (first, peak), (second, higher) = (_measured(A, V) for V in (one, two))
    vector = space.dim * one.element_size()
    more, added = max(0.0, second - first), None
    if peak is not None and higher is not None:
        added = max(higher - peak, 2 * vector)  # the vector and its product at least
        if peak + (MANY - 1) * added <= budget:  # the second vector may cost more than the third
            longer, highest = _measured(A, space.random(range(MANY), 0))
            more = max(0.0, longer - first) / (MANY - 1)
            added = max(((highest or peak) - peak) // (MANY - 1), 2 * vector)
    cost = _Cost(space, budget, first, more, peak, added, vector)
    basis = min(space.dim, max(2 * k + 30, 40))
    # beside the basis: what is made orthogonal, its copy and coefficients, and the vectors found
    pairs = cost.job(f"{k} largest eigenpairs", basis, basis, min(k, space.dim) + 4, 1)
    if pairs.fits is not False:
        count = _eigsh_products(A, k, basis, max(4 * k, SAMPLE) if sample is None else sample)
        pairs = replace(pairs, products=count, seconds=count * first)
    # the sketch keeps a vector for each of its probes, and is copied when it grows and when it is read
    sketch = products if Fact.POSITIVE_SEMIDEFINITE in A.facts else products // 2
    jobs = (
        pairs,
        cost.job("trace", min(products, space.dim), 0, 2 * sketch + 16 if products < space.dim else 64, 16),
        cost.job("spectral density", probes * min(steps, space.dim), min(steps, space.dim), 4, 1),
    )
    rows, examples = None, None
    if peak is not None and peak > budget:
        rows, rest = _rows_that_fit(A, budget, peak, one)
        examples = None if rest <= budget else _examples_that_fit(A, budget, rest, vector)
    kept = max(0, cost.room // vector)
    return Plan(repr(A), budget, first, peak, cost.more, added, cost.at_once, kept, examples, rows, jobs)


@dataclass(frozen=True, eq=False)
class _Cost:
    """What a product takes: `first` seconds and `peak` bytes, and `more` and `added` for each further vector."""

    space: Space
    budget: int
    first: float
    more: float
    peak: int | None
    added: int | None
    vector: int  # bytes

    @property
    def room(self) -> int:
        return self.budget - (self.peak or 0)

    @property
    def at_once(self) -> int:
        return 1 if self.added is None else max(1, min(MOST_AT_ONCE, 1 + self.room // self.added))

    def job(self, name: str, count: int, basis: int, vectors: int, block: int) -> Job:
        """`count` products in blocks, beside a basis that may be stored in fewer bits, and other vectors."""
        block = min(block, self.at_once)
        seconds = count * (self.first + (block - 1) * self.more) / block
        if self.peak is None or self.added is None:
            return Job(name, count, seconds, None, basis + vectors, None)
        beside = self.peak + (block - 1) * self.added + vectors * self.vector
        need = beside + basis * self.vector
        made = Job(name, count, seconds, need, basis + vectors, need <= self.budget)
        for storage in get_args(Storage) if basis else ():
            dtype, device = kept_as(self.space, storage, "plan")
            kept = basis * self.space.length * dtype.itemsize
            here = beside + (kept if device == self.space.device else 0)
            elsewhere = device == self.space.device or kept <= free_memory(device)
            if here <= self.budget and elsewhere and storage != "bfloat16":  # float16 is as small, and more precise
                loss = roundoff(self.space, storage, "plan")
                return replace(made, storage=storage, stored_bytes=here, roundoff=loss)
        return made


def _eigsh_products(A: LinearOperator, k: int, basis: int, sample: int) -> int:
    """How many products `eigsh` will take for the k largest pairs: those that it takes on a diagonal matrix like A."""
    n = A.domain.dim
    if Fact.SYMMETRIC not in A.facts or not 0 < k < n or sample < 2:
        return basis
    found = lanczos(A, A.domain.random(0, 0, "gaussian"), steps=sample)
    values, counts = _eigenvalues_like(found, float(A.domain.norm(found.residual)), n)
    like = from_callable(lambda V: values[:, None] * V, len(values), facts="symmetric", dtype=torch.float64)
    start = counts.sqrt() * like.domain.random(0, 0, "gaussian")
    most = MOST_BASES * basis
    return eigsh(like, min(k, len(values) - 1), seed=0, x0=start[:, None], max_products=most).products


def _eigenvalues_like(found: Lanczos, residual: float, n: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues, and how many of the n each stands for, of which Lanczos' method would have seen about the same."""
    nodes, vectors = scipy.linalg.eigh_tridiagonal(found.alpha.numpy(), found.beta.numpy())
    residuals = residual * np.abs(vectors[-1])
    apart = np.minimum(np.diff(nodes, prepend=-np.inf), np.diff(nodes, append=np.inf))
    single = residuals < SETTLED * apart
    high = len(nodes) - int(single[::-1].cumprod().sum())
    low = min(int(single.cumprod().sum()), high)
    ends, t = np.concatenate([nodes[:low], nodes[high:]]), nodes[low:high]
    w = np.maximum(n * np.square(vectors[0, low:high]), 1.0)  # beyond the j-th Ritz value lie j eigenvalues or more
    left = n - len(ends)
    if len(t) < 2:
        rest = np.full(min(max(left, 0), EDGE), t[0] if len(t) else nodes[0])
        counts = np.concatenate([np.full(len(rest), left / max(len(rest), 1)), np.ones(len(ends))])
        return torch.from_numpy(np.concatenate([rest, ends])), torch.from_numpy(counts)
    r = residuals[low:high]  # an eigenvalue lies within it
    bottom, top = t[0] - min(r[0], (t[1] - t[0]) / 2), t[-1] + min(r[-1], (t[-1] - t[-2]) / 2)
    bottom = max(bottom, (nodes[low - 1] + t[0]) / 2) if low else bottom
    top = min(top, (nodes[high] + t[-1]) / 2) if high < len(nodes) else top
    share = (np.cumsum(w) - w / 2) / w.sum()
    quantiles = scipy.interpolate.PchipInterpolator([0.0, *share, 1.0], [bottom, *t, top])
    edge = min(EDGE, left // 2)
    inner = np.linspace(edge, left - edge, min(GROUPS, left - 2 * edge) + 1)
    borders = np.concatenate([np.arange(edge), inner, np.arange(left - edge + 1, left + 1)])
    middles = (borders[:-1] + borders[1:]) / (2 * left)
    values = np.concatenate([quantiles(middles), ends])
    return torch.from_numpy(values), torch.from_numpy(np.concatenate([np.diff(borders), np.ones(len(ends))]))


def _measured(A: LinearOperator, V: Tensor) -> tuple[float, int | None]:
    device = A.domain.device
    before, start = start_peak(device), time.perf_counter()
    float((A @ V)[0, 0])  # waits for the device
    return time.perf_counter() - start, peak_above(before, device)


def _rows_that_fit(A: LinearOperator, budget: int, peak: int, one: Tensor) -> tuple[int | None, int]:
    """The rows of a head at once, halved until a product was seen within the budget, and the bytes that it took.

    Not in a group: its processes measure different peaks, and must all make the same products.
    """
    if not isinstance(A, SumOverData | OutputJacobian) or A.snapshot.group is not None:
        return None, peak
    chunks = [
        min(part.head.chunk(A.domain.dtype), batch.targets.numel())
        for part in A.snapshot.parts
        if part.head is not None
        for batch in part.batches(A.domain.device)
    ]
    rows = max(chunks, default=1)
    if rows == 1:
        return None, peak
    while peak > budget and rows > 1:
        rows //= 2
        peak = _measured(_with_rows(A, rows), one)[1] or peak
    return rows, peak


def _with_rows(A: SumOverData | OutputJacobian, rows: int) -> LinearOperator:
    dtype = A.domain.dtype
    parts = [
        p if p.head is None else replace(p, head=replace(p.head, rows=min(rows, p.head.chunk(dtype))))
        for p in A.snapshot.parts
    ]
    return replace(A, snapshot=replace(A.snapshot, parts=tuple(parts)))


def _examples_that_fit(A: LinearOperator, budget: int, peak: int, vector: int) -> int | None:
    """Examples per batch for which a product stays within the budget, memory growing in proportion to them."""
    if not isinstance(A, SumOverData | OutputJacobian):
        return None
    batches = (batch for part in A.snapshot.parts for batch in part.batches(A.domain.device))
    sizes = [batch.examples for batch in batches]
    fixed = 3 * vector  # the vector, its product and a gradient do not depend on the batch
    share = (budget - fixed) / max(1, peak - fixed)
    return max(1, int(max(sizes, default=1) * share))


def _fits(fits: bool | None) -> str:
    return "unknown" if fits is None else "yes" if fits else "no"


def _size(number: int | None) -> str:
    if number is None:
        return "unknown memory"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
