"""Entropic transport as a differentiable function: its value twice, its plan and its potentials once.

The gradient of the value is known at the solution, without a system (the envelope theorem):

    dV/dC = P,    dV/da = f,    dV/db = g

Its derivatives, and those of the plan, follow from the marginal equations of (f, g) by the implicit function theorem.
The adjoint is one system with the Hessian of the dual function at the solution; f is eliminated, the diagonal of what
remains is summed without cancellation, and the residual is recomputed.

**Source.** J. Feydy et al. (2019), Interpolating between optimal transport and MMD using Sinkhorn divergences, arXiv
1810.08278 (gradients are potentials); M. Cuturi, L. Meng-Papaxanthos, Y. Tian, C. Bunne, G. Davis and O.
Teboul (2022), Optimal transport tools, arXiv 2201.12324 (implicit differentiation of the marginal equations).

**Cost.** The run of `sinkhorn`. The gradient of the value: nothing. An adjoint: one Cholesky factorization of the
smaller side up to 4096, conjugate gradients beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frechet.errors import NotConverged
from frechet.operators.structured import from_diagonal
from frechet.solve.cg import cg
from frechet.solve.transport.newton import DENSE
from frechet.solve.transport.problem import Inputs, Problem, all_potentials, balanced, checked, reduced
from frechet.solve.transport.reduced_hessian import ReducedHessian, reduced_hessian
from frechet.solve.transport.sinkhorn import sinkhorn

RIDGE = 64  # in units of rounding: what keeps the factorization positive
REFINEMENTS = 8


@dataclass(frozen=True, eq=False)
class _Solved:
    """The solution from which derivatives are taken."""

    given: Inputs
    problem: Problem
    f: Tensor  # of all rows
    g: Tensor
    dual_value: float


def transport_value(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> Tensor:
    """min <C, P> + epsilon KL(P | a b'/m) over the plans from a to b, as a scalar that autograd sees through, twice.

    The arguments are those of `sinkhorn`, and so is what they mean; a run that does not converge raises `NotConverged`.
    The gradients are P for the cost and the potentials for a and b. Masses can change only together, so those two are
    known up to a constant c added to one and taken from the other; here sum a f = sum b g. The number returned is the
    dual value.

    Example:
        >>> import torch
        >>> from frechet import transport_value
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> transport_value(cost, epsilon=0.5).backward()
        >>> t = 1 / (1 + torch.exp(torch.tensor(-2.0, dtype=torch.float64)))
        >>> torch.allclose(cost.grad.diagonal(), t / 2)
        True
    """
    a, b = _given(cost, a, b)
    return _Value.apply(cost, a, b, _solved("transport_value", cost, a, b, epsilon, rtol))  # pyright: ignore[reportReturnType]


def transport_potentials(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> tuple[Tensor, Tensor]:
    """The potentials f ``(n,)`` and g ``(m,)``, which autograd sees through once. See `transport_plan`."""
    a, b = _given(cost, a, b)
    return _potentials(cost, a, b, _solved("transport_potentials", cost, a, b, epsilon, rtol))


def transport_plan(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> Tensor:
    """The plan P ``(n, m)`` of entropic transport, which autograd sees through once.

    The arguments are those of `sinkhorn`; a run that does not converge raises `NotConverged`. Gradients for a and b are
    meant for changes that keep their sums equal. The adjoint system is solved to a residual of eps^(2/3) or raises
    `NotConverged`: where epsilon is so small that the plan all but falls into pieces, its derivative grows without
    bound.

    Example:
        >>> import torch
        >>> from frechet import transport_plan
        >>> cost = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        >>> transport_plan(cost, epsilon=0.5)[0, 0].backward()
        >>> (16 * cost.grad).round(decimals=9)  # c = C_00 + C_11 - C_01 - C_10, P_00 = 1 / (2 + 2 exp(c / 2 epsilon))
        tensor([[-2.,  2.],
                [ 2., -2.]], dtype=torch.float64)
    """
    a, b = _given(cost, a, b)
    return _plan(cost, a, b, _solved("transport_plan", cost, a, b, epsilon, rtol))


def _given(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """The masses, uniform where left out."""
    if not isinstance(cost, Tensor) or cost.ndim != 2 or not cost.numel():
        checked("transport", cost, None, None, 1.0, graph=True)  # raises
    n, m = cost.shape
    fresh = [torch.full((k,), 1.0 / k, dtype=cost.dtype, device=cost.device) for k in (n, m)]
    return fresh[0] if a is None else a, fresh[1] if b is None else b


def _solved(method: str, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, rtol: float | None) -> _Solved:
    given = checked(method, cost, a, b, epsilon, graph=True)
    s = sinkhorn(given.cost, given.a, given.b, epsilon=epsilon, rtol=rtol).checked()
    problem = reduced(given)
    assert isinstance(problem, Problem)  # it has converged
    return _Solved(given, problem, s.f, s.g, s.dual_value)


def _potentials(cost: Tensor, a: Tensor, b: Tensor, s: _Solved) -> tuple[Tensor, Tensor]:
    """All potentials, in the gauge of the solution, differentiable."""
    rows, columns = s.given.rows, s.given.columns
    f, g = _Implicit.apply(cost, a, b, s)  # pyright: ignore[reportGeneralTypeIssues]
    held = Problem(s.problem.cost, a[rows] / s.given.mass, b[columns] / s.given.mass, s.given.epsilon,
                   s.problem.pattern, s.problem.rounding)  # fmt: skip
    f, g = balanced(held, f, g)
    given = Inputs(cost, a, b, s.given.epsilon, s.given.mass, rows, columns)
    return all_potentials(given, held.a, held.b, f, g)


def _plan(cost: Tensor, a: Tensor, b: Tensor, s: _Solved) -> Tensor:
    return _plan_at(cost, a, b, *_potentials(cost, a, b, s), s)


def _plan_at(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, s: _Solved) -> Tensor:
    return torch.outer(a, b) / ((a.sum() + b.sum()) / 2) * _ratio(cost, a, b, f, g, s)


def _ratio(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, s: _Solved) -> Tensor:
    """exp((f + g - C) / epsilon): the plan over a b'/m, also where that is zero; 0 where no plan has mass."""
    E = (f.unsqueeze(1) + g - cost) / s.given.epsilon
    empty = (a == 0).unsqueeze(1) & (b == 0)
    if s.problem.pattern is not None:
        empty = empty.index_put((s.given.rows.unsqueeze(1), s.given.columns), ~s.problem.pattern.allowed)
    return torch.exp(torch.where(empty, -math.inf, E))


class _Value(torch.autograd.Function):
    """The value, whose gradient is the solution."""

    @staticmethod
    def forward(ctx, cost: Tensor, a: Tensor, b: Tensor, s: _Solved) -> Tensor:
        ctx.save_for_backward(cost, a, b)
        ctx.solved = s
        return cost.new_tensor(s.dual_value)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        cost, a, b = ctx.saved_tensors
        f, g = _potentials(cost, a, b, ctx.solved)
        return grads[0] * _plan_at(cost, a, b, f, g, ctx.solved), grads[0] * f, grads[0] * g, None


class _Implicit(torch.autograd.Function):
    """Potentials of rows and columns with mass, by their equations sum_j b_j (E_ij - 1) = sum_i a_i (E_ij - 1) = 0."""

    @staticmethod
    def forward(ctx, cost: Tensor, a: Tensor, b: Tensor, s: _Solved) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cost, a, b)
        ctx.solved = s
        return s.f[s.given.rows], s.g[s.given.columns]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        s, (cost, a, b) = ctx.solved, ctx.saved_tensors
        rows, columns, m, eps = s.given.rows, s.given.columns, s.given.mass, s.given.epsilon
        E = _ratio(cost, a, b, s.f, s.g, s)
        P = torch.outer(s.problem.a, s.problem.b) * E[rows][:, columns]
        x, y = (eps / m * z for z in adjoint(P, grads[0], grads[1]))
        of_cost = torch.zeros_like(cost)
        of_cost[rows.unsqueeze(1), columns] = m / eps * P * (x.unsqueeze(1) + y)
        of_a = -((E[:, columns] - 1) @ (s.problem.b * y))
        of_b = -((E[rows] - 1).T @ (s.problem.a * x))
        return of_cost, of_a, of_b, None


def adjoint(P: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) with [diag(P1) P; P' diag(P'1)] (x, y) = (p, q), for p and q with equal sums in each component."""
    if P.shape[1] > P.shape[0]:
        y, x = adjoint(P.T.contiguous(), q, p)
        return x, y
    a, b = P.sum(1), P.sum(0)
    S = reduced_hessian(P, a, b, 0.0, 0.0)
    space, r = S.domain, q - P.T @ (p / a)
    size, tolerance = float(space.norm(r)), space.eps ** (2 / 3)
    if P.shape[1] > DENSE:
        s = cg(S, r, preconditioner=from_diagonal(1 / S.diagonal()), rtol=tolerance, check_every=8)
        y, left = s.x, s.residual
    else:
        y, left = _refined(P, a, b, S, r, tolerance * size)
    # what cancels in r = q - P'(p / a) is not there to be solved for
    scale = size + space.eps * float(space.norm(q.abs() + P.T @ (p.abs() / a)))
    if not left <= max(tolerance * size, 16 * scale * space.eps):
        raise NotConverged(
            f"transport: the adjoint system left a relative residual of {left / max(size, 1e-300):.3g}, above "
            f"{tolerance:.3g}: the plan all but falls into pieces at this epsilon; raise epsilon, or use float64",
            y,
        )
    return (p - P @ y) / a, y


def _refined(P: Tensor, a: Tensor, b: Tensor, S: ReducedHessian, r: Tensor, target: float) -> tuple[Tensor, float]:
    """S y = r by a Cholesky factorization of S with a slight ridge, refined with S itself."""
    W = P.T @ (P / a.unsqueeze(1))
    W.fill_diagonal_(0)
    ridge = RIDGE * S.domain.eps
    M = torch.diag(W.sum(1) + ridge * b) - W
    factor, failed = torch.linalg.cholesky_ex(M)
    if bool(failed):
        factor = torch.linalg.cholesky(M + torch.diag(1e3 * ridge * b))
    y, left, residual = torch.zeros_like(r), float(S.domain.norm(r)), r
    for _ in range(REFINEMENTS):
        if left <= target:
            break
        new = y + torch.cholesky_solve(residual.unsqueeze(1), factor)[:, 0]
        new = new - new.mean()
        residual = r - S @ new
        norm = float(S.domain.norm(residual))
        if not norm < left:
            break
        y, left = new, norm
    return y, left
