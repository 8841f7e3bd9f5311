"""Linearizations: an operator whose products are recorded, and no longer compute what does not depend on the vector.

The product on a batch is recorded once (`tape.py`), as two tapes: one makes, from the batch and the parameters, all
that the vector does not touch, the other applies it. What the first makes is kept for as many batches as memory allows:
then a Hessian product costs 1.2 to 2.1 gradients instead of 2.6 to 3.3, Gauss-Newton 0.9 to 1.4 instead of 1.8 to 2.2.
For the other batches it is made anew at each product: 1.9 to 3.1 gradients, and 1.5 to 1.8. Batches that look the same
are served by one recording, unless the model decides by the numbers in them.

Products are recorded in reverse mode, unless a Hessian has convolutions whose kept batch exceeds `SMALL`: their second
backward computes what nobody needs, and forward over reverse does not. Small batches are played back for `TOGETHER`
vectors at once where the operations allow it: there the calls cost more than the arithmetic.

**Cost:** linearizing takes 6 to 14 gradients, a comparison with a product included, and about one for each further
batch that looks the same and is kept; memory per kept batch 2 to 3 times what a gradient keeps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from torch import Tensor

from frechet.errors import NotDifferentiable
from frechet.operators.function import FunctionHessian, FunctionJacobian
from frechet.operators.gauss_newton import OutputProduct
from frechet.operators.hessian import ObjectiveHessian
from frechet.operators.jacobian import OutputJacobian
from frechet.operators.kept import Room
from frechet.operators.kept_jacobian import kept_function, kept_jacobian
from frechet.operators.kept_product import kept_product
from frechet.operators.memory import free_memory
from frechet.operators.operator import Adjoint, Fact, LinearOperator, Product, Scaled, Sum
from frechet.operators.script import Untraceable
from frechet.space import Space


@dataclass(frozen=True, eq=False, repr=False)
class Linearized(LinearOperator):
    """`operator` with its products recorded: the same map, faster, holding `bytes` until it is released.

    `route` says how it was recorded; `batches` are kept and `recomputed` did not fit; linearizing took `seconds` and
    is paid back after about `pays_after` products (inf where a product is no faster). Use it as a context manager, or
    call `release()`.
    """

    operator: LinearOperator
    kept: LinearOperator
    room: Room
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
        return self.room.bytes

    @property
    def route(self) -> str:
        """The mode in which products were recorded: "reverse", "forward", or both."""
        return " and ".join(sorted(self.room.routes))

    @property
    def batches(self) -> int:
        """Batches that are kept."""
        return self.room.batches

    @property
    def recomputed(self) -> int:
        """Batches that did not fit, whose products are computed anew each time."""
        return self.room.recomputed

    @property
    def pays_after(self) -> float:
        """The number of products after which linearizing was worth its time, from the first batch's seconds."""
        saved = (self.room.plain - self.room.played) * max(1, self.room.batches)
        return math.inf if saved <= 0 else float(math.ceil(self.seconds / saved))

    def release(self) -> None:
        """Free what is held; products raise from now on."""
        self.room.released = True
        self.room.keep(0)

    def __enter__(self) -> Linearized:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        held = "released" if self.room.released else f"{self.bytes / 2**20:.1f} MiB held"
        some = f", {self.recomputed} batches recomputed" if self.recomputed else ""
        return f"Linearized({self.operator!r}, {self.route}, {self.batches} batches, {held}{some})"

    def _matmat(self, V: Tensor) -> Tensor:
        return self._present()._matmat(V)

    def _rmatmat(self, U: Tensor) -> Tensor:
        return self._present()._rmatmat(U)

    def _present(self) -> LinearOperator:
        if self.room.released:
            raise RuntimeError("Linearized: its memory was released; make another with linearize(A)")
        return self.kept


def linearize(A: LinearOperator, memory: int | None = None, compile: bool = False) -> Linearized:
    """`A` with its products recorded: for many products with a Hessian, Gauss-Newton, Fisher, Jacobian or NTK.

    Sums, products, multiples and transposes of these are linearized factor by factor; other operators in them stay as
    they are. `memory` is the most bytes to hold (default: half of what is free): batches are kept in data order until
    the next would exceed it, the rest are computed anew at each product from the data, which must stay the same; with
    0, all. ``compile=True`` passes the recorded code through torch.compile: seconds of compilation, and on the CPU
    nothing gained where we measured it. Random draws (dropout masks, labels of a Monte Carlo Fisher) are frozen.

    Raises NotDifferentiable where products are not one fixed sequence of PyTorch operations, and MemoryError where no
    batch fits and none can be computed anew (one that draws random numbers, or has a chunked head); then use `A`.

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
    start = time.perf_counter()
    room = Room(free_memory(A.domain.device) / 2 if memory is None else memory, compile)
    try:
        kept = _kept(A, room, {})
    except Untraceable as error:
        raise NotDifferentiable(
            f"linearize: products with {A!r} cannot be recorded: {error}; use the operator without linearize"
        ) from None
    if not room.routes:
        raise TypeError(
            f"linearize: A must hold a derivative of an objective or a function, got {A!r}; its products need no "
            "linearization"
        )
    if room.recomputed and not room.tapes:  # a shard may be empty
        raise MemoryError(
            f"linearize: memory must hold the linearization of one batch at least, got {int(room.most)} bytes for "
            f"{A!r}{room.why}; use smaller batches or the operator itself"
        )
    return Linearized(A, kept, room, time.perf_counter() - start)


def _kept(A: LinearOperator, room: Room, done: dict[int, LinearOperator]) -> LinearOperator:
    """A with every derivative in it replaced by its kept form; one operator gets one form, wherever it stands."""
    if id(A) not in done:
        match A:
            case ObjectiveHessian() | OutputProduct():
                done[id(A)] = kept_product(A, room)
            case OutputJacobian():
                done[id(A)] = kept_jacobian(A, room)
            case FunctionHessian() | FunctionJacobian():
                done[id(A)] = kept_function(A, room)
            case Linearized():
                raise TypeError(f"linearize: A must not be linearized already, got {A!r}")
            case Scaled(c, B):
                done[id(A)] = Scaled(c, _kept(B, room, done))
            case Sum(terms):
                done[id(A)] = Sum(tuple(_kept(B, room, done) for B in terms))
            case Product(factors):
                done[id(A)] = Product(tuple(_kept(B, room, done) for B in factors))
            case Adjoint(B):
                done[id(A)] = Adjoint(_kept(B, room, done))
            case _:
                done[id(A)] = A
    return done[id(A)]
