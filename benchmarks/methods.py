"""How each library's users get a trace and eigenpairs: by its own functions and its own stopping rule.

A method takes a setting and a seed and returns an `Answer`. Where a library has no stopping rule, the method is the
loop that a careful user would write around it: twice the products until the answer's own error bar, or the agreement of
two answers in a row, says that it is good enough; all products count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import peers
import torch
from models import Batch, Problem
from reference import flatten
from torch import Tensor

MOST = 2000  # products after which such a loop gives up


@dataclass(frozen=True, eq=False)
class Setting:
    """What is asked for: on which problem and batches, how many pairs, to which relative tolerance."""

    problem: Problem
    batches: list[Batch]
    rtol: float
    pairs: int = 10


@dataclass(frozen=True, eq=False)
class Answer:
    """A trace, or eigenvalues with vectors (n, k); the products it took."""

    products: int
    trace: float | None = None
    values: np.ndarray | None = None
    vectors: Tensor | None = None


Method = Callable[[Setting, int], Answer]


class Counted:
    """A product that counts its calls."""

    def __init__(self, product: Callable[..., Any]) -> None:
        self.product, self.count = product, 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self.product(*arguments)


def frechet_trace(s: Setting, seed: int) -> Answer:
    from frechet import hessian, linearize, trace

    with linearize(hessian(peers.objective(s.problem, s.batches))) as H:
        found = trace(H, seed=seed, rtol=s.rtol)
    return Answer(found.products, float(found.value))


def frechet_eigsh(s: Setting, seed: int) -> Answer:
    from frechet import eigsh, hessian, linearize

    with linearize(hessian(peers.objective(s.problem, s.batches))) as H:
        found = eigsh(H, s.pairs, which="largest", seed=seed, rtol=s.rtol)
    return Answer(found.products, values=found.values.numpy(), vectors=found.vectors)


# --- PyHessian --------------------------------------------------------------------------------------------------------


def pyhessian(question: str, *, kept: bool = False, **rule: float) -> Method:
    """`trace` or `eigenvalues` by its rule, the change from one iterate to the next.

    `kept` is its fast mode, for data that fit into one batch: one graph for all products.
    """

    def method(s: Setting, seed: int) -> Answer:
        torch.manual_seed(seed)
        if kept:
            inputs, targets = zip(*s.batches, strict=True)
            H = peers.pyhessian_operator(s.problem, batch=(torch.cat(inputs), torch.cat(targets)))
            s.problem.model.zero_grad()
        else:
            H = peers.pyhessian_operator(s.problem, s.batches)
        module = sys.modules["pyhessian.hessian"]
        where, name = (module, "hessian_vector_product") if kept else (H, "dataloader_hv_product")
        counted = Counted(getattr(where, name))
        with patch.object(where, name, counted):
            if question == "trace":
                return Answer(trace=float(np.mean(H.trace(**rule))), products=counted.count)
            values, vectors = H.eigenvalues(top_n=s.pairs, **rule)
        V = torch.stack([flatten(tuple(v)).detach() for v in vectors]).T
        return Answer(counted.count, values=np.array(values), vectors=V)

    return method


# --- curvlinops -------------------------------------------------------------------------------------------------------


def curvlinops_trace(estimator: str, first: int) -> Method:
    """Twice the products until two answers agree to rtol: it has neither an error bar nor a rule."""

    def method(s: Setting, seed: int) -> Answer:
        import curvlinops

        torch.manual_seed(seed)
        H = peers.curvlinops_operator(s.problem, s.batches)
        products, spent, last = first, 0, float("nan")
        while True:
            value = float(getattr(curvlinops, estimator)(H, num_matvecs=products))
            spent += products
            products *= 2
            if abs(value - last) <= s.rtol * abs(value) or spent + products > MOST:
                return Answer(spent, value)
            last = value

    return method


def curvlinops_eigsh(s: Setting, seed: int) -> Answer:
    """Its documented way: SciPy's `eigsh` on `to_scipy()`, whose rule is a relative residual."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    H = peers.curvlinops_operator(s.problem, s.batches).to_scipy()
    counted = Counted(H.matvec)
    A = LinearOperator(H.shape, matvec=counted, dtype=H.dtype)
    v0 = np.random.default_rng(seed).standard_normal(H.shape[0]).astype(H.dtype)
    values, vectors = eigsh(A, k=s.pairs, which="LA", tol=s.rtol, v0=v0)
    return Answer(counted.count, values=values[::-1].copy(), vectors=torch.from_numpy(vectors[:, ::-1].copy()))


# --- hessian-eigenthings ----------------------------------------------------------------------------------------------


def _eigenthings(s: Setting):
    from hessian_eigenthings import LambdaOperator

    H = peers.eigenthings_operator(s.problem, s.batches)
    counted = Counted(H.matvec)
    return counted, LambdaOperator(counted, size=H.size, device=H.device, dtype=H.dtype)


def eigenthings_trace(s: Setting, seed: int) -> Answer:
    """Its default: Hutch++ with 100 products."""
    from hessian_eigenthings import trace

    counted, H = _eigenthings(s)
    estimate = trace(H, seed=seed).estimate
    return Answer(counted.count, estimate)


def eigenthings_trace_doubled(s: Setting, seed: int) -> Answer:
    """Twice the products until two of its standard errors are below rtol."""
    from hessian_eigenthings import trace

    counted, H = _eigenthings(s)
    products = 24
    while True:
        found = trace(H, num_matvecs=products, seed=seed)
        products *= 2
        if 2 * found.stderr <= s.rtol * abs(found.estimate) or counted.count + products > MOST:
            return Answer(counted.count, found.estimate)


def eigenthings_lanczos(s: Setting, seed: int) -> Answer:
    """Twice the steps, from its default of 2 k, until all its `converged` flags are set."""
    from hessian_eigenthings import lanczos

    counted, H = _eigenthings(s)
    steps = 2 * s.pairs
    while True:
        found = lanczos(H, k=s.pairs, max_iter=steps, tol=s.rtol, which="LA", seed=seed)
        steps = min(2 * steps, H.size)
        if bool(found.converged.all()) or counted.count + steps > MOST:
            return Answer(counted.count, values=found.eigenvalues.numpy(), vectors=found.eigenvectors.T)


def eigenthings_power(s: Setting, seed: int) -> Answer:
    """Its deflated power iteration, whose rule is a relative residual, with room to reach it."""
    from hessian_eigenthings import deflated_power_iteration

    counted, H = _eigenthings(s)
    found = deflated_power_iteration(H, k=s.pairs, tol=s.rtol, seed=seed)
    return Answer(counted.count, values=found.eigenvalues.numpy(), vectors=found.eigenvectors.T)


# (name, package, method); the rules of PyHessian are those asked for and those it has by default
TRACE: list[tuple[str, str, Method]] = [
    ("frechet trace(rtol=0.01)", "frechet", frechet_trace),
    ("PyHessian trace(tol=0.01)", "pyhessian", pyhessian("trace", tol=0.01)),
    ("PyHessian trace(tol=0.001), its default", "pyhessian", pyhessian("trace")),
    ("  the same, graph kept", "pyhessian", pyhessian("trace", kept=True)),
    ("  the same, tol=0.0001, maxIter=1000", "pyhessian", pyhessian("trace", kept=True, tol=1e-4, maxIter=1000)),
    ("curvlinops xtrace, doubled", "curvlinops", curvlinops_trace("xtrace", 20)),
    ("curvlinops hutchpp_trace, doubled", "curvlinops", curvlinops_trace("hutchpp_trace", 24)),
    ("hessian-eigenthings trace(), its default", "hessian_eigenthings", eigenthings_trace),
    ("hessian-eigenthings trace, doubled", "hessian_eigenthings", eigenthings_trace_doubled),
]
PAIRS: list[tuple[str, str, Method]] = [
    ("frechet eigsh(rtol=0.001)", "frechet", frechet_eigsh),
    ("PyHessian eigenvalues(tol=0.001)", "pyhessian", pyhessian("eigenvalues", tol=1e-3)),
    ("  the same, graph kept", "pyhessian", pyhessian("eigenvalues", kept=True, tol=1e-3)),
    ("  the same, tol=1e-6, maxIter=1000", "pyhessian", pyhessian("eigenvalues", kept=True, tol=1e-6, maxIter=1000)),
    ("curvlinops + SciPy eigsh(tol=0.001)", "curvlinops", curvlinops_eigsh),
    ("hessian-eigenthings lanczos, doubled", "hessian_eigenthings", eigenthings_lanczos),
    ("hessian-eigenthings deflated power", "hessian_eigenthings", eigenthings_power),
]
