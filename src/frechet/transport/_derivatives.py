"""Entropic transport as a differentiable function: its value, its plan and its potentials, to any order.

The gradient of the value is known at the solution, without a system (the envelope theorem):

    dV/dC = P,    dV/da = f,    dV/db = g

All other derivatives follow from the marginal equations of (f, g) by the implicit function theorem. On the rows and
columns with mass, with E = exp((f + g - C) / epsilon) and Q_ij = a_i b_j E_ij:

    [diag(Q1) Q; Q' diag(Q'1)] (df, dg) = [(Q dC) 1; (Q dC)' 1] - epsilon [a (E - 1) db; b (E - 1)' da]

The system is the Hessian of the dual function at the solution. f is eliminated, the diagonal of what remains is summed
without cancellation, and the residual is recomputed. Its solution is a node of the graph, whose derivative is the
solution of the same system. `Nested` makes all of it a function for reverse mode, forward mode and `torch.func`.

**Source.** J. Feydy et al. (2019), Interpolating between optimal transport and MMD using Sinkhorn divergences, arXiv
1810.08278 (gradients are potentials); M. Cuturi, L. Meng-Papaxanthos, Y. Tian, C. Bunne, G. Davis and O.
Teboul (2022), Optimal transport tools, arXiv 2201.12324 (implicit differentiation of the marginal equations).

**Cost.** The run of `sinkhorn`. The gradient of the value: one plan. A direction of another derivative: one Cholesky
factorization of the smaller side up to 4096, conjugate gradients beyond. Under `vmap` problems are solved one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frechet.calculus.solutions._plain_function import Nested, one_by_one
from frechet.errors import NotConverged
from frechet.linalg.systems._cg import cg
from frechet.operators._constructors import from_diagonal
from frechet.transport._newton import DENSE
from frechet.transport._problem import Inputs, Problem, all_potentials, balanced, checked, reduced
from frechet.transport._reduced_hessian import ReducedHessian, reduced_hessian
from frechet.transport._sinkhorn import sinkhorn

RIDGE = 64  # in units of rounding: what keeps the factorization positive
REFINEMENTS = 8


def transport_value(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> Tensor:
    """Return min <C, P> + epsilon KL(P | a b'/m) over plans, a scalar that autograd sees through, to any order.

    The gradients are P for the cost and the potentials for a and b. Masses can change only together, so those two are
    known up to a constant c added to one and taken from the other; here sum a f = sum b g. The number returned is the
    dual value.

    Args:
        cost: what it costs to carry a unit of mass from row i to column j, ``(n, m)``. A cost of inf forbids a pair.
        a: the masses of the rows, ``(n,)``, >= 0. Default: uniform, with sum 1.
        b: the masses of the columns, ``(m,)``, with the sum of a. Default: uniform, with sum 1.
        epsilon: the weight of the entropy, > 0, in the unit of the cost.
        rtol: relative tolerance of `sinkhorn`. Default: the one there.

    Raises:
        NotConverged: `sinkhorn` did not converge.

    Example:
        >>> import torch
        >>> from frechet.transport import transport_value
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> transport_value(cost, epsilon=0.5).backward()
        >>> t = 1 / (1 + torch.exp(torch.tensor(-2.0, dtype=torch.float64)))
        >>> torch.allclose(cost.grad.diagonal(), t / 2)
        True
    """
    return _solved(_value, _Settings("transport_value", epsilon, rtol), cost, a, b)[0]


def transport_potentials(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the potentials f ``(n,)`` and g ``(m,)``, which autograd sees through.

    Args:
        cost: costs ``(n, m)``. This and the other arguments are those of `transport_plan`.
        a: masses ``(n,)``.
        b: masses ``(m,)``.
        epsilon: the weight of the entropy, > 0, in the unit of the cost.
        rtol: relative tolerance of `sinkhorn`.
    """
    f, g = _solved(_potentials, _Settings("transport_potentials", epsilon, rtol), cost, a, b)
    return f, g


def transport_plan(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, *, epsilon: float, rtol: float | None = None
) -> Tensor:
    """Return the plan P ``(n, m)`` of entropic transport, which autograd sees through, to any order.

    Gradients for a and b are meant for changes that keep their sums equal.

    Args:
        cost: what it costs to carry a unit of mass from row i to column j, ``(n, m)``. A cost of inf forbids a pair.
        a: the masses of the rows, ``(n,)``, >= 0. Default: uniform, with sum 1.
        b: the masses of the columns, ``(m,)``, with the sum of a. Default: uniform, with sum 1.
        epsilon: the weight of the entropy, > 0, in the unit of the cost.
        rtol: relative tolerance of `sinkhorn`. Default: the one there.

    Raises:
        NotConverged: `sinkhorn` did not converge, or the adjoint system was not solved to a residual of eps^(2/3):
            where epsilon is so small that the plan all but falls into pieces, its derivative grows without bound.

    Example:
        >>> import torch
        >>> from frechet.transport import transport_plan
        >>> cost = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        >>> transport_plan(cost, epsilon=0.5)[0, 0].backward()
        >>> (16 * cost.grad).round(decimals=9)  # c = C_00 + C_11 - C_01 - C_10, P_00 = 1 / (2 + 2 exp(c / 2 epsilon))
        tensor([[-2.,  2.],
                [ 2., -2.]], dtype=torch.float64)
    """
    return _solved(_plan, _Settings("transport_plan", epsilon, rtol), cost, a, b)[0]


@dataclass(frozen=True)
class _Settings:
    """What is asked of `sinkhorn`, and by whom."""

    method: str
    epsilon: float
    rtol: float | None


class _Found(torch.autograd.Function):
    """The potentials and the dual value, as numbers without derivatives."""

    @staticmethod
    def forward(settings: _Settings, cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = checked(settings.method, cost, a, b, settings.epsilon, graph=True)
        s = sinkhorn(given.cost, given.a, given.b, epsilon=settings.epsilon, rtol=settings.rtol).checked()
        return s.f, s.g, cost.new_tensor(s.dual_value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *us: Tensor) -> tuple[None, ...]:
        return None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, ...]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return one_by_one(info.batch_size, in_dims[1:], args[1:], lambda *row: _Found.apply(args[0], *row))


def _solved(
    what: Callable[..., list[Tensor]], settings: _Settings, cost: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor, ...]:
    """`what` at the solution, differentiable."""
    if not isinstance(cost, Tensor) or cost.ndim != 2 or not cost.numel():
        checked("transport", cost, None, None, 1.0, graph=True)  # raises
    n, m = cost.shape
    fresh = [torch.full((k,), 1.0 / k, dtype=cost.dtype, device=cost.device) for k in (n, m)]
    a, b = fresh[0] if a is None else a, fresh[1] if b is None else b
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        checked(settings.method, cost, a, b, settings.epsilon, graph=True)  # raises
    found = _Found.apply(settings, cost.detach(), a.detach(), b.detach())
    return Nested.apply(_At(what, settings), cost, a, b, *found)


@dataclass(frozen=True)
class _At:
    """(cost, a, b, f, g, value) -> what is asked for, where the last three are those of the solution."""

    what: Callable[..., list[Tensor]]
    settings: _Settings

    def __call__(self, cost: Tensor, a: Tensor, b: Tensor, *found: Tensor) -> list[Tensor]:
        given = checked(self.settings.method, cost, a, b, self.settings.epsilon, graph=True)
        problem = reduced(given)
        assert isinstance(problem, Problem)  # it has converged
        return self.what(_Solved(given, problem, *(x.detach() for x in found)), cost, a, b)


@dataclass(frozen=True, eq=False)
class _Solved:
    """The solution from which derivatives are taken."""

    given: Inputs
    problem: Problem
    f: Tensor  # of all rows
    g: Tensor
    value: Tensor


def _value(s: _Solved, cost: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    return [_Value.apply(s, cost, a, b)]  # pyright: ignore[reportReturnType]


def _potentials(s: _Solved, cost: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """All potentials, in the gauge of the solution, differentiable."""
    rows, columns = s.given.rows, s.given.columns
    f, g = _Implicit.apply(s, cost, a, b)  # pyright: ignore[reportGeneralTypeIssues]
    held = Problem(s.problem.cost, a[rows] / s.given.mass, b[columns] / s.given.mass, s.given.epsilon,
                   s.problem.pattern, s.problem.rounding)  # fmt: skip
    return [*_everywhere(s, cost, a, b, *balanced(held, f, g))]


def _plan(s: _Solved, cost: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    return [_plan_at(s, cost, a, b, *_potentials(s, cost, a, b))]


def _everywhere(s: _Solved, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """f and g of rows and columns with mass, and of the others."""
    rows, columns = s.given.rows, s.given.columns
    given = Inputs(cost, a, b, s.given.epsilon, s.given.mass, rows, columns)
    return all_potentials(given, a[rows], b[columns], f, g)


def _plan_at(s: _Solved, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    return torch.outer(a, b) / ((a.sum() + b.sum()) / 2) * _ratio(s, cost, a, b, f, g)


def _ratio(s: _Solved, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """exp((f + g - C) / epsilon): the plan over a b'/m, also where that is zero; 0 where no plan has mass."""
    E = (f.unsqueeze(1) + g - cost) / s.given.epsilon
    empty = (a == 0).unsqueeze(1) & (b == 0)
    if s.problem.pattern is not None:
        empty = empty.index_put((s.given.rows.unsqueeze(1), s.given.columns), ~s.problem.pattern.allowed)
    return torch.exp(torch.where(empty, -math.inf, E))


class _Value(torch.autograd.Function):
    """The value, whose gradient is the solution."""

    @staticmethod
    def forward(ctx: Any, s: _Solved, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(cost, a, b)
        ctx.solved = s
        return s.value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        s, (cost, a, b) = ctx.solved, ctx.saved_tensors
        f, g = _potentials(s, cost, a, b)
        return None, grads[0] * _plan_at(s, cost, a, b, f, g), grads[0] * f, grads[0] * g


class _Implicit(torch.autograd.Function):
    """Potentials of rows and columns with mass, by their equations sum_j b_j (E_ij - 1) = sum_i a_i (E_ij - 1) = 0."""

    @staticmethod
    def forward(ctx: Any, s: _Solved, cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        f, g = s.f[s.given.rows], s.g[s.given.columns]
        ctx.save_for_backward(cost, a, b, f, g)
        ctx.solved = s
        return f, g

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        s, (cost, a, b, f, g) = ctx.solved, ctx.saved_tensors
        rows, columns, epsilon = s.given.rows, s.given.columns, s.given.epsilon
        E = _ratio(s, cost, a, b, *_everywhere(s, cost, a, b, f, g))
        p, q, m = a[rows], b[columns], a.sum()  # the system of a plan of mass one, whatever the unit of mass
        P = torch.outer(p / m, q / m) * E[rows][:, columns]
        x, y = _Balanced.apply(s, P, *grads)  # pyright: ignore[reportGeneralTypeIssues]
        of_cost = torch.zeros_like(cost).index_put((rows.unsqueeze(1), columns), P * (x.unsqueeze(1) + y))
        of_a = -epsilon / m**2 * ((E[:, columns] - 1) @ (q * y))
        of_b = -epsilon / m**2 * ((E[rows] - 1).T @ (p * x))
        return None, of_cost, of_a, of_b


class _Balanced(torch.autograd.Function):
    """(x, y) = H^+ (p, q) for H = [diag(P1) P; P' diag(P'1)], which in each component has the null vector (1, -1)."""

    @staticmethod
    def forward(ctx: Any, s: _Solved, P: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        x, y = _projected(s, *adjoint(P, *_projected(s, p, q)))
        ctx.save_for_backward(P, x, y)
        ctx.solved = s
        return x, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        P, x, y = ctx.saved_tensors
        u, v = _Balanced.apply(ctx.solved, P, *grads)  # pyright: ignore[reportGeneralTypeIssues]
        return None, -(u.unsqueeze(1) + v) * (x.unsqueeze(1) + y), u, v


def _projected(s: _Solved, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) with equal sums in each component: what is orthogonal to the null vectors."""
    pattern = s.problem.pattern
    if pattern is None:
        t = (p.sum() - q.sum()) / (len(p) + len(q))
        return p - t, q + t
    zero = p.new_zeros(pattern.count)
    size = zero.index_add(0, pattern.row, torch.ones_like(p)).index_add(0, pattern.column, torch.ones_like(q))
    t = zero.index_add(0, pattern.row, p).index_add(0, pattern.column, -q) / size
    return p - t[pattern.row], q + t[pattern.column]


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
