"""Jacobians whose products are recorded: J v and J'u on each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frechet.errors import NonFinite
from frechet.objective import Batch, Part
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import FromCallable
from frechet.operators.derivatives._jacobian import OutputJacobian
from frechet.operators.derivatives._products import Leaves, Sums, columns, differentiating
from frechet.recording._batch import without_numbers
from frechet.recording._budget import Budget
from frechet.recording._of_data import still
from frechet.recording._recordings import Plain, Product, Recorded, Recordings, Served, play
from frechet.recording._watch import Map
from frechet.space import Space


@dataclass(frozen=True, eq=False)
class _OnBatch:
    """J v and J'u on one batch, whose outputs are `space`, those of the codomain from `start` on."""

    push: Served
    pull: Served
    space: Space
    start: int
    error: NonFinite  # what to say where it gives a NaN: the inputs may be gone
    absent: Batch

    @property
    def kept(self) -> bool:
        return all(isinstance(one, Recorded) and one.kept for one in (self.push, self.pull))


@dataclass(frozen=True, eq=False)
class _Products:
    """J V and J'U, batch by batch."""

    A: OutputJacobian
    batches: list[_OnBatch]

    def _each(self, use: Callable[[_OnBatch, Batch, Leaves], None]) -> None:
        """Call `use` for each batch, without its numbers where none are needed."""
        s, space = self.A.snapshot, self.A.domain
        with differentiating("jacobian", space.device):
            if all(on.kept for on in self.batches):
                for on in self.batches:
                    use(on, on.absent, ([], {}))
                return
            at, leaves = iter(self.batches), s.leaves(space)
            with s.installed(leaves[1]):
                s.sweep(lambda _part, batch: use(next(at), batch, leaves))

    def matmat(self, V: Tensor) -> Tensor:
        space, rows = self.A.domain, []
        vectors = columns(space, V)

        def use(on: _OnBatch, batch: Batch, leaves: Leaves) -> None:
            served, tensors = still("jacobian", on.push, batch)
            if isinstance(served, Plain):
                pushed = self.A.push(leaves, batch, vectors)
            else:
                sums = Sums([[] for _ in vectors])
                play(served, tensors, vectors, space, sums)
                pushed = [row[0] for row in sums.rows]
            rows.append(torch.stack([p.reshape(-1) for p in pushed]))
            if not _finite(rows[-1]):
                raise NonFinite(*on.error.args)

        self._each(use)
        return torch.cat(rows, 1).T

    def rmatmat(self, U: Tensor) -> Tensor:
        space = self.A.domain
        out = space.zeros(U.shape[1])
        sums = Sums([space.split(row) for row in out.T])
        self._each(lambda on, batch, leaves: self._pull(on, batch, leaves, U, sums))
        if not _finite(out):
            self._each(lambda on, batch, leaves: self._look(on, batch, leaves, U))
            raise NonFinite(f"jacobian: the sum over all batches overflows {space.dtype}, though each batch is finite")
        return out

    def _pull(self, on: _OnBatch, batch: Batch, leaves: Leaves, U: Tensor, sums: Sums) -> None:
        some = U[on.start : on.start + on.space.dim]
        served, tensors = still("jacobian", on.pull, batch)
        if isinstance(served, Plain):
            self.A.pull(leaves, batch, [u.contiguous() for u in some.T], sums)
        else:
            play(served, tensors, columns(on.space, some), on.space, sums)

    def _look(self, on: _OnBatch, batch: Batch, leaves: Leaves, U: Tensor) -> None:
        sums = Sums([[] for _ in range(U.shape[1])])
        self._pull(on, batch, leaves, U, sums)
        if not all(_finite(b) for row in sums.rows for b in row):
            raise NonFinite(*on.error.args)


def recorded_jacobian(A: OutputJacobian, budget: Budget) -> tuple[LinearOperator, list[tuple[Served, ...]], str]:
    """A by two recordings for each batch, or by its own products; how each is served; and the route."""
    with differentiating("jacobian", A.domain.device), torch.no_grad():
        products = _Products(A, _served(A, budget))
    kept = FromCallable(products.matmat, products.rmatmat, A.domain, A.codomain, A.facts)
    return kept, [(on.push, on.pull) for on in products.batches], A.route


def _served(A: OutputJacobian, budget: Budget) -> list[_OnBatch]:
    """Decide how the products on each batch are computed, in one pass."""
    s, space = A.snapshot, A.domain
    found: list[_OnBatch] = []
    leaves, pushes, pulls = s.leaves(space), Recordings(budget, space), {}
    budget.hold_apart([s.x, *s.constants.values(), *leaves[1].values()])

    def push(batch: Batch) -> Map:
        return lambda v: A.push(leaves, batch, [v])

    def pull(batch: Batch) -> Map:
        def product(u: list[Tensor]) -> list[Tensor]:
            sums = Sums([[]])
            A.pull(leaves, batch, u, sums)
            return sums.rows[0]

        return product

    def visit(part: Part, batch: Batch) -> None:
        def on(make: Callable[[Batch], Map]) -> Product:
            tree = (batch.inputs, batch.targets)
            return Product(None, tree, lambda t: make(replace(batch, inputs=t[0], targets=t[1])), make(batch))

        with torch.no_grad():
            size = s.forward(leaves[1], batch).numel()
        outputs = Space(("",), ((size,),), space.dtype, space.device)
        pulling = pulls.setdefault(size, Recordings(budget, outputs, full=pushes.full))
        pushed = pushes.serve(on(push))
        pulling.full = pushes.full
        pulled = pulling.serve(on(pull))
        pushes.full = pulling.full
        start = found[-1].start + found[-1].space.dim if found else 0
        absent = replace(batch, inputs=without_numbers(batch.inputs), targets=without_numbers(batch.targets))
        found.append(_OnBatch(pushed, pulled, outputs, start, s.nonfinite("jacobian", part, batch), absent))

    with s.installed(leaves[1]):
        s.sweep(visit)
    return found


def _finite(t: Tensor) -> bool:
    # one cheap reduction first: a finite sum has finite terms
    return math.isfinite(float(t.sum())) or bool(torch.isfinite(t).all())
