"""Linearizations: an operator whose products are recorded, and no longer compute what does not depend on the vector.

The product on a batch is recorded once (`_replay.py`), in two parts: one makes, from the batch and the parameters, all
that the vector does not touch, the other applies it. What the first makes is kept for as many batches as memory allows:
then a Hessian product costs 1.2 to 2.1 gradients instead of 2.6 to 3.3, Gauss-Newton 0.9 to 1.4 instead of 1.8 to 2.2.
For the other batches it is made anew at each product: 1.9 to 3.1 gradients, and 1.5 to 1.8. Batches that look the same
(`_batch.py`) are served by one recording.

On each batch the recording is proved against a plain product (`_proof.py`). Where it is not right, or cannot be made,
plain products serve that batch, and the result says so.

Products are recorded in reverse mode, unless a Hessian has convolutions whose kept batch exceeds `SMALL`: their second
backward computes what nobody needs, and forward over reverse does not. Small batches are played back for `TOGETHER`
vectors at once where the operations allow it: there the calls cost more than the arithmetic.

**Cost:** linearizing takes 9 to 16 gradients, and for each further batch that looks the same 3 to 7: a product, and a
playback with its constants. Memory per kept batch: 2 to 3 times what a gradient keeps.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from frechet.operators._operator import Adjoint, Fact, LinearOperator, Product, Scaled, Sum
from frechet.operators.derivatives import hessian
from frechet.operators.derivatives._function import FunctionHessian, FunctionJacobian
from frechet.operators.derivatives._gauss_newton import OutputProduct
from frechet.operators.derivatives._hessian import ObjectiveHessian
from frechet.operators.derivatives._jacobian import OutputJacobian
from frechet.operators.derivatives._modes import Way
from frechet.recording._budget import Budget
from frechet.recording._memory import free_memory
from frechet.recording._of_data import recorded_product
from frechet.recording._of_function import recorded_function
from frechet.recording._of_jacobian import recorded_jacobian
from frechet.recording._recordings import Plain, Served
from frechet.space import Space

Found = tuple[LinearOperator, list[tuple[Served, ...]], str]  # an operator, how its batches are served, its route


@dataclass(frozen=True, eq=False, repr=False)
class Linearized(LinearOperator):
    """`operator` with its products recorded: the same map, faster, holding `bytes` until it is released.

    `route` says how it was recorded. Of the batches, the constants of `batches` are kept, those of `recomputed` are
    made anew at each product, and `plain` are served by plain products, for the reasons in `message`. Linearizing took
    `seconds` and is paid back after about `pays_after` products (inf where a product is no faster). Use it as a context
    manager, or call `release()`.
    """

    operator: LinearOperator
    recorded: LinearOperator
    budget: Budget
    served: tuple[tuple[Served, ...], ...]  # of each batch of each derivative in it, how its products are computed
    routes: frozenset[str]
    seconds: float

    @property
    def domain(self) -> Space:
        return self.operator.domain

    @property
    def codomain(self) -> Space:
        return self.operator.codomain

    @property
    def facts(self) -> frozenset[Fact]:
        return self.operator.facts

    @property
    def bytes(self) -> int:
        """Memory that is held now."""
        return self.budget.bytes

    @property
    def route(self) -> str:
        """The mode in which products were recorded: "reverse", "forward", or both."""
        return " and ".join(sorted(self.routes))

    @property
    def batches(self) -> int:
        """Batches whose constants are kept."""
        return len(self.served) - self.recomputed - self.plain

    @property
    def recomputed(self) -> int:
        """Batches whose constants are made anew at each product."""
        return sum(not any(map(_is_plain, some)) and not all(map(_is_kept, some)) for some in self.served)

    @property
    def plain(self) -> int:
        """Batches that plain products serve."""
        return sum(any(map(_is_plain, some)) for some in self.served)

    @property
    def message(self) -> str:
        """How many batches are served by recordings, and why the others are not."""
        said = f"{len(self.served) - self.plain} of {len(self.served)} batches are served by recordings"
        plain = [[one.why for one in some if isinstance(one, Plain)] for some in self.served]
        reasons = Counter(whys[0] for whys in plain if whys)
        return "; ".join([said, *(f"{count} by plain products: {why}" for why, count in reasons.items())])

    @property
    def pays_after(self) -> float:
        """The number of products after which linearizing was worth its time, from the seconds of each batch."""
        saved = self.budget.plain - self.budget.played
        return math.inf if saved <= 0 else float(math.ceil(self.seconds / saved))

    def release(self) -> None:
        """Free what is held; products raise from now on."""
        self.budget.released = True
        self.budget.forget()

    def __enter__(self) -> Linearized:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        held = "released" if self.budget.released else f"{self.bytes / 2**20:.1f} MiB held"
        some = f", {self.recomputed} batches recomputed" if self.recomputed else ""
        some += f", {self.plain} by plain products" if self.plain else ""
        return f"Linearized({self.operator!r}, {self.route}, {self.batches} batches, {held}{some})"

    def _matmat(self, V: Tensor) -> Tensor:
        return self._present()._matmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._present()._rmatmat(U)

    def _present(self) -> LinearOperator:
        if self.budget.released:
            raise RuntimeError("Linearized: its memory was released; make another with linearize(A)")
        return self.recorded


def _is_plain(served: Served) -> bool:
    return isinstance(served, Plain)


def _is_kept(served: Served) -> bool:
    return not isinstance(served, Plain) and served.kept


def linearize(A: LinearOperator, memory: int | None = None, compile: bool = False) -> Linearized:
    """Return `A` with its products recorded: for many products with a Hessian, Gauss-Newton, Fisher, Jacobian or NTK.

    Sums, products, multiples and transposes of these are linearized factor by factor. Other operators in them stay as
    they are. Random draws (dropout masks, labels of a Monte Carlo Fisher) are frozen. Each batch's recording is proved
    against a product of `A`. Batches for which no recording is right are served by products of `A`, and `message` says
    why.

    Args:
        A: the operator.
        memory: the most bytes to hold. Batches are kept in data order until the next would exceed it. Those after it
            are computed anew at each product from the data, which must stay the same. Default: half of what is free.
        compile: with True, the recorded code goes through torch.compile, which takes seconds. On the CPU nothing was
            gained where we measured it.

    Example:
        >>> import torch
        >>> from frechet import hessian, linearize
        >>> H = hessian(lambda x: x[0] ** 2 * x[1], torch.tensor([1.0, 3.0]))
        >>> with linearize(H) as L:
        ...     L @ torch.tensor([1.0, 0.0])
        tensor([6., 2.])
    """
    if not isinstance(A, LinearOperator):
        raise TypeError(
            f"linearize: A must be an operator, got {type(A).__name__}; write linearize(hessian(objective))"
        )
    if memory is not None and memory < 0:
        raise ValueError(f"linearize: memory must be a number of bytes, 0 or more, got {memory}")
    _load()
    start = time.perf_counter()
    made = _Linearizing(Budget(free_memory(A.domain.device) / 2 if memory is None else memory, compile))
    recorded = made.of(A)
    if not made.routes:
        raise TypeError(
            f"linearize: A must hold a derivative of an objective or a function, got {A!r}; its products need no "
            "linearization"
        )
    seconds = time.perf_counter() - start
    return Linearized(A, recorded, made.budget, tuple(made.served), frozenset(made.routes), seconds)


@cache
def _load() -> None:
    """Linearize once before seconds are counted: PyTorch loads parts of itself when they are first used."""
    _Linearizing(Budget(math.inf)).of(hessian(lambda x: x.pow(3).sum(), torch.ones(2)))


@dataclass(eq=False)
class _Linearizing:
    """An operator's derivatives as they are replaced by recorded ones; one gets one form, wherever it stands."""

    budget: Budget
    done: dict[int, LinearOperator] = field(default_factory=dict)
    served: list[tuple[Served, ...]] = field(default_factory=list)
    routes: set[str] = field(default_factory=set)

    def of(self, A: LinearOperator) -> LinearOperator:
        if id(A) not in self.done:
            self.done[id(A)] = self._replaced(A)
        return self.done[id(A)]

    def _replaced(self, A: LinearOperator) -> LinearOperator:
        match A:
            case ObjectiveHessian():
                return self._noted(recorded_product(A, self.budget))
            case OutputProduct():
                return self._noted(self._along(A.way, lambda: recorded_product(A, self.budget)))
            case OutputJacobian():
                return self._noted(self._along(A.way, lambda: recorded_jacobian(A, self.budget)))
            case FunctionHessian() | FunctionJacobian():
                return self._noted(recorded_function(A, self.budget))
            case Linearized():
                raise TypeError(f"linearize: A must not be linearized already, got {A!r}")
            case Scaled(c, B):
                return Scaled(c, self.of(B))
            case Sum(terms):
                return Sum(tuple(map(self.of, terms)))
            case Product(factors):
                return Product(tuple(map(self.of, factors)))
            case Adjoint(B):
                return Adjoint(self.of(B))
        return A

    def _along(self, way: Way, record: Callable[[], Found]) -> Found:
        """What `record` finds by the route of an operator, which its products may turn, as without recordings."""
        before = len(self.budget.replays)
        return way.along(record, lambda: self.budget.forget(before))

    def _noted(self, found: Found) -> LinearOperator:
        recorded, served, route = found
        self.served += served
        self.routes.add(route)
        return recorded
