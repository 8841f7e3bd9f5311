"""The derivative of a function, by recordings of A v and A'u."""

from __future__ import annotations

import torch
from torch import Tensor

from frechet.operators._operator import Fact, LinearOperator
from frechet.operators._structured import FromCallable
from frechet.operators.derivatives._function import FunctionHessian, FunctionJacobian
from frechet.operators.derivatives._products import Sums, columns
from frechet.recording._budget import Budget
from frechet.recording._recordings import Plain, Product, Recordings, Served, play
from frechet.space import Space


def recorded_function(
    A: FunctionHessian | FunctionJacobian, budget: Budget
) -> tuple[LinearOperator, list[tuple[Served, ...]], str]:
    """The operator by its recording or by its own products, how its one batch is served, and the route."""

    def push(v: list[Tensor]) -> list[Tensor]:
        return [A._matmat(v[0].unsqueeze(1))[:, 0]]

    def pull(u: list[Tensor]) -> list[Tensor]:
        return [A._rmatmat(u[0].unsqueeze(1))[:, 0]]

    def flat(space: Space) -> Space:
        return Space(("",), ((space.dim,),), space.dtype, space.device)

    def played(served: Served, space: Space, V: Tensor) -> Tensor:
        assert not isinstance(served, Plain)
        rows: list[list[Tensor]] = [[] for _ in range(V.shape[1])]
        play(served, [], columns(space, V), space, Sums(rows))
        return torch.stack([row for [row] in rows]).T

    budget.hold_apart(A.x)
    inputs, outputs = flat(A.domain), flat(A.codomain)
    with torch.no_grad():
        forward = transposed = Recordings(budget, inputs).serve(Product("push", (), lambda _: push, push))
        if Fact.SYMMETRIC not in A.facts:
            transposed = Recordings(budget, outputs).serve(Product("pull", (), lambda _: pull, pull))
    kept = FromCallable(
        A._matmat if isinstance(forward, Plain) else lambda V: played(forward, inputs, V),
        A._rmatmat if isinstance(transposed, Plain) else lambda U: played(transposed, outputs, U),
        A.domain,
        A.codomain,
        A.facts,
    )
    return kept, [(forward, transposed)], A.route
