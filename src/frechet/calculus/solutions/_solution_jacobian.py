"""The derivative of a solution with respect to an input, as an operator: D = -(dF/dx)^{-1} dF/dtheta.

Products both ways, each a linear solve and a product; D is never formed. Rank, singular values and norms of the
response of a solution follow from it (`svds`, `frobenius_norm`), and ``D.T @ D`` is a Gauss-Newton matrix through a
solver.

**Source.** As for `implicit`.
**Cost** of a column: one solve (`_sensitivity.py`), one or two gradients of F; per block two evaluations of F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from frechet.calculus.solutions._conditions import Conditions, as_conditions
from frechet.calculus.solutions._equations import (
    Equations,
    Layout,
    at_solution,
    check_solution,
    check_status,
    complete,
    point_of,
    tensors_among,
)
from frechet.calculus.solutions._plain_function import opened_for_gradients
from frechet.calculus.solutions._sensitivity import GraphJacobian, Method, Preconditioner, Rules, solved
from frechet.linalg._result import Solution
from frechet.operators._operator import NONE, Fact, LinearOperator
from frechet.operators.derivatives._products import second_order
from frechet.space import Point, Space, named


@dataclass(frozen=True, eq=False, repr=False)
class SolutionJacobian(LinearOperator):
    """dx/dtheta at one solution. `moved` are the places of theta among the tensors `args` of the equations."""

    equations: Equations
    args: list[Tensor]
    unknowns: int
    moved: range
    domain: Space
    codomain: Space

    @property
    def facts(self) -> frozenset[Fact]:
        return NONE

    def _matmat(self, V: Tensor) -> Tensor:
        A = self._operator()
        right = -self._response(A.domain)._matmat(V)
        return solved(A, right, self.equations.rules, "solution_jacobian")[: self.codomain.dim]

    def _rmatmat(self, U: Tensor) -> Tensor:
        A = self._operator()
        filled = A.domain.zeros(U.shape[1])
        filled[: self.codomain.dim] = U
        W = solved(A, filled, self.equations.rules, "solution_jacobian transposed", transposed=True)
        return -self._response(A.domain)._rmatmat(W)

    def _operator(self) -> LinearOperator:
        return self.equations.jacobian(self.args, self.unknowns, "solution_jacobian")

    def _response(self, unknowns: Space) -> GraphJacobian:
        """dF/dtheta."""
        with second_order("solution_jacobian", self.domain.device), torch.enable_grad():
            opened = opened_for_gradients(self.args, self.moved)
            ys = self.equations.residual(*opened)
        return GraphJacobian(ys, [opened[i] for i in self.moved], self.domain, unknowns)


def solution_jacobian(
    conditions: Conditions | Callable[..., Point],
    x: Point,
    *inputs: object,
    wrt: int = 0,
    method: Method = "auto",
    preconditioner: Preconditioner | None = None,
    rtol: float | None = None,
    max_iterations: int | None = None,
    tolerance: float = 1e-3,
    batch: bool = False,
    strict: bool = True,
    observe: Callable[[Solution], object] | None = None,
) -> LinearOperator:
    """Return the operator dx / d(inputs[wrt]) of the solution x at these inputs, from conditions that hold there.

    Its domain has the shape of ``inputs[wrt]``, a tensor or a dict of tensors, and its codomain that of x. Products
    raise `NotConverged` where a linear system does not converge.

    Args:
        conditions: as in `implicit`.
        x: the solution, or the result that holds it.
        inputs: the inputs of the conditions.
        wrt: the number of the input that varies.
        method: as in `implicit`.
        preconditioner: as in `implicit`.
        rtol: as in `implicit`.
        max_iterations: as in `implicit`.
        tolerance: as in `implicit`.
        batch: as in `implicit`.
        strict: with True, a result `x` that is not converged raises `NotConverged`.
        observe: as in `implicit`.

    Example:
        >>> import torch
        >>> from frechet.calculus import kkt_conditions, solution_jacobian
        >>> total = kkt_conditions(lambda x, y: ((x - y) ** 2).sum(), equality=lambda x, y: x.sum() - 1)
        >>> y = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
        >>> D = solution_jacobian(total, y - (y.sum() - 1) / 3, y)  # the projection along (1, 1, 1)
        >>> (3 * D.dense()).round(decimals=9)
        tensor([[ 2., -1., -1.],
                [-1.,  2., -1.],
                [-1., -1.,  2.]], dtype=torch.float64)
    """
    if strict:
        check_status("solution_jacobian", x)
    x = point_of(x)
    given = as_conditions("solution_jacobian", conditions)
    rules = Rules(method, preconditioner, rtol, max_iterations, batch, strict, observe).checked("solution_jacobian")
    if not 0 <= wrt < len(inputs):
        raise ValueError(f"solution_jacobian: wrt must be the number of one of {len(inputs)} inputs, got {wrt}")
    theta = inputs[wrt]
    if not isinstance(theta, Tensor) and not (
        isinstance(theta, Mapping) and all(isinstance(t, Tensor) for t in theta.values())
    ):
        raise TypeError(
            f"solution_jacobian: inputs[{wrt}] must be a tensor or a dict of tensors, got {type(theta).__name__}"
        )
    tensors, rebuilt = tensors_among(inputs)
    if any(t.requires_grad for t in [*tensors, *tensors_among(x)[0]]):
        raise ValueError(
            "solution_jacobian: x and inputs must not require grad: an operator carries no graph; use implicit, or "
            "detach them"
        )
    first = len(tensors_among(inputs[:wrt])[0])
    layout = Layout()
    equations = at_solution(given, rules, rebuilt, layout)
    p = [t.clone() for t in tensors]
    z = complete(given, x, rebuilt(p), None, layout, batch)
    args = [*z, *p]
    check_solution("solution_jacobian", equations, args, layout, given.name, tolerance)
    domain = Space.of(named(theta))
    moved = range(len(z) + first, len(z) + first + len(domain.names))
    unknowns = len(layout.names) + len(layout.multipliers)
    codomain = Space.of(dict(zip(layout.names, z, strict=False)))
    return SolutionJacobian(equations, args, unknowns, moved, domain, codomain)
