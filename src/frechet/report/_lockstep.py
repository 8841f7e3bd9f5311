"""Several Krylov spaces at once: the next vectors of all of them are one block, which is one pass over the data.

    density    probes of one operator, for stochastic Lanczos quadrature (`linalg/_density.py`)
    tops       one vector per module, supported there: the largest eigenvalue of every diagonal block

Each space has its own basis, orthogonalized fully, so that the numbers are those of one run after another. Memory is
`together` bases of `steps` vectors for the density; the modules' bases together are one basis of whole vectors.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from frechet.linalg._basis import new_basis
from frechet.linalg._density import Density, DensityState
from frechet.linalg._result import Spectrum, Status
from frechet.operators._operator import Fact, LinearOperator
from frechet.report._schema import Eigenvalue
from frechet.space import Space

STREAM = 1 << 41  # probes of the modules: far from those of the density, the traces and eigsh


@torch.no_grad()
def density(
    A: LinearOperator,
    *,
    seed: int,
    probes: int,
    steps: int,
    together: int,
    deflate: Spectrum | None,
    observe: Callable[[DensityState], bool],
    resume: DensityState | None,
) -> Density:
    """Return the density that `spectral_density` returns, `together` probes in each block of products.

    `observe` sees the finished probes after each step; True ends the run with the steps that were made. `resume`
    continues after the finished probes.
    """
    space, known = A.domain, None if deflate is None else deflate.vectors
    k = 0 if known is None else known.shape[1]
    m = min(steps, space.dim - k)
    fingerprint = (repr(space), seed, m, k, "device")
    alpha, beta = torch.zeros(probes, m, dtype=torch.float64), torch.zeros(probes, m, dtype=torch.float64)
    lengths: list[int] = []
    if resume is not None and resume.fingerprint == fingerprint:
        lengths = list(resume.lengths)
        alpha[: len(lengths)], beta[: len(lengths)] = resume.alpha, resume.beta
    stopped = False
    while len(lengths) < probes and m and not stopped:
        done = len(lengths)
        group = range(done, min(done + together, probes))
        bases = [new_basis(space, min(m + 1, space.dim - k), "device", "density", known) for _ in group]
        for i, W in zip(group, bases, strict=True):
            W.start(space.random(i, seed, "gaussian"), "density", "the probe")
        made, scales, j = [0] * len(bases), [0.0] * len(bases), 0
        active = list(range(len(bases)))
        while active and j < m and not stopped:
            Y = A @ torch.stack([bases[i].column(j) for i in active]).T
            for column, i in enumerate(active):
                h, b, scales[i] = bases[i].append(j + 1, Y[:, column], scales[i], f"density: step {j + 1} (A @ v)")
                alpha[done + i, j], beta[done + i, j], made[i] = h[-1], b, j + 1
            active, j = [i for i in active if beta[done + i, j] > 0], j + 1
            counted = sum(lengths)
            state = DensityState(fingerprint, alpha[:done].clone(), beta[:done].clone(), tuple(lengths), j, counted)
            stopped = observe(state)
        if stopped and j < m and lengths:
            break  # cut probes are kept only where they are all there is
        lengths += made
    done, deflated = len(lengths), torch.zeros(0, dtype=torch.float64)
    lowest = 0.0 if Fact.POSITIVE_SEMIDEFINITE in A.facts else -math.inf
    return Density(
        alpha[:done], beta[:done], tuple(lengths), deflated if deflate is None else deflate.values.cpu(),
        deflated if deflate is None else deflate.residuals.cpu(), space.dim, sum(lengths), seed, space.eps, lowest,
        Status.STOPPED if stopped else Status.CONVERGED,
    )  # fmt: skip


def modules_of(space: Space) -> dict[str, tuple[str, ...]]:
    """The blocks of each module, by the part of their names before the last dot, in the order of their first."""
    made: dict[str, tuple[str, ...]] = {}
    for name in space.names:
        module = name.rpartition(".")[0] or "(root)"
        made[module] = (*made.get(module, ()), name)
    return made


@dataclass
class _Module:
    """The Krylov space of one diagonal block."""

    name: str
    rows: Tensor  # where its entries lie in a whole vector
    space: Space
    steps: int
    alpha: list[float]
    beta: list[float]
    scale: float = 0.0

    def top(self, rtol: float) -> Eigenvalue:
        """The largest Ritz value and its residual."""
        off = np.array(self.beta[:-1])
        values, vectors = scipy.linalg.eigh_tridiagonal(np.array(self.alpha), off)
        value, residual = float(values[-1]), abs(self.beta[-1] * float(vectors[-1, -1]))
        residual = math.hypot(residual, 10 * self.space.eps * self.scale)  # as in eigsh
        return Eigenvalue(value, residual, residual <= rtol * abs(value))


@torch.no_grad()
def tops(
    A: LinearOperator,
    names: Sequence[str],
    *,
    seed: int,
    steps: int,
    together: int,
    rtol: float,
    observe: Callable[[dict[str, Eigenvalue]], bool],
    found: dict[str, Eigenvalue] | None = None,
) -> dict[str, Eigenvalue]:
    """Return the largest eigenvalue of the diagonal block of each of the modules `names`, in at most `steps` steps.

    `found` holds modules that are done; `observe` sees them after each step and stops the run by returning True.
    """
    space, blocks, found = A.domain, modules_of(A.domain), dict(found or {})
    todo = [name for name in names if name not in found]
    for a in range(0, len(todo), together):
        parts = [_module(space, name, blocks[name], steps) for name in todo[a : a + together]]
        bases = [new_basis(p.space, min(steps + 1, p.space.dim), "device", "tops", None) for p in parts]
        for number, (p, W) in enumerate(zip(parts, bases, strict=True)):
            W.start(p.space.random(STREAM + a + number, seed, "gaussian"), "tops", "the probe")
        active, j, stopped = list(range(len(parts))), 0, False
        while active and not stopped:
            V = space.zeros(len(active))
            for column, i in enumerate(active):
                V[parts[i].rows, column] = bases[i].column(j)
            Y = A @ V
            for column, i in enumerate(active):
                p = parts[i]
                h, b, p.scale = bases[i].append(j + 1, Y[p.rows, column], p.scale, f"tops: step {j + 1} (A @ v)")
                p.alpha.append(float(h[-1]))
                p.beta.append(b)
            j += 1
            going = {i: parts[i].top(rtol) for i in active}
            active = [i for i, top in going.items() if not top.converged and j < _steps(parts[i]) and parts[i].beta[-1]]
            found.update({parts[i].name: top for i, top in going.items() if i not in active})
            stopped = observe(found)
        found.update({p.name: p.top(rtol) for p in parts if p.alpha})
        if stopped:
            break
    return found


def _steps(p: _Module) -> int:
    """The steps that fit into the module's space."""
    return min(p.steps, p.space.dim)


def _module(space: Space, name: str, blocks: tuple[str, ...], steps: int) -> _Module:
    sub = space.restrict([glob.escape(b) for b in blocks])
    return _Module(name, space.indices(sub), sub, steps, [], [])
